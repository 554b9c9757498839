"""DUAL-beta: the density of the authors' code, exact sampling, and its edges."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import beta

from pipeline.pool import TablePool
from pipeline.selectors import build, cuts, preferred, select
from pipeline.selectors.dual_beta import DualBeta, beta_parameters, log_weights
from tests.pipeline.selectors.pools import PartitionedPool

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "dynamics_reference.npz")


def test_the_beta_of_the_paper() -> None:
    a, b = beta_parameters(anchor=0.4, keep=0.1, c_d=4)
    assert (round(a, 2), round(b, 2)) == (12.90, 3.10)


@pytest.mark.parametrize(("r", "c_d"), [(0.1, 3.0), (0.3, 4.0), (0.7, 4.0)])
def test_dual_beta_weighs_as_the_authors_code_does(r: float, c_d: float) -> None:
    dual, mean = (GOLDEN[name] for name in ("dual_T30_J10", "target_prob_mean_T30"))
    anchor, a, b = GOLDEN[f"dual_beta_ab_r{r}_cd{c_d}"]
    assert beta_parameters(anchor, r, c_d) == pytest.approx((a, b))
    selector = build("dual_beta", r, {"c_d": c_d})
    assert isinstance(selector, DualBeta)
    table = pa.table({"sample_id": np.arange(400), "dual": dual, "dual_mean": mean})
    for partitions in (1, 5):
        order = selector.order(PartitionedPool(table, selector.columns, partitions), round(r * 400), 0)
        assert (order.a, order.b) == pytest.approx((a, b), rel=1e-6)
    weights = np.exp(log_weights(dual, mean, a, b))
    np.testing.assert_allclose(weights / weights.sum(), GOLDEN[f"dual_beta_w_r{r}_cd{c_d}"], rtol=1e-4)
    plain = beta.pdf(mean.astype(np.float64), a, b) * dual
    np.testing.assert_allclose(weights / weights.sum(), plain / plain.sum(), rtol=1e-4)


def test_dual_beta_includes_as_often_as_successive_sampling_does() -> None:
    """Draw one by one with probability proportional to what is left: exact for 3 of 8, by all their orders."""
    rng = np.random.default_rng(0)
    dual, mean = rng.random(8), rng.random(8)
    weights = np.exp(log_weights(dual, mean, *beta_parameters(float(mean.mean()), 3 / 8, 3.0)))
    expected = np.zeros(8)

    def draw(chance: float, left: frozenset[int], taken: tuple[int, ...]) -> None:
        if len(taken) == 3:
            expected[list(taken)] += chance
            return
        total = sum(weights[i] for i in left)
        for i in left:
            draw(chance * weights[i] / total, left - {i}, (*taken, i))

    draw(1.0, frozenset(range(8)), ())
    table = pa.table({"sample_id": np.arange(8), "dual": dual, "dual_mean": mean})
    selector = build("dual_beta", 0.375, {})
    pool = TablePool(table, selector.columns)
    counts: Counter[int] = Counter()
    for seed in range(4000):
        (found,) = cuts(selector, pool, [3], seed)
        counts.update(preferred(pool, found).tolist())
    frequency = np.array([counts[i] for i in range(8)]) / 4000
    error = np.sqrt(expected * (1 - expected) / 4000) + 1e-4
    assert (np.abs(frequency - expected) < 4 * error).all()


def test_dual_beta_fills_up_at_random_where_weights_are_zero() -> None:
    dual = np.zeros(100)
    dual[:10] = 1
    table = pa.table({"sample_id": np.arange(100), "dual": dual, "dual_mean": np.linspace(0, 1, 100)})
    kept = [select(table, "dual_beta", keep_fraction=0.3, seed=seed) for seed in range(2)]
    assert all(set(range(10)) <= set(ids.tolist()) and len(ids) == 30 for ids in kept)
    assert kept[0].tolist() != kept[1].tolist()
    selector = build("dual_beta", 0.3, {})
    pool = TablePool(table, selector.columns)
    (found,) = cuts(selector, pool, [30], 0)
    assert set(preferred(pool, found)[:10].tolist()) == set(range(10))


def test_dual_beta_is_finite_at_both_ends_of_the_mean() -> None:
    mean = np.array([0.0, 0.5, 1.0] * 10)
    with np.errstate(all="raise"):
        easy = log_weights(np.ones(30), np.ones(30), *beta_parameters(1.0, 0.05, 3.0))  # b is 0
        mixed = log_weights(np.ones(30), mean, *beta_parameters(0.5, 0.1, 3.0))
    assert np.isfinite(easy).all() and np.isfinite(mixed).all()


def test_several_settings_of_dual_have_columns_of_their_own() -> None:
    rng = np.random.default_rng(0)
    dual, mean = rng.random(50), rng.random(50)
    named = pa.table({"sample_id": np.arange(50), "dual@60": dual, "dual_mean@60": mean})
    plain = pa.table({"sample_id": np.arange(50), "dual": dual, "dual_mean": mean})
    kept = select(named, "dual_beta", keep_fraction=0.3, score="dual@60")
    assert kept.tolist() == select(plain, "dual_beta", keep_fraction=0.3).tolist()
