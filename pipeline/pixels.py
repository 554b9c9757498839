"""Stage `pixels`: every image decoded once, as raw RGB files that later stages map into memory."""

import io
import os
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import images, storage
from pipeline.config import Config
from pipeline.errors import CorruptArtifactError, DataError, UserError
from pipeline.index import load_shards
from pipeline.parallel import map_items
from pipeline.resources import Resources
from pipeline.shards import Shard, read_unchanged
from pipeline.stage import Artifact, Output, Part, Progress, write_part

if TYPE_CHECKING:
    from pipeline.index import DataConfig


class PixelsConfig(Config):
    """image_size: side of the square; max_pixels: as at indexing, so that what was admitted there decodes here."""

    image_size: int
    max_pixels: int

    @classmethod
    def of(cls, data: "DataConfig") -> Self:
        """The part of the `data` section that decides the pixels."""
        return cls(image_size=data.image_size, max_pixels=data.max_pixels)


def run(
    inputs: Mapping[str, Artifact], config: PixelsConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Decode the index's images; one Arrow part per shard, in the order of sample_id. inputs: index.

    DataError if a shard is not the one that was indexed.
    """
    index = inputs["index"]
    filled = [shard for shard in load_shards(index) if shard.num_rows]
    task = partial(_decode_shard, index_uri=index.uri, config=config, uri=out.uri)
    items = list(zip(filled, index.parts(), strict=True))
    for part in map_items(items, task, resources=resources, progress=progress, unit="shards"):
        out.add(part)
    num_samples = sum(part.rows for part in out.parts)
    return {"num_samples": num_samples, "image_size": config.image_size}


def _decode_shard(item: tuple[Shard, Part], index_uri: str, config: PixelsConfig, uri: str) -> Part:
    """One task: the images of a shard."""
    shard, part = item
    rows = pq.read_table(
        io.BytesIO(storage.read_verified(storage.join(index_uri, part.name), part.sha256)),
        columns=["image_offset", "image_size"],
    )
    data = memoryview(read_unchanged(shard))
    size = config.image_size
    pixels = np.empty((rows.num_rows, size, size, 3), np.uint8)
    spans = zip(rows["image_offset"].to_pylist(), rows["image_size"].to_pylist(), strict=True)
    for position, (offset, length) in enumerate(spans):
        try:
            pixels[position] = images.decode(data[offset : offset + length], size, config.max_pixels)
        except images.UndecodableImageError as error:
            raise DataError(
                f"an image in {shard.uri!r} that could be decoded at indexing cannot be now ({error}): use the same "
                "Pillow on all machines"
            ) from error
    return write_part(uri, f"part-{shard.shard:05d}", ".arrow", _to_arrow(pixels), len(pixels))


def _to_arrow(pixels: NDArray[np.uint8]) -> pa.Buffer:
    """An Arrow file of one batch, one fixed-size binary per image: its bytes map as one array."""
    kind = pa.binary(pixels[0].size)
    column = pa.Array.from_buffers(kind, len(pixels), [None, pa.py_buffer(pixels)])
    batch = pa.record_batch([column], names=["image"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


class Pixels:
    """The decoded images of a dataset, read by sample_id; parts are mapped when they are first touched."""

    def __init__(self, uri: str, parts: list[Part], size: int) -> None:
        self.size = size
        self._uri = uri
        self._parts = parts
        self._starts = np.cumsum([0, *(part.rows for part in parts)])
        self._arrays: list[NDArray[np.uint8] | None] = [None] * len(parts)

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """The images of a finished stage `pixels`.

        Remote parts are copied once to a cache under this machine's TMPDIR, which may be deleted at any time.
        """
        return cls(artifact.uri, artifact.parts(), artifact.metrics["image_size"])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images of the given sample_ids, in their order, repeats allowed: uint8 [n, size, size, 3], a copy."""
        ids = np.asarray(ids, dtype=np.int64)
        assert not len(ids) or (ids.min() >= 0 and ids.max() < len(self)), "sample_id out of range"
        order = np.argsort(ids, kind="stable")
        ascending = ids[order]
        images = np.empty((len(ids), self.size * self.size * 3), np.uint8)
        bounds = np.searchsorted(ascending, self._starts)
        for part in np.flatnonzero(bounds[1:] > bounds[:-1]).tolist():
            here = slice(bounds[part], bounds[part + 1])
            images[order[here]] = self._array(part)[ascending[here] - self._starts[part]]
        return images.reshape(len(ids), self.size, self.size, 3)

    def _array(self, part: int) -> NDArray[np.uint8]:
        """The part's images, uint8 [rows, size * size * 3], backed by the mapped file."""
        array = self._arrays[part]
        if array is None:
            array = self._arrays[part] = self._map(self._parts[part])
        return array

    def _map(self, part: Part) -> NDArray[np.uint8]:
        uri = storage.join(self._uri, part.name)
        path = storage.resolve(uri)[1] if storage.is_local(uri) else str(_cached(uri, part))
        try:
            file = pa.memory_map(path)
        except FileNotFoundError as error:
            raise CorruptArtifactError(f"{uri!r} is named by its manifest but missing: {storage.MEND}") from error
        if file.size() != part.bytes:
            raise CorruptArtifactError(f"{path!r} is damaged: {file.size()} bytes instead of {part.bytes}")
        (column,) = pa.ipc.open_file(file).get_batch(0).columns
        return np.frombuffer(column.buffers()[1], np.uint8).reshape(part.rows, -1)


def _cached(uri: str, part: Part) -> Path:
    """The part's file in this machine's cache, under the name of its checksum; copied there if it is not yet."""
    try:
        folder = Path(tempfile.gettempdir()) / f"semiprune-pixels-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise UserError(f"no cache for images: {error}; set TMPDIR to a folder of your own with space") from error
    if owner != os.getuid():
        raise UserError(f"{str(folder)!r} belongs to another user: remove it, or set TMPDIR to a folder of your own")
    path = folder / f"{part.sha256}.arrow"
    if not path.exists():
        storage.write(str(path), storage.read_verified(uri, part.sha256))
    return path
