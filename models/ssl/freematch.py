"""FreeMatch (2205.07246): thresholds that follow the network's own confidence, and a reward for fair predictions."""

from typing import Any

import torch
from pydantic import Field
from torch.nn import functional

from models.ssl import Algorithm, Step, mean


class FreeMatch(Algorithm):
    """L_u = mean of 1[max q >= tau * p_c / max p] CE(c, strong) + fairness_weight * L_f, c = argmax q.

    tau, p and h are running means of max q, of q and of the histogram of c, updated before they are used, from 1/C on.
    L_f = sum_c A_c log B_c over the rows that count, A = p/h and B = (mean softmax strong) / (histogram of its argmax),
    each divided by its sum; a class that nothing is predicted as has 0 there.
    """

    class Options(Algorithm.Options):
        """Settings of FreeMatch."""

        momentum: float = Field(default=0.999, gt=0, lt=1, description="of running statistics; short runs need less")
        fairness_weight: float = Field(default=0.01, ge=0, description="of the fairness loss")

    def __init__(self, options: Any, num_classes: int, num_samples: int) -> None:
        super().__init__(options, num_classes, num_samples)
        self.register_buffer("confidence", torch.full((), 1 / num_classes))
        self.register_buffer("probability", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("histogram", torch.full((num_classes,), 1 / num_classes))

    def targets(self, step: Step, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(int64 [n], float32 [n] of 0 and 1)."""
        confidence, classes = probabilities.max(dim=1)
        share = 1 - self.options.momentum
        self.confidence.lerp_(mean(confidence, step.valid), share)
        self.probability.lerp_(mean(probabilities, step.valid), share)
        self.histogram.lerp_(mean(functional.one_hot(classes, self.num_classes).float(), step.valid), share)
        threshold = self.confidence * self.probability / self.probability.max()
        return classes, (confidence >= threshold[classes]).float()

    def unlabelled_loss(
        self, step: Step, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """The masked cross-entropy and the fairness loss."""
        strong = logits.softmax(dim=1)
        predicted = functional.one_hot(strong.argmax(dim=1), self.num_classes)
        wanted = _relative(self.probability, self.histogram)
        found = _relative(weight @ strong, weight @ predicted.float())  # sums serve as means: both are divided alike
        fairness = (wanted * (found + 1e-12).log()).sum() * weight.any()
        return super().unlabelled_loss(step, logits, target, weight) + self.options.fairness_weight * fairness


def _relative(amount: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """amount / count [C], 0 where the count is, divided by its sum."""
    ratio = torch.where(count > 0, amount / count.where(count > 0, 1), 0)
    return ratio / ratio.sum().clamp(min=1e-12)
