"""Exponential moving average of a network's parameters."""

import copy

import torch
from torch import nn


class Ema:
    """`module`, in evaluation mode, follows a network: parameters averaged, buffers copied.

    The decay of update k is min(decay, (1 + k) / (10 + k)), lest the initial weights rule runs of a few hundred steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in `model` as it is after `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - decay)
        torch._foreach_copy_(list(self.module.buffers()), list(model.buffers()))
