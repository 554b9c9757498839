"""Stage `split`: which labels the run may see, and which of them are kept to check pseudo-labels."""

import io
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline import counter, geometry, storage
from pipeline.config import Config
from pipeline.embeddings import read_all
from pipeline.errors import UserError
from pipeline.index import load_config, load_index
from pipeline.labels import load_label_table
from pipeline.pool import Rows
from pipeline.resources import Resources
from pipeline.selectors import SELECTORS, Listed, exact
from pipeline.stage import Artifact, Output, Progress

Ids = NDArray[np.int64]


class SplitConfig(Config):
    """The `split` section of a recipe.

    num_labelled: how many labels are visible, None for every one that the data has, 0 where clusters take their place;
    draw: "uniform" over images (what the methods' papers call randomly labelled), "per_class" (as many of each class,
    which uses knowledge of the class) or "typiclust" (the most typical images of the pool by their embeddings, arXiv
    2202.02794, which all need a label); holdout_fraction: of the visible labels, withheld from training to check
    pseudo-labels.
    """

    num_labelled: Annotated[int, Field(ge=0)] | None = None
    draw: Literal["uniform", "per_class", "typiclust"] = "uniform"
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2

    @model_validator(mode="after")
    def _agree(self) -> "SplitConfig":
        if self.draw == "typiclust" and not self.num_labelled:
            raise ValueError("draw 'typiclust' needs a number of images to choose: set num_labelled")
        return self


class SplitStageConfig(Config):
    """The settings with the seed of the run."""

    seed: int
    settings: SplitConfig


def run(
    inputs: Mapping[str, Artifact], config: SplitStageConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Draw the visible labels; part: sample_id, label, role "train" or "holdout".

    Every label that is not drawn stays behind here. inputs: index; encode, where the draw looks at embeddings. Raises
    UserError if there are too few, or if a class would have no training label; where chosen images have none, it names
    a table of them.
    """
    index, settings = inputs["index"], config.settings
    rows = load_index(index, ["label"])
    rows = rows.filter(pc.is_valid(rows["label"]))
    ids, labels = rows["sample_id"].to_numpy(), rows["label"].to_numpy()
    num_classes = index.metrics["num_classes"]
    try:
        if settings.draw == "typiclust":
            drawn = _draw_typical(index, ids, inputs["encode"], config.seed, settings, out)
        else:
            drawn = _draw(ids, labels, num_classes, config.seed, settings)
        if settings.num_labelled != 0:
            _check_classes(labels, drawn, num_classes, settings)
    except UserError as error:
        raise UserError(f"{_unknown_keys(index)}{error}") from error
    ids, labels = ids[drawn], labels[drawn]
    held = _hold_out(ids, labels, config.seed, settings.holdout_fraction)
    role = np.where(held, "holdout", "train")
    out.write_table(pa.table({"sample_id": ids, "label": labels, "role": pa.array(role.tolist(), pa.string())}))
    counts = np.bincount(labels[~held], minlength=num_classes)
    return {
        "num_train": int((~held).sum()),
        "num_holdout": int(held.sum()),
        "class_counts": {str(label): int(count) for label, count in enumerate(counts)},
    }


def _draw(ids: Ids, labels: Ids, num_classes: int, seed: int, settings: SplitConfig) -> NDArray[np.bool_]:
    """Which of the labelled rows are visible; each draw depends on (seed, sample_id) alone."""
    wanted = len(ids) if settings.num_labelled is None else settings.num_labelled
    if wanted > len(ids):
        raise UserError(
            f"split.num_labelled={wanted} but the data has {len(ids)} labels: lower it, or label more images"
        )
    if wanted == len(ids):
        return np.ones(len(ids), bool)
    if settings.draw == "uniform":
        return np.isin(ids, counter.permutation(seed, "split-draw", 0, ids)[:wanted])
    quota = np.full(num_classes, wanted // num_classes)
    quota[counter.permutation(seed, "split-quota", 0, np.arange(num_classes))[: wanted % num_classes]] += 1
    drawn = np.zeros(len(ids), bool)
    for label in range(num_classes):
        own = ids[labels == label]
        if len(own) < quota[label]:
            raise UserError(
                f"split.draw='per_class' takes {quota[label]} labels of class {label} but the data has {len(own)}: "
                "lower split.num_labelled, or choose 'uniform'"
            )
        drawn |= np.isin(ids, counter.permutation(seed, "split-draw", 0, own)[: quota[label]])
    return drawn


def _draw_typical(
    index: Artifact, ids: Ids, encode: Artifact, seed: int, settings: SplitConfig, out: Output
) -> NDArray[np.bool_]:
    """Which of the labelled rows are visible: those that TypiClust chooses of the whole pool, all of which it must be.

    Else UserError, once the keys of those without a label are in a table.
    """
    vectors, wanted = read_all(encode), settings.num_labelled
    assert wanted is not None
    if wanted > len(vectors):
        raise UserError(f"split.num_labelled={wanted} but the pool has {len(vectors)} images: lower it")
    selector = SELECTORS.get("typiclust")(SELECTORS.options("typiclust", {}))
    assert isinstance(selector, Listed)
    rows = Rows(np.arange(len(vectors)), {"embedding": geometry.unit(vectors)})
    chosen = selector.choose(rows, wanted, seed)
    lacking = np.setdiff1d(chosen, ids)
    if len(lacking):
        keys = load_index(index, ["key"])["key"].take(pa.array(lacking))
        place = storage.join(out.uri, "to_label.csv")
        with io.BytesIO() as sink:
            pyarrow.csv.write_csv(pa.table({"key": keys}), sink)
            storage.write(place, sink.getvalue())
        raise UserError(
            f"split.draw='typiclust' chose {wanted} images, and {len(lacking)} of them have no label: label those in "
            f"{place!r}, put them into data.labels, and run the same command again"
        )
    return np.isin(ids, chosen)


def _check_classes(labels: Ids, drawn: NDArray[np.bool_], num_classes: int, settings: SplitConfig) -> None:
    missing = np.setdiff1d(np.arange(num_classes), labels[drawn])
    if not len(missing):
        return
    others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    if missing[0] not in labels:
        advice = f"label at least one image of class {missing[0]}"
    else:
        advice = "raise split.num_labelled" + (" or set split.draw=per_class" if settings.draw == "uniform" else "")
    raise UserError(f"class {missing[0]}{others} has no training label among the {drawn.sum()} drawn: {advice}")


def _unknown_keys(index: Artifact) -> str:
    """Where a table of labels names images that the shards lack: how many it does name; else ""."""
    data = load_config(index).data
    if data.labels is None:
        return ""
    given, keys = load_label_table(data.labels, data.classes)["key"], load_index(index, ["key"])["key"]
    unknown = given.filter(pc.invert(pc.is_in(given, keys)))
    if not len(unknown):
        return ""
    return (
        f"only {len(given) - len(unknown)} of the {len(given)} keys in data.labels={data.labels!r} are in the shards, "
        f"whose keys look like {str(keys[0])!r} and not like {str(unknown[0])!r}; as it is, "
    )


def _hold_out(ids: Ids, labels: Ids, seed: int, fraction: float) -> NDArray[np.bool_]:
    """Which of the visible rows are withheld: floor(fraction * n), fewer where it would take a class's last label."""
    order = counter.permutation(seed, "split-holdout", 0, ids)
    positions = np.searchsorted(ids, order)
    _, kept = np.unique(labels[positions], return_index=True)
    candidates = np.delete(positions, kept)
    held = np.zeros(len(ids), bool)
    held[candidates[: math.floor(exact(fraction) * len(ids))]] = True
    return held
