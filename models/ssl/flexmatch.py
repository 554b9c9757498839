"""FlexMatch (2110.08263): FixMatch with a lower threshold for classes of which fewer samples are learned."""

from typing import Any

import torch
from pydantic import Field

from models.ssl import Algorithm, Step


class FlexMatch(Algorithm):
    """L_u = mean of 1[max q >= threshold * beta_c / (2 - beta_c)] CE(c, strong), c = argmax q.

    beta_c = count_c / max(largest count, number of unlearned samples), where count_c is how many of all samples were
    last predicted as c with at least the threshold, in earlier steps. So every row counts at the very beginning.
    """

    class Options(Algorithm.Options):
        """Settings of FlexMatch."""

        threshold: float = Field(default=0.95, ge=0, le=1, description="least confidence of a learned sample")

    def __init__(self, options: Any, num_classes: int, num_samples: int) -> None:
        super().__init__(options, num_classes, num_samples)
        # The class of every learned sample, C for others; the last place takes what is written for no sample.
        self.register_buffer("learned", torch.full((num_samples + 1,), num_classes, dtype=torch.int32))

    def targets(self, step: Step, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(int64 [n], float32 [n] of 0 and 1)."""
        confidence, classes = probabilities.max(dim=1)
        learned = self.learned[:-1].long()
        counts = learned.new_zeros(self.num_classes + 1).scatter_add_(
            0, learned, learned.new_ones(1).expand_as(learned)
        )
        beta = counts[:-1] / counts.max()
        weight = confidence >= self.options.threshold * (beta / (2 - beta))[classes]

        sure = step.valid & (confidence >= self.options.threshold)
        place = torch.where(sure, step.sample_ids, len(learned))
        # A sample may come twice in a step; the larger class wins, in any order of writing.
        self.learned.scatter_reduce_(0, place, classes.int(), "amax", include_self=False)
        return classes, weight.float()
