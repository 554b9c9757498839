"""Double-end pruning: the hardest examples are often mislabelled, the easiest redundant; keep what is between."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from pipeline.pool import Pool
from pipeline.registry import ChoiceError
from pipeline.scores import Harder
from pipeline.selectors import AUTO, ByColumn, Ranked, decided, exact, harder_end


class DoubleEnd(Ranked):
    """Cut floor(m*N) examples from the hard end of a score, keep the next ones; on AUM it is Semi-AUM-cutoff.

    score: column; mislabel_fraction: m, at most 1 - keep_fraction, tuned per dataset by the authors (0 to 0.8), or
    auto, chosen by a run from its held-out labels (pipeline/mislabel.py); harder: as in top_k. For one m, a larger
    budget adds to a smaller one's.
    """

    source: ClassVar = "arXiv 2406.04273, ELFS: Label-Free Coreset Selection with Proxy Training Dynamics"

    @dataclass(frozen=True)
    class Options(Ranked.Options):
        """score: which column; mislabel_fraction: share of the pool that is cut from its hard end, or auto, which
        held-out labels decide; harder: its hard end, where the column is none of ours."""

        score: str = "aum"
        mislabel_fraction: float | str = 0.1
        harder: Harder | None = None

        def __post_init__(self) -> None:
            if isinstance(self.mislabel_fraction, str):
                if self.mislabel_fraction != AUTO:
                    given = f"mislabel_fraction={self.mislabel_fraction!r}"
                    raise ValueError(f"{given} is no share: set it from 0 to below 1, or to auto")
            else:
                share(self.mislabel_fraction)

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.columns = (options.score,)
        self.harder = harder_end(options.score, options.harder)

    def check(self, keep: Fraction) -> None:
        """m + r > 1 leaves fewer than are to be kept."""
        if self.options.mislabel_fraction != AUTO:
            check_shares(exact(self.options.mislabel_fraction), keep)

    def order(self, pool: Pool, budget: int, seed: int) -> ByColumn:
        """Hardest first."""
        return ByColumn(self.options.score, self.harder)

    def interval(self, size: int, budget: int) -> tuple[int, int]:
        """After the floor(m * size) that are cut; ChoiceError if m is still to be chosen.

        Fewer are cut where the budget, a class's share or what a version adds, was rounded up and needs one of them.
        """
        cut = exact(decided("mislabel_fraction", self.options.mislabel_fraction))
        low = min(math.floor(cut * size), size - budget)
        return low, low + budget


def share(mislabel_fraction: float) -> None:
    """ValueError if this share cannot be cut."""
    if not 0 <= mislabel_fraction < 1:
        raise ValueError(f"mislabel_fraction={mislabel_fraction} is no share: set it from 0 to below 1")


def check_shares(cut: Fraction, keep: Fraction) -> None:
    """ChoiceError if the share that is cut and the one that is kept are more than everything."""
    if cut + keep > 1:
        raise ChoiceError(
            f"mislabel_fraction={float(cut)} and keep_fraction={float(keep)} add up to "
            f"{float(cut + keep)}, more than the whole pool: lower one of them"
        )
