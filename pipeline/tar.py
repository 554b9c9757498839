"""Tar shards as bytes: which samples a shard holds and where. Nothing is extracted, nothing is executed.

A sample is a run of members that share WebDataset's key: the path up to the first dot of the basename, folder
included; the rest is the extension.
"""

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pipeline.errors import SemiPruneError

BLOCK = 512
END = bytes(2 * BLOCK)
"""What closes an archive: two zero blocks."""

WHOLE = -1
"""The row of what concerns an archive as a whole."""

TRUNCATED = "truncated shard"
"""The defect of the sample in which an archive breaks off; how many would follow is not known."""

_NOT_ZERO = re.compile(rb"[^\0]")
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
# Line breaks would tear a list of keys apart; surrogates are bytes of a name that is not UTF-8.
UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class NotATarError(SemiPruneError):
    """The bytes cannot be read as a tar archive; the message says why."""


@dataclass(frozen=True)
class Member:
    """One file of a sample: its lower-case extension, where its payload is in the archive, and its name there."""

    extension: str
    offset: int
    size: int
    name: str


@dataclass(frozen=True)
class Sample:
    """Members that share a key.

    row: position among all samples of the shard, WHOLE for a defect of the archive itself; offset, length: span in the
    archive of all its members with every header, a multiple of 512 bytes; defect, detail: why it cannot be used, or "".
    """

    row: int
    key: str
    members: tuple[Member, ...]
    offset: int
    length: int
    defect: str = ""
    detail: str = ""


def scan(data: bytes) -> list[Sample]:
    """The samples of an archive, in order; NotATarError if it is none.

    An archive is whole only if its end marker follows the last member. Where it does not, the last sample may lack
    members and is marked as TRUNCATED; those before it are complete. Bytes after the end marker, as of
    `cat a.tar b.tar`, are what tar never reads: they come last, as a defect of the row WHOLE.
    """
    if not data:
        raise NotATarError("the file is empty, which no archive is, not even one without members: did a copy fail?")
    if data[:2] == b"\x1f\x8b":
        raise NotATarError("it is compressed with gzip; shards must be plain tar files")
    samples: list[Sample] = []
    end, damage = 0, ""
    try:
        for info, start, end in _members(data):
            _append(samples, info, start, end)
    except tarfile.ReadError as error:
        damage = str(error)
    if not damage and data[end : end + BLOCK] != bytes(BLOCK):
        damage = "no end marker follows the last member"
    if damage and not samples:
        raise NotATarError(damage)
    if damage:
        place = f"at byte {min(end, len(data))} of {len(data)}"
        samples[-1] = replace(samples[-1], defect=TRUNCATED, detail=f"{damage}, {place}")
    elif more := _NOT_ZERO.search(data, end):
        detail = f"at byte {more.start()} of {len(data)}: two archives in one file?"
        samples.append(Sample(WHOLE, "", (), end, len(data) - end, "data after the end marker", detail))
    return samples


def _members(data: bytes) -> Iterator[tuple[tarfile.TarInfo, int, int]]:
    """Every entry with the span of its headers, payload and padding; tarfile.ReadError where the archive breaks off."""
    end = 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        while (info := _next(archive)) is not None:
            start, end = end, archive.offset
            if info.size < 0 or end <= start:
                raise tarfile.ReadError("a member has a negative size")
            if archive.pax_headers.keys() - {"comment"}:
                # It would change members far away from it, also in an exported shard.
                raise tarfile.ReadError("a pax global header changes all members")
            yield info, info.offset, end


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return archive.next()
    except Exception as error:  # hostile headers make tarfile raise ValueError, OverflowError, RecursionError, ...
        raise tarfile.ReadError(str(error) or type(error).__name__) from error


def _append(samples: list[Sample], info: tarfile.TarInfo, start: int, end: int) -> None:
    """Add a member to the last sample, or begin a new one."""
    if info.isdir():
        return
    match = _NAME.fullmatch(info.name)
    key, extension = (match[1], match[2].lower()) if match else (info.name, "")
    defect = detail = ""
    if match is None or UNWRITABLE.search(info.name):
        key, defect = info.name.encode("unicode_escape").decode(), "unusable name"
        detail = "a member's name must be printable text with a stem and an extension"
    elif info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.issparse():
        defect, detail = "not a regular file", f"member {info.name!r} is a link, a device or sparse"
    member = Member(extension, info.offset_data, info.size, info.name)
    last = samples[-1] if samples else None
    if last and last.key == key and extension not in {other.extension for other in last.members}:
        samples[-1] = replace(
            last,
            members=(*last.members, member),
            length=end - last.offset,
            defect=last.defect or defect,
            detail=last.detail or detail,
        )
    else:
        samples.append(Sample(len(samples), key, (member,), start, end - start, defect, detail))


def pack(members: Iterable[tuple[str, bytes | memoryview]]) -> bytes:
    """Files as archive members, without the end marker: equal names and payloads give equal bytes.

    Plain USTAR headers; a long or non-ASCII name gets a pax record of its own.
    """
    blocks: list[bytes | memoryview] = []
    for name, payload in members:
        info = tarfile.TarInfo(name)
        info.size = len(payload)
        padding = bytes(-len(payload) % BLOCK)
        blocks += [info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"), payload, padding]
    return b"".join(blocks)
