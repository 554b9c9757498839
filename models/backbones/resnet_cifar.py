"""ResNet-18 for small images: a 3x3 stem without max-pooling (1512.03385, as trained on CIFAR in later work)."""

import torch
from torch import nn
from torch.nn import functional

from models.backbones import Architecture, Backbone, Shortcut


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(Shortcut(inputs, outputs, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        return functional.relu(self.norm2(self.conv2(out)) + self.shortcut(x), inplace=True)


class ResNetCifar(Backbone):
    """Four stages of two basic blocks with width, 2, 4 and 8 times width channels."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        channels = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(_Block(inputs, outputs, stride), _Block(outputs, outputs, 1))
                for inputs, outputs, stride in zip(channels, channels[1:], (1, 2, 2, 2), strict=False)
            )
        )
        self.head = nn.Linear(8 * width, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """See Backbone.features; d = 8 * width."""
        features: torch.Tensor = self.stages(self.stem(images)).mean((2, 3))
        return features


ARCHITECTURES = {"resnet18": Architecture(ResNetCifar, width=64)}
