"""EL2N: how far predictions were from the label early in training."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import EpochStatistics, Score


class El2n(Score):
    """Sum over the first epochs of the L2 norm of (softmax - one-hot): 0..K*sqrt(2), high is hard.

    num_epochs: K; 20 in SemiPrune's code for 32x32 images, 10 in CCS and ELFS. NaN without any record in them.
    """

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

    def __init__(self, n: int, options: Options) -> None:
        super().__init__(n, options)
        self._sum = np.zeros(n)
        self._seen = np.zeros(n, dtype=bool)

    def update(self, statistics: EpochStatistics, epoch: int) -> None:
        """Add one of the first epochs."""
        if epoch < self.options.num_epochs:
            self._sum += np.where(statistics.present, statistics.el2n, 0)
            self._seen |= statistics.present

    def result(self) -> dict[str, NDArray[np.float32]]:
        """Column el2n."""
        return {"el2n": np.where(self._seen, self._sum, np.nan).astype(np.float32)}
