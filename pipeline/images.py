"""From the bytes of an image file to RGB pixels of one size; what cannot be decoded whole is an error.

JPEGs are decoded by simplejpeg (libjpeg-turbo), at 1/2, 1/4 or 1/8 where the crop leaves pixels enough, and resized by
torch. Pillow reads EXIF, decodes all else, and has the last word on a JPEG that simplejpeg refuses.
"""

import io
import warnings
from collections.abc import Callable

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline import jpeg
from pipeline.errors import SemiPruneError

EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})
"""Member extensions that hold an image."""

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Above it Pillow itself refuses."""

Box = tuple[int, int, int, int]
"""left, top, width, height of a part of an image, in its pixels, as it is seen upright."""

Crop = Callable[[int, int], Box]
"""Says for the width and height of an upright image which part of it is wanted: at least one pixel, all inside."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112


class UndecodableImageError(SemiPruneError):
    """The bytes are no whole image of a known format and an allowed size; the message is the short reason."""


def centre(width: int, height: int) -> Box:
    """The largest square in the middle."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def decode(data: bytes | memoryview, size: int, max_pixels: int) -> NDArray[np.uint8]:
    """RGB pixels, uint8 [size, size, 3]: the centre square of the image, upright, resized with antialiasing.

    Errors and what becomes of other modes: as `decode_crop` has it. Warnings of Pillow are silenced, for the whole
    process: threads call `decode_crop`.
    """
    pixels = np.empty((size, size, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decode_crop(data, max_pixels, pixels)
    return pixels


def decode_crop(
    data: bytes | memoryview, max_pixels: int, out: NDArray[np.uint8], crop: Crop = centre, flip: bool = False
) -> None:
    """Fill `out`, uint8 [S, S, 3], with the part of the image that `crop` chooses, resized with antialiasing.

    Transparency is dropped, not blended; 16-bit grey keeps its high byte; of an animation the first frame is taken.
    max_pixels: larger images are refused before they are decoded; flip: whether left and right change places. Raises
    UndecodableImageError, also where only the last pixels of the file are missing; `out` is then undefined.
    """
    try:
        _decode_crop(data, max_pixels, out, crop, flip)
    except (UndecodableImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UndecodableImageError("not a JPEG, PNG or WebP image") from error
    except Exception as error:  # Pillow raises almost anything on damaged bytes
        raise UndecodableImageError(f"{type(error).__name__}: {error}"[:200]) from error


def _decode_crop(data: bytes | memoryview, max_pixels: int, out: NDArray[np.uint8], crop: Crop, flip: bool) -> None:
    pixels, (width, height), box = _decoded(data, max_pixels, len(out), crop)
    left, right = _scaled(box[0], box[2], width, pixels.shape[1])
    top, bottom = _scaled(box[1], box[3], height, pixels.shape[0])
    part = pixels[top:bottom, left:right]
    if part.shape != out.shape:
        part = _resize(part, len(out))
    if flip:  # pixels as single values: three times as fast as reversing an axis before the last
        out.view("V3")[...] = part.view("V3")[:, ::-1]
    else:
        out[...] = part


def _decoded(
    data: bytes | memoryview, max_pixels: int, side: int, crop: Crop
) -> tuple[NDArray[np.uint8], tuple[int, int], Box]:
    """The upright image, of its own size or a reduced one; its own (width, height); what of it is wanted."""
    size = jpeg.plain_size(data)
    if size:
        _refuse_larger(size, max_pixels)
        box = crop(*size)
        pixels = _jpeg(data, size, _reduction(box, side))
        if pixels is not None:
            return pixels, size, box
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        _refuse_larger(image.size, max_pixels)
        if image.format == "PNG":
            image.load()  # its EXIF may come after the pixels
        orientation = image.getexif().get(_ORIENTATION, 1)
        size = (image.height, image.width) if orientation in (5, 6, 7, 8) else image.size
        box = crop(*size)
        return _upright(_pixels(image, data, _reduction(box, side)), orientation), size, box


def _refuse_larger(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise UndecodableImageError(f"{size[0]}x{size[1]} pixels are more than max_pixels={max_pixels}")


def _reduction(box: Box, size: int) -> int:
    """By how much both sides may be divided while that leaves twice the pixels that the resize needs."""
    return next(k for k in (8, 4, 2, 1) if k == 1 or min(box[2:]) >= 2 * size * k)


def _scaled(start: int, length: int, whole: int, decoded: int) -> tuple[int, int]:
    """The span of a line of `whole` pixels in a line of `decoded` pixels; never empty."""
    first = min(round(start * decoded / whole), decoded - 1)
    return first, max(round((start + length) * decoded / whole), first + 1)


def _jpeg(data: bytes | memoryview, size: tuple[int, int], reduction: int) -> NDArray[np.uint8] | None:
    """[H, W, 3] of a JPEG, its sides divided by `reduction` and rounded up; None where libjpeg complains."""
    width, height = (-(-side // reduction) for side in size)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, min_width=width, min_height=height)
    except ValueError:
        return None  # what is an error, Pillow decides
    return pixels


def _pixels(image: Image.Image, data: bytes | memoryview, reduction: int) -> NDArray[np.uint8]:
    """All of the image as it is stored, [H, W, 3]; a JPEG with its sides divided by `reduction`, rounded up."""
    if image.format not in ("PNG", "WEBP") and image.mode in ("L", "RGB"):
        pixels = _jpeg(data, image.size, reduction)
        if pixels is not None:
            return pixels
    image.draft(None, (max(1, image.width // reduction), max(1, image.height // reduction)))
    image.load()
    image.info.pop("transparency", None)  # or Pillow would warn that it is dropped
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The image as EXIF says it is to be seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """[H, W, 3] -> [size, size, 3], bilinear and antialiased as Pillow has it; on one thread."""
    import torch
    from torch.nn import functional

    # With exactly these strides torch takes the batch of one for channels-last, for which it has a fast path.
    # Axes are moved by numpy, which keeps Python's lock: to get it back, a thread waits for others.
    image = torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))
    resized = functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
    result: NDArray[np.uint8] = resized.numpy()[0].transpose(1, 2, 0)
    return result
