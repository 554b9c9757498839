import contextlib
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images import UndecodableImageError, decode
from pipeline.jpeg import plain_size


def jpeg(mode: str = "RGB", **save: Any) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (40, 24), 90).save(sink, "JPEG", **save)
    return sink.getvalue()


def exif() -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = 6
    return made


@pytest.mark.parametrize(
    "data",
    [
        jpeg(),
        jpeg("L"),
        jpeg(progressive=True),
        jpeg(optimize=True, subsampling=0, restart_marker_rows=1),
        jpeg(comment="a comment", icc_profile=b"\xff\xd9" * 90_000),
        jpeg(keep_rgb=True),
    ],
    ids=["colour", "grey", "progressive", "restarts", "comment and profile", "rgb"],
)
def test_plain_jpegs(data: bytes) -> None:
    assert plain_size(data) == plain_size(memoryview(data)) == (40, 24)
    assert decode(data, 8, 10**6).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "data", [jpeg("CMYK"), jpeg(exif=exif()), jpeg(xmp=b"<x/>")], ids=["four colours", "exif", "xmp"]
)
def test_what_pillow_has_to_look_at(data: bytes) -> None:
    assert plain_size(data) is None
    assert decode(data, 8, 10**6).shape == (8, 8, 3)


def test_other_files_have_no_size() -> None:
    for data in (b"", b"\xff", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9"):
        assert plain_size(data) is None


@given(st.data())
@settings(max_examples=300)
def test_a_damaged_header_never_gives_another_size_than_pillow(draw: st.DataObject) -> None:
    data = bytearray(jpeg())
    for _ in range(draw.draw(st.integers(0, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    whole = bytes(data[: draw.draw(st.integers(0, len(data)))])
    size = plain_size(whole)
    try:
        with Image.open(io.BytesIO(whole)) as image:
            assert size in (None, image.size)
    except (OSError, SyntaxError):
        if size:  # it is for the decoder to refuse
            with contextlib.suppress(UndecodableImageError):
                decode(whole, 8, 10**6)
