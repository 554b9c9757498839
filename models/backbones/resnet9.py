"""ResNet-9: the small fast network of DAWNBench entries (David Page, "How to train your ResNet", 2018)."""

import torch
from torch import nn
from torch.nn import functional

from models.backbones import Architecture, Backbone


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class ResNet9(Backbone):
    """Eight convolutions in four stages of width, 2, 4 and 8 times width channels, and a linear head."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = _conv(3, width)
        self.stage1 = _conv(width, 2 * width)
        self.residual1 = _Residual(2 * width)
        self.stage2 = _conv(2 * width, 4 * width)
        self.stage3 = _conv(4 * width, 8 * width)
        self.residual3 = _Residual(8 * width)
        self.head = nn.Linear(8 * width, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """See Backbone.features; d = 8 * width."""
        x = self.residual1(functional.max_pool2d(self.stage1(self.stem(images)), 2))
        x = functional.max_pool2d(self.stage2(x), 2)
        x = self.residual3(functional.max_pool2d(self.stage3(x), 2))
        return x.mean((2, 3))


ARCHITECTURES = {"resnet9": Architecture(ResNet9, width=16)}
