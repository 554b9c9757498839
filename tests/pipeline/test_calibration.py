"""Calibration against slow plain versions, and on logits whose temperature is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.calibration import COLDEST, by_confidence, calibrate, ece, fit_temperature
from pipeline.intervals import wilson

Rows = list[tuple[float, bool]]
ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def plain_ece(rows: Rows, num_bins: int) -> float:
    """As arXiv 1706.04599 has it, bin by bin."""
    error = 0.0
    for m in range(1, num_bins + 1):
        low = -1.0 if m == 1 else (m - 1) / num_bins
        own = [(confidence, right) for confidence, right in rows if low < confidence <= m / num_bins]
        if own:
            accuracy, mean = (sum(column) / len(own) for column in ([r for _, r in own], [c for c, _ in own]))
            error += len(own) / len(rows) * abs(accuracy - mean)
    return error


@given(ROWS, st.sampled_from([1, 4, 16]))  # powers of two: their borders are exact in both versions
def test_ece_is_the_plain_one(rows: Rows, num_bins: int) -> None:
    confidence, right = (np.array(column) for column in zip(*rows, strict=True))
    assert ece(confidence, right, num_bins) == pytest.approx(plain_ece(rows, num_bins), abs=1e-9)


def test_ece_of_the_sure_and_right_is_0_and_of_the_sure_and_wrong_1() -> None:
    assert ece(np.ones(5), np.ones(5, bool)) == 0 and ece(np.ones(5), np.zeros(5, bool)) == 1


def drawn(n: int, temperature: float, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits [n, 4] that are too large by this factor for the labels that were drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 4))
    return logits * temperature, (logits + rng.gumbel(size=(n, 4))).argmax(axis=1)


def test_the_temperature_is_the_one_of_least_loss_on_a_grid() -> None:
    logits, labels = drawn(300, 2.5)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 2001))
    scaled = logits[None] / grid[:, None, None]
    losses = np.log(np.exp(scaled).sum(axis=2)) - scaled[:, np.arange(300), labels]
    assert fit_temperature(logits, labels) == pytest.approx(grid[losses.mean(axis=1).argmin()], rel=5e-3)


def test_overconfident_logits_are_cooled_and_their_error_falls() -> None:
    logits, labels = drawn(4000, 3.0)
    found = calibrate(logits, labels, np.random.default_rng(1).random(4000) < 0.5)
    assert found is not None
    assert found["temperatures"] == pytest.approx([3, 3], rel=0.1)
    assert found["before"] > 0.1 > 0.04 > found["after"]


def test_a_half_without_rows_leaves_nothing_to_measure_with() -> None:
    logits, labels = drawn(10, 1.0)
    assert calibrate(logits, labels, np.ones(10, bool)) is None


def test_rows_that_are_all_right_end_at_the_coldest() -> None:
    assert fit_temperature(np.eye(4), np.arange(4)) == pytest.approx(COLDEST, rel=0.01)


@given(ROWS)
def test_bins_of_confidence_hold_every_row_once_in_order(rows: Rows) -> None:
    confidence, right = (np.array(column) for column in zip(*rows, strict=True))
    bins = by_confidence(confidence, right)
    assert sum(row["total"] for row in bins) == len(rows) and sum(row["correct"] for row in bins) == right.sum()
    assert len(bins) == max(1, len(rows) // 10) if len(rows) < 110 else len(bins) == 10
    ends = [end for row in bins for end in (row["low"], row["high"])]
    assert ends == sorted(ends)
    assert all(row["interval"] == list(wilson(row["correct"], row["total"])) for row in bins)
