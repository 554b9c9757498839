"""Forgetting: how often an example that was right became wrong."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Records, Score


class Forgetting(Score):
    """Number of records that are wrong after one that was right, however many epochs ago: 0..E, high is hard.

    never_learned: what an example gets that was never right. "max", as the paper has it: its number of records, more
    than any other can reach; "zero", as CCS, ELFS and SemiPrune's public code leave it: the value of the easiest.
    """

    reads: ClassVar = ("correct",)
    harder: ClassVar = {"forgetting": "high"}
    source: ClassVar = "arXiv 1812.05159, An Empirical Study of Example Forgetting during Deep Neural Network Learning"

    @dataclass(frozen=True)
    class Options(Score.Options):
        """What never-learned examples get."""

        never_learned: Literal["max", "zero"] = "max"

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._last = np.zeros(n, dtype=bool)
        self._ever = np.zeros(n, dtype=bool)
        self._events = np.zeros(n, dtype=np.int32)

    def add(self, records: Records) -> None:
        """Compare with the record before."""
        correct, rows = records["correct"], records.rows
        self._events[rows] += self._last[rows] > correct
        self._last[rows] = correct
        self._ever[rows] |= correct

    def values(self) -> dict[str, NDArray[np.int32]]:
        """Column forgetting, whole numbers."""
        never = self.count[:] if self.options.never_learned == "max" else 0
        return {"forgetting": np.where(self._ever, self._events, never)}
