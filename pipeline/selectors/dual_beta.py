"""DUAL-beta: sample by DUAL, around a difficulty that gets easier as more is pruned."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import counter
from pipeline.scores.dual import Dual
from pipeline.selectors import Pool, Selector

EDGE = 1 - 2.0**-24
"""The largest float32 below 1: where a mean that was rounded to 1 is taken to be, since b < 1 is infinite at 1."""


class DualBeta(Selector):
    """Without replacement, with probability proportional to BetaPDF(dual_mean; a, b) * dual; this is Semi-DUAL-beta.

    c_d: 3 in SemiPrune, 4 (CIFAR) and 11 (ImageNet) in the DUAL paper. Exactly the k largest of log weight + Gumbel.
    Examples of weight 0 (dual is 0) follow when the others do not suffice, in random order.
    """

    columns = ("dual", "dual_mean")
    source: ClassVar = Dual.source

    @dataclass(frozen=True)
    class Options(Selector.Options):
        """How fast the sampled difficulty moves with the pruning rate."""

        c_d: float = 3.0

        def __post_init__(self) -> None:
            if self.c_d <= 0:
                raise ValueError(f"c_d={self.c_d} must be above 0: SemiPrune has 3")

    def __call__(self, pool: Pool, budget: int, seed: int) -> NDArray[np.int64]:
        """In the order in which they are drawn."""
        dual, mean = pool.columns["dual"], pool.columns["dual_mean"]
        weights = log_weights(dual, mean, budget / len(pool), self.options.c_d)
        gumbel = -np.log(-np.log(counter.uniform(seed, "select-dual-beta", 0, pool.sample_ids)))
        drawn = np.isfinite(weights)
        return np.lexsort((-np.where(drawn, weights + gumbel, gumbel), ~drawn))[:budget]


def beta_parameters(anchor: float, keep: float, c_d: float) -> tuple[float, float]:
    """a and b of the Beta density, a + b = 16; anchor: mean p_label of the examples of largest DUAL."""
    b = 15 * (1 - anchor) * (1 - (1 - keep) ** c_d)
    return 16 - b, b


def log_weights(dual: NDArray[np.float64], mean: NDArray[np.float64], keep: float, c_d: float) -> NDArray[np.float64]:
    """Log of BetaPDF(mean; a, b) * dual, up to a constant; -inf where dual is 0."""
    inside = mean.clip(np.finfo(np.float32).tiny, EDGE)
    a, b = beta_parameters(float(inside[np.argsort(-dual, kind="stable")[:10]].mean()), keep, c_d)
    with np.errstate(divide="ignore"):
        weights: NDArray[np.float64] = (a - 1) * np.log(inside) + (b - 1) * np.log1p(-inside) + np.log(dual)
    return weights
