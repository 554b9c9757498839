"""Class-balanced: quotas on paper, and in every class what its selector keeps of that class alone."""

from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pool import TablePool
from pipeline.selectors import SELECTORS, Ranked, build, cuts, preferred, select
from pipeline.selectors.class_balanced import quotas
from tests.pipeline.selectors.pools import PartitionedPool, scored


def test_quotas_are_those_of_the_largest_remainder() -> None:
    assert quotas(50, [60, 30, 10]) == [30, 15, 5]
    assert quotas(10, [33, 33, 34]) == [3, 3, 4]
    assert quotas(1, [1, 1, 1]) == [1, 0, 0]
    assert quotas(5, [2, 3]) == [2, 3]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20), st.data())
def test_quotas_add_up_and_are_within_one_of_their_share(sizes: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, sum(sizes)))
    shares = quotas(budget, sizes)
    assert sum(shares) == budget
    remainders = []
    for share, size in zip(shares, sizes, strict=True):
        fair = Fraction(budget * size, sum(sizes))
        assert 0 <= share <= size and abs(share - fair) < 1
        remainders.append((fair - int(fair), share - int(fair)))
    assert min([rest for rest, extra in remainders if extra], default=1) >= max(
        [rest for rest, extra in remainders if not extra], default=0
    )


@pytest.mark.parametrize("name", [name for name in SELECTORS.names() if issubclass(SELECTORS.get(name), Ranked)])
def test_every_class_keeps_what_the_selector_keeps_of_its_own_interval(name: str) -> None:
    table = scored(300, ties=True)
    selector = build("class_balanced", 0.3, {"selector": name})
    pool = PartitionedPool(table, selector.columns, 3)
    (found,) = cuts(selector, pool, [90], 5)
    kept = set(preferred(pool, found).tolist())
    inner = build(name, 0.3, {})
    assert isinstance(inner, Ranked)
    order = inner.order(pool, 90, 5)
    labels, ids = table["train_label"].to_numpy(), table["sample_id"].to_numpy()
    classes, sizes = np.unique(labels, return_counts=True)
    for value, size, quota in zip(classes, sizes, quotas(90, sizes.tolist()), strict=True):
        members = {int(i) for i in ids[labels == value]}
        places = []
        for part in pool.map(lambda rows: list(zip(order(rows), rows.sample_ids.tolist(), strict=True))):
            places += [place for place in part if place[1] in members]
        low, high = inner.interval(int(size), quota)
        values = sorted(value for value, _ in places)
        mine = sorted(value for value, sample_id in places if sample_id in kept)
        assert mine == values[low:high] and len(mine) == quota  # which of equal ones: test_ranks


@given(st.integers(1, 99), st.integers(1, 60), st.lists(st.integers(1, 3), max_size=4), st.integers(0, 60))
@settings(max_examples=300)
def test_the_budget_is_exact_also_of_what_a_version_adds(keep: int, large: int, small: list[int], before: int) -> None:
    sizes = [large, *small]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    size = keep * (before + len(labels)) // 100 - keep * before // 100
    options = {"selector": "double_end", "options": {"mislabel_fraction": (100 - keep) / 100}}
    selector = build("class_balanced", keep / 100, options)
    columns = {"sample_id": np.arange(len(labels)), "aum": np.zeros(len(labels)), "train_label": labels}
    pool = TablePool(pa.table(columns), selector.columns)
    (found,) = cuts(selector, pool, [size], 0)
    assert len(preferred(pool, found)) == size


def test_a_class_is_cut_less_where_its_share_was_rounded_up() -> None:
    labels = np.array([0] * 25 + [1, 2])
    options = {"selector": "double_end", "options": {"mislabel_fraction": 0.68}}
    selector = build("class_balanced", 0.32, options)
    columns = {"sample_id": np.arange(27), "aum": np.arange(27.0), "train_label": labels}
    pool = TablePool(pa.table(columns), selector.columns)
    (found,) = cuts(selector, pool, [9], 0)  # floor(.32 * 45) - floor(.32 * 18), of 27 new ones
    assert sorted(preferred(pool, found).tolist()) == list(range(16, 25))


def test_a_balanced_table_keeps_a_half_of_every_class() -> None:
    labels = np.repeat([5, -3, 2**40], [60, 30, 10])
    table = pa.table({"sample_id": np.arange(100), "y": labels, "aum": np.arange(100.0)})
    random = select(table, "class_balanced", keep_fraction=0.5, label="y")
    assert [int((labels[random] == value).sum()) for value in (5, -3, 2**40)] == [30, 15, 5]
    options = {"mislabel_fraction": 0.5}
    ends = select(table, "class_balanced", keep_fraction=0.5, label="y", selector="double_end", options=options)
    assert ends.tolist() == [*range(30, 60), *range(75, 90), *range(95, 100)]


def test_the_options_of_the_selector_are_written_out() -> None:
    short = build("class_balanced", 0.3, {"selector": "top_k"})
    assert asdict(short.options)["options"] == {"score": "aum", "keep": "hardest", "harder": None}
    assert short.columns == ("aum", "train_label")
    assert build(
        "class_balanced", 0.3, {"selector": "top_k", "options": {"score": "train_label", "harder": "low"}}
    ).columns == ("train_label",)
