"""FixMatch (2001.07685): sure predictions on weak views are the labels of strong views."""

import torch
from pydantic import Field

from models.ssl import Algorithm, Step


class FixMatch(Algorithm):
    """L_u = mean of 1[max q >= threshold] CE(argmax q, strong)."""

    class Options(Algorithm.Options):
        """Settings of FixMatch."""

        threshold: float = Field(default=0.95, ge=0, le=1, description="least confidence at which a row counts")

    def targets(self, step: Step, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(int64 [n], float32 [n] of 0 and 1)."""
        confidence, classes = probabilities.max(dim=1)
        return classes, (confidence >= self.options.threshold).float()
