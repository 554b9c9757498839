"""How much of a score's hard end to cut, from held-out labels: no grid search, no training.

Wrong pseudo-labels gather at the hard end of a difficulty order, and so do the images worth most. Let u in 0..1 be an
image's place in the order, the share of the pool that is harder, and p(u) the rate of wrong pseudo-labels there. What
an image teaches, it teaches about those that look like it, which the semi-supervised model put into the same class.
Under a right pseudo-label that helps them, the more the harder they are: 1 - u. Under a wrong one the image is of
another class than they are, and harms, the less the more is kept that speaks for them. So what is kept after a cut m, a
share r of the pool, is worth

    G(m) = integral from m to m + r of  (1 - (1 + h) p(u)) (1 - u)  du,    h = (1 - r)^2

and the rule is: the m, in steps of 1%, that makes G largest; of equals the smallest. Cutting goes on while the image at
the hard end is worth less than the one that takes its place. Where much is kept, what takes its place is easy, and
little is cut; where little is kept, more.

p is the isotonic regression, falling with u, of the held-out rows' right and wrong, and of one more wrong row that is
taken for the hardest of all: with few held-out rows, none wrong is no proof that none is.

h is fitted to full retrainings on CIFAR-10: 50,000 images, 74% of the pseudo-labels right, 800 rows held out, a small
network, m = 0, .1 .. .7, one seed. At r = .5, .3 and .1 the best were .1, .3 and .5 (81.4%, 79.1% and 74.7% accuracy, a
random coreset 79.8%, 77.4% and 71.0%). The rule takes .14, .32 and .49, with 81.8%, 78.8% and 74.4%. Without harm, h =
0, it would take .11, .19 and .31, with h = 1 .31, .32 and .49: at .19 and .31 of the hard end cut, accuracy was 72.7%
and 68.8%, below random, and at r = .5 and .31, 79.7%. Published values go the same way: about 0 from r = .5 on, .1 to
.2 at r = .3, .3 to .4 at r = .1 on CIFAR-10 (ELFS, arXiv 2406.04273; CCS, arXiv 2210.15809). It measures nothing but
wrong pseudo-labels; that very hard images teach a small budget little, though rightly labelled, is not in it.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import counter
from pipeline.intervals import wilson

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

STEPS = 100
"""A cut is a multiple of 1 / STEPS."""
RESAMPLES = 200
FOLDS = 10
TENTHS = 10


@dataclass(frozen=True)
class ErrorCurve:
    """p(u) as steps. edges: float64[k + 1], ascending from 0 to 1; rates: float64[k], falling, of each stretch."""

    edges: Floats
    rates: Floats

    @staticmethod
    def of(harder_share: Floats, wrong: Bools) -> "ErrorCurve":
        """From held-out rows: harder_share [h], each row's u; wrong [h]."""
        from scipy.optimize import isotonic_regression

        places, row = np.unique(np.concatenate([[0.0], harder_share]), return_inverse=True)
        total = np.bincount(row)
        rates = np.bincount(row, weights=np.concatenate([[1.0], wrong])) / total
        fitted = isotonic_regression(rates, weights=total, increasing=False).x
        return ErrorCurve(np.concatenate([[0.0], (places[1:] + places[:-1]) / 2, [1.0]]), fitted)

    def worth(self, cuts: Floats, keep: float) -> Floats:
        """G of each cut: the worth of what is kept, summed over the pool, -keep..keep."""
        area = self.edges - self.edges**2 / 2  # the integral of 1 - u
        gain = 1 - (1 + (1 - keep) ** 2) * self.rates
        until = np.concatenate([[0.0], np.cumsum(gain * np.diff(area))])

        def integral(x: Floats) -> Floats:
            step = np.clip(np.searchsorted(self.edges, x, side="right") - 1, 0, len(self.rates) - 1)
            found: Floats = until[step] + gain[step] * (x - x**2 / 2 - area[step])
            return found

        return integral(np.minimum(cuts + keep, 1.0)) - integral(cuts)

    def best_cut(self, keep: Fraction) -> Fraction:
        """The m of the rule; m + keep is at most 1."""
        steps = np.arange(floor((1 - keep) * STEPS) + 1)
        worth = self.worth(steps / STEPS, float(keep))
        return Fraction(int(np.flatnonzero(worth >= worth.max() - 1e-12)[0]), STEPS)


def choose(harder_share: Floats, wrong: Bools, keep: Fraction) -> Fraction:
    """The share to cut from the hard end, as the rule above has it.

    harder_share: float64[h], of each held-out row the share of the pool that the score takes for harder, 0..1; wrong:
    bool[h], whether its pseudo-label is; h > 0; keep: r.
    """
    assert len(wrong) > 0, "without a held-out row nothing is known"
    return ErrorCurve.of(harder_share, wrong).best_cut(keep)


def evidence(harder_share: Floats, wrong: Bools, keep: Fraction, seed: int) -> dict[str, Any]:
    """The chosen cut, and all that it rests on, as JSON values; arguments as those of `choose`.

    fraction: m; interval: the middle 95% of m over bootstrap resamples of the rows, too narrow for
    some 20 of them; kept: of wrong_in_kept; bins: tenths of the order
    with their wrong held-out rows and the Wilson interval of p (fewer where there are less than 100 rows); curve: p;
    cuts: of 0, .1, .2 .. how many wrong and right held-out rows are cut, how many are kept, and the mean worth of
    what is kept, -1..1.
    """
    curve = ErrorCurve.of(harder_share, wrong)
    draws = [counter.uniform(seed, "mislabel", draw, np.arange(len(wrong))) for draw in range(RESAMPLES)]
    resamples = [(draw * len(wrong)).astype(np.int64) for draw in draws]
    again = [float(choose(harder_share[rows], wrong[rows], keep)) for rows in resamples]
    chosen, share = curve.best_cut(keep), float(keep)
    cuts = sorted({Fraction(step, TENTHS) for step in range(floor((1 - keep) * TENTHS) + 1)} | {chosen})
    return {
        "fraction": float(chosen),
        "kept": list(wrong_in_kept(harder_share, wrong, keep, seed)),
        "interval": [float(end) for end in np.quantile(again, [0.025, 0.975], method="nearest")],
        "num_holdout": len(wrong),
        "num_wrong": int(wrong.sum()),
        "bins": tenths(harder_share, wrong),
        "curve": {"edges": curve.edges.tolist(), "rates": curve.rates.tolist()},
        "cuts": [_cut(harder_share, wrong, float(cut), share, curve) for cut in cuts],
    }


def wrong_in_kept(harder_share: Floats, wrong: Bools, keep: Fraction, seed: int) -> tuple[int, int]:
    """How many held-out rows are wrong, of how many, in what a chosen cut keeps; arguments as those of `choose`.

    Each tenth of the rows is judged by the cut that the others choose: a cut that a row took part in choosing tends to
    end behind it if it is wrong, so those rows would make the kept ones look better than they are.
    """
    fold = np.argsort(np.argsort(counter.uniform(seed, "mislabel-fold", 0, np.arange(len(wrong))))) % FOLDS
    found = np.zeros(2, dtype=np.int64)
    for k in range(FOLDS if len(wrong) > 1 else 0):
        own = fold == k
        if not own.any():
            continue
        cut = float(choose(harder_share[~own], wrong[~own], keep))
        kept = own & (harder_share >= cut) & (harder_share < cut + float(keep))
        found += [int((kept & wrong).sum()), int(kept.sum())]
    return int(found[0]), int(found[1])


def tenths(harder_share: Floats, wrong: Bools) -> list[dict[str, Any]]:
    """Wrong held-out rows in equal stretches of the order, hardest first: ten, or one for every ten rows if fewer."""
    number = max(1, min(TENTHS, len(wrong) // 10))
    place = np.minimum((harder_share * number).astype(np.int64), number - 1)
    total = np.bincount(place, minlength=number)
    found = np.bincount(place, weights=wrong, minlength=number).astype(np.int64)
    return [
        {
            "low": k / number,
            "high": (k + 1) / number,
            "wrong": int(found[k]),
            "total": int(total[k]),
            "interval": list(wilson(int(found[k]), int(total[k]))) if total[k] else None,
        }
        for k in range(number)
    ]


def _cut(harder_share: Floats, wrong: Bools, cut: float, keep: float, curve: ErrorCurve) -> dict[str, Any]:
    gone = harder_share < cut
    kept = ~gone & (harder_share < cut + keep)
    return {
        "fraction": cut,
        "cut_wrong": int((gone & wrong).sum()),
        "cut_right": int((gone & ~wrong).sum()),
        "kept_wrong": int((kept & wrong).sum()),
        "kept_right": int((kept & ~wrong).sum()),
        "worth": float(curve.worth(np.array([cut]), keep)[0] / keep),
    }
