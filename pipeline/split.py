"""Stage `split`: which labels the run may see, and which of them are kept to check pseudo-labels."""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline import counter, geometry, storage
from pipeline.annotations import FIELD, Annotations
from pipeline.config import Config
from pipeline.embeddings import read_all
from pipeline.errors import UserError
from pipeline.index import load_config, load_index
from pipeline.labels import checksum, load_label_table
from pipeline.pool import Rows
from pipeline.resources import Resources
from pipeline.selectors import SELECTORS, Listed, exact
from pipeline.shards import Uri
from pipeline.stage import Artifact, Output, Progress

Ids = NDArray[np.int64]


class SplitConfig(Config):
    """The `split` section of a recipe.

    "uniform" is what the methods' papers call randomly labelled; "per_class" uses knowledge of the class. `labels` are
    never held out: coresets are no random sample of the pool. Those of images that "typiclust" chose count as drawn.
    """

    num_labelled: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="how many labels are visible; null: every one that the data has; 0: clusters take their place",
    )
    draw: Literal["uniform", "per_class", "typiclust"] = Field(
        default="uniform",
        description="which labels: uniform over images, per_class as many of each, typiclust the most typical images "
        "by their embeddings (arXiv 2202.02794), which all need a label",
    )
    holdout_fraction: float = Field(
        default=0.2, ge=0, lt=1, description="of the visible labels, withheld from training to check pseudo-labels"
    )
    folds: Annotated[int, Field(ge=2, le=100)] | None = Field(
        default=None,
        exclude_if=lambda folds: folds is None,
        description="instead of holdout_fraction: in how many parts the visible labels are withheld one after the "
        "other, each from trainings of its own, while the coreset comes from trainings that know all of them",
    )
    labels: Uri | None = Field(
        default=None,
        exclude_if=lambda uri: uri is None,
        description="a CSV or Parquet table key,label of what annotators gave back, trained on besides what is drawn",
    )

    @model_validator(mode="before")
    @classmethod
    def _folds_hold_out(cls, settings: Any) -> Any:
        """Where there are folds, holdout_fraction is 0 unless it is said otherwise, which is then told."""
        if isinstance(settings, dict) and settings.get("folds") is not None:
            return {"holdout_fraction": 0.0, **settings}
        return settings

    @model_validator(mode="after")
    def _agree(self) -> "SplitConfig":
        if self.folds is not None and self.holdout_fraction:
            raise ValueError(
                f"folds={self.folds} holds every label out in turn, and holdout_fraction={self.holdout_fraction:g} "
                "keeps some from all trainings: name one of them"
            )
        if self.draw == "typiclust" and not self.num_labelled:
            raise ValueError("draw 'typiclust' needs a number of images to choose: set num_labelled")
        return self


class SplitStageConfig(Config):
    """The settings with the seed of the run, and the SHA-256 of the table `settings.labels`."""

    seed: int
    settings: SplitConfig
    labels_sha256: Annotated[str | None, Field(exclude_if=lambda checksum: checksum is None)] = None

    @classmethod
    def of(cls, seed: int, settings: SplitConfig) -> Self:
        """The settings with the table as it is now; UserError if there is none."""
        return cls(seed=seed, settings=settings, labels_sha256=checksum(settings.labels, FIELD))


def run(
    inputs: Mapping[str, Artifact], config: SplitStageConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Draw the visible labels; part: sample_id, label, role "train" or "holdout".

    Every label that is not drawn stays behind here. inputs: index; encode, where the draw looks at embeddings; in a
    refresh `earlier`, the split of the version before, and `earlier_pool`, its pseudo-labels: what was visible then
    stays so and keeps its role, lest a row check the pseudo-labels of a model that began as one that was trained on it.
    Part `annotated`: sample_ids of `settings.labels`, if there is such a table, but for those that "typiclust" drew
    and no version before had there.
    Raises UserError if there are too few labels, if a class would have no training label, or a fold no row; where
    chosen images have none, it names a table of them.
    """
    index, settings = inputs["index"], config.settings
    rows = load_index(index, ["label"])
    rows = rows.filter(pc.is_valid(rows["label"]))
    ids, labels = rows["sample_id"].to_numpy(), rows["label"].to_numpy()
    num_classes = index.metrics["num_classes"]
    earlier, annotations = _Earlier.load(inputs), Annotations.load(index, settings.labels, config.labels_sha256)
    num_matched = len(annotations.sample_ids)
    if settings.draw == "typiclust":  # what it chooses may have come back in that table
        ids, labels = annotations.added_to(ids, labels)
    before, known = np.isin(ids, earlier.drawn), labels
    try:
        if settings.draw == "typiclust":
            drawn = _draw_typical(index, ids, inputs["encode"], config.seed, settings, before, out)
            # But for what the model of the version before has learned: it may judge in no fold.
            learned = np.setdiff1d(earlier.sample_ids, earlier.drawn)
            annotations = annotations.without(np.setdiff1d(ids[drawn], learned))
        else:
            drawn = _draw(ids, labels, num_classes, config.seed, settings, before)
        ids, labels = annotations.added_to(ids[drawn], labels[drawn])
        held = np.isin(ids, earlier.held_out) & (settings.folds is None)
        new = ~np.isin(ids, earlier.sample_ids) & ~np.isin(ids, annotations.sample_ids)
        if settings.num_labelled is None:  # every label there is: those that came to known images are annotators'
            new &= ids >= earlier.num_samples
        held[new] = _hold_out(ids[new], labels[new], config.seed, settings.holdout_fraction)
        if settings.num_labelled != 0:
            _check_classes(known, labels[~held], len(ids), num_classes, settings)
        if settings.folds is not None:
            _check_folds(fold_of(ids, labels, annotations.sample_ids, config.seed, settings.folds), settings.folds)
    except UserError as error:
        raise UserError(f"{_unknown_keys(index)}{error}") from error
    role = np.where(held, "holdout", "train")
    out.write_table(pa.table({"sample_id": ids, "label": labels, "role": pa.array(role.tolist(), pa.string())}))
    counts = np.bincount(labels[~held], minlength=num_classes)
    metrics = {
        "num_train": int((~held).sum()),
        "num_holdout": int(held.sum()),
        "class_counts": {str(label): int(count) for label, count in enumerate(counts)},
    }
    if settings.labels is not None:
        out.write_table(pa.table({"sample_id": annotations.sample_ids}), "annotated")
        metrics |= {
            "num_annotated": len(annotations.sample_ids),
            "annotations_matched": num_matched,
            "annotations_unmatched": annotations.num_unmatched,
        }
    return metrics


@dataclass(frozen=True)
class _Earlier:
    """What was visible in the version before, nothing if there was none. drawn: those that were no annotator's.

    num_samples: of its pool.
    """

    sample_ids: Ids
    held_out: Ids
    drawn: Ids
    num_samples: int

    @classmethod
    def load(cls, inputs: Mapping[str, Artifact]) -> Self:
        none = np.empty(0, np.int64)
        if "earlier" not in inputs:
            return cls(none, none, none, 0)
        split = inputs["earlier"]
        table = split.table()
        ids = table["sample_id"].to_numpy()
        held_out = ids[pc.equal(table["role"], "holdout").to_numpy(zero_copy_only=False)]
        annotated = split.table("annotated")["sample_id"].to_numpy() if split.parts("annotated") else none
        drawn = np.union1d(np.setdiff1d(ids, annotated), held_out)  # no annotation is held out: it was drawn as well
        return cls(ids, held_out, drawn, inputs["earlier_pool"].metrics["num_samples"])


def _draw(
    ids: Ids, labels: Ids, num_classes: int, seed: int, settings: SplitConfig, before: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the labelled rows are visible, those of `before` among them.

    Whether another is drawn depends on (seed, sample_id) and on how many are.
    """
    wanted = len(ids) if settings.num_labelled is None else settings.num_labelled
    if wanted > len(ids):
        raise UserError(
            f"split.num_labelled={wanted} but the data has {len(ids)} labels: lower it, or label more images"
        )
    if wanted == len(ids):
        return np.ones(len(ids), bool)
    if settings.draw == "uniform":
        more = max(0, wanted - int(before.sum()))
        return before | np.isin(ids, counter.permutation(seed, "split-draw", 0, ids[~before])[:more])
    quota = np.full(num_classes, wanted // num_classes)
    quota[counter.permutation(seed, "split-quota", 0, np.arange(num_classes))[: wanted % num_classes]] += 1
    drawn = before.copy()
    for label in range(num_classes):
        here = labels == label
        if here.sum() < quota[label]:
            raise UserError(
                f"split.draw='per_class' takes {quota[label]} labels of class {label} but the data has {here.sum()}: "
                "lower split.num_labelled, or choose 'uniform'"
            )
        more = max(0, int(quota[label] - (here & before).sum()))
        drawn |= np.isin(ids, counter.permutation(seed, "split-draw", 0, ids[here & ~before])[:more])
    return drawn


def _draw_typical(
    index: Artifact,
    ids: Ids,
    encode: Artifact,
    seed: int,
    settings: SplitConfig,
    before: NDArray[np.bool_],
    out: Output,
) -> NDArray[np.bool_]:
    """Which of the labelled rows are visible: those of `before`, and others that TypiClust chooses of the whole pool.

    UserError if one of them has no label, once the keys of those are in a table.
    """
    vectors, wanted = read_all(encode), settings.num_labelled
    assert wanted is not None
    if wanted > len(vectors):
        raise UserError(f"split.num_labelled={wanted} but the pool has {len(vectors)} images: lower it")
    more = wanted - int(before.sum())
    if more <= 0:
        return before
    selector = SELECTORS.get("typiclust")(SELECTORS.options("typiclust", {}))
    assert isinstance(selector, Listed)
    others = np.setdiff1d(np.arange(len(vectors)), ids[before])
    chosen = others[selector.choose(Rows(others, {"embedding": geometry.unit(vectors[others])}), more, seed)]
    lacking = np.setdiff1d(chosen, ids)
    if len(lacking):
        keys = load_index(index, ["key"])["key"].take(pa.array(lacking))
        place = storage.join(out.uri, "to_label.csv")
        with io.BytesIO() as sink:
            pyarrow.csv.write_csv(pa.table({"key": keys}), sink)
            storage.write(place, sink.getvalue())
        raise UserError(
            f"split.draw='typiclust' chose {wanted} images, and {len(lacking)} of them have no label: label those in "
            f"{place!r}, name the table of key,label in {FIELD}, and run the same command again"
        )
    return before | np.isin(ids, chosen)


def _check_classes(labels: Ids, trained: Ids, num_visible: int, num_classes: int, settings: SplitConfig) -> None:
    missing = np.setdiff1d(np.arange(num_classes), trained)
    if not len(missing):
        return
    others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    if missing[0] not in labels:
        advice = f"label at least one image of class {missing[0]}"
    else:
        advice = "raise split.num_labelled" + (" or set split.draw=per_class" if settings.draw == "uniform" else "")
    raise UserError(f"class {missing[0]}{others} has no training label among the {num_visible} drawn: {advice}")


def _check_folds(fold: Ids, folds: int) -> None:
    empty = np.setdiff1d(np.arange(folds), fold)
    if len(empty):
        raise UserError(
            f"split.folds={folds}, but none of the {len(fold)} labels falls into fold {empty[0] + 1}: lower it, or "
            "give more labels"
        )


def _unknown_keys(index: Artifact) -> str:
    """Where a table of labels names images that the shards lack: how many it does name; else ""."""
    data = load_config(index).data
    if data.labels is None:
        return ""
    given, keys = (
        load_label_table(data.labels, data.num_classes, data.classes)["key"],
        load_index(index, ["key"])["key"],
    )
    unknown = given.filter(pc.invert(pc.is_in(given, keys)))
    if not len(unknown):
        return ""
    look = f"whose keys look like {str(keys[0])!r} and not like {str(unknown[0])!r}"
    if len(unknown) == len(given):
        raise UserError(
            f"none of the {len(given):,} keys in data.labels={data.labels!r} is in the shards, {look}: correct the "
            "table"
        )
    return (
        f"only {len(given) - len(unknown)} of the {len(given)} keys in data.labels={data.labels!r} are in the shards, "
        f"{look}; as it is, "
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


def fold_of(ids: Ids, labels: Ids, annotated: Ids, seed: int, folds: int) -> Ids:
    """The fold of each labelled row, 0..folds - 1, or -1 for one that is never held out: int64 [n].

    Never held out are the annotated rows, and one row of a class whose rows are all in one fold. All else depends on
    (seed, sample_id) alone, so a row stays where it is when others come, and in a refresh no model begins as one that
    knew the labels that it is judged by.
    """
    bits = counter.hash64(seed, "split-fold", 0, ids)
    fold = (bits % np.uint64(folds)).astype(np.int64)
    fold[np.isin(ids, annotated)] = -1
    for label in np.unique(labels):
        here = np.flatnonzero(labels == label)
        if len(np.unique(fold[here])) == 1 and fold[here[0]] >= 0:
            fold[here[np.argmin(bits[here])]] = -1
    return fold
