"""TDDS: how unevenly an example's prediction moves from epoch to epoch, the latest windows first."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Records, Score
from pipeline.windows import Windows


class Tdds(Score):
    """Decaying average over windows of J records, within the first T epochs: 0 and above, high is hard.

    Between a record and the last one before it, kl = sum over classes of |p (log(p + 1e-8) - log(before + 1e-8))|; a
    window adds the L2 norm of its J - 1 kl's deviations from their mean: S <- (1 - decay) S + decay * norm. NaN with
    fewer than J records. T: 30 in the command that the authors give for CIFAR-100, with J=10 and decay=0.9.
    """

    reads: ClassVar = ("probs",)
    harder: ClassVar = {"tdds": "high"}
    epochs_option: ClassVar = "T"
    source: ClassVar = (
        "arXiv 2311.13613, Spanning Training Progress: Temporal Dual-Depth Scoring (TDDS) for Enhanced Dataset Pruning"
    )

    @dataclass(frozen=True)
    class Options(Score.Options):
        """T: epochs; J: records in a window; decay: weight of the latest window."""

        T: int = 30
        J: int = 10
        decay: float = 0.9

        def __post_init__(self) -> None:
            if not 3 <= self.J <= self.T:
                raise ValueError(f"J={self.J} must be 3 or more and at most T={self.T}: a window lies inside T epochs")
            if not 0 < self.decay <= 1:
                raise ValueError(f"decay={self.decay} is no weight: set it above 0 and to 1 at most")

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._logs = np.zeros((n, 0), dtype=np.float32)
        self._sum = np.zeros(n)
        self._windows = Windows(n, self.options.J - 1)

    def add(self, records: Records) -> None:
        """Push the kl to the record before, and average the window that it completes; before it does, its norm is 0."""
        rows, p = records.rows, records["probs"]
        if self._logs.shape[1] != p.shape[1]:
            self._logs = np.zeros((len(self._sum), p.shape[1]), dtype=np.float32)
        logs = p + np.float32(1e-8)
        np.log(logs, out=logs)
        change = self._logs[rows]
        np.abs(np.subtract(logs, change, out=change), out=change)
        kl = np.einsum("ij,ij->i", p, change)  # its sums are a row's own, where those of a matrix product need not be
        self._logs[rows] = logs
        known = np.broadcast_to(self.count[rows] > 1, len(kl))
        if not known.any():
            return
        if not known.all():
            rows, kl = np.arange(len(self._sum))[rows][known], kl[known]
        decay, norms = self.options.decay, self._windows.push(kl.astype(np.float64), rows).norm
        norms *= decay
        self._sum[rows] *= 1 - decay
        self._sum[rows] += norms

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Column tdds."""
        return {"tdds": np.where(self.count[:] >= self.options.J, self._sum, np.nan)}
