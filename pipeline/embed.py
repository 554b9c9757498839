"""Stage `embed`: what the trained proxy makes of every image, for methods that look at distances."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from pipeline import ingest
from pipeline.config import Config
from pipeline.dynamics import DynamicsPart, DynamicsWriter
from pipeline.epoch_plan import in_order
from pipeline.parallel import map_items
from pipeline.predictor import ROWS_AT_A_TIME, ROWS_PER_TASK, load_predictor
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

    inputs: index, pseudo_label, proxy.
    """
    num_samples = inputs["index"].metrics["num_samples"]
    uri = f"{out.uri}/dynamics"
    look = partial(
        _embed,
        index=inputs["index"],
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
    ids: tuple[int, int], index: Artifact, pseudo_label: Artifact, proxy: Artifact, uri: str, resources: Resources
) -> DynamicsPart:
    """One task: the images of ids [low, high)."""
    low, high = ids
    images = ingest.open_images(index, resources)
    predictor = load_predictor(proxy, ProxyConfig, resources)
    labels = train_labels(pseudo_label, low, high)
    writer = DynamicsWriter(uri, len(images.samples))
    for step in images.steps(in_order(images.samples, np.arange(low, high), ROWS_AT_A_TIME)):
        embeddings, logits = predictor.embed(step.images)
        writer.observe(step.ids, logits, labels[step.ids - low], embeddings)
    return writer.flush(0)
