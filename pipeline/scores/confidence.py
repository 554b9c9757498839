"""Confidence: how probable the label was, on average over all epochs."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Records, Score


class Confidence(Score):
    """Mean over epochs of p_label: 0..1, low is hard, NaN without a record."""

    reads: ClassVar = ("p_label",)
    harder: ClassVar = {"confidence": "low"}
    source: ClassVar = "arXiv 2009.10795, Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics"

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._sum = np.zeros(n)

    def add(self, records: Records) -> None:
        """Add one epoch's probability."""
        self._sum[records.rows] += records.float64("p_label")

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Column confidence."""
        return {"confidence": self._sum / self.count[:]}
