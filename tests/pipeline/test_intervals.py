"""Intervals: published values, a slow plain version, and how often they hold what they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from pipeline.intervals import predicted, spearman, wilson


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), table I: 81/263 and 0/20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.integers(1, 10**7), st.data())
def test_wilson_holds_the_fraction_inside_the_unit_interval(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    low, high = wilson(correct, total)
    assert 0 <= low <= correct / total + 1e-12 and correct / total - 1e-12 <= high <= 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=40))
def test_the_rank_correlation_is_scipys_ties_and_all(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=np.float64).T
    found = spearman(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert found is None
        return
    assert found is not None
    rho, (low, high) = found
    assert rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert -1 <= low <= rho <= high <= 1


def test_three_rows_have_no_correlation() -> None:
    assert spearman(np.arange(3.0), np.arange(3.0)) is None


@pytest.mark.parametrize("n", [4, 7, 20, 60, 1000])
def test_a_correlation_of_1_is_in_its_interval(n: int) -> None:
    found = spearman(np.arange(float(n)), np.arange(float(n)))
    assert found is not None
    rho, (low, high) = found
    assert rho == pytest.approx(1) and low <= rho <= high


def test_the_interval_of_a_correlation_holds_the_true_one_in_19_of_20_cases() -> None:
    rng, true = (
        np.random.default_rng(0),
        6 / np.pi * np.arcsin(0.6 / 2),
    )  # Spearman's of a normal pair of correlation .6
    hits = 0
    for _ in range(500):
        x, z = rng.standard_normal((2, 60))
        found = spearman(x, 0.6 * x + 0.8 * z)
        assert found is not None
        hits += found[1][0] <= true <= found[1][1]
    assert 0.92 < hits / 500 < 0.98


@pytest.mark.parametrize(("total", "unseen"), [(50, 10_000), (50, 50), (400, 60)])
def test_the_predicted_number_is_held_in_19_of_20_cases(total: int, unseen: int) -> None:
    rng = np.random.default_rng(0)
    pairs = rng.binomial([total, unseen], 0.3, size=(1000, 2))
    hits = [low <= there <= high for here, there in pairs for low, high in [predicted(here, total, unseen)]]
    assert 0.92 < np.mean(hits) < 0.98


@pytest.mark.parametrize("total", [5, 50])
@pytest.mark.parametrize("unseen", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_the_predicted_number_of_few_rows_is_held_no_less(total: int, unseen: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    pairs = rng.binomial([total, unseen], rate, size=(2000, 2)).tolist()
    ends = [predicted(here, total, unseen) for here, _ in pairs]
    assert np.mean([low <= there <= high for (_, there), (low, high) in zip(pairs, ends, strict=True)]) > 0.93
    assert all(type(end) is int and 0 <= end <= unseen for pair in ends for end in pair)


def test_none_of_no_rows_is_predicted_and_all_of_them_may_be() -> None:
    assert predicted(3, 10, 0) == (0, 0)
    assert predicted(0, 10, 4)[0] == 0 and predicted(10, 10, 4)[1] == 4
