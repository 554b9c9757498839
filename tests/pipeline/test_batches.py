"""Rows of the pool as batches: whose image, whose label, and which rows only pad."""

from pathlib import Path

import numpy as np
import pytest

from models.batch import Batch
from pipeline import epoch_plan
from pipeline.batches import make_batch
from pipeline.pixels import Pixels, _to_arrow
from pipeline.stage import Output

N = 10
IMAGES = np.arange(N * 2 * 2 * 3, dtype=np.uint8).reshape(N, 2, 2, 3)
LABELS = np.array([3, 1, -1, 0, 2, 2, -1, 1, 0, 3], dtype=np.int64)


@pytest.fixture
def pool(tmp_path: Path) -> Pixels:
    """Ten images in two parts."""
    out = Output(str(tmp_path))
    for rows in (IMAGES[:4], IMAGES[4:]):
        out.write("part", ".arrow", _to_arrow(rows), len(rows))
    return Pixels(out.uri, out.parts, size=2)


@pytest.mark.parametrize("ids", [[0, 1, 2], [9, 0, 4], [5, 5, 5, 1]])
def test_images_and_labels_follow_the_ids_in_any_order_and_with_repeats(pool: Pixels, ids: list[int]) -> None:
    batch = make_batch(pool, LABELS, np.array(ids), num_valid_global=len(ids))
    assert batch.sample_ids.tolist() == ids
    assert np.array_equal(batch.images.numpy(), IMAGES[ids])
    assert batch.labels.tolist() == LABELS[ids].tolist()


def test_every_row_is_valid_unless_it_is_said(pool: Pixels) -> None:
    batch = make_batch(pool, LABELS, np.array([1, 2, 3]), num_valid_global=7)
    assert batch.valid.tolist() == [True, True, True] and batch.num_valid_global == 7


def test_padding_is_there_and_not_valid(pool: Pixels) -> None:
    batch = make_batch(pool, LABELS, np.array([1, 2]), 1, np.array([True, False]))
    assert batch.valid.tolist() == [True, False]
    assert len(batch.images) == len(batch.labels) == 2


def test_what_is_done_to_a_batch_does_not_reach_the_pool(pool: Pixels) -> None:
    labels = LABELS.copy()
    batch = make_batch(pool, labels, np.array([0]), num_valid_global=1)
    batch.images.zero_()
    batch.images.add_(77)
    batch.labels.zero_()
    assert np.array_equal(pool.take(np.array([0])), IMAGES[:1])
    assert np.array_equal(labels, LABELS)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (3, 4), (4, 3), (7, 2)])
def test_over_all_ranks_an_epoch_has_every_id_once_however_much_padding_it_takes(
    pool: Pixels, world_size: int, batch_size: int
) -> None:
    steps: dict[int, list[Batch]] = {}
    for rank in range(world_size):
        plan = epoch_plan.epoch_batches(0, "test", 0, np.arange(N), batch_size, rank, world_size)
        for step, (ids, valid, size) in enumerate(plan):
            steps.setdefault(step, []).append(make_batch(pool, LABELS, ids, size, valid))
    seen = [batch.sample_ids[batch.valid.numpy()] for batches in steps.values() for batch in batches]
    assert sorted(np.concatenate(seen).tolist()) == list(range(N))
    for batches in steps.values():
        assert len(batches) == world_size
        assert {batch.num_valid_global for batch in batches} == {sum(int(batch.valid.sum()) for batch in batches)}
