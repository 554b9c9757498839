"""Semi-supervised algorithms; a file in this package that defines a subclass of `Algorithm` named `ALGORITHM` is found.

An algorithm says what unlabelled rows are taught and how much each counts; the training loop owns all else. That fits
every algorithm whose unlabelled loss is a sum over rows; one that mixes images of different samples (MixMatch,
1905.02249) needs a loop of its own.
"""

import functools
import importlib
import pkgutil
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from pipeline.config import Config


@dataclass(frozen=True)
class Unlabelled:
    """What an algorithm sees of this rank's n unlabelled rows of a step, on the device.

    sample_ids: int64 [n]; probabilities: float32 [n, C], the teacher's on the weak views; valid: bool [n], False for
    padding, which must enter no statistic; num_valid_global: valid rows over all ranks; progress: of the whole run, 0
    to below 1.
    """

    sample_ids: torch.Tensor
    probabilities: torch.Tensor
    valid: torch.Tensor
    num_valid_global: int
    progress: float


class Algorithm(nn.Module):
    """One semi-supervised algorithm; its memory is registered buffers, which checkpoints include.

    A statistic over rows is the same on all ranks if its sum goes through models.distributed.sum_over_ranks.

    Options: its settings; teacher: which network sees the weak views, "model" in training mode or "ema" in evaluation
    mode; student_view: the views of the unlabelled rows that the network is trained on.
    """

    Options: ClassVar[type[Config]]
    teacher: ClassVar[Literal["model", "ema"]] = "model"
    student_view: ClassVar[Literal["strong", "weak"]] = "strong"

    def __init__(self, options: Any, num_classes: int, num_samples: int) -> None:
        """options: of type Options; num_samples: ids are below it, for algorithms that remember each sample."""
        super().__init__()
        self.options = options

    @abstractmethod
    def targets(self, rows: Unlabelled) -> tuple[torch.Tensor, torch.Tensor]:
        """(classes int64 [n] or probabilities [n, C], weights [n] >= 0): called once per step, without gradient."""

    def losses(self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Loss [n] of each row, whose mean over ALL rows is L_u; the weighted cross-entropy by default."""
        return weight * functional.cross_entropy(logits, target, reduction="none")


@functools.cache
def algorithms() -> dict[str, type[Algorithm]]:
    """Every algorithm by the name of its file."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").ALGORITHM for name in names}
