import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline import epoch_plan, stream_plan
from pipeline.stream_plan import LANES, cut_chunks, epoch_order, steps

counts = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any)


def layout(rows_per_shard: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """shard, offset and length of samples of random sizes, with gaps where others were quarantined."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 9, sum(rows_per_shard)) * 512
    gap = np.where(rng.random(len(length)) < 0.1, 2048, 0)
    shard = np.repeat(np.arange(len(rows_per_shard)), rows_per_shard)
    end = np.cumsum(length + gap)
    return shard, end - length, length


@given(counts=counts, max_bytes=st.integers(1, 20_000), max_rows=st.integers(1, 20), seed=st.integers(0, 5))
def test_chunks_are_runs_of_one_shard_within_their_limits(
    counts: list[int], max_bytes: int, max_rows: int, seed: int
) -> None:
    shard, offset, length = layout(counts, seed)
    bounds = cut_chunks(shard, offset, length, max_bytes, max_rows)
    assert bounds[0] == 0 and bounds[-1] == len(shard)
    for begin, end in itertools.pairwise(bounds.tolist()):
        assert begin < end <= begin + max_rows
        assert len(set(shard[begin:end])) == 1
        span = offset[end - 1] + length[end - 1] - offset[begin]
        assert span <= max_bytes or end == begin + 1
        if end < len(shard) and shard[end] == shard[begin] and end - begin < max_rows:  # and none could be longer
            assert offset[end] + length[end] - offset[begin] > max_bytes


@given(
    counts=counts,
    max_rows=st.integers(1, 20),
    window=st.integers(1, 500),
    batch_size=st.integers(1, 70),
    world_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_every_sample_is_valid_once_per_epoch(
    counts: list[int], max_rows: int, window: int, batch_size: int, world_size: int, epoch: int
) -> None:
    bounds = cut_chunks(*layout(counts), max_rows=max_rows)
    order = epoch_order(1, "test", epoch, bounds, window)
    ranks = [list(steps(len(order.ids), batch_size, rank, world_size)) for rank in range(world_size)]
    assert {len(rank) for rank in ranks} == {epoch_plan.num_steps(sum(counts), batch_size)}
    seen = np.concatenate([order.ids[rows[valid]] for rank in ranks for rows, valid, _ in rank])
    assert np.array_equal(np.sort(seen), np.arange(sum(counts)))
    sizes = [size for _, _, size in ranks[0]]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    for step in zip(*ranks, strict=True):
        assert {size for _, _, size in step} == {sum(int(valid.sum()) for _, valid, _ in step)}
        assert all(len(rows) for rows, _, _ in step)
        assert max(len(rows) for rows, _, _ in step) - min(len(rows) for rows, _, _ in step) <= 1


@given(counts=counts, batch_size=st.integers(1, 70), world_size=st.integers(1, 9), data=st.data())
def test_the_world_size_deals_the_rows_of_the_same_batches(
    counts: list[int], batch_size: int, world_size: int, data: st.DataObject
) -> None:
    total = sum(counts)
    first = data.draw(st.integers(0, epoch_plan.num_steps(total, batch_size)))
    alone = [rows for rows, _, _ in steps(total, batch_size, 0, 1)][first:]
    ranks = [list(steps(total, batch_size, rank, world_size, first)) for rank in range(world_size)]
    together = [np.concatenate([rows[valid] for rows, valid, _ in step]) for step in zip(*ranks, strict=True)]
    assert [set(rows) for rows in together] == [set(rows) for rows in alone]


@given(counts=counts, max_rows=st.integers(1, 20), window=st.integers(1, 500), seed=st.integers(0, 5))
def test_pieces_are_runs_of_ids_of_one_chunk_and_one_lane(
    counts: list[int], max_rows: int, window: int, seed: int
) -> None:
    bounds = cut_chunks(*layout(counts, seed), max_rows=max_rows)
    order = epoch_order(seed, "test", 0, bounds, window)
    held = [np.arange(first, last) for first, last in zip(order.first, order.last, strict=True)]
    assert np.array_equal(np.sort(np.concatenate(held)), np.arange(sum(counts)))
    for piece, ids in enumerate(held):
        places = np.flatnonzero(order.pieces == piece)
        assert np.array_equal(np.sort(order.ids[places]), ids)
        assert len(set(places % LANES)) == 1
        assert np.searchsorted(bounds, ids[0], "right") == np.searchsorted(bounds, ids[-1], "right")


def test_workers_whose_number_divides_the_lanes_read_nothing_twice_and_few_pieces_are_open_at_once() -> None:
    bounds = np.arange(0, 40_001, 20)
    order = epoch_order(0, "test", 0, bounds, window=LANES * 20)
    read = [
        set(np.concatenate([order.pieces[rows[valid]] for rows, valid, _ in steps(40_000, 256, rank, 8)]).tolist())
        for rank in range(8)
    ]
    assert sum(map(len, read)) == len(set().union(*read)) == len(order.first)
    begin, end = np.full(len(order.first), 40_000), np.zeros(len(order.first), np.int64)
    np.minimum.at(begin, order.pieces, np.arange(40_000))
    np.maximum.at(end, order.pieces, np.arange(40_000))
    opened = np.cumsum(np.bincount(begin, minlength=40_001) - np.bincount(end + 1, minlength=40_001))
    assert opened.max() <= 2.2 * LANES
    # New ones are wanted steadily, not all at once.
    wanted = np.bincount(begin // 256)
    assert wanted[1:].max() <= 4 * wanted[1:].mean()


def test_the_shuffle_is_near_global_and_another_one_in_every_epoch() -> None:
    bounds = np.arange(0, 20_001, 20)
    first, second = (epoch_order(0, "test", epoch, bounds, window=LANES * 20).ids for epoch in (0, 1))
    assert np.mean(first == second) < 0.01
    # Samples that are neighbours in a shard are in the same batch of 128 about as rarely as in a global shuffle.
    batch = np.empty(20_000, np.int64)
    batch[first] = np.arange(20_000) // 128
    assert np.mean(batch[1:] == batch[:-1]) < 0.1
    # Every batch is from everywhere: its mean id is that of all, within what 96 random chunks of it give.
    means = [ids.mean() for ids in np.array_split(first, 20_000 // 128)]
    assert np.abs(np.array(means) - 10_000).max() < 5 * 20_000 / np.sqrt(12 * LANES)


def test_the_order_is_a_pure_function_of_seed_purpose_and_epoch() -> None:
    bounds = np.arange(0, 1001, 10)
    orders = [
        epoch_order(seed, purpose, epoch, bounds, 200).ids
        for seed, purpose, epoch in [(0, "a", 0), (0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    ]
    assert np.array_equal(orders[0], orders[1])
    assert all(np.mean(orders[0] == other) < 0.1 for other in orders[2:])


def test_lanes_are_what_they_were() -> None:
    """Another number of lanes is another order of every training: raise the version of what trains with it."""
    ids = epoch_order(0, "test", 0, np.arange(0, 1001, 10), 500).ids
    assert stream_plan.LANES == 96
    assert ids[:3].tolist() == PINNED


PINNED = [280, 983, 613]
