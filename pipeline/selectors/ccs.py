"""CCS: coverage-centric; after the hardest are dropped, as many as can be from every stretch of the score's range."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.pool import Pool, Rows
from pipeline.ranks import Cut, Rule, cut
from pipeline.scores import Harder
from pipeline.selectors import ByColumn, Selector, exact, harder_end
from pipeline.selectors.double_end import check_shares, share
from pipeline.selectors.random import Shuffled


class Ccs(Selector):
    """Drop floor(m*N) from the hard end of a score; spread the budget over bins of equal width of what is left.

    score, mislabel_fraction m, harder: as in double_end; bins: 50 in the paper. Bins are filled from the smallest on,
    each with all that it has or an equal share of what is left; uniform inside a bin. A larger budget adds to a smaller
    one's. The range ends 1e-4 of its maximum beyond it, as in the
    authors' code, and the last bin is closed: theirs loses the largest scores where they are negative or all equal.
    """

    source: ClassVar = "arXiv 2210.15809, Coverage-centric Coreset Selection for High Pruning Rates"

    @dataclass(frozen=True)
    class Options(Selector.Options):
        """Which column, how much of its hard end is dropped, how many bins."""

        score: str = "aum"
        mislabel_fraction: float = 0.1
        bins: int = 50
        harder: Harder | None = None

        def __post_init__(self) -> None:
            share(self.mislabel_fraction)
            if not 1 <= self.bins <= 1 << 16:
                raise ValueError(f"bins={self.bins} is no number of bins: set it from 1 to {1 << 16}")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.columns = (options.score,)
        self._harder = harder_end(options.score, options.harder)
        self._cut = exact(options.mislabel_fraction)

    def check(self, keep: Fraction) -> None:
        """m + r > 1 leaves fewer than are to be kept."""
        check_shares(self._cut, keep)

    def rule(self, pool: Pool, budget: int, seed: int) -> Rule:
        """Every bin is a stratum, and what was dropped is one more, of which nothing is kept."""
        n, bins, score = pool.num_samples, self.options.bins, self.options.score
        (rest,) = cut(pool, [Rule(ByColumn(score, self._harder), [(int(self._cut * n), n)])], seed)
        low, high = np.array(list(pool.map(Ends(rest, score)))).T
        strata = Bins(rest, score, float(low.min()), float(high.max()), bins)
        sizes = np.sum([np.bincount(part, minlength=bins + 1) for part in pool.map(strata)], axis=0)[:bins]
        shares = allocate(budget, sizes)
        return Rule(Shuffled(seed, "select-ccs"), [*((0, taken) for taken in shares), (0, 0)], strata)


@dataclass(frozen=True)
class Ends:
    """The least and the largest score of those in `rest`."""

    rest: Cut
    column: str

    def __call__(self, rows: Rows) -> tuple[float, float]:
        """Of some rows; inf and -inf of none."""
        values = rows[self.column][self.rest.kept(rows)[0]].astype(np.float64)
        if not np.isfinite(values).all():
            raise UserError(f"column {self.column!r} has infinite values, which no bin holds: leave those samples out")
        return values.min(initial=np.inf), values.max(initial=-np.inf)


@dataclass(frozen=True)
class Bins:
    """The bin of every example in `rest`, and `bins` of those that were dropped."""

    rest: Cut
    column: str
    low: float
    high: float
    bins: int

    def __call__(self, rows: Rows) -> NDArray[np.int64]:
        """int64[n], 0 .. bins."""
        found = np.full(len(rows), self.bins)
        kept = self.rest.kept(rows)[0]
        # Halves, because the range of two floats may be no float.
        values = rows[self.column][kept].astype(np.float64) / 2 - self.low / 2
        width = (self.high / 2 - self.low / 2 + 0.5e-4 * abs(self.high)) / self.bins
        found[kept] = np.minimum(values / (width or 1), self.bins - 1)
        return found


def allocate(budget: int, sizes: NDArray[np.int64]) -> list[int]:
    """How many of each bin are kept: smallest bins first, of equal ones the first, min(size, rest // bins left)."""
    shares = [0] * len(sizes)
    for visited, place in enumerate(np.argsort(sizes, kind="stable").tolist()):
        shares[place] = min(int(sizes[place]), budget // (len(sizes) - visited))
        budget -= shares[place]
    assert budget == 0, "the bins hold the budget"
    return shares
