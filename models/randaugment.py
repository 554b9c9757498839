"""RandAugment (1909.13719) with FixMatch's operations and ranges (2001.07685), on whole batches.

Every sample has its own operation and strength; strength 1 is the far end of FixMatch's range and 0 is nothing (for
blends, FixMatch starts at 5%). Each colour operation equals its counterpart in Pillow on uint8; shears and rotations
leave the centre in place.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Colour = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Matrix = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _blend(degenerate: torch.Tensor, images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Between `images` and `degenerate`, of which strength s takes .05 + .9 s; truncated as in Pillow."""
    factor = 0.95 - 0.9 * strength[:, None, None, None]
    return (degenerate + factor * (images.int() - degenerate)).to(torch.uint8)


def _grey(images: torch.Tensor) -> torch.Tensor:
    """Luma [n, H, W, 1] in 16-bit fixed point; integers, so that sums do not depend on their order."""
    red, green, blue = images.int().unbind(-1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[..., None]


def _autocontrast(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    low, high = (edge.int() for edge in torch.aminmax(images.flatten(1, 2), dim=1))
    span = (high - low)[:, None, None]
    stretched = (images.int() - low[:, None, None]) * 255 // span.clamp(min=1)
    return torch.where(span > 0, stretched.to(torch.uint8), images)


def _brightness(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return _blend(torch.zeros_like(images, dtype=torch.int32), images, strength)


def _color(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    return _blend(_grey(images), images, strength)


def _contrast(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    num_pixels = images.shape[1] * images.shape[2]
    mean = (2 * _grey(images).sum((1, 2, 3), keepdim=True, dtype=torch.int64) + num_pixels) // (2 * num_pixels)
    return _blend(mean.int(), images, strength)


def _sharpness(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    x = images.int()
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x[:, 1:-1, 1:-1]
    smooth = x.clone()
    smooth[:, 1:-1, 1:-1] = (2 * sums + 13) // 26
    return _blend(smooth, images, strength)


def _equalize(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    n, height, width, channels = images.shape
    values = images.permute(0, 3, 1, 2).reshape(n * channels, height * width).long()
    counts = values.new_zeros(n * channels, 256).scatter_add_(1, values, torch.ones_like(values))
    below = counts.cumsum(1) - counts
    largest = counts.gather(1, values.amax(1, keepdim=True))
    step = (height * width - largest) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    equal = torch.where(step > 0, table.gather(1, values), values).to(torch.uint8)
    return equal.view(n, channels, height, width).permute(0, 2, 3, 1)


def _posterize(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Keeps 8 to 4 bits."""
    lost = (5 * strength).int().clamp(max=4)[:, None, None, None]
    return ((images.int() >> lost) << lost).to(torch.uint8)


def _solarize(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    threshold = 256 * (1 - strength[:, None, None, None])
    return torch.where(images < threshold, images, 255 - images)


def _affine(n: int) -> NDArray[np.float64]:
    return np.tile(np.eye(3), (n, 1, 1))


def _shear_x(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = _affine(len(strength))
    matrix[:, 0, 1] = 0.3 * strength
    return matrix


def _translate_x(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = _affine(len(strength))
    matrix[:, 0, 2] = 2 * 0.3 * strength
    return matrix


def _shear_y(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    return _shear_x(strength).transpose(0, 2, 1)


def _translate_y(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = _affine(len(strength))
    matrix[:, 1, 2] = 2 * 0.3 * strength
    return matrix


def _rotate(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    angle = math.radians(30) * strength
    matrix = _affine(len(strength))
    matrix[:, 0, 0] = matrix[:, 1, 1] = np.cos(angle)
    matrix[:, 0, 1] = np.sin(angle)
    matrix[:, 1, 0] = -np.sin(angle)
    return matrix


COLOURS: dict[str, Colour] = {
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "sharpness": _sharpness,
    "solarize": _solarize,
}
"""(uint8 [n, H, W, 3], strength float32 [n] in [0, 1]) -> uint8 [n, H, W, 3]."""

MATRICES: dict[str, Matrix] = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
"""Signed strength [n] in [-1, 1] -> [n, 3, 3] from output to input coordinates, in which the image spans [-1, 1]."""

OPERATIONS = (*COLOURS, *MATRICES, "identity")
"""Every operation; one is drawn uniformly."""


def colour(images: torch.Tensor, operation: NDArray[np.int64], strength: NDArray[np.float64]) -> None:
    """Apply to each of `images`, uint8 [n, H, W, 3], in place, its operation [n] if that is one of COLOURS."""
    for number, function in enumerate(COLOURS.values()):
        rows = np.flatnonzero(operation == number)
        if len(rows):
            index = torch.from_numpy(rows).to(images.device, non_blocking=True)
            amount = torch.from_numpy(strength[rows].astype(np.float32)).to(images.device, non_blocking=True)
            images[index] = function(images[index], amount)


def matrices(operation: NDArray[np.int64], strength: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine maps [n, 3, 3] of operations [n] with signed strengths [n]; the identity where not of MATRICES."""
    result = _affine(len(operation))
    for number, function in enumerate(MATRICES.values(), start=len(COLOURS)):
        rows = np.flatnonzero(operation == number)
        result[rows] = function(strength[rows])
    return result


def warp(images: torch.Tensor, matrix: NDArray[np.float64]) -> torch.Tensor:
    """Resample square float images [n, C, S, S] bilinearly through `matrix` [n, 3, 3]; 0 where nothing is.

    The grid is a sum of products instead of affine_grid's batched product, whose rounding depends on the batch.
    """
    size = images.shape[-1]
    assert images.shape[-2] == size
    centres = torch.arange(1, 2 * size, 2, dtype=torch.float32, device=images.device) / size - 1
    x, y = centres[None, None, :], centres[None, :, None]
    weights = torch.from_numpy(matrix.astype(np.float32)).to(images.device, non_blocking=True)[:, :2, :, None, None]
    grid = weights[:, :, 0] * x + weights[:, :, 1] * y + weights[:, :, 2]
    return functional.grid_sample(images, grid.permute(0, 2, 3, 1), align_corners=False)
