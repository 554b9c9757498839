"""An image at training size: which side, which form, what stays, and that it is upright."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images import UndecodableImageError
from pipeline.resize import ImageConfig, resize
from tests.pipeline.making import image


def resized(data: bytes, **config: Any) -> Image.Image:
    smaller = resize(data, ImageConfig(size=10, **config))
    assert smaller is not None
    return Image.open(io.BytesIO(smaller))


@pytest.mark.parametrize(("size", "expected"), [((40, 20), (20, 10)), ((20, 40), (10, 20)), ((30, 11), (27, 10))])
@pytest.mark.parametrize(("form", "name"), [("jpg", "JPEG"), ("png", "PNG")])
def test_the_shorter_side_has_the_size_and_the_shape_stays(size: Any, expected: Any, form: Any, name: str) -> None:
    smaller = resized(image(size=size), form=form)
    assert smaller.size == expected and smaller.format == name


@pytest.mark.parametrize("size", [(10, 10), (10, 300), (3, 4)])
def test_what_is_no_larger_stays_as_it_is(size: tuple[int, int]) -> None:
    assert resize(image(size=size), ImageConfig(size=10)) is None


def test_grey_stays_grey_and_all_else_becomes_rgb() -> None:
    modes = {
        mode: resized(image(size=(20, 20), mode=mode), form="png").mode for mode in ("L", "LA", "RGB", "RGBA", "P")
    }
    assert modes == {"L": "L", "LA": "L", "RGB": "RGB", "RGBA": "RGB", "P": "RGB"}


def test_a_turned_photograph_is_upright_and_says_nothing_of_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # its right side is the bottom of what is stored
    stored = Image.fromarray(np.repeat([[[255, 0, 0]], [[0, 0, 255]]], 20, axis=0).repeat(40, axis=1).astype(np.uint8))
    sink = io.BytesIO()
    stored.save(sink, "JPEG", exif=exif, quality=95)
    upright = resized(sink.getvalue(), form="png").convert("RGB")
    assert upright.size == (10, 10) and not upright.getexif()
    assert upright.getpixel((1, 5))[2] > 200 and upright.getpixel((8, 5))[0] > 200  # red was above, now at the right


def test_equal_images_give_equal_bytes_and_quality_counts() -> None:
    data = image(size=(40, 40))
    assert resize(data, ImageConfig(size=10)) == resize(data, ImageConfig(size=10))
    small, large = (resize(data, ImageConfig(size=32, quality=quality)) for quality in (20, 100))
    assert small and large and len(small) < len(large)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"no image", "not a JPEG, PNG or WebP image"), (image(size=(64, 64))[:-200], "truncated")],
)
def test_what_cannot_be_decoded_whole_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(UndecodableImageError, match=message):
        resize(data, ImageConfig(size=10))


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(UndecodableImageError, match="40x40 pixels are more than max_pixels=100"):
        resize(image(size=(40, 40)), ImageConfig(size=10, max_pixels=100))
