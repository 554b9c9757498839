"""Weak and strong views of uint8 batches, on the device that holds them.

A view is a function of (seed, purpose, epoch, sample_id) alone, so it does not depend on the batch a sample is in.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from models import randaugment
from pipeline import counter
from pipeline.config import Config


class WeakConfig(Config):
    """The views of supervised training: a shifted crop, perhaps mirrored."""

    flip: bool = Field(default=True, description="mirror half of the images; off where left and right mean something")
    crop_padding: float = Field(default=0.125, ge=0, lt=1, description="largest shift, as a fraction of the side")


class AugmentConfig(WeakConfig):
    """The views of semi-supervised training; the strong view adds RandAugment and cutout to the weak one."""

    randaugment_num_ops: int = Field(default=2, ge=0, le=8, description="operations in a row")
    randaugment_magnitude: float = Field(default=10, ge=0, le=10, description="strengths are uniform up to this of 10")
    cutout: float = Field(default=0.5, ge=0, le=1, description="side of the grey square, as a fraction of the image's")


@dataclass(frozen=True)
class Draw:
    """The random numbers of one view of a batch: uniform in (0, 1), float64 [n], one per sample, by number."""

    seed: int
    purpose: str
    epoch: counter.Epoch
    sample_ids: NDArray[np.int64]

    def __call__(self, number: int) -> NDArray[np.float64]:
        """The draw of that number."""
        return counter.uniform(self.seed, self.purpose, self.epoch, self.sample_ids, number)


# Numbers of the draws; RandAugment takes three for each of its operations, after these.
_FLIP, _CROP_Y, _CROP_X, _CUTOUT_Y, _CUTOUT_X, _RANDAUGMENT = range(6)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W] in channels-last layout, (x / 255 - .5) / .25: mid-grey is 0."""
    return images.permute(0, 3, 1, 2).float().mul_(4 / 255).sub_(2)


def weak(images: torch.Tensor, config: WeakConfig, draw: Draw) -> torch.Tensor:
    """The weak view of uint8 [n, H, W, 3], normalised: flip, then a crop of the reflection-padded image."""
    return normalise(crop(images, config, draw))


def strong(images: torch.Tensor, config: AugmentConfig, draw: Draw) -> torch.Tensor:
    """The strong view of square uint8 [n, S, S, 3], normalised: the weak view, RandAugment, cutout.

    All colour operations come first, then all geometric ones as one resampling; what enters from outside is mid-grey.
    """
    views = crop(images, config, draw)
    matrix = np.tile(np.eye(3), (len(views), 1, 1))
    for slot in range(config.randaugment_num_ops):
        choice, amount, sign = (draw(_RANDAUGMENT + 3 * slot + number) for number in range(3))
        operation = (choice * len(randaugment.OPERATIONS)).astype(np.int64)
        strength = amount * (config.randaugment_magnitude / 10)
        randaugment.colour(views, operation, strength)
        matrix = matrix @ randaugment.matrices(operation, np.where(sign < 0.5, -strength, strength))
    result = normalise(views)
    moved = np.flatnonzero((matrix != np.eye(3)).any((1, 2)))
    if len(moved):
        rows = torch.from_numpy(moved).to(result.device, non_blocking=True)
        result[rows] = randaugment.warp(result[rows], matrix[moved])
    return _cut_out(result, config.cutout, draw)


def crop(images: torch.Tensor, config: WeakConfig, draw: Draw) -> torch.Tensor:
    """The weak view as pixels: a new uint8 tensor of the shape of `images`, made by one gather."""
    n, height, width, _ = images.shape
    rows = _shifted(height, config.crop_padding, draw(_CROP_Y))
    columns = _shifted(width, config.crop_padding, draw(_CROP_X))
    if config.flip:
        columns = np.where(draw(_FLIP)[:, None] < 0.5, width - 1 - columns, columns)
    pixels = (np.arange(n)[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
    index = torch.from_numpy(pixels.reshape(-1)).to(images.device, non_blocking=True)
    return images.reshape(-1, 3).index_select(0, index).view(images.shape)


def _shifted(size: int, padding: float, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n, size]: the coordinate read at each place of a line shifted by up to padding * size, reflected at the ends."""
    most = min(round(padding * size), size - 1)
    place = np.arange(size) + np.floor(uniform * (2 * most + 1)).astype(np.int64)[:, None] - most
    reflected: NDArray[np.int64] = size - 1 - np.abs(size - 1 - np.abs(place))
    return reflected


def _cut_out(images: torch.Tensor, fraction: float, draw: Draw) -> torch.Tensor:
    """Mid-grey squares in normalised images [n, 3, S, S], in place; centres are uniform, so edges may cut them off."""
    size = images.shape[-1]
    side = round(fraction * size)

    def inside(uniform: NDArray[np.float64]) -> torch.Tensor:
        start = np.floor(uniform * size).astype(np.int64)[:, None] - side // 2
        place = np.arange(size)
        return torch.from_numpy((place >= start) & (place < start + side)).to(images.device, non_blocking=True)

    rows, columns = inside(draw(_CUTOUT_Y)), inside(draw(_CUTOUT_X))
    return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)
