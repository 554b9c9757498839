"""Stage `embed`: what the trained proxy makes of every image, for methods that look at distances."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.dynamics import DynamicsPart, DynamicsWriter
from pipeline.parallel import map_items
from pipeline.pixels import Pixels
from pipeline.predictor import ROWS_PER_TASK, load_predictor
from pipeline.proxy import ProxyConfig
from pipeline.pseudo_label import train_labels
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Progress


class EmbedConfig(Config):
    """No settings: the network is the proxy's."""


def run(
    inputs: Mapping[str, Artifact], config: EmbedConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Look at the pool once, in eval mode; a dynamics store of one epoch with embeddings is at `{uri}/dynamics`.

    inputs: pixels, pseudo_label, proxy.
    """
    num_samples = inputs["pixels"].metrics["num_samples"]
    uri = f"{out.uri}/dynamics"
    look = partial(
        _embed,
        pixels=inputs["pixels"],
        pseudo_label=inputs["pseudo_label"],
        proxy=inputs["proxy"],
        uri=uri,
        resources=resources,
    )
    parts = map_items(
        [(start, min(start + ROWS_PER_TASK, num_samples)) for start in range(0, num_samples, ROWS_PER_TASK)],
        look,
        resources=resources,
        progress=progress,
        unit="parts",
        cpus=resources.cpus_per_worker,
        gpus=resources.gpus_per_worker,
    )
    writer = DynamicsWriter(uri, num_samples)
    last = writer.log.latest()
    if last is None:
        last = writer.commit_epoch(0, parts)
    return {"num_samples": num_samples, "width": last.facts["columns"]["embedding"]}


def _embed(
    ids: tuple[int, int], pixels: Artifact, pseudo_label: Artifact, proxy: Artifact, uri: str, resources: Resources
) -> DynamicsPart:
    """One task: the images of ids [low, high)."""
    low, high = ids
    images = Pixels.open(pixels)
    embeddings, logits = load_predictor(proxy, ProxyConfig, resources).embed(images.take(np.arange(low, high)))
    writer = DynamicsWriter(uri, len(images))
    writer.observe(np.arange(low, high), logits, train_labels(pseudo_label, low, high), embeddings)
    return writer.flush(0)
