"""Steps as batches: whose label, and which rows only pad."""

import numpy as np
import torch

from pipeline.batches import Step, as_batches

LABELS = np.array([3, 1, -1, 0, 2, 2, -1, 1, 0, 3], dtype=np.int64)


def step(ids: list[int], valid: list[bool], num_valid_global: int) -> Step:
    images = np.stack([np.full((2, 2, 3), n, dtype=np.uint8) for n in ids])
    return Step(np.array(ids), np.arange(len(ids)), images, np.array(valid), num_valid_global)


def test_labels_follow_the_ids_in_any_order_and_with_repeats() -> None:
    steps = [step(ids, [True] * len(ids), 7) for ids in ([0, 1, 2], [9, 0, 4], [5, 5, 5, 1])]
    for given, batch in zip(steps, as_batches(iter(steps), LABELS), strict=True):
        assert batch.sample_ids.tolist() == given.ids.tolist()
        assert batch.visits.tolist() == given.visits.tolist()
        assert batch.images.dtype == torch.uint8 and np.array_equal(batch.images.numpy(), given.images)
        assert batch.labels.tolist() == LABELS[given.ids].tolist()
        assert batch.valid.all() and batch.num_valid_global == 7


def test_padding_is_there_and_not_valid() -> None:
    (batch,) = as_batches(iter([step([1, 2], [True, False], 1)]), LABELS)
    assert batch.valid.tolist() == [True, False] and batch.num_valid_global == 1
    assert len(batch.images) == len(batch.labels) == 2


def test_what_is_done_to_a_batch_does_not_reach_the_labels_of_the_pool() -> None:
    labels = LABELS.copy()
    (batch,) = as_batches(iter([step([0, 1], [True, True], 2)]), labels)
    batch.labels.zero_()
    assert np.array_equal(labels, LABELS)


def test_a_step_is_taken_when_its_batch_is_wanted_and_not_before() -> None:
    taken = []

    def steps():
        for n in range(3):
            taken.append(n)
            yield step([n], [True], 1)

    batches = as_batches(steps(), LABELS)
    assert taken == []
    next(batches)
    assert taken == [0]
