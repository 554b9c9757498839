"""AUM: how far, over all epochs, the label was ahead of its strongest rival."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Records, Score


class Aum(Score):
    """Sum over epochs of p_label - p_other: -E..E, low is hard.

    On probabilities, as SemiPrune, ELFS and CCS have it; the original, in aum_logit, is another ranking.
    """

    reads: ClassVar = ("p_label", "p_other")
    harder: ClassVar = {"aum": "low"}
    source: ClassVar = "arXiv 2001.10528, Identifying Mislabeled Data using the Area Under the Margin Ranking"

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._sum = np.zeros(n)

    def add(self, records: Records) -> None:
        """Add one epoch's margin."""
        self._sum[records.rows] += records["p_label"] - records["p_other"]

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Column aum."""
        return {"aum": self._sum}
