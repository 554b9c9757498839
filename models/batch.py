"""The unit that a training loop consumes."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """One rank's rows of one step.

    sample_ids: int64 [n], host; visits: int64 [n], host, how often the training had each row's sample before; images:
    uint8 [n, H, W, 3]; labels: int64 [n], read only where rows are labelled; valid: bool [n], host, False for padding:
    such rows pass through the network so that shapes stay equal, and no loss, metric or observer sees them;
    num_valid_global: valid rows of this step over all ranks, the denominator of means.
    """

    sample_ids: NDArray[np.int64]
    visits: NDArray[np.int64]
    images: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    num_valid_global: int

    def none(self) -> "Batch":
        """No row, on any rank."""
        return Batch(self.sample_ids[:0], self.visits[:0], self.images[:0], self.labels[:0], self.valid[:0], 0)

    def to(self, device: torch.device) -> "Batch":
        """The same rows with images and labels on `device`; ids and `valid` stay on the host, where rows are chosen."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )
