"""Dyn-Unc: how much the label's probability fluctuates within a window, over all of training."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Records, Score


class DynUnc(Score):
    """Mean over all windows of J records of 10 * std(p_label, ddof): 0..7.1, high is hard, NaN with fewer than J.

    Windows run over an example's own records. Unlike the authors' code, the last window counts, and a probability of 0
    is one.
    """

    reads: ClassVar = ("p_label",)
    harder: ClassVar = {"dyn_unc": "high"}
    epochs_option: ClassVar = "J"
    windowed: ClassVar = True
    source: ClassVar = "arXiv 2306.05175, Large-scale Dataset Pruning with Dynamic Uncertainty"

    @dataclass(frozen=True)
    class Options(Score.Options):
        """J: records in a window; ddof: of its standard deviation."""

        J: int = 10
        ddof: Literal[0, 1] = 1

        def __post_init__(self) -> None:
            if self.J < 2:
                raise ValueError(f"J={self.J} leaves nothing to deviate: set it to 2 or more")

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._sum = np.zeros(n)

    @classmethod
    def epochs(cls, options: Any, recorded: int) -> range:
        """All, and J at least."""
        return range(max(recorded, options.J))

    def add(self, records: Records) -> None:
        """Add the window that a record completes; before it does, its norm is 0."""
        self._sum[records.rows] += records.windows[self.options.J].norm

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Column dyn_unc."""
        J, ddof = self.options.J, self.options.ddof
        windows = np.maximum(self.count[:] - J + 1, 0)
        return {"dyn_unc": 10 / np.sqrt(J - ddof) * self._sum / windows}
