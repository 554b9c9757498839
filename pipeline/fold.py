"""Stage `fold`: the split with another part of the labelled rows held out, so that every one judges in turn."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import counter
from pipeline.errors import UserError
from pipeline.resources import Resources
from pipeline.split import SplitStageConfig
from pipeline.stage import Artifact, Output, Progress

Ids = NDArray[np.int64]


class FoldConfig(SplitStageConfig):
    """The settings of the split. fold: which one of `settings.folds` is held out, from 0."""

    fold: int

    @classmethod
    def of_fold(cls, fold: int, split: SplitStageConfig) -> Self:
        """One fold of that split."""
        return cls(seed=split.seed, settings=split.settings, labels_sha256=split.labels_sha256, fold=fold)


def run(
    inputs: Mapping[str, Artifact], config: FoldConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Hold one fold out; part and metrics as those of the stage `split`.

    inputs: split. What annotators gave back is in no fold. UserError if none is held out.
    """
    split, folds = inputs["split"], config.settings.folds
    assert folds is not None
    table = split.table()
    ids, labels = table["sample_id"].to_numpy(), table["label"].to_numpy()
    annotated = split.table("annotated")["sample_id"].to_numpy() if split.parts("annotated") else ids[:0]
    held = fold_of(ids, labels, annotated, config.seed, folds) == config.fold
    if not held.any():
        raise UserError(
            f"split.folds={folds}, but none of the {len(ids)} labels falls into fold {config.fold + 1}: lower it, or "
            "give more labels"
        )
    role = pa.array(np.where(held, "holdout", "train").tolist(), pa.string())
    out.write_table(pa.table({"sample_id": ids, "label": labels, "role": role}))
    counts = np.bincount(labels[~held], minlength=len(split.metrics["class_counts"]))
    return {
        **split.metrics,
        "num_train": int((~held).sum()),
        "num_holdout": int(held.sum()),
        "class_counts": {str(label): int(count) for label, count in enumerate(counts)},
    }


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
