"""One selection as numbers: its histogram with the cuts, and examples along its score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 60
Values = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Scored:
    """A selection's view of the pool: one score per sample_id [N], which end is hard, and what was kept [N]."""

    values: Values
    harder: str
    kept: NDArray[np.bool_]

    @property
    def difficulty(self) -> Values:
        """The values with the sign that makes larger mean harder."""
        return self.values if self.harder == "high" else -self.values

    def is_sharp(self) -> bool:
        """Whether the kept rows are one range of the score, with ties split at its ends at most: cuts can be drawn."""
        kept = self.values[self.kept]
        inside = (self.values > kept.min()) & (self.values < kept.max())
        return not (inside & ~self.kept).any()

    def beyond_the_hard_cut(self) -> NDArray[np.int64]:
        """Ids pruned for being harder than everything kept, hardest first; empty if the selection has no sharp cuts."""
        if not self.is_sharp():
            return np.empty(0, dtype=np.int64)
        beyond = np.flatnonzero(self.difficulty > self.difficulty[self.kept].max())
        return beyond[np.argsort(-self.difficulty[beyond], kind="stable")]

    def along_the_score(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`count` ids (or all) at evenly spaced quantiles, hardest first, and the share of the pool that is harder."""
        places = np.linspace(0, len(self.values) - 1, min(count, len(self.values))).round().astype(np.int64)
        return np.argsort(-self.difficulty, kind="stable")[places], places / max(len(self.values) - 1, 1)


def bin_edges(values: Values) -> NDArray[np.float64]:
    """Equal-width bins over the range; one bin per value where a score counts things, as forgetting does."""
    low, high = float(values.min()), float(values.max())
    if high - low <= NUM_BINS and not np.mod(values, 1).any():
        return np.arange(low - 0.5, high + 1)
    return np.histogram_bin_edges(np.array([low, high]), bins=NUM_BINS)


def histogram(scored: Scored, cuts: Mapping[str, Any] | None) -> dict[str, Any]:
    """`edges` [b+1], counts `pool` [b] and `kept` [b]; `cuts` only where the kept rows are one range of the score."""
    edges = bin_edges(scored.values)
    return {
        "edges": edges.tolist(),
        "pool": np.histogram(scored.values, edges)[0].tolist(),
        "kept": np.histogram(scored.values[scored.kept], edges)[0].tolist(),
        "cuts": [cuts["low"], cuts["high"]] if cuts and scored.is_sharp() else None,
    }
