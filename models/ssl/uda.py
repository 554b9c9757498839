"""UDA (1904.12848): sharpened predictions on weak views are the soft labels of strong views."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch.nn import functional

from models.ssl import Algorithm, Step, sharpen


class UDA(Algorithm):
    """L_u = mean of 1[max q >= threshold] CE(q^(1/T) / sum q^(1/T), strong).

    With annealing, L_s is the mean over the labelled rows whose label has a probability of at most
    eta = a (1 - 1/C) + 1/C, where a is t, 1 - exp(-5 t) or exp(5 (t - 1)) for the progress t of the run.
    """

    class Options(Algorithm.Options):
        """Settings of UDA."""

        temperature: float = Field(default=0.4, gt=0, description="of the soft labels; 1 leaves them as predicted")
        threshold: float = Field(default=0.8, ge=0, le=1, description="least confidence, before sharpening, of a row")
        annealing: Literal["none", "linear", "log", "exp"] = Field(
            default="none", description="schedule of training signal annealing of the labelled rows"
        )

    def targets(self, step: Step, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(float32 [n, C], float32 [n] of 0 and 1)."""
        sure = probabilities.amax(dim=1) >= self.options.threshold
        return sharpen(probabilities, self.options.temperature), sure.float()

    def labelled_loss(self, step: Step, logits: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of the rows that are not yet too well known; 0 if all are."""
        if self.options.annealing == "none":
            return super().labelled_loss(step, logits)
        t = step.progress
        a = {"linear": t, "log": 1 - math.exp(-5 * t), "exp": math.exp(5 * (t - 1))}[self.options.annealing]
        adjusted = logits + step.adjustment
        losses = functional.cross_entropy(adjusted, step.labels, ignore_index=-1, reduction="none")
        limit = a * (1 - 1 / self.num_classes) + 1 / self.num_classes
        counts = (step.labels >= 0) & ((-losses.detach()).exp() <= limit)
        return (losses * counts).sum() / counts.sum().clamp(min=1)
