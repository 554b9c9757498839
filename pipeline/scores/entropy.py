"""Entropy: how undecided the model was in one epoch."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import OneEpoch, Records


class Entropy(OneEpoch):
    """Entropy of the softmax in one epoch, in nats: 0..log(C), high is hard, NaN without a record in that epoch.

    epoch: which, from 0; None, the last recorded.
    """

    reads: ClassVar = ("entropy",)
    harder: ClassVar = {"entropy": "high"}
    source: ClassVar = "arXiv 1906.11829, Selection via Proxy: Efficient Data Selection for Deep Learning"

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._value = np.zeros(n, dtype=np.float32)

    def add(self, records: Records) -> None:
        """Keep the epoch's value."""
        self._value[records.rows] = records["entropy"]

    def values(self) -> dict[str, NDArray[np.float32]]:
        """Column entropy."""
        return {"entropy": self._value}
