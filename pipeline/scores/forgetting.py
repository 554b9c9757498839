"""Forgetting: how often an example that was right became wrong."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import EpochStatistics, Score


class Forgetting(Score):
    """Number of records that are wrong after one that was right: 0..E, high is hard; NaN without any record.

    never_learned: what an example gets that was never right. "max", as the paper has it: its number of records, more
    than any other can reach; "zero", as CCS, ELFS and SemiPrune's public code leave it: the value of the easiest.
    """

    harder: ClassVar = {"forgetting": "high"}
    source: ClassVar = "arXiv 1812.05159, An Empirical Study of Example Forgetting during Deep Neural Network Learning"

    @dataclass(frozen=True)
    class Options(Score.Options):
        """What never-learned examples get."""

        never_learned: Literal["max", "zero"] = "max"

    def __init__(self, n: int, options: Options) -> None:
        super().__init__(n, options)
        self._last = np.zeros(n, dtype=bool)
        self._ever = np.zeros(n, dtype=bool)
        self._events = np.zeros(n, dtype=np.int32)
        self._records = np.zeros(n, dtype=np.int32)

    def update(self, statistics: EpochStatistics, epoch: int) -> None:
        """Compare with the record before, however many epochs ago it was."""
        present, correct = statistics.present, statistics.correct & statistics.present
        self._events += self._last & present & ~correct
        self._last = np.where(present, correct, self._last)
        self._ever |= correct
        self._records += present

    def result(self) -> dict[str, NDArray[np.float32]]:
        """Column forgetting, whole numbers."""
        never = self._records if self.options.never_learned == "max" else np.zeros_like(self._records)
        events = np.where(self._ever, self._events, never)
        return {"forgetting": np.where(self._records > 0, events, np.nan).astype(np.float32)}
