"""Every selector, found by walking the registry: exact budget, no order, no partition, nested where it says so."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.registry import ChoiceError
from pipeline.selectors import SELECTORS, budget, build, cuts, preferred, select, select_many
from tests.pipeline.selectors.pools import PartitionedPool, scored, vectors

NAMES = SELECTORS.names()
OPTIONS: dict[str, dict[str, Any]] = {"zcore": {"draws": 30}, "typiclust": {"clusters": 4}}
KEEP_ALL: dict[str, dict[str, Any]] = {"double_end": {"mislabel_fraction": 0.0}, "ccs": {"mislabel_fraction": 0.0}}
RANDOM = ("ccs", "class_balanced", "dual_beta", "random", "typiclust", "zcore")
NESTED = ("ccs", "d2", "double_end", "k_center", "moderate", "random", "top_k", "zcore")


def options(name: str, keep_all: bool = False) -> dict[str, Any]:
    return {**OPTIONS.get(name, {}), **(KEEP_ALL.get(name, {}) if keep_all else {})}


def chosen(table: pa.Table, name: str, size: int, seed: int = 0, partitions: int = 1, **given: Any) -> list[int]:
    """The ids in order of preference."""
    selector = build(name, size / len(table), given)
    pool = PartitionedPool(table, selector.columns, partitions, seed % 2**32)
    (found,) = cuts(selector, pool, [size], seed)
    ids: list[int] = preferred(pool, found).tolist()
    return ids


@pytest.mark.parametrize("name", NAMES)
@given(
    n=st.integers(1, 80),
    keep=st.integers(1, 100),
    seed=st.integers(-(2**63), 2**64),
    ties=st.booleans(),
)
@settings(max_examples=30)
def test_the_budget_is_exact_and_neither_order_nor_partition_matter(
    name: str, n: int, keep: int, seed: int, ties: bool
) -> None:
    table = scored(n, seed % 1000, ties)
    size = keep * n // 100
    if size == 0:
        with pytest.raises(UserError, match="is a budget of 0: raise it"):
            select(table, name, keep_fraction=keep / 100, seed=seed, **options(name, keep_all=True))
        return
    kept = select(table, name, keep_fraction=keep / 100, seed=seed, **options(name, keep_all=True))
    assert kept.dtype == np.int64 and len(kept) == size
    assert (np.diff(kept) > 0).all() and np.isin(kept, table["sample_id"].to_numpy()).all()
    shuffled = table.take(pa.array(np.random.default_rng(seed % 1000).permutation(n)))
    again = select(shuffled, name, keep_fraction=keep / 100, seed=seed, **options(name, keep_all=True))
    assert again.tobytes() == kept.tobytes()
    orders = [chosen(table, name, size, seed, partitions, **options(name, keep_all=True)) for partitions in (1, 2, 7)]
    assert orders[0] == orders[1] == orders[2] and sorted(orders[0]) == kept.tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ties", [False, True])
def test_a_larger_budget_adds_to_a_smaller_ones_where_the_docstring_says_so(name: str, ties: bool) -> None:
    table = scored(300, ties=ties)
    orders = [chosen(table, name, size, seed=1, **options(name)) for size in (20, 33, 90, 91, 180)]
    nested = all(set(small) <= set(large) for small, large in pairwise(orders))
    words = " ".join((SELECTORS.get(name).__doc__ or "").split())
    says = "larger budget adds to a smaller one's" in words and "but for" not in words
    assert (nested or not says) and (says or name not in NESTED)
    if name in NESTED and name != "ccs":  # whose bins are side by side
        assert orders[4][:20] == orders[0]


@pytest.mark.parametrize("name", NAMES)
def test_only_random_selectors_hear_the_seed(name: str) -> None:
    table = scored(300)
    found = {select(table, name, keep_fraction=0.5, seed=seed, **options(name)).tobytes() for seed in range(3)}
    why = f"{name} draws at random, if it should, add it to RANDOM" if len(found) > 1 else f"{name} hears no seed"
    assert len(found) == (3 if name in RANDOM else 1), why


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RANDOM])
def test_ties_go_by_a_hash_of_the_seed(name: str) -> None:
    n = 60
    same = {column: np.ones(n, dtype=np.float32) for column in ("aum", "dual", "dual_mean")}
    columns = {"sample_id": np.arange(n), **same, "train_label": np.zeros(n, dtype=np.int64)}
    table = pa.table({**columns, "embedding": vectors(np.ones((n, 2), dtype=np.float32))})
    kept = [select(table, name, keep_fraction=0.5, seed=seed, **options(name)) for seed in range(2)]
    assert kept[0].tolist() != kept[1].tolist()
    assert all(5 < (ids < 30).sum() < 25 for ids in kept)  # not the first, not the last


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_pool_can_be_kept(name: str) -> None:
    for n in (1, 2, 31):
        table = scored(n, ties=True)
        assert select(table, name, keep_fraction=1, **options(name, True)).tolist() == table["sample_id"].to_pylist()
    assert SELECTORS.get(name).source and SELECTORS.get(name).__doc__


@pytest.mark.parametrize("name", NAMES)
def test_many_keep_fractions_at_once_give_what_one_by_one_does(name: str) -> None:
    table = scored(200, ties=True)
    shares = [0.3, 0.05, 0.8]
    together = select_many(table, name, keep_fractions=shares, seed=4, **options(name))
    for keep, ids in zip(shares, together, strict=True):
        assert ids.tolist() == select(table, name, keep_fraction=keep, seed=4, **options(name)).tolist()
    with pytest.raises(ChoiceError, match="no keep fraction is asked for"):
        select_many(table, name, keep_fractions=[], **options(name))


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
    for name in ("top_k", "double_end", "ccs", "random"):
        assert len(select(table, name, keep_fraction=0.1)) == 5000


@pytest.mark.parametrize(
    ("name", "keep", "given", "message"),
    [
        ("best", 0.3, {}, f"there is no selector 'best': choose from {', '.join(NAMES)}$"),
        ("random", 0.3, {"seed_": 1}, "selector 'random' has no option 'seed_': it has none"),
        ("top_k", 0.3, {"keep": "best"}, "keep='best' cannot be used: .*'hardest' or 'easiest'"),
        ("top_k", 0.0, {}, "keep_fraction=0.0 is no share of the pool: set it above 0 and to at most 1"),
        ("top_k", 1.5, {}, "keep_fraction=1.5 is no share"),
        ("top_k", math.nan, {}, "keep_fraction=nan is no share"),
        ("top_k", 0.001, {}, "keep_fraction=0.001 of 100 samples is a budget of 0: raise it to at least 1/100"),
        ("top_k", 0.3, {"score": "none", "harder": "low"}, "the table has no column 'none': it has sample_id, "),
        ("top_k", 0.3, {"score": "embedding", "harder": "low"}, "column 'embedding' holds vectors: name a column with"),
        ("double_end", 0.3, {"mislabel_fraction": 0.8}, r"0\.8 and keep_fraction=0\.3 add up to 1\.1, more than"),
        ("double_end", 0.3, {"mislabel_fraction": -0.1}, "mislabel_fraction=-0.1 is no share"),
        ("ccs", 0.3, {"mislabel_fraction": 0.8}, r"0\.8 and keep_fraction=0\.3 add up to 1\.1, more than"),
        ("ccs", 0.3, {"mislabel_fraction": 1.0}, "mislabel_fraction=1.0 is no share"),
        ("ccs", 0.3, {"bins": 0}, "bins=0 is no number of bins: set it from 1 to 65536"),
        ("dual_beta", 0.3, {"c_d": 0}, "c_d=0.0 is no number above 0: SemiPrune has 3; or set it to auto"),
        ("dual_beta", 0.3, {"c_d": "most"}, "c_d='most' is no number above 0"),
        ("dual_beta", 0.3, {"score": "aum"}, "score='aum' is not of the score dual: name dual, or dual@NAME"),
        ("class_balanced", 0.3, {"selector": "d2"}, "selector='d2' cannot go by class: choose from double_end, "),
        ("class_balanced", 0.3, {"selector": "class_balanced"}, "selector='class_balanced' cannot go by class"),
        ("class_balanced", 0.3, {"options": {"x": 1}}, "selector 'random' has no option 'x': it has none"),
        (
            "class_balanced",
            0.3,
            {"selector": "double_end", "options": {"mislabel_fraction": 0.9}},
            r"0\.9 and keep_fraction=0\.3 add up to 1\.2, more than",
        ),
        ("class_balanced", 0.3, {"label": "aum"}, "column 'aum' of type float32 cannot be a class: name a column of w"),
        ("class_balanced", 0.3, {"label": "embedding"}, "column 'embedding' of vectors cannot be a class"),
        ("class_balanced", 0.3, {"label": "y"}, "the table has no column 'y': it has sample_id, "),
        ("moderate", 0.3, {"label": "dual"}, "column 'dual' of type float32 cannot be a class"),
        ("moderate", 0.3, {"embedding": "aum"}, "column 'aum' holds no vectors: name a column with a list of numbers"),
        ("k_center", 0.3, {"embedding": "x"}, "the table has no column 'x'"),
        ("d2", 0.3, {"neighbours": 0}, "neighbours=0 is none: set it to 1 or more"),
        ("d2", 0.3, {"gamma": -1}, "gamma=-1.0 would make messages grow with distance: set it to 0 or more"),
        ("typiclust", 0.3, {"clusters": 0}, "clusters=0 is none: set it to 1 or more"),
        ("zcore", 0.3, {"draws": 0}, "draws=0 is none: set it to 1 or more"),
        ("zcore", 0.3, {"exponent": -1}, "exponent=-1.0 would spare the nearest: set it to 0 or more"),
        ("zcore", 0.3, {"dimensions": 4}, "dimensions=4 is more than the 3 of the vectors"),
    ],
)
def test_a_wrong_request_is_one_sentence(name: str, keep: float, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        select(scored(100), name, keep_fraction=keep, **given)
    assert "\n" not in str(error.value)


def test_what_needs_no_data_is_found_without_data() -> None:
    for name in ("double_end", "ccs"):
        with pytest.raises(ChoiceError, match="more than the whole pool"):
            build(name, 0.9, {"mislabel_fraction": 0.2})
        with pytest.raises(ChoiceError, match="say which end is harder"):
            build(name, 0.3, {"score": "loss"})
        build(name, 0.9, {"mislabel_fraction": 0.1})  # 0.9 + 0.1 is 1, also where floats differ
    with pytest.raises(ChoiceError, match="say which end is harder"):
        build("class_balanced", 0.3, {"selector": "top_k", "options": {"score": "loss"}})


@pytest.mark.parametrize("name", ["d2", "k_center", "moderate", "typiclust", "zcore"])
def test_an_infinite_vector_is_said(name: str) -> None:
    values = np.ones((5, 2), dtype=np.float32)
    values[3, 1] = np.inf
    columns = {"sample_id": np.arange(5), "aum": np.arange(5.0), "train_label": np.arange(5)}
    table = pa.table({**columns, "embedding": vectors(values)})
    with pytest.raises(UserError, match="column 'embedding' is infinite in 1 of 5 rows: leave those samples out"):
        select(table, name, keep_fraction=0.5)


def test_ids_of_any_integer_type_are_int64() -> None:
    table = pa.table({"sample_id": pa.array([3, 1, 2], pa.uint16())})
    assert select(table, "random", keep_fraction=1).dtype == np.int64


@pytest.mark.parametrize("number", [np.int64, np.int32, np.uint64])
def test_a_seed_may_be_an_integer_of_numpy(number: type[np.integer[Any]]) -> None:
    table = scored(50)
    kept = select(table, "random", keep_fraction=0.3, seed=number(3))
    assert kept.tolist() == select(table, "random", keep_fraction=0.3, seed=3).tolist()
