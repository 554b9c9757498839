"""Stage `pseudo_label` without labels: the cluster of every sample, in the place of its class."""

import json
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.clustering import ClusterConfig
from pipeline.config import Config
from pipeline.embeddings import read_block
from pipeline.parallel import map_items
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Part, Progress, write_table_part

if TYPE_CHECKING:
    from models.temi import TemiPredictor


class ClusterLabelConfig(Config):
    """No settings: the head is the stage cluster's."""


def run(
    inputs: Mapping[str, Artifact], config: ClusterLabelConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Assign the pool; part: as `pipeline.pseudo_label` has them, with train_label always the cluster, whose number has
    nothing to do with that of a class.

    inputs: encode, cluster. Metrics: those of `pipeline.pseudo_label`.
    """
    encode, cluster = inputs["encode"], inputs["cluster"]
    items = list(enumerate(encode.parts()))
    assign = partial(_assign, encode=encode, cluster=cluster, uri=out.uri)
    confidence = 0.0
    for part, total in map_items(items, assign, resources=resources, progress=progress, unit="parts"):
        out.add(part)
        confidence += total
    num_samples = sum(part.rows for part in out.parts)
    return {"num_samples": num_samples, "mean_confidence": confidence / num_samples}


def are_clusters(pseudo_label: Artifact) -> bool:
    """Whether the labels of a finished stage `pseudo_label` are numbers of clusters, and not classes."""
    return "cluster" in pseudo_label.manifest["inputs"]


def _assign(item: tuple[int, Part], encode: Artifact, cluster: Artifact, uri: str) -> tuple[Part, float]:
    """One task: the samples of one file of embeddings; what it wrote, and the sum of the confidences."""
    number, source = item
    low = sum(part.rows for part in encode.parts()[:number])
    (model,) = cluster.parts("model")
    place = storage.join(cluster.uri, model.name)
    predictor = _load(place, model.sha256, json.dumps(cluster.manifest["config"]))
    top, order = predictor.predict(read_block(encode, source)).topk(2, dim=1)
    label = order[:, 0].numpy().astype(np.int64)
    table = pa.table(
        {
            "sample_id": np.arange(low, low + source.rows),
            "pseudo_label": label,
            "confidence": top[:, 0].numpy(),
            "margin": (top[:, 0] - top[:, 1]).numpy(),
            "train_label": label,
        }
    )
    return write_table_part(uri, f"part-{number:06d}", table), float(top[:, 0].double().sum())


@lru_cache(maxsize=1)
def _load(place: str, checksum: str, settings: str) -> "TemiPredictor":
    """Once per process."""
    import torch

    from models.temi import TemiPredictor

    config = ClusterConfig.model_validate_json(settings)
    return TemiPredictor(config.training, storage.read_verified(place, checksum), torch.device("cpu"))
