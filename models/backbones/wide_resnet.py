"""Wide ResNets with pre-activation (1605.07146), the networks of the semi-supervised literature."""

import functools

import torch
from torch import nn
from torch.nn import functional

from models.backbones import Architecture, Backbone, Shortcut


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = Shortcut(inputs, outputs, stride) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = functional.relu(self.norm1(x), inplace=True)
        out = self.conv2(functional.relu(self.norm2(self.conv1(active)), inplace=True))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(Backbone):
    """Three stages of (depth - 4) / 6 blocks with width, 2 and 4 times width channels behind a 16-channel stem."""

    def __init__(self, width: int, num_classes: int, depth: int) -> None:
        super().__init__()
        channels = [16, width, 2 * width, 4 * width]
        num_blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            *(
                _Block(inputs if block == 0 else outputs, outputs, stride if block == 0 else 1)
                for inputs, outputs, stride in zip(channels, channels[1:], (1, 2, 2), strict=False)
                for block in range(num_blocks)
            )
        )
        self.norm = nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """See Backbone.features; d = 4 * width."""
        return functional.relu(self.norm(self.stages(self.stem(images))), inplace=True).mean((2, 3))


ARCHITECTURES = {
    "wrn_16_2": Architecture(functools.partial(WideResNet, depth=16), width=32),
    "wrn_28_2": Architecture(functools.partial(WideResNet, depth=28), width=32),
}
