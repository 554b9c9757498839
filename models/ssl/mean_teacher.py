"""Mean Teacher (1703.01780): the network is to predict what its average predicts on other views.

lambda_u 50, the linear ramp and the student's strong views are those of the benchmarks that compare it (2208.07204); mu
is 1.
"""

from typing import ClassVar

import torch
from pydantic import Field

from models.ssl import Algorithm, Step, mean, ramp


class MeanTeacher(Algorithm):
    """L_u = ramp * mean over rows and classes of (softmax strong - q)^2, q the average network's on the weak views."""

    class Options(Algorithm.Options):
        """Settings of Mean Teacher; the teacher's decay is ema_decay."""

        ramp: float = Field(default=0.4, ge=0, le=1, description="share of the run over which the weight grows from 0")

    defaults: ClassVar = {"unlabelled_ratio": 1, "unlabelled_weight": 50.0}
    teacher = "ema"

    def targets(self, step: Step, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(float32 [n, C], the ramp for every row [n])."""
        return probabilities, probabilities.new_full((len(probabilities),), ramp(step, self.options.ramp))

    def unlabelled_loss(
        self, step: Step, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """The weighted squared distance of probabilities, averaged over classes."""
        return mean(weight * (logits.softmax(dim=1) - target).square().mean(dim=1), step.valid)
