"""Training with a label for every sample: the proxy that yields training dynamics, and the final models.

Reproducible for a fixed seed, world size and number of threads, also across a crash. Batch-norm statistics are those of
each rank's own rows; rank 0's running ones are kept.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from models import training
from models.augment import Draw, WeakConfig, weak
from models.batch import Batch
from models.distributed import share_buffers, sum_gradients, sum_over_ranks
from models.precision import autocast

Observe = Callable[[NDArray[np.int64], torch.Tensor, torch.Tensor], None]
"""(sample_ids [n], logits float32 [n, C], labels int64 [n]) of one forward pass of training, before its update."""


class SupervisedConfig(training.TrainingConfig):
    """A run of some epochs with a cosine learning rate; the defaults are SemiPrune's for 32x32 images (2605.23198)."""

    epochs: int = Field(default=200, ge=1, description="passes over the data")
    final_lr_fraction: float = Field(default=1e-3, ge=0, le=1, description="last learning rate, as a fraction of lr")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="probability that is taken from the label and spread over all classes"
    )
    augment: WeakConfig = Field(default=WeakConfig(), description="what images are changed by")


class SupervisedTrainer:
    """A network in training; one call of `train_epoch` per epoch, in order.

    steps_per_epoch: updates in every epoch, equal on all ranks; seed: of the initial weights and of the views.
    """

    def __init__(
        self, config: SupervisedConfig, num_classes: int, steps_per_epoch: int, seed: int, device: torch.device
    ) -> None:
        self.config, self.steps_per_epoch, self.seed, self.device = config, steps_per_epoch, seed, device
        self.model = training.seeded_model(config.model, num_classes, seed, device)
        self.optimizer = training.optimiser(self.model, config)

    def lr(self, step: int) -> float:
        """Learning rate of an update, counted from 0 over all epochs: a half cosine from lr to its final fraction."""
        progress = step / (self.steps_per_epoch * self.config.epochs)
        final = self.config.final_lr_fraction
        return self.config.lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))

    def train_epoch(
        self,
        epoch: int,
        batches: Iterable[Batch],
        observe: Observe | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """Train on this rank's `batches` of `epoch`, counted from 0, and return means over all ranks and the last lr.

        observe: receives the valid rows of every training forward, tensors on the device; on_step: told how many steps
        of this epoch are done. Returned: loss, with label smoothing if any; accuracy on the augmented views; lr.
        """
        self.model.train()
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        done = 0
        with training.reproducible():
            for done, batch in enumerate(batches, start=1):
                step = epoch * self.steps_per_epoch + done - 1
                training.set_lr(self.optimizer, self.lr(step))
                totals += self._step(epoch, batch.to(self.device), observe)
                if on_step is not None:
                    on_step(done)
        assert done == self.steps_per_epoch
        share_buffers(self.model)
        loss, correct, count = sum_over_ranks(totals).tolist()
        return {"loss": loss / done, "accuracy": correct / count, "lr": self.lr(step)}

    def _step(self, epoch: int, batch: Batch, observe: Observe | None) -> torch.Tensor:
        """One update; [loss, correct rows, valid rows] of this rank, on the device."""
        valid, labels = batch.valid.to(self.device, non_blocking=True), batch.labels
        images = weak(batch.images, self.config.augment, Draw(self.seed, "supervised", epoch, batch.sample_ids))
        with autocast(self.config.precision, self.device):
            logits = self.model(images)
        seen = logits.detach()
        if observe is not None:
            rows = np.flatnonzero(batch.valid.numpy())
            index = torch.from_numpy(rows).to(self.device, non_blocking=True)
            observe(batch.sample_ids[rows], seen[index], labels[index])
        loss = training.mean_cross_entropy(logits, labels, valid, batch.num_valid_global, self.config.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        sum_gradients(self.model.parameters())
        self.optimizer.step()
        correct = ((seen.argmax(1) == labels) & valid).sum()
        return torch.stack([loss.detach().double(), correct.double(), valid.sum().double()])

    def predict(self, images: torch.Tensor | NDArray[np.uint8]) -> torch.Tensor:
        """Float32 logits [n, C], on the host, of uint8 images [n, H, W, 3], without augmentation."""
        return training.predict(self.model, images, self.config.precision, self.device)

    def weights(self) -> bytes:
        """The network alone, for training.Predictor."""
        return training.dump(self.model.state_dict())

    def state(self) -> bytes:
        """All that training goes on from; equal on every rank after an epoch."""
        return training.dump({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})

    def restore(self, data: bytes) -> None:
        """Go back to what `state` was on a trainer of the same settings."""
        state = training.load(data, self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
