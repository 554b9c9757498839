"""Where the image of every sample is: what the index says, as arrays by sample_id.

They are in a file of this machine's cache, 40 bytes a sample and its key, that all its processes map: once in its
memory for all of them, only while it is used, and read from the index once.
"""

import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from pipeline import shards, storage
from pipeline.disk_cache import DiskCache
from pipeline.epoch_order import Ids
from pipeline.errors import DataError
from pipeline.index import load_config, load_shards
from pipeline.shards import Shard
from pipeline.stage import Artifact
from pipeline.tar import BLOCK

_COLUMNS = ("offset", "length", "image_offset", "image_size")


@dataclass(frozen=True)
class Samples:
    """starts: first sample_id of each of the `shards`, and N; offset, length: of the sample in its shard; image_*: of
    the image; int64 [N] each; keys: the samples' names.

    size: side of the square that every image becomes; max_pixels: larger ones are not decoded.
    """

    shards: list[Shard]
    starts: Ids
    offset: Ids
    length: Ids
    image_offset: Ids
    image_size: Ids
    keys: pa.LargeStringArray
    size: int
    max_pixels: int

    @classmethod
    def open(cls, index: Artifact, cache: DiskCache) -> Self:
        """The samples of a finished stage `index`, mapped from the cache, which gets them if it lacks them.

        size, max_pixels: as the `data` section of the index has them.
        """
        parts = index.parts()
        total = sum(part.rows for part in parts)
        content = " ".join(["samples 1", *(part.sha256 for part in parts)])  # 1: how the file is laid out
        name = f"{storage.sha256(content.encode())[:32]}.samples"
        while (path := cache.find(name)) is None or (columns := _map(path, total)) is None:
            if not cache.fill(name, 60 * total, partial(_write, index, total)):
                time.sleep(0.02)
        data, known = load_config(index).data, load_shards(index)
        starts = np.array([*(shard.first_id for shard in known), total])
        return cls(known, starts, *columns, data.image_size, data.max_pixels)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def shard_of(self, ids: Ids) -> Ids:
        """The numbers of their shards."""
        return np.searchsorted(self.starts, ids, side="right") - 1

    def span(self, ids: Ids) -> "Span":
        """Samples of one shard, ids ascending, as one request for their bytes."""
        start = int(self.offset[ids[0]])
        return Span(
            shard=self.shards[int(self.shard_of(ids[:1])[0])],
            start=start,
            length=int(self.offset[ids[-1]] + self.length[ids[-1]]) - start,
            ids=ids.tolist(),
            offsets=(self.image_offset[ids] - start).tolist(),
            sizes=self.image_size[ids].tolist(),
            keys=self.keys.take(pa.array(ids)).to_pylist(),
        )


def _write(index: Artifact, total: int, put: Callable[[int, Any], None]) -> None:
    """Column by column, int64, then the keys as Arrow has large strings: N + 1 offsets, and their bytes."""
    offsets = 8 * len(_COLUMNS) * total
    names = offsets + 8 * (total + 1)
    put(offsets, bytes(8))
    start = num_bytes = 0
    for table in index.tables(columns=[*_COLUMNS, "key"]):  # never all of them in memory
        for place, name in enumerate(_COLUMNS):
            put(8 * (place * total + start), table[name].to_numpy().astype(np.int64))
        for keys in table["key"].cast(pa.large_string()).chunks:
            _, ends, characters = keys.buffers()
            own = np.frombuffer(ends, np.int64)[keys.offset : keys.offset + len(keys) + 1]
            put(offsets + 8 * (start + 1), own[1:] - own[0] + num_bytes)
            put(names + num_bytes, characters[int(own[0]) : int(own[-1])])
            start, num_bytes = start + len(keys), num_bytes + int(own[-1] - own[0])


def _map(path: Path, total: int) -> tuple[Ids, Ids, Ids, Ids, pa.Array] | None:
    """The columns and the keys, backed by the file; None if it is gone, or was cut short and is now gone."""
    try:
        data = pa.memory_map(str(path)).read_buffer()
    except FileNotFoundError:
        return None
    count = (len(_COLUMNS) + 1) * total + 1
    numbers = np.frombuffer(data[: len(data) // 8 * 8], np.int64)[:count]
    if len(numbers) < count or len(data) != 8 * count + numbers[-1]:
        path.unlink(missing_ok=True)
        return None
    columns, names = numbers[: len(_COLUMNS) * total].reshape(len(_COLUMNS), total), data.slice(8 * count)
    keys = [None, pa.py_buffer(numbers[len(_COLUMNS) * total :]), names]
    return columns[0], columns[1], columns[2], columns[3], pa.Array.from_buffers(pa.large_string(), total, keys)


@dataclass(frozen=True)
class Span:
    """Samples of one shard and all that it takes to read them, in any process.

    start, length: of their bytes in the shard; offsets, sizes: of the images, from `start`.
    """

    shard: Shard
    start: int
    length: int
    ids: list[int]
    offsets: list[int]
    sizes: list[int]
    keys: list[str]

    def read(self) -> "Piece":
        """Their bytes; DataError if other samples are there now."""
        data = shards.read_range(self.shard, self.start, self.length)
        for key, offset, size in zip(self.keys, self.offsets, self.sizes, strict=True):
            if not _is_member(data[offset - BLOCK : offset], key, size):
                raise shards.changed(self.shard.uri)
        view = memoryview(data)
        images = (view[offset : offset + size] for offset, size in zip(self.offsets, self.sizes, strict=True))
        return Piece(self, dict(zip(self.ids, images, strict=True)))


@dataclass(frozen=True)
class Piece:
    """Samples as they are in the shard. images: their files, by sample_id."""

    span: Span
    images: dict[int, memoryview]

    def undecodable(self, sample_id: int, why: Exception) -> DataError:
        """The error for an image that could be decoded at indexing and cannot be now."""
        return DataError(
            f"the image {self.span.keys[self.span.ids.index(sample_id)]!r} in {self.span.shard.uri!r} could be "
            f"decoded at indexing and cannot be now ({why}): put the old shard back, or use the same Pillow and "
            "simplejpeg on all machines"
        )


def _is_member(header: bytes, key: str, size: int) -> bool:
    """Whether this is the tar header of a file of that sample and size; long names are in other headers."""
    try:
        if tarfile.nti(header[124:136]) != size:  # type: ignore[attr-defined]
            return False
    except tarfile.TarError:
        return False
    return not key.isascii() or len(key) > 80 or header.startswith(f"{key}.".encode())
