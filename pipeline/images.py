"""From the bytes of an image file to RGB pixels of one size; what cannot be decoded whole is an error."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.errors import SemiPruneError

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
"""Member extensions that hold an image."""

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Above it Pillow itself refuses."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UndecodableImageError(SemiPruneError):
    """The bytes are no whole image of a known format and an allowed size; the message is the short reason."""


def decode(data: bytes | memoryview, size: int, max_pixels: int) -> NDArray[np.uint8]:
    """RGB pixels, uint8 [size, size, 3]: the centre square of the image, upright, resized with antialiasing.

    Transparency is dropped, not blended; 16-bit grey keeps its high byte; of an animation the first frame is taken.
    max_pixels: larger images are refused before they are decoded. Raises UndecodableImageError, also
    where only the last pixels of the file are missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, size, max_pixels)
    except (UndecodableImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UndecodableImageError("not a JPEG, PNG or WebP image") from error
    except Exception as error:  # Pillow raises almost anything on damaged bytes
        raise UndecodableImageError(f"{type(error).__name__}: {error}"[:200]) from error


def _decode(data: bytes | memoryview, size: int, max_pixels: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise UndecodableImageError(f"{width}x{height} pixels are more than max_pixels={max_pixels}")
        # JPEG alone: decode at 1/2, 1/4 or 1/8 while that leaves twice the pixels that the resize needs.
        image.draft(None, (2 * size, 2 * size))
        image.load()
        orientation = image.getexif().get(_ORIENTATION)
        pixels = _rgb(image)
    width, height = pixels.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if orientation in _UPRIGHT:
        pixels = pixels.transpose(_UPRIGHT[orientation])
    return np.array(pixels, dtype=np.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip at 255 instead of scaling.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
