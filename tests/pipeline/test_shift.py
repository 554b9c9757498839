"""The rule for c_d: chances against real draws, the choice against brute force, and what moves it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.error_curve import ErrorCurve
from pipeline.selectors import select
from pipeline.selectors.dual_beta import beta_parameters, log_weights
from pipeline.shift import CHOICES, chance, evidence

LOGS = st.lists(st.floats(-300, 300) | st.just(-np.inf), min_size=1, max_size=40)


@given(LOGS, st.integers(1, 100))
def test_chances_are_a_share_and_rise_with_the_weight(logs: list[float], percent: int) -> None:
    log_weights, keep = np.array(logs), percent / 100
    found = chance(log_weights, keep)
    assert ((found >= 0) & (found <= 1 + 1e-12)).all() and found.mean() == pytest.approx(keep, rel=1e-6)
    assert (np.diff(found[np.argsort(log_weights)]) >= -1e-12).all()


def pool(n: int, seed: int = 0) -> tuple[pa.Table, NDArray[np.float64]]:
    """Scores of n examples, and of each the share that is harder."""
    rng = np.random.default_rng(seed)
    mean = rng.beta(2, 1, n).astype(np.float32)
    dual = (mean * (1 - mean) * rng.uniform(0.5, 1, n)).astype(np.float32)
    table = pa.table({"sample_id": np.arange(n), "dual": dual, "dual_mean": mean})
    return table, (np.argsort(np.argsort(mean)) + 0.5) / n


def logs_of(table: pa.Table, keep: float, rows: Any = slice(None)) -> Callable[[float], NDArray[np.float64]]:
    dual, mean = (table[name].to_numpy() for name in ("dual", "dual_mean"))
    anchor = float(mean[np.argsort(-dual, kind="stable")[:10]].mean())
    return lambda c_d: log_weights(dual[rows], mean[rows], *beta_parameters(anchor, keep, c_d))


@pytest.mark.parametrize(("c_d", "keep"), [(0.5, 0.3), (2.8, 0.1), (4.0, 0.5)])
def test_chances_are_those_of_the_selector(c_d: float, keep: float) -> None:
    table, _ = pool(2000)
    expected = chance(logs_of(table, keep)(c_d), keep)
    seen = np.zeros(2000)
    for seed in range(100):
        seen[select(table, "dual_beta", keep_fraction=keep, c_d=c_d, seed=seed)] += 0.01
    by_chance = np.argsort(expected).reshape(20, 100)
    np.testing.assert_allclose(seen[by_chance].mean(1), expected[by_chance].mean(1), atol=0.02)


@pytest.mark.parametrize("keep", ["0.1", "0.3", "0.5"])
def test_the_choice_is_the_one_whose_coreset_is_worth_most(keep: str) -> None:
    table, share = pool(4000)
    wrong = np.random.default_rng(1).random(4000) < 0.9 * np.exp(-share / 0.3)
    found = evidence(share, wrong, logs_of(table, float(keep)), float(keep), seed=0)
    worth = ErrorCurve.of(share, wrong).worth(share, float(keep))
    for row in found["choices"]:
        kept = select(table, "dual_beta", keep_fraction=float(keep), c_d=row["c_d"])
        assert row["worth"] == pytest.approx(worth[kept].mean(), abs=0.02)
        assert row["wrong"] == pytest.approx(wrong[kept].mean(), abs=0.04)
    assert [row["c_d"] for row in found["choices"]] == list(CHOICES)
    shown = evidence(share, wrong, logs_of(table, float(keep)), float(keep), seed=0, used=3.0)
    assert [row["c_d"] for row in shown["choices"]] == sorted([*CHOICES, 3.0]) and shown["value"] == found["value"]
    best = max(found["choices"], key=lambda row: row["worth"])
    low, high = found["interval"]
    assert found["value"] == best["c_d"] and low <= found["value"] <= high
    assert found == evidence(share, wrong, logs_of(table, float(keep)), float(keep), seed=0)
    for result, c_d in ((found, found["value"]), (shown, 3.0)):
        chances = chance(logs_of(table, float(keep))(c_d), float(keep))
        for row in result["bins"]:
            here = (share >= row["low"]) & (share < row["high"])
            assert row["chance"] == pytest.approx(chances[here].mean())


def test_the_more_is_wrong_at_the_hard_end_the_easier_are_those_that_are_drawn() -> None:
    table, share = pool(2000)
    random, logs = np.random.default_rng(0).random(2000), logs_of(table, 0.3)
    chosen = [evidence(share, random < rate * np.exp(-share / 0.4), logs, 0.3, 0)["value"] for rate in (0, 0.4, 1)]
    assert chosen == sorted(chosen, reverse=True) and chosen[0] >= 2 * chosen[-1]


def test_a_few_held_out_rows_choose_as_many_do() -> None:
    table, share = pool(3000)
    wrong = np.random.default_rng(1).random(3000) < 0.9 * np.exp(-share / 0.3)
    found = evidence(share, wrong, logs_of(table, 0.3), 0.3, 0)
    everyone = {row["c_d"]: row["worth"] for row in found["choices"]}
    lost = []
    for seed in range(8):
        rows = np.random.default_rng(seed).choice(3000, 200, replace=False)
        value = evidence(share[rows], wrong[rows], logs_of(table, 0.3, rows), 0.3, 0)["value"]
        lost.append(max(everyone.values()) - everyone[value])
    assert np.mean(lost) < 0.015 and max(everyone.values()) - min(everyone.values()) > 0.1


def test_rows_that_chose_flatter_the_choice_and_others_do_not() -> None:
    table, share = pool(4000)
    rate = 0.9 * np.exp(-share / 0.3)
    own, others = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = rng.choice(4000, 40, replace=False)
        wrong = rng.random(4000) < rate
        found = evidence(share[rows], wrong[rows], logs_of(table, 0.3, rows), 0.3, seed)
        chances = chance(logs_of(table, 0.3)(found["value"]), 0.3)
        true = wrong @ chances / chances.sum()
        own.append(next(row["wrong"] for row in found["choices"] if row["c_d"] == found["value"]) - true)
        bad, total = found["kept"]
        others.append(bad - total * true)
    assert np.mean(own) < -0.005 and abs(np.sum(others)) / (40 * 12) < 0.03
