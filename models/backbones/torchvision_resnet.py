"""torchvision's ResNets (1512.03385) for larger images, from scratch: a 7x7 stem with max-pooling."""

import functools

import torch
from torch import nn

from models.backbones import Architecture, Backbone


class TorchvisionResNet(Backbone):
    """ResNet-`depth` of torchvision without pretrained weights; its width is fixed at 64."""

    def __init__(self, width: int, num_classes: int, depth: int) -> None:
        super().__init__()
        from torchvision import models  # here, because its import takes a second that other networks need not pay

        assert width == 64
        self.body = getattr(models, f"resnet{depth}")()
        self.head = nn.Linear(self.body.fc.in_features, num_classes)
        self.body.fc = nn.Identity()

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """See Backbone.features; d = 512, or 2048 for depth 50."""
        features: torch.Tensor = self.body(images)
        return features


ARCHITECTURES = {
    f"torchvision_resnet{depth}": Architecture(
        functools.partial(TorchvisionResNet, depth=depth), width=64, widths=range(64, 65)
    )
    for depth in (18, 34, 50)
}
