"""Every selector, found by walking the registry: exact budget, no order, no partition; then each by its own vectors."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.registry import ChoiceError
from pipeline.scores import directions
from pipeline.selectors import SELECTORS, Pool, budget, build, choose, select

NAMES = SELECTORS.names()
NESTED = ("random", "top_k", "double_end")


def scored(n: int, seed: int = 0, ties: bool = False) -> pa.Table:
    """A table of every score column, with ids that have gaps."""
    rng = np.random.default_rng(seed)
    values = {name: rng.random(n) for name in directions()}
    if ties:
        values = {name: np.round(x * 3) / 3 for name, x in values.items()}
    ids = np.sort(rng.choice(4 * n, n, replace=False))
    return pa.table({"sample_id": ids, **{name: x.astype(np.float32) for name, x in values.items()}})


@pytest.mark.parametrize("name", NAMES)
@given(
    n=st.integers(1, 80),
    keep=st.integers(1, 100),
    seed=st.integers(-(2**63), 2**64),
    ties=st.booleans(),
    shuffle=st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_the_budget_is_exact_and_neither_order_nor_partition_matter(
    name: str, n: int, keep: int, seed: int, ties: bool, shuffle: Any
) -> None:
    table = scored(n, seed % 1000, ties)
    size = keep * n // 100
    options = {"mislabel_fraction": 0.0} if name == "double_end" else {}
    if size == 0:
        with pytest.raises(UserError, match="is a budget of 0: raise it"):
            select(table, name, keep_fraction=keep / 100, seed=seed, **options)
        return
    kept = select(table, name, keep_fraction=keep / 100, seed=seed, **options)
    assert kept.dtype == np.int64 and len(kept) == size
    assert (np.diff(kept) > 0).all() and np.isin(kept, table["sample_id"].to_numpy()).all()
    for partitions in (1, 2, 7):
        rows = shuffle.sample(range(n), n)
        parts = [table.take(pa.array(rows[start::partitions], pa.int64())) for start in range(partitions)]
        again = select(pa.concat_tables(parts), name, keep_fraction=keep / 100, seed=seed, **options)
        assert again.tobytes() == kept.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_preference_is_reproducible_and_nested_where_the_method_is(name: str) -> None:
    table = scored(500, ties=True)
    orders = []
    for keep in (0.1, 0.3, 0.6):
        selector = build(name, keep, {})
        pool = Pool.of(table, selector.columns)
        rows = choose(selector, pool, keep, seed=1)
        assert rows.tolist() == choose(build(name, keep, {}), pool, keep, seed=1).tolist()
        orders.append(rows.tolist())
    if name in NESTED:
        assert orders[2][:150] == orders[1] and orders[1][:50] == orders[0]


@pytest.mark.parametrize("name", NAMES)
def test_only_random_selectors_hear_the_seed(name: str) -> None:
    table = scored(300)
    chosen = {select(table, name, keep_fraction=0.5, seed=seed).tobytes() for seed in range(3)}
    assert len(chosen) == (3 if name in ("random", "dual_beta") else 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_pool_can_be_kept(name: str) -> None:
    table = scored(31, ties=True)
    options = {"mislabel_fraction": 0.0} if name == "double_end" else {}
    assert select(table, name, keep_fraction=1, **options).tolist() == table["sample_id"].to_pylist()
    assert SELECTORS.get(name).source and SELECTORS.get(name).__doc__


@given(st.integers(1, 10_000_000), st.integers(1, 1000))
def test_the_budget_is_what_one_computes_on_paper(n: int, thousandths: int) -> None:
    expected = math.floor(Fraction(thousandths, 1000) * n)
    if expected:
        assert budget(thousandths / 1000, n) == expected
        return
    with pytest.raises(UserError, match=rf"of {n} samples is a budget of 0: raise it to at least 1/{n}"):
        budget(thousandths / 1000, n)


def test_a_tenth_of_fifty_thousand_is_five_thousand() -> None:
    table = pa.table({"sample_id": np.arange(50_000), "aum": np.zeros(50_000, dtype=np.float32)})
    assert select(table, "top_k", keep_fraction=0.1).tolist() == list(range(5000))


@pytest.mark.parametrize(
    ("name", "keep", "options", "message"),
    [
        ("best", 0.3, {}, "there is no selector 'best': choose from double_end, dual_beta, random, top_k"),
        ("random", 0.3, {"seed_": 1}, "selector 'random' has no option 'seed_': it has none"),
        ("top_k", 0.3, {"keep": "best"}, "keep='best' cannot be used: .*'hardest' or 'easiest'"),
        ("top_k", 0.0, {}, "keep_fraction=0.0 is no share of the pool: set it above 0 and to at most 1"),
        ("top_k", 1.5, {}, "keep_fraction=1.5 is no share"),
        ("top_k", math.nan, {}, "keep_fraction=nan is no share"),
        ("top_k", 0.001, {}, "keep_fraction=0.001 of 100 samples is a budget of 0: raise it to at least 1/100"),
        ("top_k", 0.3, {"score": "none", "harder": "low"}, "the table has no column 'none': it has sample_id, "),
        (
            "double_end",
            0.3,
            {"mislabel_fraction": 0.8},
            r"0\.8 and keep_fraction=0\.3 add up to 1\.1, more than",
        ),
        ("double_end", 0.3, {"mislabel_fraction": -0.1}, "mislabel_fraction=-0.1 is no share"),
        ("dual_beta", 0.3, {"c_d": 0}, "c_d=0.0 must be above 0"),
    ],
)
def test_a_wrong_request_is_one_sentence(name: str, keep: float, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(scored(100), name, keep_fraction=keep, **options)


def test_what_needs_no_data_is_found_without_data() -> None:
    with pytest.raises(ChoiceError, match="more than the whole pool"):
        build("double_end", 0.9, {"mislabel_fraction": 0.2})
    with pytest.raises(ChoiceError, match="say which end is harder"):
        build("double_end", 0.3, {"score": "loss"})
    build("double_end", 0.9, {"mislabel_fraction": 0.1})  # 0.9 + 0.1 is 1, also where floats differ


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sample_id": [1, 2, 1], "aum": [0.0, 1.0, 2.0]}, "sample_id 1 is in the table more than once"),
        ({"sample_id": [1, 2, 3], "aum": [0.0, None, math.nan]}, "column 'aum' is NaN in 2 of 3 rows"),
        ({"sample_id": [1, 2, 3], "aum": ["a", "b", "c"]}, "column 'aum' is of type string: it must hold numbers"),
        ({"sample_id": [1.5, 2, 3], "aum": [0.0, 1.0, 2.0]}, "column 'sample_id' is of type double"),
        ({"sample_id": [1, None, 3], "aum": [0.0, 1.0, 2.0]}, "1 rows have no sample_id: leave them out"),
        ({"sample_id": pa.array([], pa.int64()), "aum": pa.array([], pa.float32())}, "the table has no rows"),
        ({"aum": [0.0, 1.0]}, "the table has no column 'sample_id': it has aum"),
    ],
)
def test_a_table_that_cannot_be_used_is_said(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(pa.table(table), "top_k", keep_fraction=0.5)


def test_a_column_that_is_there_twice_is_said() -> None:
    table = pa.table([[1, 2], [0.0, 1.0], [1.0, 0.0]], names=["sample_id", "aum", "aum"])
    with pytest.raises(UserError, match="the table has more than one column 'aum'"):
        select(table, "top_k", keep_fraction=0.5)


def test_ids_of_any_integer_type_are_int64() -> None:
    table = pa.table({"sample_id": pa.array([3, 1, 2], pa.uint16())})
    assert select(table, "random", keep_fraction=1).dtype == np.int64
