"""Counts; and windows against numpy's own mean and std of every example's last J values."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.windows import Counts, Windows


@given(st.lists(st.sampled_from(["all", "a run", "some", "nobody"]), max_size=8), st.integers(1, 9), st.randoms())
def test_counts_are_one_number_until_somebody_misses_one(kinds: list[str], n: int, random: Any) -> None:
    counts, expected = Counts(n), np.zeros(n, dtype=int)
    for kind in kinds:
        some = np.array(sorted(random.sample(range(n), random.randint(0, n))), dtype=np.int64)
        rows: Any = {"all": slice(None), "a run": slice(0, n - 1), "some": some, "nobody": some[:0]}[kind]
        counts.add(rows)
        expected[rows] += 1
        assert (np.broadcast_to(counts[rows], len(expected[rows])) == expected[rows]).all()
        assert (np.broadcast_to(counts[:], n) == expected).all()
    assert isinstance(counts[:], int) == (set(kinds) <= {"all"})


def histories(kind: str, epochs: int, n: int, seed: int) -> NDArray[np.float32]:
    """Values [E, n] of probabilities that are anything, that saturate from some epoch on, that stay as they are."""
    rng = np.random.default_rng(seed)
    if kind == "constant":
        return np.tile(rng.random(n), (epochs, 1)).astype(np.float32)
    values = rng.random((epochs, n))
    if kind == "saturating":
        late = np.arange(epochs)[:, None] >= rng.integers(0, epochs, n)
        values = np.where(late, np.abs(rng.integers(0, 2, n) - values * 2.0**-20), values)
    return values.astype(np.float32)


def slide(values: NDArray[np.float32], J: int, present: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Mean and std (ddof=1) after every epoch, [E, 2, n]; NaN where a value is missing."""
    windows, found = Windows(values.shape[1], J), np.full((len(values), 2, values.shape[1]), np.nan)
    for epoch, row in enumerate(values):
        rows: Any = slice(None) if present is None or present[epoch].all() else np.flatnonzero(present[epoch])
        window = windows.push(row[rows].astype(np.float64), rows)
        found[epoch, 0, rows], found[epoch, 1, rows] = window.mean, window.norm / np.sqrt(J - 1)
    return found


@pytest.mark.parametrize("kind", ["random", "saturating", "constant"])
@given(seed=st.integers(0, 2**32 - 1), J=st.integers(2, 15), missing=st.sampled_from([0.0, 0.2, 0.8]))
@settings(max_examples=25)
def test_a_window_is_numpys_mean_and_std_of_the_last_values(kind: str, seed: int, J: int, missing: float) -> None:
    values = histories(kind, 40, 5, seed)
    present = np.random.default_rng(seed).random(values.shape) >= missing
    found = slide(values, J, present)
    for i in range(5):
        own = values[present[:, i], i].astype(np.float64)
        mean, std = found[present[:, i], :, i].T
        assert (mean[: J - 1] == 0).all() and (std[: J - 1] == 0).all()
        for k in range(J - 1, len(own)):
            last = own[k - J + 1 : k + 1]
            assert mean[k] == pytest.approx(np.mean(last), rel=1e-12, abs=1e-14)
            # An error of 1e-16 in the squares is one of 1e-8 in a std that is 0.
            assert std[k] == pytest.approx(np.std(last, ddof=1), rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_spread_of_millionths_keeps_its_digits(level: float) -> None:
    values = np.abs(level - np.random.default_rng(0).random((60, 8)) * 2.0**-20).astype(np.float32)
    std = slide(values, 10)[9:, 1]
    expected = [np.std(values[k : k + 10].astype(np.float64), axis=0, ddof=1) for k in range(51)]
    np.testing.assert_allclose(std, expected, rtol=1e-6)


def test_a_constant_history_has_no_spread() -> None:
    values = histories("constant", 200, 50, 3)
    assert (slide(values, 10)[9:, 1] < 1e-15).all()


def test_values_that_are_not_probabilities_are_as_exact() -> None:
    values = (histories("random", 50, 4, 1) * 1e4).astype(np.float32)
    std = slide(values, 9)[8:, 1]
    expected = [np.std(values[k : k + 9].astype(np.float64), axis=0, ddof=1) for k in range(42)]
    np.testing.assert_allclose(std, expected, rtol=1e-9)


@pytest.mark.parametrize("J", [2, 9, 10])
@given(data=st.data())
@settings(max_examples=25)
def test_an_examples_bits_do_not_depend_on_who_is_beside_it(J: int, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    rows = np.array(data.draw(st.lists(st.integers(0, 29), min_size=1, max_size=30)))
    values = histories("random", 25, 30, seed)
    present = np.random.default_rng(seed).random(values.shape) >= data.draw(st.sampled_from([0.0, 0.3]))
    whole = slide(values, J, present)
    assert slide(values[:, rows], J, present[:, rows]).tobytes() == whole[:, :, rows].tobytes()


def test_a_slice_and_its_positions_are_the_same_bits() -> None:
    values = histories("random", 25, 30, 0)
    one, two, three = Windows(30, 10), Windows(30, 10), Windows(30, 10)
    for row in values.astype(np.float64):
        window = one.push(row, slice(None))
        assert three.push(row, np.arange(30)).norm.tobytes() == window.norm.tobytes()
        halves = [two.push(row[:11], slice(0, 11)), two.push(row[11:], slice(11, None))]
        assert np.concatenate([half.norm for half in halves]).tobytes() == window.norm.tobytes()
        assert np.concatenate([half.mean for half in halves]).tobytes() == window.mean.tobytes()


def test_what_is_pushed_is_not_changed_and_nobody_is_fine() -> None:
    values = histories("random", 12, 3, 0).astype(np.float64)
    before = values.copy()
    windows = Windows(3, 4)
    for row in values:
        windows.push(row, slice(None))
        assert len(windows.push(row[:0], np.zeros(0, dtype=np.int64)).norm) == 0
    assert (values == before).all()
