"""Stage `fold`: the split with another part of the labelled rows held out, so that every one judges in turn."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline.resources import Resources
from pipeline.split import SplitStageConfig, fold_of
from pipeline.stage import Artifact, Output, Progress


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

    inputs: split. What annotators gave back is in no fold.
    """
    split, folds = inputs["split"], config.settings.folds
    assert folds is not None
    table = split.table()
    ids, labels = table["sample_id"].to_numpy(), table["label"].to_numpy()
    annotated = split.table("annotated")["sample_id"].to_numpy() if split.parts("annotated") else ids[:0]
    held = fold_of(ids, labels, annotated, config.seed, folds) == config.fold
    assert held.any(), "the stage split has seen to it"
    role = pa.array(np.where(held, "holdout", "train").tolist(), pa.string())
    out.write_table(pa.table({"sample_id": ids, "label": labels, "role": role}))
    counts = np.bincount(labels[~held], minlength=len(split.metrics["class_counts"]))
    return {
        **split.metrics,
        "num_train": int((~held).sum()),
        "num_holdout": int(held.sum()),
        "class_counts": {str(label): int(count) for label, count in enumerate(counts)},
    }
