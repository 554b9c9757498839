"""The rate of wrong pseudo-labels along an order, and what images are worth there: against slow plain versions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.error_curve import ErrorCurve
from tests.pipeline.held_out import ROWS, Rows, arrays


def plain_rate(rows: Rows, u: float) -> float:
    """p(u) by the min-max formula of isotonic regression at the place nearest to u, the added row among them."""
    everything = [(0, True), *rows]
    places = sorted({place for place, _ in everything})
    here = min(places, key=lambda place: (abs(place - 100 * u), place))

    def mean(low: int, high: int) -> float:
        found = [wrong for place, wrong in everything if low <= place <= high]
        return sum(found) / len(found)

    return min(max(mean(low, high) for high in places if high >= here) for low in places if low <= here)


@given(ROWS)
def test_the_error_curve_is_the_isotonic_regression(rows: Rows) -> None:
    curve = ErrorCurve.of(*arrays(rows))
    assert (np.diff(curve.rates) <= 1e-12).all() and curve.edges[0] == 0 and curve.edges[-1] == 1
    for place in {place for place, _ in rows}:
        step = np.searchsorted(curve.edges, place / 100, side="right") - 1
        assert curve.rates[step] == pytest.approx(plain_rate(rows, place / 100))


@given(ROWS, st.integers(0, 60), st.integers(1, 40))
def test_what_is_kept_is_worth_the_integral(rows: Rows, cut: int, keep: int) -> None:
    curve = ErrorCurve.of(*arrays(rows))
    u = (np.arange(cut * 100, (cut + keep) * 100) + 0.5) / 10_000  # the curve's steps are at multiples of 1/200
    rates = curve.rates[np.searchsorted(curve.edges, u, side="right") - 1]
    worth = curve.worth_between(np.array([cut / 100]), np.array([(cut + keep) / 100]), keep / 100)
    plain = (1 - (1 + (1 - keep / 100) ** 2) * rates) * (1 - u)
    np.testing.assert_allclose(curve.worth(u, keep / 100), plain)
    assert worth[0] == pytest.approx(plain.sum() / 10_000, abs=1e-9)
