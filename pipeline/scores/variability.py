"""Variability: how much the label's probability varied over all epochs."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Records, Score


class Variability(Score):
    """Standard deviation over epochs of p_label, ddof=0: 0..0.5, high is hard, 0 for one record, NaN without any.

    Sums of the difference to an example's own first record: since that difference is 0 once in E, the sum of squares is
    at most E times what remains of it, so at most log10(E) of float64's 16 digits cancel, saturated or not.
    """

    reads: ClassVar = ("p_label",)
    harder: ClassVar = {"variability": "high"}
    source: ClassVar = "arXiv 2009.10795, Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics"

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._first, self._sum, self._squares = np.zeros(n), np.zeros(n), np.zeros(n)

    def add(self, records: Records) -> None:
        """Add one epoch's difference to the first, and its square."""
        rows, p = records.rows, records.float64("p_label")
        first, new = self._first[rows], self.count[rows] == 1
        if np.any(new):
            np.copyto(first, p, where=new)
            self._first[rows] = first
        change = p - first
        self._sum[rows] += change
        change *= change
        self._squares[rows] += change

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Column variability."""
        variance = (self._squares - self._sum * self._sum / self.count[:]) / self.count[:]
        return {"variability": np.sqrt(np.maximum(variance, 0))}
