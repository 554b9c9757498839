"""The samples of a training read from the shards in every epoch, for datasets whose decoded pool fits nowhere.

A worker reads the chunks of its plan (`pipeline.stream_plan`) by ranged requests, keeps their encoded bytes until the
last sample of each is used, and decodes in threads straight into the rows of the next batches. The decoder leaves
Python's lock, so threads use all cores, and no pixel ever crosses from one process into another: decoding in Ray tasks
lost 10 to 20% of the images per CPU second, in Ray Data 20 to 30%, to copies and to moving them.

All workers together hold about 2 * LANES * MAX_BYTES of encoded images, 400 MB; each holds its next batches besides.
"""

import os
import tarfile
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import images, shards, stream_plan
from pipeline.epoch_plan import num_steps
from pipeline.errors import DataError, SemiPruneError
from pipeline.images import Crop
from pipeline.index import load_config, load_index, load_shards
from pipeline.random_crop import RandomCrop
from pipeline.shards import Shard
from pipeline.stage import Artifact
from pipeline.stream_plan import Ids, Order
from pipeline.tar import BLOCK

WINDOW = 2048
"""Rows, over all workers, that are shuffled together, each from one of many places of the dataset."""

PAUSES = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds before a chunk is read again; below it, stores are asked again already."""

_READERS = 16
_ROWS_PER_TASK = 8
_DECODED_BYTES = 96 << 20
"""What may wait, decoded, for the training loop; two batches at least, if they are larger."""
_ROWS_READ_AHEAD = 512


@dataclass(frozen=True)
class Samples:
    """Where every image is. shard: number in `shards`; offset, length: of the sample; image_*: of the image; by id."""

    shards: list[Shard]
    keys: pa.Array
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
        names = ["shard", "offset", "length", "image_offset", "image_size"]
        table = load_index(index, ["key", *names])
        data = load_config(index).data
        return cls(
            shards=load_shards(index),
            keys=table["key"].combine_chunks(),
            size=data.image_size,
            max_pixels=data.max_pixels,
            **{name: table[name].to_numpy().astype(np.int64) for name in names},
        )

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, first: int, last: int) -> "Piece":
        """The samples first <= id < last of one shard, in one request; DataError if others are there now."""
        shard = self.shards[self.shard[first]]
        start = int(self.offset[first])
        data = shards.read_range(shard, start, int(self.offset[last - 1] + self.length[last - 1]) - start)
        piece = Piece(memoryview(data), first, (self.image_offset[first:last] - start).tolist())
        sizes = self.image_size[first:last].tolist()
        for key, offset, size in zip(self.keys[first:last].to_pylist(), piece.offsets, sizes, strict=True):
            if not _is_member(data[offset - BLOCK : offset], key, size):
                raise shards.changed(shard.uri)
        return piece


@dataclass(frozen=True)
class Piece:
    """Samples as they are in the shard. first: the sample_id of the first one; offsets: of the images, in `data`."""

    data: memoryview
    first: int
    offsets: list[int]


def _is_member(header: bytes, key: str, size: int) -> bool:
    """Whether this is the tar header of a file of that sample and size; long names are in other headers."""
    try:
        if tarfile.nti(header[124:136]) != size:  # type: ignore[attr-defined]
            return False
    except tarfile.TarError:
        return False
    return not key.isascii() or len(key) > 80 or header.startswith(f"{key}.".encode())


class Step(NamedTuple):
    """One rank's rows of a global batch.

    ids: int64 [n]; images: uint8 [n, S, S, 3], a new array in every step; valid: bool [n], False for padding;
    num_valid_global: valid rows of the step over all ranks.
    """

    ids: Ids
    images: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    num_valid_global: int


class Stream:
    """This rank's steps of any epoch; what is in them depends on nothing but the arguments.

    batch_size: over all ranks; crop: None for the centre square of every image, the same pixels as `Pixels` has;
    window: see `stream_plan.epoch_order`; threads: that decode, by default as many as this process has cores.
    """

    def __init__(
        self,
        samples: Samples,
        seed: int,
        purpose: str,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        crop: RandomCrop | None = None,
        window: int = WINDOW,
        threads: int | None = None,
    ) -> None:
        self.samples, self.seed, self.purpose, self.crop, self.window = samples, seed, purpose, crop, window
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.threads = threads or len(os.sched_getaffinity(0))
        self.num_steps = num_steps(len(samples), batch_size)
        self._chunks = stream_plan.cut_chunks(samples.shard, samples.offset, samples.length)

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Step, None, None]:
        """The steps of an epoch from `first_step` on; close it, or use it up, to end its threads.

        What is read and decoded ahead is bounded: nothing more is begun until the next step is asked for. A chunk that
        cannot be read is tried again for some seconds; then the error of `shards.read_range` is raised here. DataError
        names a shard that has changed, or an image that could be decoded at indexing and cannot be now.
        """
        order = stream_plan.epoch_order(self.seed, self.purpose, epoch, self._chunks, self.window)
        planned = list(stream_plan.steps(len(order.ids), self.batch_size, self.rank, self.world_size, first_step))
        if not planned:
            return
        run = _Run(self, order, epoch, np.concatenate([mine for mine, _, _ in planned]))
        rows = -(-self.batch_size // self.world_size)
        decoding = min(max(_DECODED_BYTES // (rows * self.samples.size**2 * 3), 2), 32)
        reading = decoding + max(-(-_ROWS_READ_AHEAD // rows), 2)
        waiting: deque[tuple[Step, list[Future[None]]]] = deque()
        try:
            for mine, _, _ in planned[:reading]:
                run.read(mine)
            for one in planned[:decoding]:
                waiting.append(run.decode(*one))
            for number, (mine, _, _) in enumerate(planned):
                step, futures = waiting.popleft()
                for future in futures:
                    future.result()
                run.release(mine)
                if number + reading < len(planned):
                    run.read(planned[number + reading][0])
                if number + decoding < len(planned):
                    waiting.append(run.decode(*planned[number + decoding]))
                yield step
        finally:
            run.close()


class _Run:
    """The threads of one epoch, and the pieces that they have read and still need. rows: of the order, all to come."""

    def __init__(self, stream: Stream, order: Order, epoch: int, rows: Ids) -> None:
        self._uses = np.bincount(order.pieces[rows], minlength=len(order.first))
        self._stream, self._samples, self._order, self._epoch = stream, stream.samples, order, epoch
        self._pieces: dict[int, Future[Piece]] = {}
        self._closed = threading.Event()
        self._readers = ThreadPoolExecutor(_READERS, "semiprune-read")
        self._decoders = ThreadPoolExecutor(stream.threads, "semiprune-decode")

    def read(self, rows: Ids) -> None:
        """Begin to read what these rows of the order need and nobody has asked for yet."""
        for piece in np.unique(self._order.pieces[rows]).tolist():
            if piece not in self._pieces:
                self._pieces[piece] = self._readers.submit(self._fetch, piece)

    def decode(self, rows: Ids, valid: NDArray[np.bool_], num_valid: int) -> tuple[Step, list[Future[None]]]:
        """Begin to decode a step, which is there when the futures are done."""
        ids, size = self._order.ids[rows], self._samples.size
        pieces = [self._pieces[piece] for piece in self._order.pieces[rows].tolist()]
        crop = self._stream.crop
        views: list[tuple[Crop, bool]] = [(images.centre, False)] * len(ids)
        if crop is not None:
            views = crop.views(self._stream.seed, self._stream.purpose, self._epoch, ids)
        step = Step(ids, np.empty((len(ids), size, size, 3), np.uint8), valid, num_valid)
        futures = []
        for begin in range(0, len(ids), _ROWS_PER_TASK):
            part = slice(begin, begin + _ROWS_PER_TASK)
            futures.append(
                self._decoders.submit(self._fill, step.images[part], ids[part].tolist(), pieces[part], views[part])
            )
        return step, futures

    def release(self, rows: Ids) -> None:
        """These rows are decoded: forget the pieces of which no row is left."""
        pieces, counts = np.unique(self._order.pieces[rows], return_counts=True)
        self._uses[pieces] -= counts
        for piece in pieces[self._uses[pieces] == 0].tolist():
            del self._pieces[piece]

    def close(self) -> None:
        """Stop all threads and wait for them."""
        self._closed.set()
        self._readers.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def _fetch(self, number: int) -> Piece:
        first, last = int(self._order.first[number]), int(self._order.last[number])
        for pause in PAUSES:
            try:
                return self._samples.read(first, last)
            except SemiPruneError:
                if self._closed.wait(pause):
                    raise
        return self._samples.read(first, last)

    def _fill(
        self, out: NDArray[np.uint8], ids: list[int], pieces: list[Future[Piece]], views: list[tuple[Crop, bool]]
    ) -> None:
        samples = self._samples
        for row, sample_id, future, (crop, flip) in zip(out, ids, pieces, views, strict=True):
            piece = future.result()
            offset = piece.offsets[sample_id - piece.first]
            data = piece.data[offset : offset + int(samples.image_size[sample_id])]
            try:
                images.decode_crop(data, samples.max_pixels, row, crop, flip)
            except images.UndecodableImageError as error:
                raise DataError(
                    f"the image {samples.keys[sample_id].as_py()!r} in "
                    f"{samples.shards[samples.shard[sample_id]].uri!r} could be decoded at indexing and cannot be now "
                    f"({error}): put the old shard back, or use the same Pillow and simplejpeg on all machines"
                ) from error
