import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline import epoch_plan


@given(
    num_rows=st.integers(1, 200),
    batch_size=st.integers(1, 70),
    world_size=st.integers(1, 7),
    epoch=st.integers(0, 5),
)
def test_every_row_is_valid_once_per_epoch(num_rows: int, batch_size: int, world_size: int, epoch: int) -> None:
    ids = np.arange(num_rows, dtype=np.int64) * 3
    ranks = [
        list(epoch_plan.epoch_batches(1, "test", epoch, ids, batch_size, rank, world_size))
        for rank in range(world_size)
    ]
    assert {len(steps) for steps in ranks} == {epoch_plan.num_steps(num_rows, batch_size)}
    seen = np.concatenate([mine[valid] for steps in ranks for mine, valid, _ in steps])
    assert np.array_equal(np.sort(seen), ids)
    sizes = [size for _, _, size in ranks[0]]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    for step in zip(*ranks, strict=True):
        assert {size for _, _, size in step} == {sum(int(valid.sum()) for _, valid, _ in step)}
        assert all(len(mine) for mine, _, _ in step)


@given(num_rows=st.integers(1, 50), world_size=st.sampled_from([1, 2, 4]), first=st.integers(0, 40))
def test_the_order_does_not_depend_on_the_world_size_or_where_it_starts(
    num_rows: int, world_size: int, first: int
) -> None:
    ids, batch_size = np.arange(num_rows, dtype=np.int64), 8

    def globally(world_size: int, first: int, count: int) -> list[set[int]]:
        ranks = [
            itertools.islice(epoch_plan.endless_batches(0, "test", first, ids, batch_size, rank, world_size), count)
            for rank in range(world_size)
        ]
        return [set(np.concatenate(step).tolist()) for step in zip(*ranks, strict=True)]

    assert globally(world_size, first, 3) == globally(1, 0, first + 3)[first:]


def test_an_endless_stream_is_one_permutation_after_another() -> None:
    ids = np.arange(10, dtype=np.int64)
    stream = np.concatenate(list(itertools.islice(epoch_plan.endless_batches(0, "test", 0, ids, 4, 0, 1), 5)))
    first, second = stream[:10], stream[10:]
    assert np.array_equal(np.sort(first), ids) and np.array_equal(np.sort(second), ids)
    assert not np.array_equal(first, second)
