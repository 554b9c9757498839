"""CCS: the bins and budgets of the authors' code, and scores where that code goes wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import ranks
from pipeline.errors import UserError
from pipeline.pool import TablePool
from pipeline.selectors import build, select
from pipeline.selectors.ccs import allocate
from tests.pipeline.selectors.pools import PartitionedPool

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "dynamics_reference.npz")


def strata(scores: NDArray[Any], budget: int, **options: Any) -> tuple[NDArray[np.int64], list[int]]:
    """The bin of every score and how many are kept of each."""
    selector = build("ccs", budget / len(scores), options)
    pool = TablePool(pa.table({"sample_id": np.arange(len(scores)), "aum": scores}), ["aum"])
    rule = selector.rule(pool, budget, 0)
    assert rule.stratum is not None
    assert rule.intervals[-1] == (0, 0) and all(low == 0 for low, _ in rule.intervals)
    (bins,) = pool.map(rule.stratum)
    return bins, [high for _, high in rule.intervals[:-1]]


@pytest.mark.parametrize(("m", "r"), [(0.1, 0.3), (0.3, 0.1)])
def test_bins_and_budgets_are_those_of_the_authors_code(m: float, r: float) -> None:
    bins, shares = strata(GOLDEN["aum"], round(r * 400), mislabel_fraction=m)
    assert np.bincount(bins, minlength=51).tolist() == [*GOLDEN[f"ccs_pool_counts_m{m}_r{r}"], round(m * 400)]
    theirs = GOLDEN[f"ccs_bin_counts_m{m}_r{r}"].tolist()
    sizes = GOLDEN[f"ccs_pool_counts_m{m}_r{r}"].tolist()
    # Of equally large bins, their unstable sort visits any first.
    assert sorted(zip(sizes, shares, strict=True)) == sorted(zip(sizes, theirs, strict=True))
    kept = select(
        pa.table({"sample_id": np.arange(400), "aum": GOLDEN["aum"]}), "ccs", keep_fraction=r, mislabel_fraction=m
    )
    assert np.bincount(bins[kept], minlength=50).tolist() == shares


@pytest.mark.parametrize(
    "scores", [-np.arange(1, 101.0), -np.ones(100), np.zeros(100), np.full(100, 7.5), np.arange(-99.0, 1)]
)
def test_scores_that_the_public_code_loses_are_kept(scores: NDArray[np.float64]) -> None:
    bins, shares = strata(scores, 50, mislabel_fraction=0.2)
    assert sum(shares) == 50
    assert (bins < 50).sum() == 80 and bins[scores == scores.max()].min() < 50
    table = pa.table({"sample_id": np.arange(100), "aum": scores})
    for keep in (0.01, 0.5, 0.8):
        assert len(select(table, "ccs", keep_fraction=keep, mislabel_fraction=0.2)) == round(keep * 100)


@given(
    scores=st.lists(st.one_of(st.integers(-3, 3), st.floats(-1e308, 1e308)), min_size=1, max_size=60),
    bins=st.integers(1, 60),
    m=st.integers(0, 9),
    high=st.booleans(),
    share=st.integers(1, 100),
)
def test_bins_are_those_of_a_plain_loop(scores: list[float], bins: int, m: int, high: bool, share: int) -> None:
    n = len(scores)
    m = min(m, 10 * (n - 1) // n)  # so that one can be kept
    budget = max(1, share * (10 - m) * n // 1000)
    values = np.array(scores, dtype=np.float64)
    found, shares = strata(values, budget, mislabel_fraction=m / 10, bins=bins, harder="high" if high else "low")
    tie = ranks.ties(0, np.arange(n))
    hardest = np.lexsort((tie, -values if high else values))
    rest = hardest[m * n // 10 :]
    low, top = min(values[rest]), max(values[rest])
    expected = np.full(n, bins)
    for i in rest:
        place = 0
        if top > low or top:
            width = (top / 2 - low / 2 + 0.5e-4 * abs(top)) / bins
            place = min(bins - 1, int((values[i] / 2 - low / 2) / width)) if width else 0
        expected[i] = place
    assert found.tolist() == expected.tolist()
    sizes = [int((expected == place).sum()) for place in range(bins)]
    left = budget
    for visited, place in enumerate(sorted(range(bins), key=lambda place: sizes[place])):
        assert shares[place] == min(sizes[place], left // (bins - visited))
        left -= shares[place]
    assert left == 0


@given(st.lists(st.integers(0, 20), min_size=1, max_size=50), st.data())
def test_budgets_add_up_and_grow_with_the_budget(sizes: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, sum(sizes)))
    shares = allocate(budget, np.array(sizes))
    assert sum(shares) == budget and all(share <= size for share, size in zip(shares, sizes, strict=True))
    if budget < sum(sizes):
        assert all(more >= share for more, share in zip(allocate(budget + 1, np.array(sizes)), shares, strict=True))


def test_every_member_of_a_bin_has_the_same_chance() -> None:
    scores = np.repeat([0.0, 1.0], [10, 40])
    table = pa.table({"sample_id": np.arange(50), "aum": scores})
    counts = np.zeros(50)
    for seed in range(800):
        counts[select(table, "ccs", keep_fraction=0.2, seed=seed, mislabel_fraction=0, bins=2)] += 1
    assert np.abs(counts[:10] / 800 - 0.5).max() < 4.5 * np.sqrt(0.25 / 800)
    assert np.abs(counts[10:] / 800 - 5 / 40).max() < 4.5 * np.sqrt(0.125 * 0.875 / 800)


def test_an_infinite_score_is_said_but_may_be_dropped() -> None:
    scores = np.arange(20.0)
    scores[0] = -np.inf
    table = pa.table({"sample_id": np.arange(20), "aum": scores})
    assert len(select(table, "ccs", keep_fraction=0.5, mislabel_fraction=0.05)) == 10
    with pytest.raises(UserError, match="column 'aum' has infinite values, which no bin holds: leave those samples"):
        select(table, "ccs", keep_fraction=0.5, mislabel_fraction=0)


def test_an_empty_partition_has_no_range() -> None:
    table = pa.table({"sample_id": np.arange(3), "aum": [1.0, 2.0, 3.0]})
    selector = build("ccs", 1, {"mislabel_fraction": 0})
    rule = selector.rule(PartitionedPool(table, ["aum"], 9), 3, 0)
    assert sum(high for _, high in rule.intervals) == 3
