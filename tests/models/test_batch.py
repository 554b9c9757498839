"""What of a batch moves to a device, and what stays on the host."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from models.batch import Batch

ELSEWHERE = torch.device("meta")  # a device that every machine has


@pytest.fixture
def batch() -> Batch:
    return Batch(
        sample_ids=np.array([7, 3], dtype=np.int64),
        visits=np.array([0, 1], dtype=np.int64),
        images=torch.full((2, 4, 4, 3), 9, dtype=torch.uint8),
        labels=torch.tensor([1, 0]),
        valid=torch.tensor([True, False]),
        num_valid_global=5,
    )


def test_images_and_labels_move(batch: Batch) -> None:
    moved = batch.to(ELSEWHERE)
    assert moved.images.device == moved.labels.device == ELSEWHERE
    assert moved.images.shape == (2, 4, 4, 3) and moved.images.dtype == torch.uint8


def test_ids_and_validity_stay_on_the_host_where_rows_are_chosen(batch: Batch) -> None:
    moved = batch.to(ELSEWHERE)
    assert moved.valid.device.type == "cpu" and moved.valid.tolist() == [True, False]
    assert moved.sample_ids.tolist() == [7, 3] and moved.visits.tolist() == [0, 1] and moved.num_valid_global == 5


def test_the_batch_itself_does_not_change(batch: Batch) -> None:
    batch.to(ELSEWHERE)
    assert batch.images.device.type == batch.labels.device.type == "cpu"
    with pytest.raises(FrozenInstanceError):
        batch.num_valid_global = 2  # type: ignore[misc]


def test_on_the_device_where_it_is_nothing_is_copied(batch: Batch) -> None:
    moved = batch.to(torch.device("cpu"))
    assert moved.images.data_ptr() == batch.images.data_ptr()
    assert moved.labels.tolist() == [1, 0]
