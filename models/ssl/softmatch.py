"""SoftMatch (2301.10921): every row counts, the less the further its confidence is below the mean."""

from typing import Any

import torch
from pydantic import Field

from models.ssl import Algorithm, Step, mean


class SoftMatch(Algorithm):
    """L_u = mean of exp(-min(max u - mu, 0)^2 / (2 var / n_sigma^2)) CE(argmax q, strong).

    u is q divided by the running mean of q, so that classes come to count alike, and by its sum; it serves the weight
    alone. mu and var are the running mean and variance of max u. All are updated before they are used, from mu = 1/C,
    var = 1 and a uniform mean of q on.
    """

    class Options(Algorithm.Options):
        """Settings of SoftMatch."""

        n_sigma: float = Field(default=2.0, gt=0, description="how fast weights fall, in standard deviations")
        momentum: float = Field(default=0.999, gt=0, lt=1, description="of running statistics; short runs need less")

    def __init__(self, options: Any, num_classes: int, num_samples: int) -> None:
        super().__init__(options, num_classes, num_samples)
        self.register_buffer("mu", torch.full((), 1 / num_classes))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("probability", torch.full((num_classes,), 1 / num_classes))

    def targets(self, step: Step, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(int64 [n], float32 [n] from 0 to 1)."""
        share = 1 - self.options.momentum
        self.probability.lerp_(mean(probabilities, step.valid), share)
        uniform = probabilities / (self.probability + 1e-6)
        confidence = uniform.amax(dim=1) / uniform.sum(dim=1)
        centre, num_valid = mean(confidence, step.valid), step.valid.sum()
        unbiased = num_valid / (num_valid - 1).clamp(min=1)
        self.mu.lerp_(centre, share)
        self.variance.lerp_(unbiased * mean((confidence - centre).square(), step.valid), share)
        below = (confidence - self.mu).clamp(max=0)
        return probabilities.argmax(dim=1), (-below.square() / (2 * self.variance / self.options.n_sigma**2)).exp()
