from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.random_crop import CroppedTraining, RandomCrop
from pipeline.recipe import load_recipe
from tests.running import tiny_recipe

sides = st.integers(1, 3000)


@given(width=sides, height=sides, sample_id=st.integers(0, 2**40), epoch=st.integers(0, 100))
def test_a_crop_is_inside_the_image(width: int, height: int, sample_id: int, epoch: int) -> None:
    ((crop, _),) = RandomCrop().views(0, "test", epoch, np.array([sample_id]))
    left, top, across, down = crop(width, height)
    assert 0 <= left < left + across <= width
    assert 0 <= top < top + down <= height


def test_crops_have_the_areas_and_ratios_asked_for_and_come_from_everywhere() -> None:
    views = RandomCrop(area=(0.1, 0.5), ratio=(0.5, 2.0)).views(0, "test", 0, np.arange(4000))
    left, top, width, height = np.array([crop(1000, 1000) for crop, _ in views]).T
    area, ratio = width * height / 1e6, width / height
    assert 0.099 < area.min() < 0.11 and 0.49 < area.max() < 0.501
    assert abs(area.mean() - 0.3) < 0.01
    assert 0.49 < ratio.min() < 0.52 and 1.95 < ratio.max() < 2.03
    assert abs(np.log(ratio).mean()) < 0.05
    assert abs(((left + width / 2) / 1000).mean() - 0.5) < 0.01
    assert abs(((top + height / 2) / 1000).mean() - 0.5) < 0.01
    assert left.min() == 0 and (left + width).max() == 1000
    assert abs(np.mean([flip for _, flip in views]) - 0.5) < 0.03


def test_a_crop_depends_on_seed_purpose_epoch_and_id_and_not_on_its_batch() -> None:
    def boxes(seed: int, purpose: str, epoch: int, ids: list[int]) -> list[tuple[int, ...]]:
        views = RandomCrop().views(seed, purpose, epoch, np.array(ids))
        return [(*crop(500, 375), int(flip)) for crop, flip in views]

    first = boxes(0, "a", 0, [3, 1, 2])
    assert boxes(0, "a", 0, [2, 3]) == [first[2], first[0]]
    for other in (boxes(1, "a", 0, [3, 1, 2]), boxes(0, "b", 0, [3, 1, 2]), boxes(0, "a", 1, [3, 1, 2])):
        assert not set(first) & set(other)


def test_no_image_is_mirrored_where_left_and_right_mean_something() -> None:
    assert not any(flip for _, flip in RandomCrop(flip=False).views(0, "test", 0, np.arange(100)))


@pytest.mark.parametrize("area", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1)])
def test_an_impossible_area_is_refused(area: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="area must be two fractions above 0 and up to 1"):
        RandomCrop(area=area)


@pytest.mark.parametrize("ratio", [(2.0, 1.0), (0.0, 1.0)])
def test_an_impossible_ratio_is_refused(ratio: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="ratio must be two numbers above 0"):
        RandomCrop(ratio=ratio)


def test_a_training_has_crops_only_if_they_are_asked_for() -> None:
    model = {"name": "resnet9", "width": 4}
    assert CroppedTraining.model_validate({"model": model}).views(0, "test") is None
    views = CroppedTraining.model_validate({"model": model, "random_crop": {"flip": False}}).views(7, "test")
    assert views is not None
    ids = np.arange(20)
    expected = RandomCrop(flip=False).views(7, "test", 3, ids)
    boxes = [(crop(50, 40), flip) for crop, flip in views(3, ids)]
    assert boxes == [(crop(50, 40), flip) for crop, flip in expected]


@pytest.mark.parametrize("section", ["proxy", "evaluate.training"])
def test_parts_of_images_cannot_come_from_a_cache_of_their_centres(tmp_path: Path, section: str) -> None:
    recipe = str(tiny_recipe(tmp_path / "data", tmp_path / "run"))
    crop = f"{section}.random_crop={{}}"
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, (crop, "resources={images: cache}"))
    assert str(caught.value).endswith(
        f"{section}.random_crop cuts parts out of whole images, which a cache does not hold: set resources.images to "
        "auto or stream"
    )
    for images in ("auto", "stream"):
        assert load_recipe(recipe, (crop, f"resources={{images: {images}}}")).resources.images == images
