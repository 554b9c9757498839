"""DUAL: uncertain and hard at once, from the early part of training."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import EpochStatistics, Score


class Dual(Score):
    """dual: mean over windows of J records in the first T epochs of 10 * std(p_label, ddof=1) * (1 - mean(p_label)).

    0 and above, high is hard, NaN with fewer than J records. dual_mean: mean p_label over the first T epochs, 0..1, low
    is hard. T: 30 for 32x32 images, 60 for ImageNet. Windows run over an example's own records: a missing one is left
    out. Each window takes two passes: S2 - S1^2/J would cancel where p_label saturates.
    """

    harder: ClassVar = {"dual": "high", "dual_mean": "low"}
    epochs_option: ClassVar = "T"
    source: ClassVar = (
        "arXiv 2502.06905, "
        "Lightweight Dataset Pruning without Full Training via Example Difficulty and Prediction Uncertainty"
    )

    @dataclass(frozen=True)
    class Options(Score.Options):
        """T: epochs; J: records in a window."""

        T: int = 30
        J: int = 10

        def __post_init__(self) -> None:
            if not 2 <= self.J <= self.T:
                raise ValueError(f"J={self.J} must be 2 or more and at most T={self.T}: a window lies inside T epochs")

    def __init__(self, n: int, options: Options) -> None:
        super().__init__(n, options)
        self._ring = np.zeros((options.J, n), dtype=np.float32)
        self._records = np.zeros(n, dtype=np.int32)
        self._sum, self._windows = np.zeros(n), np.zeros(n)

    def update(self, statistics: EpochStatistics, epoch: int) -> None:
        """Put a record in the place of the oldest and add the window that it completes."""
        J, p, present = self.options.J, statistics.p_label, statistics.present & (epoch < self.options.T)
        rows = np.flatnonzero(present)
        self._ring[self._records[rows] % J, rows] = p[rows]
        self._records += present
        self._sum += np.where(present, p, 0)
        complete = present & (self._records >= J)
        if complete.any():
            mean = self._ring.mean(axis=0, dtype=np.float64)
            squares = ((self._ring - mean) ** 2).sum(axis=0)
            self._windows += np.where(complete, 10 * np.sqrt(squares / (J - 1)) * (1 - mean), 0)

    def result(self) -> dict[str, NDArray[np.float32]]:
        """Columns dual and dual_mean."""
        with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an example without a window, or without a record
            dual = self._windows / np.maximum(self._records - self.options.J + 1, 0)
            return {"dual": dual.astype(np.float32), "dual_mean": (self._sum / self._records).astype(np.float32)}
