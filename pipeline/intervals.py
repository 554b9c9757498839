"""95% intervals of what is measured on few rows."""

import math

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""

Interval = tuple[float, float]


def wilson(correct: float, total: float) -> Interval:
    """The 95% interval of Wilson (1927) for a fraction `correct / total`, both ends in [0, 1]; total > 0."""
    assert 0 <= correct <= total and total > 0
    p, z2 = correct / total, Z_95**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return 0.0 if correct == 0 else centre - half, 1.0 if correct == total else centre + half


def spearman(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[float, Interval] | None:
    """Rank correlation of x and y [n], ties by mean rank, -1..1, and its 95% interval; None where it has none.

    The interval is Fisher's z with the standard error sqrt((1 + rho^2 / 2) / (n - 3)) of Bonett and Wright (2000). None
    if n < 4, or if x or y is constant.
    """
    from scipy.stats import rankdata

    if len(x) < 4:
        return None
    ranks = np.stack([rankdata(x), rankdata(y)])
    deviations = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((deviations**2).sum(axis=1))
    if not norms.all():
        return None
    rho = float(np.clip(deviations[0] @ deviations[1] / norms.prod(), -1, 1))
    centre = math.atanh(min(max(rho, -1 + 1e-15), 1 - 1e-15))
    half = Z_95 * math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return rho, (min(math.tanh(centre - half), rho), max(math.tanh(centre + half), rho))  # near 1, tanh rounds up


def predicted(correct: int, total: int, unseen: int) -> tuple[int, int]:
    """The 95% interval of how many of `unseen` rows are like the `correct` of `total` seen rows; total > 0.

    Both are random samples of one population: the variance p (1 - p) / total of the rate and the p (1 - p) / unseen of
    the unseen rows' own share add up, which is Wilson's interval of as few rows as have this variance together. Both
    ends are whole numbers within 0..unseen, outwards of it: of few rows, what lies between two of them is never met.
    """
    if not unseen:
        return 0, 0
    rows = total * unseen / (total + unseen)
    low, high = wilson(correct / total * rows, rows)
    return math.floor(low * unseen), math.ceil(high * unseen)
