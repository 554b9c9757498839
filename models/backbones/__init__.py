"""Image classifiers by name; a file in this package that defines `ARCHITECTURES` is found without editing a list."""

import functools
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.config import Config
from pipeline.registry import plug_in


class Backbone(nn.Module):
    """A classifier of square images from 8 pixels on: `features`, globally pooled, then one linear head."""

    head: nn.Linear

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Penultimate activations [n, d] of normalised float images [n, 3, H, W], in the precision of autocast."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 logits [n, C], under autocast too: rounded logits tie, and ties move training dynamics."""
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):
            logits: torch.Tensor = self.head(features.float())
        return logits


class Shortcut(nn.Conv2d):
    """A 1x1 convolution of every `step`-th pixel.

    The same numbers as with a stride, whose backward writes past its buffers on CPUs for fewer than 16 channels
    (oneDNN in torch 2.13).
    """

    def __init__(self, inputs: int, outputs: int, step: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, inputs, H, W] -> [n, outputs, ceil(H / step), ceil(W / step)]."""
        picked = x[:, :, :: self.step, :: self.step].contiguous(memory_format=torch.channels_last)
        result: torch.Tensor = super().forward(picked)
        return result


@dataclass(frozen=True)
class Architecture:
    """How to build one named network.

    build: (width, num_classes) -> Backbone; width: channels of the first stage unless the user says otherwise;
    widths: what the user may say.
    """

    build: Callable[[int, int], Backbone]
    width: int
    widths: range = range(4, 1025)


@functools.cache
def architectures() -> dict[str, Architecture]:
    """Every known network by name, from the files of this package; UserError if one is broken."""
    found: dict[str, Architecture] = {}
    for file in pkgutil.iter_modules(__path__):
        with plug_in("network", f"{__name__}.{file.name}") as module:
            found |= module.ARCHITECTURES
    return dict(sorted(found.items()))


class ModelConfig(Config):
    """Which network to train, and how wide."""

    name: str = Field(
        default="resnet18",
        description="a network of models/backbones",
        json_schema_extra=lambda name: name.update(enum=list(architectures())),
    )
    width: int | None = Field(default=None, description="channels of the first stage; null: the network's own default")

    @model_validator(mode="before")
    @classmethod
    def _check(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and isinstance(name := settings.get("name", "resnet18"), str):
            if name not in architectures():
                raise ValueError(f"unknown network {name!r}; choose one of {', '.join(architectures())}")
            widths, width = architectures()[name].widths, settings.get("width")
            if isinstance(width, int) and width not in widths:
                raise ValueError(f"width {width} of {name} is not between {widths[0]} and {widths[-1]}")
        return settings

    def build(self, num_classes: int) -> Backbone:
        """A new network in channels-last layout on the CPU, its weights drawn from torch's global generator."""
        architecture = architectures()[self.name]
        width = architecture.width if self.width is None else self.width
        backbone: Backbone = architecture.build(width, num_classes).to(memory_format=torch.channels_last)
        return backbone
