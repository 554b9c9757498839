"""Where the image of every sample is: what the index says, as arrays by sample_id."""

import tarfile
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa

from pipeline import shards
from pipeline.epoch_order import Ids
from pipeline.errors import DataError
from pipeline.index import load_config, load_shards
from pipeline.shards import Shard
from pipeline.stage import Artifact
from pipeline.tar import BLOCK

_COLUMNS = ("shard", "offset", "length", "image_offset", "image_size")


@dataclass(frozen=True)
class Samples:
    """shard: number in `shards`; offset, length: of the sample in it; image_*: of the image; int64 [N] each.

    size: side of the square that every image becomes; max_pixels: larger ones are not decoded.
    """

    index: Artifact
    shards: list[Shard]
    shard: Ids
    offset: Ids
    length: Ids
    image_offset: Ids
    image_size: Ids
    size: int
    max_pixels: int

    @classmethod
    def open(cls, index: Artifact) -> Self:
        """The samples of a finished stage `index`; size, max_pixels: as its `data` section has them."""
        columns = {name: np.empty(sum(part.rows for part in index.parts()), np.int64) for name in _COLUMNS}
        end = 0
        for table in index.tables(columns=list(_COLUMNS)):  # never all of them beside what they become
            start, end = end, end + table.num_rows
            for name, column in columns.items():
                column[start:end] = table[name].to_numpy()
        data = load_config(index).data
        return cls(index=index, shards=load_shards(index), size=data.image_size, max_pixels=data.max_pixels, **columns)

    def __len__(self) -> int:
        return len(self.shard)

    @cached_property
    def keys(self) -> pa.Array:
        """The samples' names; read when they are first wanted. Large strings: of 2 GiB of names there is no other."""
        columns = (table["key"].cast(pa.large_string()) for table in self.index.tables(columns=["key"]))
        return pa.concat_arrays([chunk for column in columns for chunk in column.chunks])

    def span(self, ids: Ids) -> "Span":
        """Samples of one shard, ids ascending, as one request for their bytes."""
        start = int(self.offset[ids[0]])
        return Span(
            shard=self.shards[self.shard[ids[0]]],
            start=start,
            length=int(self.offset[ids[-1]] + self.length[ids[-1]]) - start,
            ids=ids.tolist(),
            offsets=(self.image_offset[ids] - start).tolist(),
            sizes=self.image_size[ids].tolist(),
            keys=self.keys.take(pa.array(ids)).to_pylist(),
        )


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
