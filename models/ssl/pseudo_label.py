"""Pseudo-Label (Lee, ICML workshop 2013): the network's sure predictions are the labels of the same views.

The threshold and the linear ramp are those of the benchmarks that compare it (2208.07204); mu is 1.
"""

from typing import ClassVar

from pydantic import Field
from torch.nn import functional

from models.ssl import Algorithm, Losses, Step, mean, ramp


class PseudoLabel(Algorithm):
    """L_u = ramp * mean of 1[max q >= threshold] CE(argmax q, weak), q the softmax of the very logits that learn."""

    class Options(Algorithm.Options):
        """Settings of Pseudo-Label."""

        threshold: float = Field(default=0.95, ge=0, le=1, description="least confidence at which a row counts")
        ramp: float = Field(default=0.4, ge=0, le=1, description="share of the run over which the weight grows from 0")

    defaults: ClassVar = {"unlabelled_ratio": 1}

    def forward(self, step: Step) -> Losses:
        """One forward pass in all: there is no teacher."""
        labelled, unlabelled = step.logits(step.weak_labelled(), step.weak())
        confidence, classes = unlabelled.detach().softmax(dim=1).max(dim=1)
        weight = ramp(step, self.options.ramp) * (confidence >= self.options.threshold) * step.valid
        losses = weight * functional.cross_entropy(unlabelled, classes, reduction="none")
        return Losses(self.labelled_loss(step, labelled), mean(losses, step.valid), weight)
