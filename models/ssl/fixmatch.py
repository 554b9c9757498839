"""FixMatch (2001.07685): sure predictions on weak views are the labels of strong views."""

import torch
from pydantic import Field

from models.ssl import Algorithm, Unlabelled
from pipeline.config import Config


class Options(Config):
    """Settings of FixMatch."""

    threshold: float = Field(default=0.95, ge=0, le=1, description="least confidence at which a row counts")


class FixMatch(Algorithm):
    """The class of largest probability, weight 1 where that probability is at least the threshold, else 0."""

    Options = Options

    def targets(self, rows: Unlabelled) -> tuple[torch.Tensor, torch.Tensor]:
        """(int64 [n], float32 [n] of 0 and 1)."""
        confidence, classes = rows.probabilities.max(dim=1)
        return classes, (confidence >= self.options.threshold).float()


ALGORITHM = FixMatch
