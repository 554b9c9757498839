"""Every RandAugment operation against Pillow, image by image."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from models import randaugment

STRENGTHS = np.array([0.03, 0.27, 0.5, 0.61, 0.83, 0.99])


def _images():
    """Noise, a dark ramp, one value, and two values: histograms of every kind."""
    generator = np.random.default_rng(0)
    ramp = np.broadcast_to(np.arange(20, 120, 5, dtype=np.uint8)[:, None, None], (20, 20, 3))
    two = np.where(generator.random((20, 20, 3)) < 0.9, 10, 200).astype(np.uint8)
    noise = generator.integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    return np.stack([*noise, ramp, np.full_like(ramp, 77), two])


def _factor(strength):
    return float(np.float32(0.95) - np.float32(0.9) * np.float32(strength))


PILLOW = {
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(_factor(s)),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(_factor(s)),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(_factor(s)),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - int(5 * s)),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(_factor(s)),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 * (1 - s)),
}


@pytest.mark.parametrize("name", randaugment.COLOURS)
def test_colour_operations_equal_pillow(name):
    images = _images()
    for strength in STRENGTHS:
        amounts = torch.full((len(images),), strength, dtype=torch.float32)
        ours = randaugment.COLOURS[name](torch.from_numpy(images), amounts).numpy()
        theirs = np.stack([np.asarray(PILLOW[name](Image.fromarray(image), strength)) for image in images])
        assert ours.dtype == np.uint8
        # Pillow stretches in floating point, which can fall just below the integer that we reach exactly.
        np.testing.assert_allclose(ours.astype(int), theirs.astype(int), atol=1 if name == "autocontrast" else 0)


def test_colour_touches_only_the_rows_that_drew_the_operation():
    images = torch.from_numpy(np.repeat(_images()[:1], len(randaugment.OPERATIONS), axis=0))
    before = images.clone()
    randaugment.colour(images, np.arange(len(images)), np.full(len(images), 0.9))
    changed = (images != before).flatten(1).any(1).tolist()
    expected = [name in randaugment.COLOURS for name in randaugment.OPERATIONS]
    expected[0] = False  # the contrast of noise is full already
    assert changed == expected


def _warp(images, name, strength):
    matrix = randaugment.MATRICES[name](np.full(len(images), strength))
    return randaugment.warp(images, matrix), matrix


def test_translation_by_whole_pixels_moves_and_fills_with_zero():
    images = torch.randn(2, 3, 10, 10)
    right, _ = _warp(images, "translate_x", -2 / 3)  # .3 * 2/3 of 10 pixels
    torch.testing.assert_close(right[..., 2:], images[..., :-2], atol=1e-5, rtol=1e-5)
    assert right[..., :2].abs().max() < 1e-5
    up, _ = _warp(images, "translate_y", 1 / 3)
    torch.testing.assert_close(up[..., :-1, :], images[..., 1:, :], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
@pytest.mark.parametrize("strength", [-1.0, 0.4])
def test_shears_and_rotations_equal_pillow_inside(name, strength):
    size = 24
    image = np.random.default_rng(1).integers(0, 256, (size, size), dtype=np.uint8)
    warped, matrix = _warp(torch.from_numpy(image).float().expand(1, 1, -1, -1), name, strength)
    (a, b, _), (d, e, _), _ = matrix[0]
    centre = size / 2
    coefficients = (a, b, centre - a * centre - b * centre, d, e, centre - d * centre - e * centre)
    pillow = np.asarray(Image.fromarray(image).transform((size, size), Image.AFFINE, coefficients, Image.BILINEAR))
    inner = slice(6, -6)
    assert np.abs(warped[0, 0, inner, inner].numpy() - pillow[inner, inner].astype(float)).max() <= 1.01


def test_rotation_by_thirty_degrees_turns_and_keeps_lengths():
    matrix = randaugment.MATRICES["rotate"](np.array([1.0]))[0]
    np.testing.assert_allclose(matrix[:2, :2] @ matrix[:2, :2].T, np.eye(2), atol=1e-12)
    assert matrix[0, 0] == pytest.approx(np.sqrt(3) / 2)


def test_a_composed_warp_is_the_second_operation_after_the_first():
    coarse = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4), size=64, mode="bicubic")
    first, a = _warp(coarse, "rotate", 0.5)
    both, b = _warp(first, "shear_x", 0.7)
    once = randaugment.warp(coarse, a @ b)
    inner = slice(16, -16)
    assert (once - both)[..., inner, inner].abs().max() < 0.02
