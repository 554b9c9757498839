"""The rate of wrong pseudo-labels along a difficulty order, and what an image is worth there.

Wrong pseudo-labels gather at the hard end of a difficulty order, and so do the images worth most. Let u in 0..1 be an
image's place in the order, the share of the pool that is harder, and p(u) the rate of wrong pseudo-labels there. What
an image teaches, it teaches about those that look like it, which the semi-supervised model put into the same class.
Under a right pseudo-label that helps them, the more the harder they are: 1 - u. Under a wrong one the image is of
another class than they are, and harms, the less the more is kept that speaks for them. So in a coreset of a share r of
the pool an image is worth

    g(u) = (1 - (1 + h) p(u)) (1 - u),    h = (1 - r)^2

and the options of a selector that held-out labels choose are those that keep the most worth. `pipeline/mislabel.py` has
what that has been measured against, and h was fitted to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import counter
from pipeline.intervals import wilson

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TENTHS = 10
RESAMPLES = 200


@dataclass(frozen=True)
class ErrorCurve:
    """p(u) as steps. edges: float64[k + 1], ascending from 0 to 1; rates: float64[k], falling, of each stretch."""

    edges: Floats
    rates: Floats

    @staticmethod
    def of(harder_share: Floats, wrong: Bools) -> "ErrorCurve":
        """From held-out rows: harder_share [h], each row's u; wrong [h].

        p is the isotonic regression, falling with u, of the rows' right and wrong, and of one more wrong row that is
        taken for the hardest of all: with few held-out rows, none wrong is no proof that none is.
        """
        from scipy.optimize import isotonic_regression

        places, row = np.unique(np.concatenate([[0.0], harder_share]), return_inverse=True)
        total = np.bincount(row)
        rates = np.bincount(row, weights=np.concatenate([[1.0], wrong])) / total
        fitted = isotonic_regression(rates, weights=total, increasing=False).x
        return ErrorCurve(np.concatenate([[0.0], (places[1:] + places[:-1]) / 2, [1.0]]), fitted)

    def worth(self, u: Floats, keep: float) -> Floats:
        """g of the images at these places; u: [n], 0..1; keep: r."""
        return self._gain(keep)[self._step(u)] * (1 - u)

    def worth_between(self, low: Floats, high: Floats, keep: float) -> Floats:
        """g of all images from one place to another: its integral; low, high: [n], 0..1."""
        area = self.edges - self.edges**2 / 2  # the integral of 1 - u
        gain = self._gain(keep)
        until = np.concatenate([[0.0], np.cumsum(gain * np.diff(area))])

        def integral(u: Floats) -> Floats:
            step = self._step(u)
            found: Floats = until[step] + gain[step] * (u - u**2 / 2 - area[step])
            return found

        return integral(high) - integral(low)

    def _gain(self, keep: float) -> Floats:
        return 1 - (1 + (1 - keep) ** 2) * self.rates

    def _step(self, u: Floats) -> NDArray[np.int64]:
        return np.clip(np.searchsorted(self.edges, u, side="right") - 1, 0, len(self.rates) - 1)


def tenth_of(harder_share: Floats) -> tuple[NDArray[np.int64], int]:
    """In which of equal stretches of the order each held-out row is, hardest first, and how many there are.

    Ten, or one for every ten rows if fewer.
    """
    number = max(1, min(TENTHS, len(harder_share) // 10))
    return np.minimum((harder_share * number).astype(np.int64), number - 1), number


def tenths(harder_share: Floats, wrong: Bools) -> list[dict[str, Any]]:
    """Wrong held-out rows in the stretches of `tenth_of`."""
    place, number = tenth_of(harder_share)
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


def resamples(seed: int, num_rows: int) -> Iterator[NDArray[np.int64]]:
    """Bootstrap samples of rows, each int64[num_rows] of 0..num_rows-1."""
    for draw in range(RESAMPLES):
        yield (counter.uniform(seed, "error-curve", draw, np.arange(num_rows)) * num_rows).astype(np.int64)


def parts(seed: int, num_rows: int) -> Iterator[Bools]:
    """Tenths of the rows at random, or each row alone if fewer, as bool[num_rows]; none of a single row.

    Each is to judge what the others choose: rows that took part in choosing what is kept make it look too good.
    """
    part = np.argsort(np.argsort(counter.uniform(seed, "error-curve-part", 0, np.arange(num_rows)))) % TENTHS
    yield from (part == k for k in range(min(TENTHS, num_rows) if num_rows > 1 else 0))


def middle(values: list[float]) -> list[float]:
    """The two ends of the middle 95% of what was found in the resamples."""
    return [float(end) for end in np.quantile(values, [0.025, 0.975], method="nearest")]
