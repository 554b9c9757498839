"""Decoded images on this machine's disk, for datasets that fit: an Arrow file per shard, mapped into memory.

They are a cache and no result: named by what they hold, decoded again where one is missing, never part of a run.
"""

import time
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from pipeline import images, storage
from pipeline.batches import Step
from pipeline.disk_cache import DiskCache
from pipeline.epoch_order import Ids
from pipeline.epoch_plan import Planned
from pipeline.errors import DataError
from pipeline.samples import Samples
from pipeline.shards import Shard, read_unchanged

_ROWS_PER_TASK = 64


@dataclass(frozen=True)
class ShardPixels:
    """The images of one shard. offsets, lengths: int64 [n], their bytes in the shard; size, max_pixels: as Samples."""

    shard: Shard
    offsets: Ids
    lengths: Ids
    size: int
    max_pixels: int

    @cached_property
    def name(self) -> str:
        """Of the file in a cache: a hash of all that decides its bytes."""
        what = f"{self.shard.sha256} {self.size} {self.max_pixels} {_decoders()} "
        return f"{storage.sha256(what.encode() + self.offsets.tobytes())[:32]}.arrow"

    def fill(self, into: DiskCache, threads: int = 1) -> bool:
        """Decode them into a cache, unless they are there; False, at once, while another process does.

        DataError if the shard is not the one that was indexed.
        """
        size = len(self.offsets) * self.size**2 * 3
        return into.fill(self.name, size, lambda put: put(0, _to_arrow(self._decode(threads))))

    def _decode(self, threads: int) -> NDArray[np.uint8]:
        """uint8 [n, size, size, 3]."""
        data = memoryview(read_unchanged(self.shard))
        pixels = np.empty((len(self.offsets), self.size, self.size, 3), np.uint8)

        def decode(begin: int) -> None:
            rows = slice(begin, begin + _ROWS_PER_TASK)
            for out, offset, length in zip(pixels[rows], self.offsets[rows], self.lengths[rows], strict=True):
                images.decode_crop(data[offset : offset + length], self.max_pixels, out)

        try:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(decode, range(0, len(pixels), _ROWS_PER_TASK)))
        except images.UndecodableImageError as error:
            raise DataError(
                f"an image in {self.shard.uri!r} that could be decoded at indexing cannot be now ({error}): use the "
                "same Pillow and simplejpeg on all machines"
            ) from error
        return pixels


@cache
def _decoders() -> str:
    return " ".join(f"{name}-{version(name)}" for name in ("simplejpeg", "pillow", "torch"))


class Pixels:
    """The images of an index, from a cache; a shard is decoded when it is first wanted and not there.

    threads: that decode then.
    """

    def __init__(self, samples: Samples, cache: DiskCache, threads: int = 1) -> None:
        self.samples, self.threads = samples, threads
        self._cache = cache
        self._arrays: list[NDArray[np.uint8] | None] = [None] * len(samples.shards)

    def missing(self) -> list[ShardPixels]:
        """The shards that are not in the cache."""
        filled = np.flatnonzero(np.diff(self.samples.starts)).tolist()
        parts = [self._part(shard) for shard in filled]
        return [part for part in parts if self._cache.find(part.name) is None]

    def steps(self, plan: Iterable[Planned]) -> Generator[Step, None, None]:
        """The steps of a plan."""
        for planned in plan:
            yield Step(planned.ids, planned.visits, self.take(planned.ids), planned.valid, planned.num_valid_global)

    def take(self, ids: Ids) -> NDArray[np.uint8]:
        """Images of the given sample_ids, in their order, repeats allowed: uint8 [n, size, size, 3], a copy."""
        ids = np.asarray(ids, dtype=np.int64)
        assert not len(ids) or (ids.min() >= 0 and ids.max() < len(self.samples)), "sample_id out of range"
        size = self.samples.size
        order = np.argsort(ids, kind="stable")
        ascending = ids[order]
        taken = np.empty((len(ids), size * size * 3), np.uint8)
        bounds = np.searchsorted(ascending, self.samples.starts)
        wanted = np.flatnonzero(bounds[1:] > bounds[:-1]).tolist()
        self._open([shard for shard in wanted if self._arrays[shard] is None])
        for shard in wanted:
            here = slice(bounds[shard], bounds[shard + 1])
            array = self._arrays[shard]
            assert array is not None
            taken[order[here]] = array[ascending[here] - self.samples.starts[shard]]
        return taken.reshape(len(ids), size, size, 3)

    def _part(self, shard: int) -> ShardPixels:
        samples, rows = self.samples, slice(*self.samples.starts[shard : shard + 2])
        return ShardPixels(
            samples.shards[shard],
            samples.image_offset[rows],
            samples.image_size[rows],
            samples.size,
            samples.max_pixels,
        )

    def _open(self, shards: list[int]) -> None:
        """Map these shards; of those that are missing, every process of a machine decodes some."""
        waiting = {shard: self._part(shard) for shard in shards}
        while waiting:
            for shard, part in list(waiting.items()):
                path = self._cache.find(part.name)
                if path is None and part.fill(self._cache, self.threads):
                    path = self._cache.find(part.name)
                if path is not None:
                    self._arrays[shard] = _map(path, len(part.offsets), part.size)
                if self._arrays[shard] is not None:
                    del waiting[shard]
            if waiting:
                time.sleep(0.02)


def _to_arrow(pixels: NDArray[np.uint8]) -> memoryview:
    """An Arrow file of one batch, one fixed-size binary per image: its bytes map as one array."""
    kind = pa.binary(pixels[0].size)
    column = pa.Array.from_buffers(kind, len(pixels), [None, pa.py_buffer(pixels)])
    batch = pa.record_batch([column], names=["image"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _map(path: Path, rows: int, size: int) -> NDArray[np.uint8] | None:
    """uint8 [rows, size * size * 3], backed by the file; None if it is gone, or was damaged and is now gone."""
    try:
        (column,) = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0).columns
        return np.frombuffer(column.buffers()[1], np.uint8).reshape(rows, size * size * 3)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # what pyarrow says of bytes that are no such file has none
        path.unlink(missing_ok=True)
        return None
