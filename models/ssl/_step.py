"""One step of semi-supervised training, as an algorithm sees it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import nn

from models import micro_batches
from models.augment import AugmentConfig, Draw, strong, weak
from models.batch import Batch
from models.distributed import gather_rows, world_size
from models.precision import Precision, autocast


@dataclass(frozen=True)
class Step:
    """Images are this rank's own; labels, sample_ids, probabilities and logits are of all ranks, one after the other.

    So a formula over rows means the same for any number of workers, and its value is the loss of the whole step, equal
    on every rank. Gradients reach this rank's own rows alone: those of all ranks add up to the loss's.

    labelled, unlabelled: this rank's B and n rows, on the device, as many as other ranks have (`evened`); model, ema:
    the network in training mode and its average in evaluation mode; adjustment: float32 [C], added to the logits of
    labelled rows in their loss; micro_batches: in which rows pass through a network, one after the other. Nothing is
    computed before an algorithm asks.
    """

    number: int
    num_steps: int
    labelled: Batch
    unlabelled: Batch
    model: nn.Module
    ema: nn.Module
    augment: AugmentConfig
    precision: Precision
    seed: int
    adjustment: torch.Tensor
    micro_batches: int

    @property
    def progress(self) -> float:
        """Of the whole run, 0 to below 1."""
        return self.number / self.num_steps

    @property
    def labels(self) -> torch.Tensor:
        """Of all ranks' labelled rows: int64, -1 for padding."""
        return self._numbers[:, : len(self.labelled.labels)].flatten()

    @property
    def sample_ids(self) -> torch.Tensor:
        """Of all ranks' unlabelled rows: int64, -1 for padding."""
        return self._numbers[:, len(self.labelled.labels) :].flatten()

    @property
    def valid(self) -> torch.Tensor:
        """Of all ranks' unlabelled rows: False for padding, which must enter no statistic."""
        return self.sample_ids >= 0

    @cached_property
    def _numbers(self) -> torch.Tensor:
        """[ranks, B + n]: labels, then ids."""
        device = self.labelled.labels.device
        ids = torch.from_numpy(self.unlabelled.sample_ids).to(device, non_blocking=True)
        valid = torch.cat([self.labelled.valid, self.unlabelled.valid]).to(device, non_blocking=True)
        numbers = torch.cat([self.labelled.labels, ids]).masked_fill(~valid, -1)
        return gather_rows(numbers).view(-1, len(numbers))

    def draw(self, purpose: str, batch: Batch) -> Draw:
        """Random numbers for the rows of `batch`, others whenever a sample comes again, be it in the same step."""
        return Draw(self.seed, f"semi-supervised-{purpose}", batch.visits, batch.sample_ids)

    def weak_labelled(self) -> torch.Tensor:
        """Weak views of this rank's labelled rows."""
        return weak(self.labelled.images, self.augment, self.draw("labelled", self.labelled))

    def weak(self, purpose: str = "weak") -> torch.Tensor:
        """Weak views of this rank's unlabelled rows; other ones for another purpose."""
        return weak(self.unlabelled.images, self.augment, self.draw(purpose, self.unlabelled))

    def strong(self) -> torch.Tensor:
        """Strong views of this rank's unlabelled rows."""
        return strong(self.unlabelled.images, self.augment, self.draw("strong", self.unlabelled))

    @torch.no_grad()
    def predict(self, views: torch.Tensor, network: Literal["model", "ema"] = "model") -> torch.Tensor:
        """Probabilities, float32 [.., C], of all ranks' views, without gradient."""
        logits = self._forward(self.model if network == "model" else self.ema, [views])
        return gather_rows(logits.softmax(dim=1))

    def logits(self, *views: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits, float32 [.., C], of the network to train for all ranks' views of each kind: one forward pass."""
        logits = self._forward(self.model, views)
        kinds = gather_rows(logits).view(-1, *logits.shape).split([len(view) for view in views], dim=1)
        return tuple(kind.flatten(0, 1) for kind in kinds)

    def _forward(self, network: nn.Module, views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits of this rank's views, one kind after the other."""
        with autocast(self.precision, views[0].device):
            return micro_batches.forward(network, views, self.micro_batches)


def evened(batch: Batch) -> Batch:
    """`batch` with as many rows as other ranks have: they hold equally many, or a step's rows are dealt out evenly.

    In the latter case some have a row less, and get a padding one.
    """
    num_rows = -(-batch.num_valid_global // world_size())
    if num_rows <= len(batch.images):
        return batch
    rows = np.arange(num_rows) % len(batch.images)
    valid = batch.valid[rows] & torch.from_numpy(np.arange(num_rows) < len(batch.images))
    return replace(
        batch,
        sample_ids=batch.sample_ids[rows],
        visits=batch.visits[rows],
        images=batch.images[rows],
        labels=batch.labels[rows],
        valid=valid,
    )
