"""Views: reproducible, independent of the batch, and what the docstrings say."""

import numpy as np
import pytest
import torch

from models.augment import AugmentConfig, Draw, WeakConfig, normalise, strong, weak

VIEWS = {"weak": weak, "strong": strong}


def _pool(n=96, size=16):
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_depends_on_the_sample_alone(view):
    """Bit for bit, whatever the batch, its order and its size."""
    images, config = _pool(), AugmentConfig()
    ids = np.arange(96, dtype=np.int64) * 7
    whole = VIEWS[view](images, config, Draw(3, "test", 5, ids))
    order = np.random.default_rng(0).permutation(96)
    shuffled = VIEWS[view](images[order], config, Draw(3, "test", 5, ids[order]))
    assert torch.equal(shuffled, whole[order])
    pieces = [VIEWS[view](images[i : i + 1], config, Draw(3, "test", 5, ids[i : i + 1])) for i in range(96)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_changes_with_seed_purpose_and_epoch(view):
    images, config, ids = _pool(8), AugmentConfig(), np.arange(8, dtype=np.int64)
    draws = [Draw(0, "a", 0, ids), Draw(1, "a", 0, ids), Draw(0, "b", 0, ids), Draw(0, "a", 1, ids)]
    views = [VIEWS[view](images, config, draw) for draw in draws]
    assert all(not torch.equal(views[0], other) for other in views[1:])


@pytest.mark.parametrize("view", VIEWS)
def test_shape_layout_and_the_input_is_left_alone(view):
    images = _pool(8)
    before = images.clone()
    result = VIEWS[view](images, AugmentConfig(), Draw(0, "test", 0, np.arange(8, dtype=np.int64)))
    assert result.shape == (8, 3, 16, 16) and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.abs().max() <= 2
    assert torch.equal(images, before)


def test_normalise_puts_mid_grey_at_zero():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 1, 1, 3)
    expected = (torch.tensor([0.0, 51, 255]) / 255 - 0.5) / 0.25
    torch.testing.assert_close(normalise(images).flatten(), expected)


def test_weak_equals_a_padded_crop_of_a_mirrored_image():
    images = _pool(64)
    config = WeakConfig(crop_padding=0.125)
    views = weak(images, config, Draw(0, "test", 0, np.arange(64, dtype=np.int64)))
    seen = set()
    for image, view in zip(images.numpy(), views, strict=True):
        crops = {
            (flip, y, x): padded[y : y + 16, x : x + 16]
            for flip in (1, -1)
            for padded in [np.pad(image[:, ::flip], ((2, 2), (2, 2), (0, 0)), mode="reflect")]
            for y in range(5)
            for x in range(5)
        }
        matches = [
            key for key, crop in crops.items() if torch.equal(normalise(torch.tensor(crop.copy())[None])[0], view)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {flip for flip, _, _ in seen} == {1, -1}
    assert {y for _, y, _ in seen} == {x for _, _, x in seen} == set(range(5))


def test_off_means_unchanged():
    images, ids = _pool(8), np.arange(8, dtype=np.int64)
    config = AugmentConfig(flip=False, crop_padding=0, randaugment_num_ops=0, cutout=0)
    assert torch.equal(strong(images, config, Draw(0, "test", 0, ids)), normalise(images))


def test_cutout_is_a_grey_square_of_at_most_its_side():
    images = torch.full((200, 16, 16, 3), 255, dtype=torch.uint8)
    config = AugmentConfig(flip=False, crop_padding=0, randaugment_num_ops=0, cutout=0.5)
    holes = (strong(images, config, Draw(0, "test", 0, np.arange(200, dtype=np.int64)))[:, 0] == 0).numpy()
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    np.testing.assert_array_equal(holes.sum((1, 2)), rows * columns)
    assert rows.max() == columns.max() == 8
    assert rows.min() >= 4


def test_larger_magnitudes_move_images_further():
    images, ids = _pool(64), np.arange(64, dtype=np.int64)

    def distance(magnitude):
        config = AugmentConfig(flip=False, crop_padding=0, randaugment_magnitude=magnitude, cutout=0)
        return (strong(images, config, Draw(0, "test", 0, ids)) - normalise(images)).abs().mean()

    assert distance(1) < distance(4) < distance(10)
