"""Rows of the decoded pool as the tensors that the training loops take."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.pixels import Pixels

if TYPE_CHECKING:
    from models.batch import Batch


def make_batch(
    images: Pixels,
    labels: NDArray[np.int64],
    sample_ids: NDArray[np.int64],
    num_valid_global: int,
    valid: NDArray[np.bool_] | None = None,
) -> "Batch":
    """This rank's rows of a global batch.

    labels: int64[N] by sample_id; num_valid_global: valid rows over all ranks; valid: bool[n], all when None.
    """
    import torch

    from models.batch import Batch

    return Batch(
        sample_ids=sample_ids,
        images=torch.from_numpy(images.take(sample_ids)),
        labels=torch.from_numpy(labels[sample_ids]),
        valid=torch.from_numpy(np.ones(len(sample_ids), dtype=bool) if valid is None else valid),
        num_valid_global=num_valid_global,
    )
