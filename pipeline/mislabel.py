"""How much of a score's hard end double_end cuts, from held-out labels: no grid search, no training.

What is kept after a cut m, a share r of the pool, is worth

    G(m) = integral from m to m + r of  g(u) du

by the worth g of an image (`pipeline/error_curve.py`), and the rule is: the m, in steps of 1% and not below `least`,
that makes G largest; of equals the smallest. Cutting goes on while the image at the hard end is worth less than the one
that takes its place. Where much is kept, what takes its place is easy, and little is cut; where little is kept, more.

h, the harm in g, is fitted to full retrainings on CIFAR-10: 50,000 images, 74% of the pseudo-labels right, 800 rows
held out, a small network, m = 0, .1 .. .7, one seed. At r = .5, .3 and .1 the best were .1, .3 and .5 (81.4%, 79.1% and
74.7% accuracy, a random coreset 79.8%, 77.4% and 71.0%). The rule takes .14, .32 and .49, with 81.8%, 78.8% and 74.4%.
Without harm, h = 0, it would take .11, .19 and .31, with h = 1 .31, .32 and .49: at .19 and .31 of the hard end cut,
accuracy was 72.7% and 68.8%, below random, and at r = .5 and .31, 79.7%. Published values go the same way: about 0 from
r = .5 on, .1 to .2 at r = .3, .3 to .4 at r = .1 on CIFAR-10 (ELFS, arXiv 2406.04273; CCS, arXiv 2210.15809). G knows
of wrong pseudo-labels and nothing else. That the hardest images teach a small coreset little, though rightly labelled,
is in `least` alone, which goes by such trainings with true labels: at r = .5 78.1%, 81.0% and 81.9% for m = 0, .1 and
.2, at .3 49.2%, 74.4%, 80.8% and 80.3% up to m = .3, at .1 24.5%, 77.1%, 77.0% and 70.5% for m = 0, .3, .5, .7.

Nothing was fitted to corrupted images, where m of .21, .39 and .54 have 77.7%, 76.2% and 70.9%, random coresets 76.6%,
74.1% and 69.8%. With a long tail the hard end is also that of rare classes, of which G knows nothing: at an imbalance
of .01 and r = .1, 34.0%, where random ones have 36.7%.
"""

from fractions import Fraction
from math import floor
from typing import Any

import numpy as np

from pipeline.error_curve import TENTHS, Bools, ErrorCurve, Floats, middle, parts, resamples, tenths

STEPS = 100
"""A cut is a multiple of 1 / STEPS."""


def least(keep: Fraction) -> Fraction:
    """The smallest cut that is chosen: .35 - r / 2, or 0; .3 at r = .1, .2 at .3, .1 at .5.

    Where no pseudo-label is wrong, G alone would cut nothing, and of the hardest images a small coreset learns little.
    """
    return max(Fraction(35, 100) - keep / 2, Fraction(0))


def choose(harder_share: Floats, wrong: Bools, keep: Fraction) -> Fraction:
    """The share to cut from the hard end, as the rule above has it.

    harder_share: float64[h], of each held-out row the share of the pool that the score takes for harder, 0..1; wrong:
    bool[h], whether its pseudo-label is; h > 0; keep: r.
    """
    assert len(wrong) > 0, "without a held-out row nothing is known"
    return _best(ErrorCurve.of(harder_share, wrong), keep)


def evidence(
    harder_share: Floats, wrong: Bools, keep: Fraction, seed: int, used: Fraction | None = None
) -> dict[str, Any]:
    """The chosen cut, and all that it rests on, as JSON values; arguments as those of `choose`; used: a cut that was
    given, and is shown beside the others.

    value: m; interval: the middle 95% of m over bootstrap resamples of the rows, too narrow for some 20 of them; kept:
    of wrong_in_kept; bins: tenths of the order with their wrong held-out rows and the Wilson interval of p (fewer where
    there are less than 100 rows); curve: p; cuts: of 0, .1, .2 .. how many wrong and right held-out rows are cut, how
    many are kept, and the mean worth of what is kept, -1..1.
    """
    curve = ErrorCurve.of(harder_share, wrong)
    again = [float(choose(harder_share[rows], wrong[rows], keep)) for rows in resamples(seed, len(wrong))]
    chosen, share = _best(curve, keep), float(keep)
    cuts = {Fraction(step, TENTHS) for step in range(floor((1 - keep) * TENTHS) + 1)} | {chosen}
    cuts |= {used} if used is not None else set()
    return {
        "value": float(chosen),
        "kept": list(wrong_in_kept(harder_share, wrong, keep, seed, used)),
        "interval": middle(again),
        "num_holdout": len(wrong),
        "num_wrong": int(wrong.sum()),
        "bins": tenths(harder_share, wrong),
        "curve": {"edges": curve.edges.tolist(), "rates": curve.rates.tolist()},
        "cuts": [_cut(harder_share, wrong, float(cut), share, curve) for cut in sorted(cuts)],
    }


def wrong_in_kept(
    harder_share: Floats, wrong: Bools, keep: Fraction, seed: int, used: Fraction | None = None
) -> tuple[int, int]:
    """How many held-out rows are wrong, of how many, in what the cut `used` keeps; arguments as those of `choose`.

    Without it, in what a chosen cut keeps: each tenth of the rows is judged by the cut that the others choose. A cut
    that a row took part in choosing tends to end behind it if it is wrong.
    """
    kept = np.zeros(len(wrong), dtype=bool)
    for own in [np.ones(len(wrong), dtype=bool)] if used is not None else parts(seed, len(wrong)):
        cut = float(choose(harder_share[~own], wrong[~own], keep) if used is None else used)
        kept |= own & (harder_share >= cut) & (harder_share < cut + float(keep))
    return int((kept & wrong).sum()), int(kept.sum())


def _best(curve: ErrorCurve, keep: Fraction) -> Fraction:
    """The m of the rule; m + keep is at most 1."""
    steps = np.arange(floor(least(keep) * STEPS), floor((1 - keep) * STEPS) + 1)
    worth = _worth(curve, steps / STEPS, float(keep))
    return Fraction(int(steps[np.flatnonzero(worth >= worth.max() - 1e-12)[0]]), STEPS)


def _worth(curve: ErrorCurve, cuts: Floats, keep: float) -> Floats:
    """G of each cut."""
    return curve.worth_between(cuts, np.minimum(cuts + keep, 1.0), keep)


def _cut(harder_share: Floats, wrong: Bools, cut: float, keep: float, curve: ErrorCurve) -> dict[str, Any]:
    gone = harder_share < cut
    kept = ~gone & (harder_share < cut + keep)
    return {
        "fraction": cut,
        "cut_wrong": int((gone & wrong).sum()),
        "cut_right": int((gone & ~wrong).sum()),
        "kept_wrong": int((kept & wrong).sum()),
        "kept_right": int((kept & ~wrong).sum()),
        "worth": float(_worth(curve, np.array([cut]), keep)[0] / keep),
    }
