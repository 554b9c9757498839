"""DUAL: uncertain and hard at once, from the early part of training."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Records, Score


class Dual(Score):
    """dual: mean over windows of J records in the first T epochs of 10 * std(p_label, ddof) * (1 - mean(p_label)).

    0 and above, high is hard, NaN with fewer than J records; SemiPrune's ImageNet code has ddof=0, which ranks alike.
    dual_mean: mean p_label over the first T epochs, 0..1, low is hard. T: 30 for 32x32 images, 60 for ImageNet. Windows
    run over an example's own records.
    """

    reads: ClassVar = ("p_label",)
    harder: ClassVar = {"dual": "high", "dual_mean": "low"}
    epochs_option: ClassVar = "T"
    windowed: ClassVar = True
    source: ClassVar = (
        "arXiv 2502.06905, "
        "Lightweight Dataset Pruning without Full Training via Example Difficulty and Prediction Uncertainty"
    )

    @dataclass(frozen=True)
    class Options(Score.Options):
        """T: epochs; J: records in a window; ddof: of its standard deviation."""

        T: int = 30
        J: int = 10
        ddof: Literal[0, 1] = 1

        def __post_init__(self) -> None:
            if not 2 <= self.J <= self.T:
                raise ValueError(f"J={self.J} must be 2 or more and at most T={self.T}: a window lies inside T epochs")

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._sum, self._windows = np.zeros(n), np.zeros(n)

    def add(self, records: Records) -> None:
        """Add a record and the window that it completes; before it does, its norm is 0."""
        window = records.windows[self.options.J]
        self._sum[records.rows] += records.float64("p_label")
        self._windows[records.rows] += window.norm * (1 - window.mean)

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Columns dual and dual_mean."""
        J, ddof = self.options.J, self.options.ddof
        windows = np.maximum(self.count[:] - J + 1, 0)
        return {"dual": 10 / np.sqrt(J - ddof) * self._windows / windows, "dual_mean": self._sum / self.count[:]}
