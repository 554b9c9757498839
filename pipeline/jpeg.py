"""The size of a plain JPEG from its header, in a tenth of Pillow's time, which decoding threads would wait for."""

import struct

_START, _SCAN = b"\xff\xd8", 0xFFDA
_FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)
"""Baseline, extended and progressive, of Huffman codes."""
_SKIPPED = frozenset({0xFFC4, 0xFFDB, 0xFFDD, 0xFFE0, *range(0xFFE2, 0xFFF0), 0xFFFE})
"""Tables, comments and what applications write, but for the segment that holds EXIF and XMP."""


def plain_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) of a JPEG of 8 bits, grey or three colours, that has no EXIF or XMP and so is upright.

    None for all others, and for what is no JPEG. ITU-T T.81, annex B.
    """
    if data[:2] != _START:
        return None
    size, position = None, 2
    try:
        while True:
            marker, length = struct.unpack_from(">HH", data, position)
            if marker == _SCAN:
                return size
            if marker in _FRAMES and size is None:
                bits, height, width, colours = struct.unpack_from(">BHHB", data, position + 4)
                if bits != 8 or colours not in (1, 3) or not height or not width:
                    return None
                size = width, height
            elif marker not in _SKIPPED:
                return None
            position += 2 + length
    except struct.error:  # it ends before its pixels
        return None
