"""Many ids, told shortly."""

import numpy as np
from numpy.typing import NDArray

SHOWN = 6
"""Runs of ids that are told; of the others the number is."""


class IdRuns:
    """Ascending ids, told as "5, 17-200": only the first runs are kept, however many come."""

    def __init__(self) -> None:
        self.count = 0
        self._runs: list[list[int]] = []

    def add(self, ids: NDArray[np.int64]) -> None:
        """More of them, above those before."""
        self.count += len(ids)
        for run in np.split(ids, np.flatnonzero(np.diff(ids) > 1)[: SHOWN + 1] + 1)[: SHOWN + 1] if len(ids) else []:
            if self._runs and self._runs[-1][1] + 1 == run[0]:
                self._runs[-1][1] = int(run[-1])
            elif len(self._runs) <= SHOWN:
                self._runs.append([int(run[0]), int(run[-1])])

    def __str__(self) -> str:
        told = [f"{first}" if first == last else f"{first}-{last}" for first, last in self._runs[:SHOWN]]
        if len(self._runs) > SHOWN:
            told.append(f".. ({self.count:,} in all)")
        return ", ".join(told)
