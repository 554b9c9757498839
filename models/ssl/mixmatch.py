"""MixMatch (1905.02249): guessed labels of unlabelled rows, and mixtures of all rows and their labels.

lambda_u 100, two views and mu = 1 are the authors'. Their ramp is over 16,000 of 2^20 steps; a share of the run that
comes to as many in 2^15 steps keeps lambda_u from ruling a shorter one before anything is learned.
"""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import betaincinv
from torch.nn import functional

from models.distributed import gather_rows, own_rows
from models.ssl import Algorithm, Losses, Step, mean, ramp, sharpen


class MixMatch(Algorithm):
    """L_s = mean CE(y', x'), L_u = ramp * mean over rows and classes of (softmax u' - q')^2.

    q = sharpened mean of the predictions on two weak views; every row, labelled or a view, becomes
    max(l, 1 - l) of itself and the rest of a random row of the same worker's batch, image and label, l ~ Beta.
    """

    class Options(Algorithm.Options):
        """Settings of MixMatch."""

        temperature: float = Field(default=0.5, gt=0, description="of the guessed labels")
        alpha: float = Field(default=0.5, gt=0, description="of the Beta distribution of shares of mixtures")
        ramp: float = Field(default=0.4, ge=0, le=1, description="share of the run over which the weight grows from 0")

    defaults: ClassVar = {"unlabelled_ratio": 1, "unlabelled_weight": 100.0}

    def forward(self, step: Step) -> Losses:
        """Guess, mix, learn."""
        views = step.weak_labelled(), step.weak(), step.weak("weak-2")
        sizes = [len(view) for view in views]
        guess = sharpen((step.predict(views[1]) + step.predict(views[2])) / 2, self.options.temperature)
        known = functional.one_hot(step.labels.clamp(min=0), self.num_classes).float()
        images, target = torch.cat(views), torch.cat([own_rows(rows) for rows in (known, guess, guess)])
        rest, partner = (torch.from_numpy(part).to(images.device, non_blocking=True) for part in self._mixture(step))
        images = images.lerp(images[partner], rest[:, None, None, None])
        target = target.lerp(target[partner], rest[:, None])

        labelled, *unlabelled = step.logits(*images.split(sizes))
        known, *guesses = (gather_rows(rows) for rows in target.split(sizes))
        losses = functional.cross_entropy(labelled + step.adjustment, known, reduction="none")
        distances = sum((z.softmax(1) - q).square().mean(1) for z, q in zip(unlabelled, guesses, strict=True)) / 2
        weight = ramp(step, self.options.ramp) * step.valid
        return Losses(mean(losses, step.labels >= 0), mean(weight * distances, step.valid), weight)

    def _mixture(self, step: Step) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """For every row of this rank's batch: the share of what is mixed into it, up to 1/2, and the row of that."""
        batches = {"labelled": step.labelled, "weak": step.unlabelled, "weak-2": step.unlabelled}
        draws = [step.draw(f"mix-{purpose}", batch) for purpose, batch in batches.items()]
        share, first, second = (np.concatenate([draw(number) for draw in draws]) for number in range(3))
        share = betaincinv(self.options.alpha, self.options.alpha, share)
        valid = np.flatnonzero(np.concatenate([batch.valid for batch in batches.values()]))
        partner = np.arange(len(share))
        partner[valid[np.argsort(first[valid])]] = valid[np.argsort(second[valid])]
        return np.minimum(share, 1 - share).astype(np.float32), partner
