import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import counter, epoch_order
from pipeline.epoch_order import LANES, cut_chunks, even_bounds
from tests.pipeline.making import laid_out

counts = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any)
windows = st.none() | st.integers(1, 500)


def chunks(rows_per_shard: list[int], seed: int = 0, **limits: int) -> np.ndarray:
    samples = laid_out(rows_per_shard, seed)
    return cut_chunks(samples.starts, samples.offset, samples.length, None, **limits)


def order_of(
    bounds: np.ndarray, window: int | None, seed: int = 0, purpose: str = "test", epoch: int = 0
) -> epoch_order.Order:
    return epoch_order.epoch_order(seed, purpose, epoch, None, bounds, window, np.arange(bounds[-1]))


@given(
    counts=counts,
    max_bytes=st.integers(1, 20_000),
    max_rows=st.integers(1, 20),
    seed=st.integers(0, 5),
    stride=st.sampled_from([None, 1, 3]),
)
def test_chunks_are_runs_of_one_shard_within_their_limits(
    counts: list[int], max_bytes: int, max_rows: int, seed: int, stride: int | None
) -> None:
    samples = laid_out(counts, seed)
    ids = None if stride is None else np.arange(0, len(samples), stride)
    bounds = cut_chunks(samples.starts, samples.offset, samples.length, ids, max_bytes, max_rows)
    ids = np.arange(len(samples)) if ids is None else ids
    shard, offset, length = samples.shard_of(ids), samples.offset[ids], samples.length[ids]
    assert bounds[0] == 0 and bounds[-1] == len(shard)
    for begin, end in itertools.pairwise(bounds.tolist()):
        assert begin < end <= begin + max_rows
        assert len(set(shard[begin:end])) == 1
        span = offset[end - 1] + length[end - 1] - offset[begin]
        assert span <= max_bytes or end == begin + 1
        if end < len(shard) and shard[end] == shard[begin] and end - begin < max_rows:  # and none could be longer
            assert offset[end] + length[end] - offset[begin] > max_bytes


def test_no_samples_are_no_chunks() -> None:
    nothing = np.empty(0, np.int64)
    assert cut_chunks(np.zeros(1, np.int64), nothing, nothing, None).tolist() == [0]
    assert cut_chunks(np.array([0, 3]), np.arange(3), np.ones(3, np.int64), nothing).tolist() == [0]


@given(
    counts=counts, max_rows=st.integers(1, 20), window=windows, seed=st.integers(0, 5), stride=st.sampled_from([1, 3])
)
def test_every_sample_comes_once_and_a_piece_is_a_run_of_one_chunk_that_holds_what_it_is_said_to(
    counts: list[int], max_rows: int, window: int | None, seed: int, stride: int
) -> None:
    bounds = chunks(counts, seed, max_rows=max_rows)
    ids = np.arange(sum(counts)) * stride
    order = epoch_order.epoch_order(seed, "test", 0, ids, bounds, window, np.arange(len(ids)))
    assert np.array_equal(np.sort(order.ids), ids)
    held = [ids[low:high] for low, high in order.bounds]
    assert np.array_equal(np.sort(np.concatenate(held)), ids)
    for piece, those in enumerate(held):
        places = np.flatnonzero(order.pieces == piece)
        assert np.array_equal(np.sort(order.ids[places]), those)
        low, high = order.bounds[piece]
        assert np.searchsorted(bounds, low, "right") == np.searchsorted(bounds, high - 1, "right")
        if window is not None:  # and of one lane
            assert len(set(places % LANES)) == 1


def test_what_is_small_together_is_one_permutation_of_everything() -> None:
    bounds = chunks([40, 0, 300, 7], max_rows=20)
    ids = np.arange(347) * 2
    order = epoch_order.epoch_order(3, "test", 5, ids, bounds, None, np.arange(347))
    assert np.array_equal(order.ids, counter.permutation(3, "test", 5, ids))
    assert order.bounds.tolist() == [list(pair) for pair in itertools.pairwise(bounds.tolist())]


def test_workers_whose_number_divides_the_lanes_read_nothing_twice_and_few_pieces_are_open_at_once() -> None:
    order = order_of(np.arange(0, 40_001, 20), window=LANES * 20)
    read = [set(order.pieces[rank::8].tolist()) for rank in range(8)]
    assert sum(map(len, read)) == len(set().union(*read)) == len(order.bounds)
    begin, end = np.full(len(order.bounds), 40_000), np.zeros(len(order.bounds), np.int64)
    np.minimum.at(begin, order.pieces, np.arange(40_000))
    np.maximum.at(end, order.pieces, np.arange(40_000))
    opened = np.cumsum(np.bincount(begin, minlength=40_001) - np.bincount(end + 1, minlength=40_001))
    assert opened.max() <= 2.2 * LANES
    # New ones are wanted steadily, not all at once.
    wanted = np.bincount(begin // 256)
    assert wanted[1:].max() <= 4 * wanted[1:].mean()


def test_the_shuffle_is_near_global_and_another_one_in_every_epoch() -> None:
    first, second = (order_of(np.arange(0, 20_001, 20), LANES * 20, epoch=epoch).ids for epoch in (0, 1))
    assert np.mean(first == second) < 0.01
    # Samples that are neighbours in a shard are in the same batch of 128 about as rarely as in a global shuffle.
    batch = np.empty(20_000, np.int64)
    batch[first] = np.arange(20_000) // 128
    assert np.mean(batch[1:] == batch[:-1]) < 0.1
    # Every batch is from everywhere: its mean id is that of all, within what 96 random chunks of it give.
    means = [ids.mean() for ids in np.array_split(first, 20_000 // 128)]
    assert np.abs(np.array(means) - 10_000).max() < 5 * 20_000 / np.sqrt(12 * LANES)


@pytest.mark.parametrize("window", [200, None])
def test_the_order_is_a_pure_function_of_seed_purpose_and_epoch(window: int | None) -> None:
    orders = [
        order_of(np.arange(0, 1001, 10), window, seed, purpose, epoch).ids
        for seed, purpose, epoch in [(0, "a", 0), (0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    ]
    assert np.array_equal(orders[0], orders[1])
    assert all(np.mean(orders[0] == other) < 0.1 for other in orders[2:])


@given(counts=counts, window=windows, world_size=st.integers(1, 200), rank=st.integers(0, 199), also=st.integers(0, 60))
def test_some_rows_are_those_rows_of_the_whole_order(
    counts: list[int], window: int | None, world_size: int, rank: int, also: int
) -> None:
    """Those of a worker, and one more as of a batch that is smaller than the group."""
    bounds = chunks(counts, max_rows=7)
    whole = order_of(bounds, window)
    rows = np.union1d(np.arange(rank % world_size, sum(counts), world_size), [also % sum(counts)])
    some = epoch_order.epoch_order(0, "test", 0, np.arange(bounds[-1]), bounds, window, rows)
    assert np.array_equal(some.ids, whole.ids[rows])
    assert np.array_equal(some.pieces, whole.pieces[rows])
    assert np.array_equal(some.bounds, whole.bounds)


@pytest.mark.parametrize(("window", "first"), [(500, [280, 983, 613]), (None, [857, 442, 441])])
def test_orders_are_what_they_were(window: int | None, first: list[int]) -> None:
    """Another order is another result of every training: raise the version of what trains with it."""
    assert (epoch_order.LANES, epoch_order.WINDOW, epoch_order.SMALL_BYTES) == (96, 2048, 256 << 20)
    assert (epoch_order.MAX_BYTES, epoch_order.MAX_ROWS) == (2 << 20, 256)
    assert order_of(np.arange(0, 1001, 10), window).ids[:3].tolist() == first


@given(st.integers(0, 1000), st.integers(1, 50))
def test_even_parts_differ_by_one_and_the_larger_ones_come_first(total: int, parts: int) -> None:
    sizes = np.diff(even_bounds(total, parts))
    assert sizes.sum() == total and len(sizes) == parts
    assert sorted(sizes.tolist(), reverse=True) == sizes.tolist() and sizes[0] - sizes[-1] <= 1
