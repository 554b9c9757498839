"""How fast DUAL-beta turns to easy examples as more is pruned: its c_d, from held-out labels.

DUAL-beta draws without replacement, with probability in proportion to w = BetaPDF(mean; a, b) * DUAL, where c_d shifts
a and b (pipeline/selectors/dual_beta.py). If a share r of the pool is drawn, an example of weight w is in the coreset
with chance 1 - exp(-t w), where t makes the mean of these chances, here that of the held-out rows, r. The rule is: the
c_d of CHOICES whose coreset is expected to be worth most,

    G(c_d) = sum of chance * g(u)  /  sum of chance

over the held-out rows, by the worth g of an example (`pipeline/error_curve.py`) at its place u in the order of the mean
that the Beta density looks at; of equals the smallest.

Nothing in it is fitted to trainings on what DUAL-beta draws. On CIFAR-10, as in `pipeline/mislabel.py` but with three
trainings each, it takes .7, 1 and 2.8 at r = .5, .3 and .1: 81.0%, 79.1% and 73.8% accuracy, where 3 has 77.5%, 73.0%
and 73.9%, and random coresets 80.2%, 77.9% and 72.2%. T, over how many epochs DUAL looks, hardly matters once c_d is
chosen: with T from 10 to 20, of 20 epochs, the largest G is .36 at r = .5, .33 to .34 at .3, .29 to .31 at .1.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipeline import counter
from pipeline.error_curve import Bools, ErrorCurve, Floats, middle, parts, resamples, tenth_of, tenths

CHOICES = (0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
"""Steps of the square root of 2. 4 is what the authors take for CIFAR with true labels: where no pseudo-label is wrong,
g alone would go on to the very hardest images, of which a small coreset learns little, rightly labelled or not.
"""


def chance(log_weights: Floats, keep: float) -> Floats:
    """Of examples to be in a sample of this share, drawn in proportion to their weights without replacement: [n].

    log_weights: [n], -inf for weight 0; those share what the others leave. Exact for many examples, as the share of
    them that is drawn by then hardly varies.
    """
    drawn = np.isfinite(log_weights)
    budget, num_drawn = keep * len(drawn), int(drawn.sum())
    if num_drawn <= budget:
        return np.where(drawn, 1.0, (budget - num_drawn) / max(1, len(drawn) - num_drawn))
    logs = log_weights[drawn]

    def chances(log_time: float) -> Floats:
        return -np.expm1(-np.exp(np.minimum(logs + log_time, 100.0)))

    found = np.zeros(len(drawn))
    found[drawn] = chances(brentq(lambda t: chances(t).sum() - budget, -logs.max() - 50, -logs.min() + 50))
    return found


def evidence(
    harder_share: Floats,
    wrong: Bools,
    log_weights: Callable[[float], Floats],
    keep: float,
    seed: int,
    used: float | None = None,
) -> dict[str, Any]:
    """The chosen c_d, and all that it rests on, as JSON values.

    harder_share: float64[h], of each held-out row the share of the pool that the mean takes for harder, 0..1; wrong:
    bool[h], whether its pseudo-label is; h > 0; log_weights: of the rows, [h], at a c_d; keep: r; used: a c_d that was
    given, and is shown beside the others.

    value: c_d; interval: the middle 95% of it over bootstrap resamples of the rows, too narrow for some 20 of them;
    kept: how many rows are wrong, of how many, in a draw with `used`, else with the c_d that other rows chose; bins:
    tenths of the order, as of a cut, each with the chance of its rows to be kept with `used`, else with `value`; curve:
    p; choices: of each c_d how many of what it keeps are expected to be wrong, 0..1, and its worth, -1..1.
    """
    curve = ErrorCurve.of(harder_share, wrong)
    worth = curve.worth(harder_share, keep)
    chances = {c_d: chance(log_weights(c_d), keep) for c_d in CHOICES}

    def chosen_by(rows: NDArray[Any]) -> float:
        own = ErrorCurve.of(harder_share[rows], wrong[rows]).worth(harder_share[rows], keep)
        return _best({c_d: of_all[rows] for c_d, of_all in chances.items()}, own)

    value = _best(chances, worth)
    again = [chosen_by(rows) for rows in resamples(seed, len(wrong))]
    judged = np.zeros(len(wrong)) if used is None else chance(log_weights(used), keep)
    if used is None:
        for own in parts(seed, len(wrong)):
            judged[own] = chances[chosen_by(~own)][own]
    else:
        chances[used] = judged
    kept = counter.uniform(seed, "shift-kept", 0, np.arange(len(wrong))) < judged
    bins, (place, _) = tenths(harder_share, wrong), tenth_of(harder_share)
    for number, row in enumerate(bins):
        row["chance"] = _mean(chances[value if used is None else used], place == number)
    return {
        "value": value,
        "interval": middle(again),
        "kept": [int((kept & wrong).sum()), int(kept.sum())],
        "num_holdout": len(wrong),
        "num_wrong": int(wrong.sum()),
        "bins": bins,
        "curve": {"edges": curve.edges.tolist(), "rates": curve.rates.tolist()},
        "choices": [
            {"c_d": c_d, "wrong": _mean(wrong, row), "worth": _mean(worth, row)} for c_d, row in sorted(chances.items())
        ],
    }


def _best(chances: Mapping[float, Floats], worth: Floats) -> float:
    """The smallest c_d of those whose coreset is worth most."""
    found = {c_d: _mean(worth, row) for c_d, row in chances.items()}
    return min(c_d for c_d, mean in found.items() if mean >= max(found.values()) - 1e-12)


def _mean(values: Any, weights: Any) -> float:
    """Of a coreset, by the chances of the rows; 0 where there are none."""
    return float(values @ weights / max(weights.sum(), np.finfo(np.float64).tiny))
