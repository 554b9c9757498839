"""Stage `pseudo_label`: what the semi-supervised model says of every image, kept by sample_id."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pipeline import ingest
from pipeline.batches import Step
from pipeline.config import Config
from pipeline.epoch_plan import in_order
from pipeline.parallel import map_items
from pipeline.predictor import ROWS_AT_A_TIME, ROWS_PER_TASK, load_predictor
from pipeline.resources import Resources
from pipeline.ssl import SslConfig
from pipeline.stage import Artifact, Output, Part, Progress, write_table_part

if TYPE_CHECKING:
    import torch

    from models.training import Predictor


class PseudoLabelConfig(Config):
    """The `pseudo_label` section of a recipe.

    Held-out rows are never given their label: they are as the unlabelled ones are, so that they can speak for them.
    """

    labelled_rows: Literal["ground_truth", "model"] = Field(
        default="ground_truth",
        description="what the proxy trains on where the model was given the label: that label, or the model's",
    )
    views: int = Field(
        default=1,
        ge=1,
        le=100,
        description="of how many weak views of each image the probabilities are averaged; 1 is the image itself",
    )
    keep: tuple[Literal["probabilities", "embedding"], ...] = Field(
        default=(),
        description="what else is kept of every image, float16, in files of that name: probabilities of all classes, "
        "and the embedding that the model has of it; asked for later, all that follows is trained again",
    )


def run(
    inputs: Mapping[str, Artifact], config: PseudoLabelConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Predict the pool; part: sample_id, pseudo_label, confidence, margin (first minus second), train_label.

    inputs: index, split, ssl. Parts `probabilities` and `embedding`, if they are to be kept: sample_id and a list
    f16[C] or f16[d] of that name. Part `holdout`: sample_id, label, logits f32[C] and features f32[d] of the held-out
    rows, if there are any; neither the model nor the proxy is told their labels. Of several views the logits are the
    logarithm of their mean probabilities, the features their mean.
    """
    num_samples = inputs["index"].metrics["num_samples"]
    starts = list(range(0, num_samples, ROWS_PER_TASK))
    predict = partial(
        _predict,
        index=inputs["index"],
        split=inputs["split"],
        ssl=inputs["ssl"],
        config=config,
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
    for found in parts:
        for part in found:
            out.add(part)
    confidence = Artifact(out.uri, {"parts": [vars(part) for part in out.parts]}).table(columns=["confidence"])
    return {
        "num_samples": confidence.num_rows,
        "mean_confidence": float(confidence["confidence"].to_numpy().astype(np.float64).mean()),
    }


@dataclass(frozen=True)
class Holdout:
    """The held-out rows, by ascending sample_id.

    sample_ids, labels: int64[h]; logits: float32[h, C]; features: float32[h, d].
    """

    sample_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    features: NDArray[np.float32]

    @staticmethod
    def load(pseudo_label: Artifact) -> "Holdout":
        """Of the stage; h is 0 where nothing is held out."""
        if not pseudo_label.parts("holdout"):
            none, nothing = np.empty(0, np.int64), np.empty((0, 0), np.float32)
            return Holdout(none, none, nothing, nothing)
        table = pseudo_label.table("holdout").combine_chunks()
        vectors = [table[name].chunk(0) for name in ("logits", "features")]
        return Holdout(
            table["sample_id"].to_numpy(),
            table["label"].to_numpy(),
            *(column.flatten().to_numpy().reshape(len(column), -1) for column in vectors),
        )


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
    start: int,
    index: Artifact,
    split: Artifact,
    ssl: Artifact,
    config: PseudoLabelConfig,
    uri: str,
    resources: Resources,
) -> list[Part]:
    """One task: ids `start` .. `start + ROWS_PER_TASK - 1`."""
    import torch

    images = ingest.open_images(index, resources)
    ids = np.arange(start, min(start + ROWS_PER_TASK, len(images.samples)), dtype=np.int64)
    predict = partial(_embed, load_predictor(ssl, SslConfig, resources), ssl, config.views)
    steps = images.steps(in_order(images.samples, ids, ROWS_AT_A_TIME))
    features, logits = map(torch.cat, zip(*map(predict, steps), strict=True))
    top, order = torch.softmax(logits, dim=1).topk(2, dim=1)
    pseudo_label = order[:, 0].numpy().astype(np.int64)
    train_label = pseudo_label.copy()
    if config.labelled_rows == "ground_truth":
        known, labels = _labelled(split, "train", ids)
        train_label[known - start] = labels
    table = pa.table(
        {
            "sample_id": ids,
            "pseudo_label": pseudo_label,
            "confidence": top[:, 0].numpy(),
            "margin": (top[:, 0] - top[:, 1]).numpy(),
            "train_label": train_label,
        }
    )
    number = start // ROWS_PER_TASK
    parts = [write_table_part(uri, f"part-{number:06d}", table)]
    for name in config.keep:
        rows = torch.softmax(logits, dim=1) if name == "probabilities" else features
        table = pa.table({"sample_id": ids, name: _vectors(rows.half().numpy())})
        parts.append(write_table_part(uri, f"{name}-{number:06d}", table))
    held, labels = _labelled(split, "holdout", ids)
    if len(held):
        vectors = {name: _vectors(x.numpy()[held - start]) for name, x in (("logits", logits), ("features", features))}
        table = pa.table({"sample_id": held, "label": labels, **vectors})
        parts.append(write_table_part(uri, f"holdout-{number:06d}", table))
    return parts


def _embed(predictor: "Predictor", ssl: Artifact, views: int, step: Step) -> "tuple[torch.Tensor, torch.Tensor]":
    """Features [n, d] and logits [n, C] of the images, or of `views` weak views of each, like those of the training."""
    import torch

    from models.augment import Draw, crop

    if views == 1:
        whole: tuple[torch.Tensor, torch.Tensor] = predictor.embed(step.images)
        return whole
    trained = SslConfig.model_validate_json(json.dumps(ssl.manifest["config"]))
    images, augment = torch.from_numpy(step.images), trained.training.augment
    draws = [Draw(trained.seed, "pseudo-label", view, step.ids) for view in range(views)]
    features, logits = zip(*(predictor.embed(crop(images, augment, draw)) for draw in draws), strict=True)
    return torch.stack(features).mean(0), torch.stack(logits).log_softmax(dim=2).logsumexp(dim=0) - math.log(views)


def _labelled(split: Artifact, role: str, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """sample_ids, ascending, and labels of the rows of a role among the consecutive `ids`."""
    table = split.table().sort_by("sample_id")
    table = table.filter(pc.and_(pc.equal(table["role"], role), pc.is_in(table["sample_id"], pa.array(ids))))
    return table["sample_id"].to_numpy(), table["label"].to_numpy()


def _vectors(rows: NDArray[np.floating[Any]]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
