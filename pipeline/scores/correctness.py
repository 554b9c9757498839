"""Correctness: in how many epochs an example was right."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Records, Score


class Correctness(Score):
    """Number of records whose argmax is the label: 0..E, low is hard, NaN without a record."""

    reads: ClassVar = ("correct",)
    harder: ClassVar = {"correctness": "low"}
    source: ClassVar = "arXiv 2009.10795, Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics"

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._correct = np.zeros(n, dtype=np.int32)

    def add(self, records: Records) -> None:
        """Count those that are right."""
        self._correct[records.rows] += records["correct"]

    def values(self) -> dict[str, NDArray[np.int32]]:
        """Column correctness, whole numbers."""
        return {"correctness": self._correct}
