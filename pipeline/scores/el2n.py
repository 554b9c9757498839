"""EL2N: how far predictions were from the label early in training."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Records, Score


class El2n(Score):
    """Sum over the first epochs of the L2 norm of (softmax - one-hot): 0..K*sqrt(2), high is hard.

    num_epochs: K; 20 in SemiPrune's code for 32x32 images, 10 in CCS and ELFS.
    """

    reads: ClassVar = ("el2n",)
    harder: ClassVar = {"el2n": "high"}
    epochs_option: ClassVar = "num_epochs"
    source: ClassVar = "arXiv 2107.07075, Deep Learning on a Data Diet: Finding Important Examples Early in Training"

    @dataclass(frozen=True)
    class Options(Score.Options):
        """How many epochs are summed."""

        num_epochs: int = 20

        def __post_init__(self) -> None:
            if self.num_epochs < 1:
                raise ValueError(f"num_epochs={self.num_epochs} leaves nothing to sum: set it to 1 or more")

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._sum = np.zeros(n)

    def add(self, records: Records) -> None:
        """Add one of the first epochs."""
        self._sum[records.rows] += records["el2n"]

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Column el2n."""
        return {"el2n": self._sum}
