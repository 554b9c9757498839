"""Rows of the pool as the tensors that the training loops take."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.epoch_order import Ids

if TYPE_CHECKING:
    from models.batch import Batch


class Step(NamedTuple):
    """One rank's rows of a global batch.

    ids, visits: int64 [n], as Planned has them; images: uint8 [n, S, S, 3], a new array in every step; valid: bool [n],
    False for padding; num_valid_global: valid rows of the step over all ranks.
    """

    ids: Ids
    visits: Ids
    images: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    num_valid_global: int


def as_batches(steps: Iterator[Step], labels: NDArray[np.integer[Any]]) -> Iterator["Batch"]:
    """The steps with their labels, [N] by sample_id."""
    import torch

    from models.batch import Batch

    for step in steps:
        yield Batch(
            sample_ids=step.ids,
            visits=step.visits,
            images=torch.from_numpy(step.images),
            labels=torch.from_numpy(labels[step.ids].astype(np.int64)),
            valid=torch.from_numpy(step.valid),
            num_valid_global=step.num_valid_global,
        )
