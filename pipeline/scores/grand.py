"""GraNd, last layer: how large a step of gradient descent an example asks of the classifier."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import OneEpoch, Records


class Grand(OneEpoch):
    """L2 norm of the loss gradient of the last layer's weights and biases in one epoch: 0 and above, high is hard.

    It is el2n * sqrt(1 + |h|^2), h the embedding that the last layer takes; NaN without a record in that epoch. The
    paper has the gradient of all layers and the mean of 10 models at initialisation. epoch: which, from 0; None, the
    last recorded.
    """

    reads: ClassVar = ("el2n", "embedding")
    harder: ClassVar = {"grand": "high"}
    source: ClassVar = "arXiv 2107.07075, Deep Learning on a Data Diet: Finding Important Examples Early in Training"

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._norm = np.zeros(n, dtype=np.float32)

    def add(self, records: Records) -> None:
        """The epoch's norm; the outer product of error and embedding is never made."""
        h = records["embedding"]
        self._norm[records.rows] = records["el2n"] * np.sqrt(1 + np.einsum("ij,ij->i", h, h))

    def values(self) -> dict[str, NDArray[np.float32]]:
        """Column grand."""
        return {"grand": self._norm}
