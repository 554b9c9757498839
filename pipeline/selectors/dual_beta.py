"""DUAL-beta: sample by DUAL, around a difficulty that gets easier as more is pruned."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import counter
from pipeline.pool import Pool, Rows
from pipeline.scores.dual import Dual
from pipeline.selectors import AUTO, Ranked, decided

EDGE = 1 - 2.0**-24
"""The largest float32 below 1: where a mean that was rounded to 1 is taken to be, since b < 1 is infinite at 1."""

AFTER = 1e6
"""Beyond every log weight: what has weight 0 comes after all else."""


class DualBeta(Ranked):
    """Without replacement, with probability proportional to BetaPDF(dual_mean; a, b) * dual; this is Semi-DUAL-beta.

    score: column of DUAL, with a name of its own as dual@60. c_d: 3 in SemiPrune, 4 (CIFAR) and 11 (ImageNet) in the
    DUAL paper, or auto, chosen by a run from its held-out labels (pipeline/shift.py). Exactly the k largest of log
    weight + Gumbel. Examples of weight 0 (dual is 0) follow when the others do not suffice, in random order. A larger
    budget wants easier ones, so it need not contain a smaller one's.
    """

    source: ClassVar = Dual.source

    @dataclass(frozen=True)
    class Options(Ranked.Options):
        """score: which column; c_d: how fast the sampled difficulty moves with the pruning rate, or auto, which
        held-out labels decide."""

        score: str = "dual"
        c_d: float | str = 3.0

        def __post_init__(self) -> None:
            if self.c_d != AUTO and (isinstance(self.c_d, str) or self.c_d <= 0):
                raise ValueError(f"c_d={self.c_d!r} is no number above 0: SemiPrune has 3; or set it to auto")
            if self.score.partition("@")[0] != "dual":
                raise ValueError(f"score={self.score!r} is not of the score dual: name dual, or dual@NAME")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.columns = (options.score, options.score.replace("dual", "dual_mean", 1))

    def order(self, pool: Pool, budget: int, seed: int) -> "Drawn":
        """In the order in which they are drawn."""
        c_d = decided("c_d", self.options.c_d)
        a, b = beta_parameters(self.anchor(pool), budget / pool.num_samples, c_d)
        return Drawn(self.columns, a, b, seed)

    def anchor(self, pool: Pool) -> float:
        """Mean dual_mean of the 10 examples of largest DUAL, of equals those of smaller id."""
        score, mean = self.columns
        top = list(pool.map(lambda rows: _first_10(-rows[score], rows.sample_ids, inside(rows[mean]))))
        return float(_first_10(*(np.concatenate(column) for column in zip(*top, strict=True)))[2].mean())


@dataclass(frozen=True)
class Drawn:
    """Minus (log weight + Gumbel): the smallest are a sample without replacement."""

    columns: tuple[str, ...]
    a: float
    b: float
    seed: int

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """[n], what is smaller is drawn earlier."""
        dual, mean = (rows[name] for name in self.columns)
        gumbel = -np.log(-np.log(counter.uniform(self.seed, "select-dual-beta", 0, rows.sample_ids)))
        weights = log_weights(dual, mean, self.a, self.b)
        return np.where(np.isfinite(weights), -weights, AFTER) - gumbel


def beta_parameters(anchor: float, keep: float, c_d: float) -> tuple[float, float]:
    """a and b of the Beta density, a + b = 16; anchor: mean p_label of the examples of largest DUAL."""
    b = 15 * (1 - anchor) * (1 - (1 - keep) ** c_d)
    return 16 - b, b


def inside(mean: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean probabilities, clear of 0 and 1."""
    return mean.astype(np.float64).clip(np.finfo(np.float32).tiny, EDGE)


def log_weights(dual: NDArray[np.floating], mean: NDArray[np.floating], a: float, b: float) -> NDArray[np.float64]:
    """Log of BetaPDF(mean; a, b) * dual, up to a constant; -inf where dual is 0."""
    p = inside(mean)
    with np.errstate(divide="ignore"):
        weights: NDArray[np.float64] = (a - 1) * np.log(p) + (b - 1) * np.log1p(-p) + np.log(dual.astype(np.float64))
    return weights


def _first_10(*columns: NDArray[np.generic]) -> tuple[NDArray[np.generic], ...]:
    order = np.lexsort(columns[1::-1])[:10]
    return tuple(column[order] for column in columns)
