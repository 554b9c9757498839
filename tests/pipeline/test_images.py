import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from pipeline.images import Box, Crop, UndecodableImageError, centre, decode, decode_crop
from tests.pipeline.making import image

LIMIT = 10**6


def encoded(picture: Image.Image, form: str = "PNG", **save: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, form, **save)
    return sink.getvalue()


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_image_of_the_right_size_is_not_touched(form: str) -> None:
    data = image(1, (16, 16), form)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    pixels = decode(data, 16, LIMIT)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(decode(memoryview(data), 16, LIMIT), expected)


@pytest.mark.parametrize(("size", "side"), [((64, 64), 16), ((8, 8), 32), ((1, 200), 16), ((301, 57), 24), ((1, 1), 8)])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_any_size_becomes_a_square(form: str, size: tuple[int, int], side: int) -> None:
    assert decode(image(2, size, form), side, LIMIT).shape == (side, side, 3)


def test_the_centre_square_is_what_is_left_of_the_resized_image() -> None:
    picture = Image.fromarray(gradient(40, 120))
    expected = picture.resize((30, 10), Image.Resampling.BILINEAR).crop((10, 0, 20, 10))
    pixels = decode(encoded(picture), 10, LIMIT)
    assert np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_large_jpegs_are_decoded_small_with_the_same_result() -> None:
    data = encoded(Image.fromarray(gradient(800, 1200)), "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.BILINEAR, box=(200, 0, 1000, 800))
    assert np.abs(decode(data, 32, LIMIT).astype(int) - np.asarray(full).astype(int)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    upright = gradient(24, 24)
    # Stored so that the viewer must undo it: the inverse of what the orientation says.
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    save: dict[str, Any] = {"quality": 100} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    pixels = decode(encoded(stored, form, exif=exif, **save), 24, LIMIT)
    assert np.abs(pixels.astype(int) - upright.astype(int)).max() <= 12


def test_palette_alpha_grey_and_binary_become_rgb() -> None:
    colours = Image.fromarray(gradient(8, 8))
    alpha = colours.copy()
    alpha.putalpha(0)
    np.testing.assert_array_equal(decode(encoded(alpha), 8, LIMIT), gradient(8, 8))
    palette = colours.convert("P", palette=Image.Palette.ADAPTIVE)
    expected = palette.convert("RGB")
    np.testing.assert_array_equal(decode(encoded(palette, transparency=bytes(range(200))), 8, LIMIT), expected)
    for mode in ("L", "LA", "1"):
        pixels = decode(encoded(colours.convert(mode)), 8, LIMIT)
        assert pixels.shape == (8, 8, 3)
        assert (pixels[..., 0] == pixels[..., 1]).all()


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    deep = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    pixels = decode(encoded(Image.fromarray(deep)), 8, LIMIT)
    np.testing.assert_array_equal(pixels[..., 0], deep >> 8)


def test_16_bit_colour_is_scaled() -> None:
    deep = (np.arange(8 * 8 * 3, dtype=np.uint16) * 300).reshape(8, 8, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    np.testing.assert_array_equal(decode(png(8, 8, rows, depth=16), 8, LIMIT), deep >> 8)


def test_cmyk_jpeg_becomes_rgb() -> None:
    colours = Image.fromarray(gradient(16, 16))
    pixels = decode(encoded(colours.convert("CMYK"), "JPEG", quality=100), 16, LIMIT)
    assert np.abs(pixels.astype(int) - gradient(16, 16).astype(int)).max() <= 12


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(form: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
    assert decode(data, 8, LIMIT).max() <= 12


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [1001, 12_000, 60_000])
def test_bombs_are_refused_by_their_header(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    data = png(side, side, b"")
    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    with pytest.raises(UndecodableImageError, match="pixels"):
        decode(data, 32, LIMIT)


def test_the_limit_itself_is_allowed() -> None:
    assert decode(image(0, (100, 50)), 8, 5000).shape == (8, 8, 3)
    with pytest.raises(UndecodableImageError, match="100x50 pixels are more than max_pixels=4999"):
        decode(image(0, (100, 50)), 8, 4999)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("side", [8, 64])
def test_truncation_is_an_error_unless_every_pixel_is_there(form: str, side: int) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), form)
    whole = decode(data, side, LIMIT)
    for cut in [*range(0, len(data) - 60, 97), *range(len(data) - 60, len(data))]:
        try:
            pixels = decode(data[:cut], side, LIMIT)
        except UndecodableImageError:
            continue
        # A PNG ends with 20 bytes of checksums.
        assert form == "PNG"
        assert cut >= len(data) - 20
        np.testing.assert_array_equal(pixels, whole)


def test_damage_is_an_error_or_an_image_and_never_anything_else() -> None:
    rng = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "WEBP"):
        whole = image(3, (32, 32), form)
        for _ in range(150):
            data = bytearray(whole)
            for position in rng.integers(0, len(data), 3):
                data[position] = rng.integers(256)
            try:
                assert decode(bytes(data), 16, LIMIT).shape == (16, 16, 3)
            except UndecodableImageError as error:
                assert 0 < len(str(error)) <= 200


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(form: str) -> None:
    with pytest.raises(UndecodableImageError, match="not a JPEG, PNG or WebP image"):
        decode(image(0, (16, 16), form), 8, LIMIT)


def test_no_warning_leaks() -> None:
    palette = Image.fromarray(gradient(8, 8)).convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(encoded(palette, transparency=bytes(range(200))), 8, LIMIT)
        with pytest.raises(UndecodableImageError, match="12000x12000"):
            decode(png(12_000, 12_000, b""), 8, LIMIT)


def reference(data: bytes, size: int, crop: Crop, flip: bool) -> np.ndarray:
    """Pillow alone: decoded whole, turned, cut, resized."""
    with Image.open(io.BytesIO(data)) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    left, top, width, height = crop(*upright.size)
    small = upright.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    return np.asarray(ImageOps.mirror(small) if flip else small)


def constant(box: Box, width: int, height: int) -> Box:
    return box


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("flip", [False, True])
def test_any_part_of_an_image_is_what_pillow_makes_of_it(form: str, orientation: int, flip: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    save: dict[str, Any] = {"quality": 95} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    data = encoded(Image.fromarray(gradient(90, 140)), form, exif=exif, **save)
    boxes: list[Box] = [(0, 0, 90, 90), (7, 11, 40, 30), (20, 3, 5, 60), (0, 0, 1, 1)]
    for box in boxes:
        out = np.zeros((2, 24, 24, 3), np.uint8)
        crop = partial(constant, box)
        decode_crop(data, LIMIT, out[1], crop, flip)
        assert np.abs(out[1].astype(int) - reference(data, 24, crop, flip).astype(int)).max() <= 2
        assert not out[0].any()


@pytest.mark.parametrize("side", [16, 24, 40, 80, 160])
@pytest.mark.parametrize("orientation", [1, 6])
def test_scaled_decoding_is_close_to_decoding_whole(side: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(gradient(701, 997)), "JPEG", quality=95, exif=exif)

    def part(width: int, height: int) -> Box:
        return width // 5, height // 7, width // 2, height // 2

    for crop in (part, centre):
        out = np.empty((side, side, 3), np.uint8)
        decode_crop(data, LIMIT, out, crop)
        assert np.abs(out.astype(int) - reference(data, side, crop, False).astype(int)).max() <= 6


@given(seed=st.integers(0, 10**6), changes=st.integers(0, 4), cut=st.booleans())
@settings(max_examples=150)
def test_a_damaged_jpeg_is_taken_if_and_only_if_pillow_takes_it(seed: int, changes: int, cut: bool) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(image(seed, (40, 30), "JPEG", quality=int(rng.integers(40, 100)), progressive=bool(seed % 2)))
    for position in rng.integers(0, len(data), changes):
        data[position] = rng.integers(256)
    if cut:
        del data[rng.integers(0, len(data)) :]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(bytes(data)), formats=["JPEG"]) as picture:
                whole = picture.width * picture.height <= LIMIT
                if whole:
                    picture.load()
    except Exception:  # noqa: BLE001  Pillow raises almost anything
        whole = False
    try:
        decode(bytes(data), 12, LIMIT)
    except UndecodableImageError:
        assert not whole
    else:
        assert whole


def test_threads_decode_the_same() -> None:
    contents = [image(n, (60 + n, 50), form) for n in range(24) for form in ("PNG", "JPEG", "WEBP")]
    expected = [decode(data, 24, LIMIT) for data in contents]
    found = np.empty((len(contents), 24, 24, 3), np.uint8)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda data, out: decode_crop(data, LIMIT, out), contents, found))
    assert np.array_equal(found, expected)
