"""Stage `pseudo_label`: what the semi-supervised model says of every image, kept by sample_id."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.parallel import map_items
from pipeline.pixels import Pixels
from pipeline.predictor import ROWS_PER_TASK, load_predictor
from pipeline.resources import Resources
from pipeline.ssl import SslConfig
from pipeline.stage import Artifact, Output, Part, Progress, write_table_part


class PseudoLabelConfig(Config):
    """labelled_rows: what the proxy trains on where a label was paid for, that label or the model's."""

    labelled_rows: Literal["ground_truth", "model"] = "ground_truth"


def run(
    inputs: Mapping[str, Artifact], config: PseudoLabelConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Predict the pool; part: sample_id, pseudo_label, confidence, margin (first minus second), train_label.

    inputs: pixels, split, ssl. Metrics: agreement with the held-out labels, which the model has not seen.
    """
    num_samples = inputs["pixels"].metrics["num_samples"]
    starts = list(range(0, num_samples, ROWS_PER_TASK))
    predict = partial(
        _predict,
        pixels=inputs["pixels"],
        split=inputs["split"],
        ssl=inputs["ssl"],
        labelled_rows=config.labelled_rows,
        uri=out.uri,
        resources=resources,
    )
    parts = map_items(
        starts,
        predict,
        resources=resources,
        progress=progress,
        unit="parts",
        cpus=resources.cpus_per_worker,
        gpus=resources.gpus_per_worker,
    )
    for part in parts:
        out.add(Part(**part))
    artifact = Artifact(out.uri, {"parts": [vars(part) for part in out.parts]})
    return _check(artifact.table(), inputs["split"].table())


def _check(predicted: pa.Table, split: pa.Table) -> dict[str, Any]:
    holdout = split.filter(pc.equal(split["role"], "holdout"))
    ids, truth = holdout["sample_id"].to_numpy(), holdout["label"].to_numpy()
    assert np.array_equal(predicted["sample_id"].to_numpy(), np.arange(predicted.num_rows))
    right = predicted["pseudo_label"].to_numpy()[ids] == truth
    return {
        "num_samples": predicted.num_rows,
        "num_holdout": len(ids),
        "holdout_correct": int(right.sum()),
        "holdout_accuracy": float(right.mean()) if len(ids) else None,
        "holdout_per_class": {
            str(label): [int(right[truth == label].sum()), int((truth == label).sum())] for label in np.unique(truth)
        },
        "mean_confidence": float(predicted["confidence"].to_numpy().astype(np.float64).mean()),
    }


def train_labels(pseudo_label: Artifact, low: int, high: int) -> NDArray[np.int64]:
    """What the proxy is trained on for ids low..high-1, int64 [high - low]; other parts of the stage are not read."""
    parts = pseudo_label.parts()
    starts = np.cumsum([0, *(part.rows for part in parts)])
    here = [part for part, start in zip(parts, starts, strict=False) if start < high and start + part.rows > low]
    table = pa.concat_tables([pseudo_label.read_table(part, ["sample_id", "train_label"]) for part in here])
    ids, labels = table["sample_id"].to_numpy(), table["train_label"].to_numpy()
    found: NDArray[np.int64] = labels[low - ids[0] : high - ids[0]]
    assert ids[0] <= low and len(found) == high - low
    return found


def _predict(
    start: int, pixels: Artifact, split: Artifact, ssl: Artifact, labelled_rows: str, uri: str, resources: Resources
) -> dict[str, Any]:
    """One task: ids `start` .. `start + ROWS_PER_TASK - 1`."""
    import torch

    images = Pixels.open(pixels)
    ids = np.arange(start, min(start + ROWS_PER_TASK, len(images)), dtype=np.int64)
    predictor = load_predictor(ssl, SslConfig, resources)
    probabilities = torch.softmax(predictor.predict(images.take(ids)), dim=1)
    top, order = probabilities.topk(2, dim=1)
    pseudo_label = order[:, 0].numpy().astype(np.int64)
    train_label = pseudo_label.copy()
    if labelled_rows == "ground_truth":
        known = split.table()
        known_ids, known_labels = known["sample_id"].to_numpy(), known["label"].to_numpy()
        here = (known_ids >= ids[0]) & (known_ids <= ids[-1])
        train_label[known_ids[here] - start] = known_labels[here]
    table = pa.table(
        {
            "sample_id": ids,
            "pseudo_label": pseudo_label,
            "confidence": top[:, 0].numpy(),
            "margin": (top[:, 0] - top[:, 1]).numpy(),
            "train_label": train_label,
        }
    )
    return vars(write_table_part(uri, f"part-{start // ROWS_PER_TASK:06d}", table))
