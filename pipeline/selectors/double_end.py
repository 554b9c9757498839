"""Double-end pruning: the hardest examples are often mislabelled, the easiest redundant; keep what is between."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.registry import ChoiceError
from pipeline.scores import Harder
from pipeline.selectors import Pool, Selector, exact, harder_end, hardest_first


class DoubleEnd(Selector):
    """Cut floor(m*N) examples from the hard end of a score, keep the next ones; on AUM it is Semi-AUM-cutoff.

    score: column; mislabel_fraction: m, at most 1 - keep_fraction, tuned per dataset by the authors (0 to 0.8); harder:
    as in top_k. For one m, a larger budget adds to a smaller one's.
    """

    source: ClassVar = "arXiv 2406.04273, ELFS: Label-Free Coreset Selection with Proxy Training Dynamics"

    @dataclass(frozen=True)
    class Options(Selector.Options):
        """Which column, how much of its hard end is cut."""

        score: str = "aum"
        mislabel_fraction: float = 0.1
        harder: Harder | None = None

        def __post_init__(self) -> None:
            if not 0 <= self.mislabel_fraction < 1:
                raise ValueError(f"mislabel_fraction={self.mislabel_fraction} is no share: set it from 0 to below 1")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.columns = (options.score,)
        self._harder = harder_end(options.score, options.harder)
        self._cut = exact(options.mislabel_fraction)

    def check(self, keep: Fraction) -> None:
        """m + r > 1 leaves fewer than are to be kept."""
        if self._cut + keep > 1:
            raise ChoiceError(
                f"mislabel_fraction={float(self._cut)} and keep_fraction={float(keep)} add up to "
                f"{float(self._cut + keep)}, more than the whole pool: lower one of them"
            )

    def __call__(self, pool: Pool, budget: int, seed: int) -> NDArray[np.int64]:
        """Hardest of the kept first."""
        low = math.floor(self._cut * len(pool))
        return hardest_first(pool.columns[self.options.score], self._harder)[low : low + budget]
