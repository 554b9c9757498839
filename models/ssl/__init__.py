"""Semi-supervised algorithms; a file in this package with a subclass of `Algorithm` is an algorithm of that name.

Most say what unlabelled rows are taught and how much each counts (`targets`); others take the whole step into their own
hands (`forward`). The training loop owns all else.
"""

import functools
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from models.ssl._step import Step, evened
from pipeline.config import Config
from pipeline.registry import only_class, plug_in

__all__ = ["Algorithm", "Losses", "Step", "algorithms", "evened", "mean", "ramp", "sharpen"]


@dataclass(frozen=True)
class Losses:
    """Of one step, over all ranks: two scalars, and the weight [n] of each unlabelled row, 0 to 1, 0 for padding."""

    labelled: torch.Tensor
    unlabelled: torch.Tensor
    weight: torch.Tensor


class Algorithm(nn.Module):
    """One semi-supervised algorithm; its memory is registered buffers, which checkpoints include.

    defaults: settings of SemiSupervisedConfig that its authors have otherwise; teacher: which network predicts on the
    weak views, "model" in training mode or "ema" in evaluation mode; reads_unlabelled: if not, steps have no such row.
    """

    class Options(Config):
        """No settings; an algorithm that has some derives from this class."""

    defaults: ClassVar[Mapping[str, Any]] = {}
    teacher: ClassVar[Literal["model", "ema"]] = "model"
    reads_unlabelled: ClassVar[bool] = True

    def __init__(self, options: Any, num_classes: int, num_samples: int) -> None:
        """options: of type Options; num_samples: ids are below it, for algorithms that remember each sample."""
        super().__init__()
        self.options, self.num_classes = options, num_classes

    def forward(self, step: Step) -> Losses:
        """The losses of a step, called once: the teacher predicts on weak views, the network learns on strong ones."""
        probabilities = step.predict(step.weak(), self.teacher)
        with torch.no_grad():
            target, weight = self.targets(step, probabilities)
            weight = weight * step.valid
        labelled, unlabelled = step.logits(step.weak_labelled(), step.strong())
        return Losses(
            self.labelled_loss(step, labelled), self.unlabelled_loss(step, unlabelled, target, weight), weight
        )

    def targets(self, step: Step, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(classes int64 [n] or probabilities [n, C], weights [n] in 0..1) for the teacher's `probabilities` [n, C]."""
        raise NotImplementedError

    def labelled_loss(self, step: Step, logits: torch.Tensor) -> torch.Tensor:
        """L_s: the mean cross-entropy of adjusted logits."""
        return functional.cross_entropy(logits + step.adjustment, step.labels, ignore_index=-1)

    def unlabelled_loss(
        self, step: Step, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """L_u: the weighted cross-entropy, its mean over all valid rows, those of weight 0 among them."""
        return mean(weight * functional.cross_entropy(logits, target, reduction="none"), step.valid)


def mean(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Over the valid ones of finite values [n] or [n, C]; there is always one."""
    mask = valid.view(-1, *[1] * (values.ndim - 1))
    return (values * mask).sum(0) / valid.sum()


def sharpen(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """[n, C]: the softmax of logits divided by the temperature, p^(1/T) / sum p^(1/T)."""
    return (probabilities.log() / temperature).softmax(dim=1)


def ramp(step: Step, length: float) -> float:
    """Weight that grows linearly from 0 to 1 over a share `length` of the run."""
    return min(step.progress / length, 1.0) if length else 1.0


@functools.cache
def algorithms() -> dict[str, type[Algorithm]]:
    """Every algorithm by the name of its file, _ before it marks one without; UserError if a file is broken."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if not name.startswith("_"):
            with plug_in("algorithm", f"{__name__}.{name}") as module:
                found[name] = only_class(module, Algorithm)
    return found
