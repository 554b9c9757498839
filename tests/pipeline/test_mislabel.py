"""The rule for m: against brute force, its bounds, and what it makes of few held-out rows."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipeline.error_curve import ErrorCurve
from pipeline.intervals import wilson
from pipeline.mislabel import choose, evidence, least, wrong_in_kept
from tests.pipeline.held_out import ROWS, Rows, arrays

KEEPS = st.integers(1, 100).map(lambda k: Fraction(k, 100))


@given(ROWS, KEEPS, st.randoms())
def test_the_cut_is_the_best_in_steps_of_1_percent_leaves_room_and_does_not_see_the_order(
    rows: Rows, keep: Fraction, random: object
) -> None:
    share, wrong = arrays(rows)
    cut = choose(share, wrong, keep)
    first = floor(100 * least(keep))
    assert Fraction(first, 100) <= cut <= 1 - keep and (100 * cut).denominator == 1
    curve = ErrorCurve.of(share, wrong)
    steps = np.arange(first, int(100 * (1 - keep)) + 1) / 100
    worth = curve.worth_between(steps, steps + float(keep), float(keep))
    place = int(100 * cut) - first
    assert worth[place] >= worth.max() - 1e-12
    assert (worth[:place] < worth.max() - 1e-13).all()
    assert choose(share[::-1], wrong[::-1], keep) == cut


def places(n: int) -> NDArray[np.float64]:
    return (np.arange(n) + 0.5) / n


def test_a_stretch_where_all_are_wrong_is_cut_if_there_is_room() -> None:
    u = places(1000)
    for keep in ("0.2", "0.3", "0.5"):
        assert choose(u, u < 0.25, Fraction(keep)) == Fraction("0.25")
    assert choose(u, u < 0.25, Fraction("0.9")) == Fraction("0.1")
    assert choose(u, u < 0.25, Fraction(1)) == 0


def test_the_less_is_kept_the_more_is_cut() -> None:
    u = places(100_000)
    wrong = np.random.default_rng(0).random(len(u)) < 0.9 * np.exp(-u / 0.3)
    cuts = [choose(u, wrong, Fraction(keep)) for keep in ("0.1", "0.3", "0.5", "0.7")]

    def worth(u: float, r: float) -> float:
        return float((1 - (1 + (1 - r) ** 2) * 0.9 * np.exp(-u / 0.3)) * (1 - u))

    # Where the image at the hard end is worth as much as the one that would take its place.
    expected = [brentq(lambda m, r=r: worth(m, r) - worth(m + r, r), 0, 0.99 - r) for r in (0.1, 0.3, 0.5, 0.7)]
    assert [float(cut) for cut in cuts] == pytest.approx(expected, abs=0.04)
    assert cuts == sorted(cuts, reverse=True)


def test_where_wrong_ones_are_anywhere_nothing_is_gained_by_cutting() -> None:
    u = places(10_000)
    assert choose(u, np.random.default_rng(0).random(len(u)) < 0.2, Fraction("0.8")) <= Fraction("0.02")


def test_a_small_coreset_is_not_of_the_very_hardest_where_none_is_wrong() -> None:
    cuts = {keep: choose(places(1000), np.zeros(1000, bool), Fraction(keep)) for keep in ("0.1", "0.3", "0.5", "0.9")}
    assert cuts == {"0.1": Fraction("0.3"), "0.3": Fraction("0.2"), "0.5": Fraction("0.1"), "0.9": 0}


@pytest.mark.parametrize(("n", "most"), [(1, 0.5), (20, 0.05), (200, 0.01), (2000, 0.0)])
def test_none_wrong_is_less_of_a_proof_with_fewer_rows(n: int, most: float) -> None:
    cut = choose(places(n), np.zeros(n, bool), Fraction("0.7"))
    assert cut <= Fraction(str(most))
    assert n > 20 or cut > 0


def test_one_row_that_is_wrong_cuts_what_it_can() -> None:
    assert 0 <= choose(np.array([0.5]), np.array([True]), Fraction("0.3")) <= Fraction("0.7")


def test_the_evidence_adds_up() -> None:
    rng = np.random.default_rng(0)
    u = rng.random(300)
    wrong = rng.random(300) < 0.8 * np.exp(-u / 0.2)
    found = evidence(u, wrong, Fraction("0.3"), seed=0)
    assert found == evidence(u, wrong, Fraction("0.3"), seed=0)
    assert found["value"] == float(choose(u, wrong, Fraction("0.3")))
    low, high = found["interval"]
    assert low <= found["value"] <= high
    assert (found["num_holdout"], found["num_wrong"]) == (300, wrong.sum())
    for row in found["bins"]:
        here = (u >= row["low"]) & (u < row["high"])
        assert (row["wrong"], row["total"]) == (wrong[here].sum(), here.sum())
        assert row["interval"] == list(wilson(row["wrong"], row["total"]))
    fractions = [row["fraction"] for row in found["cuts"]]
    assert fractions == sorted({0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, found["value"]})
    for row in found["cuts"]:
        gone, kept = u < row["fraction"], (u >= row["fraction"]) & (u < row["fraction"] + 0.3)
        assert (row["cut_wrong"], row["cut_right"]) == ((gone & wrong).sum(), (gone & ~wrong).sum())
        assert (row["kept_wrong"], row["kept_right"]) == ((kept & wrong).sum(), (kept & ~wrong).sum())
    shown = evidence(u, wrong, Fraction("0.3"), seed=0, used=Fraction("0.05"))
    assert sorted([*fractions, 0.05]) == [row["fraction"] for row in shown["cuts"]]
    kept = (u >= 0.05) & (u < 0.35)
    assert shown["kept"] == [(kept & wrong).sum(), kept.sum()]
    cuts = [row for row in shown["cuts"] if row["fraction"] != 0.05]
    assert {**shown, "cuts": cuts, "kept": found["kept"]} == found
    best = max(found["cuts"], key=lambda row: row["worth"])
    assert best["fraction"] == found["value"]


def test_rows_that_chose_a_cut_flatter_it_and_others_do_not() -> None:
    rng, keep = np.random.default_rng(0), Fraction("0.1")
    own, others = [], []
    for seed in range(60):
        u = rng.random(200)
        wrong = rng.random(200) < 0.9 * np.exp(-u / 0.3)
        cut = float(choose(u, wrong, keep))
        true = (0.9 * np.exp(-np.linspace(cut, cut + 0.1, 50) / 0.3)).mean()
        kept = (u >= cut) & (u < cut + 0.1)
        found, total = wrong_in_kept(u, wrong, keep, seed)
        own.append(wrong[kept].mean() - true)
        others.append(found / total - true)
    assert np.mean(own) < -0.06 and abs(np.mean(others)) < 0.04
