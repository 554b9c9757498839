"""Exact ranks without sorting, against plain sorting: every kind of value, stratum, interval, pass and partition."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import ranks
from pipeline.pool import Rows
from pipeline.ranks import Rule, cut, image, ties
from pipeline.selectors import preferred
from tests.pipeline.selectors.pools import PartitionedPool

SIZES = {"direct": {}, "passes": {"SMALL": 0, "SORTED": 3}, "to the last bit": {"SMALL": 0, "SORTED": 0}}


def order(rows: Rows, column: str = "value") -> NDArray[Any]:
    return rows[column]


def strata(rows: Rows) -> NDArray[np.int64]:
    return rows["stratum"]


@dataclass
class Case:
    """Values and strata of ids 3, 6, 9, ..; a rule's intervals."""

    values: NDArray[Any]
    strata: NDArray[np.int64]
    intervals: list[tuple[int, int]]

    @property
    def ids(self) -> NDArray[np.int64]:
        return np.arange(1, len(self.values) + 1) * 3

    @property
    def rule(self) -> Rule:
        return Rule(order, self.intervals, strata)

    def pool(self, partitions: int, seed: int = 0) -> PartitionedPool:
        table = pa.table({"sample_id": self.ids, "value": self.values, "stratum": self.strata})
        return PartitionedPool(table, ["value", "stratum"], partitions, seed)

    def expected(self, seed: int) -> list[list[int]]:
        """The ids of every stratum in order, its interval of them, by plain sorting."""
        sorted_rows = np.lexsort((ties(seed, self.ids), self.values, self.strata))
        return [
            [int(self.ids[i]) for i in sorted_rows if self.strata[i] == stratum][low:high]
            for stratum, (low, high) in enumerate(self.intervals)
        ]


def kept(case: Case, seed: int, partitions: int = 3) -> list[list[int]]:
    """What the rule keeps of every stratum, in order."""
    (found,) = cut(case.pool(partitions, seed), [case.rule], seed)
    return kept_by(case, found)


def kept_by(case: Case, found: ranks.Cut) -> list[list[int]]:
    lists: list[list[tuple[int, int, int]]] = [[] for _ in case.intervals]
    for part in case.pool(2, 1).map(lambda rows: (rows, found.kept(rows))):
        rows, (places, stratum, images, tie) = part
        stratum = np.broadcast_to(stratum, places.shape)
        for place, s, i, t in zip(places, stratum, images, tie, strict=True):
            lists[s].append((int(i), int(t), int(rows.sample_ids[place])))
    return [[sample_id for _, _, sample_id in sorted(members)] for members in lists]


FLOATS = st.sampled_from([-np.inf, -2.5, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.0000001, 3.0, np.inf])
KINDS = {
    "float32": st.one_of(FLOATS, st.floats(width=32, allow_nan=False)),
    "float64": st.one_of(FLOATS, st.floats(allow_nan=False)),
    "int8": st.integers(-128, 127),
    "int64": st.one_of(st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1]), st.integers(-3, 3)),
    "uint64": st.one_of(st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1)),
}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(sorted(KINDS)))
    values = draw(st.lists(KINDS[kind], min_size=1, max_size=40))
    num_strata = draw(st.sampled_from([1, 2, 5, 30]))
    place = st.integers(0, num_strata - 1)
    members = draw(st.lists(place, min_size=len(values), max_size=len(values)))
    bound = st.integers(0, len(values) + 2)
    ends = [sorted((draw(bound), draw(bound))) for _ in range(num_strata)]
    intervals = [(low, high) for low, high in ends]
    return Case(np.array(values, dtype=kind), np.array(members, dtype=np.int64), intervals)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@given(
    case=cases(),
    seed=st.integers(0, 2**64 - 1),
    digit=st.integers(1, 16),
    bins=st.sampled_from([1, 7, 64, 1 << 12]),
    partitions=st.sampled_from([1, 2, 7]),
)
@settings(max_examples=150)
def test_a_cut_keeps_what_plain_sorting_keeps(
    sizes: dict[str, int], case: Case, seed: int, digit: int, bins: int, partitions: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**sizes, "DIGIT": digit, "BINS": bins}.items():
            patch.setattr(ranks, name, value)
        assert kept(case, seed % 2**32, partitions) == case.expected(seed % 2**32)


@pytest.mark.parametrize("digit", [3, 16])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_equal_values_are_told_apart_by_their_hashes(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], digit: int
) -> None:
    for name, value in {**sizes, "DIGIT": digit}.items():
        monkeypatch.setattr(ranks, name, value)
    for dtype in (np.float32, np.float64, np.uint64):
        case = Case(np.full(1000, 7, dtype), np.arange(1000) % 4, [(0, 100), (10, 11), (250, 250), (249, 250)])
        assert kept(case, seed=5) == case.expected(seed=5)
        assert kept(case, seed=6) != kept(case, seed=5)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_bound_between_two_bins_stays_where_it_is_while_the_other_is_narrowed(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]
) -> None:
    """One bound is known after the first digit, the other only after many."""
    for name, value in {**sizes, "DIGIT": 4}.items():
        monkeypatch.setattr(ranks, name, value)
    values = np.concatenate([np.linspace(-2, -1, 50), np.linspace(1, 1.000001, 50)])
    for interval in ((50, 73), (23, 50), (50, 100), (0, 50), (50, 50)):
        case = Case(values, np.zeros(100, dtype=np.int64), [interval])
        assert kept(case, seed=0) == case.expected(seed=0)


def test_many_rules_are_cut_in_the_same_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SMALL", 0)
    monkeypatch.setattr(ranks, "SORTED", 0)
    rng = np.random.default_rng(0)
    found_cases = [
        Case(np.round(rng.standard_normal(500), 1), rng.integers(0, 3, 500), intervals)
        for intervals in ([(0, 9), (5, 7), (0, 0)], [(0, 500)] * 3, [(0, 0)] * 3, [(3, 4), (0, 0), (0, 1)])
    ]
    first = found_cases[0]
    pool = first.pool(4)
    found = cut(pool, [Rule(order, case.intervals, strata) for case in found_cases], 9)
    for case, each in zip(found_cases, found, strict=True):
        same = Case(first.values, first.strata, case.intervals)
        assert kept_by(same, each) == same.expected(9)


def test_one_stratum_needs_no_strata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SMALL", 0)
    monkeypatch.setattr(ranks, "SORTED", 5)
    values = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    table = pa.table({"sample_id": np.arange(300), "value": values})
    pool = PartitionedPool(table, ["value"], 3)
    (found,) = cut(pool, [Rule(partial(order, column="value"), [(100, 200)])], 0)
    assert preferred(pool, found).tolist() == np.argsort(values)[100:200].tolist()


def test_strata_are_preferred_side_by_side() -> None:
    case = Case(np.arange(9.0), np.repeat([0, 1, 2], 3), [(0, 2), (0, 1), (1, 3)])
    (found,) = cut(case.pool(2), [case.rule], 0)
    # Shares of the way through: 1/4 and 3/4, 1/2, 1/4 and 3/4.
    assert preferred(case.pool(3), found).tolist() == [3, 24, 12, 6, 27]


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_large_pools_are_counted_before_they_are_sorted(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    n = 2 * ranks.SMALL
    monkeypatch.setattr(ranks, "SORTED", 100)
    values = (rng.standard_normal(n) * 50).astype(dtype)
    case = Case(values, rng.integers(0, 2, n), [(1000, 30_000), (0, 50_000)])
    found = kept(case, seed=2)
    sorted_rows = np.lexsort((ties(2, case.ids), values))
    for stratum, (low, high) in enumerate(case.intervals):
        assert found[stratum] == case.ids[sorted_rows[case.strata[sorted_rows] == stratum][low:high]].tolist()


@given(st.lists(st.one_of(FLOATS, st.floats(width=32, allow_nan=False)), min_size=2, max_size=30))
def test_images_are_in_the_order_of_the_numbers(numbers: list[float]) -> None:
    for dtype in (np.float32, np.float64):
        values = np.array(numbers, dtype=dtype)
        images = image(values)
        assert images.dtype.itemsize == values.dtype.itemsize
        assert ((values[:, None] < values) == (images[:, None] < images)).all()


def test_no_two_ids_share_a_hash() -> None:
    ids = np.arange(100_000)
    assert len(np.unique(ties(3, ids))) == 100_000
    assert (ties(3, ids) != ties(4, ids)).all()
