"""AUM: how far, over all epochs, the label was ahead of its strongest rival."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import EpochStatistics, Score


class Aum(Score):
    """Sum over epochs of p_label - p_other: -E..E, low is hard; NaN without any record.

    On probabilities, as SemiPrune, ELFS and CCS have it; the original averages margins of logits, another ranking.
    """

    harder: ClassVar = {"aum": "low"}
    source: ClassVar = "arXiv 2001.10528, Identifying Mislabeled Data using the Area Under the Margin Ranking"

    def __init__(self, n: int, options: Score.Options) -> None:
        super().__init__(n, options)
        self._sum = np.zeros(n)
        self._seen = np.zeros(n, dtype=bool)

    def update(self, statistics: EpochStatistics, epoch: int) -> None:
        """Add one epoch's margin."""
        self._sum += np.where(statistics.present, statistics.p_label - statistics.p_other, 0)
        self._seen |= statistics.present

    def result(self) -> dict[str, NDArray[np.float32]]:
        """Column aum."""
        return {"aum": np.where(self._seen, self._sum, np.nan).astype(np.float32)}
