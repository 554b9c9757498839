"""The labelled rows alone: what every semi-supervised algorithm is to be compared with."""

from typing import ClassVar

from models.ssl import Algorithm, Losses, Step


class Supervised(Algorithm):
    """L_u = 0: no unlabelled row is read."""

    reads_unlabelled: ClassVar = False

    def forward(self, step: Step) -> Losses:
        """The mean cross-entropy of weak views of the labelled rows."""
        (logits,) = step.logits(step.weak_labelled())
        return Losses(self.labelled_loss(step, logits), logits.new_zeros(()), logits.new_zeros(len(step.valid)))
