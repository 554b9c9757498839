"""The labelled rows alone: what every semi-supervised algorithm is to be compared with."""

from typing import ClassVar

from models.ssl import Algorithm, Losses, Step


class Supervised(Algorithm):
    """L_u = 0: no unlabelled row passes through the network, so few of them need be read."""

    defaults: ClassVar = {"unlabelled_ratio": 1}

    def forward(self, step: Step) -> Losses:
        """The mean cross-entropy of weak views of the labelled rows."""
        (logits,) = step.logits(step.weak_labelled())
        return Losses(self.labelled_loss(step, logits), logits.new_zeros(()), logits.new_zeros(len(step.valid)))
