"""Images read from the shards for every step, for datasets whose decoded pixels fit nowhere.

A worker reads the pieces of its plan by ranged requests, keeps their encoded bytes until the last sample of each is
used, and decodes in threads straight into the rows of the next batches. The decoder leaves Python's lock, so threads
use all cores, and no pixel ever crosses from one process into another: decoding in Ray tasks lost 10 to 20% of the
images per CPU second, in Ray Data 20 to 30%, to copies and to moving them.

All workers together hold about 400 MB of encoded images (`pipeline.epoch_order`); where the whole dataset is smaller
than SMALL_BYTES, each of them holds all of it. Each holds its next batches besides.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.batches import Step
from pipeline.epoch_order import Ids
from pipeline.epoch_plan import Planned
from pipeline.errors import SemiPruneError
from pipeline.images import Crop
from pipeline.samples import Piece, Samples

Views = Callable[[int, Ids], list[tuple[Crop, bool]]]
"""(epoch, sample_ids) -> what to cut out of each image, and whether to mirror it."""

PAUSES = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds before a piece is read again; below it, stores are asked again already."""

_READERS = 16
_ROWS_PER_TASK = 8
_DECODED_BYTES = 96 << 20
"""What may wait, decoded, for the training loop; two batches at least, if they are larger."""
_ROWS_READ_AHEAD = 512


class Stream:
    """The images of an index, decoded whenever a plan wants them.

    threads: that decode; views: says which part of each image is wanted in an epoch, and whether mirrored: the centre
    square if None, the same pixels as `Pixels` has.
    """

    def __init__(self, samples: Samples, threads: int = 1, views: Views | None = None) -> None:
        self.samples, self.threads = samples, threads
        self._views = views or _whole

    def steps(self, plan: Iterable[Planned]) -> Generator[Step, None, None]:
        """The steps of a plan; close it, or use it up, to end its threads.

        What is read and decoded ahead is bounded: nothing more is begun until the next
        step is asked for. A piece that cannot be read is tried again for some seconds; then the error of
        `shards.read_range` is raised here. DataError names a shard that has changed, or an image that could be decoded
        at indexing and cannot be now.
        """
        run = _Run(self.samples, self.threads)
        read: deque[Planned] = deque()
        decoded: deque[tuple[Planned, Step, list[Future[None]]]] = deque()

        def next_step() -> Step:
            planned, step, futures = decoded.popleft()
            for future in futures:
                future.result()
            run.release(planned.last)
            return step

        def decode() -> None:
            planned = read.popleft()
            decoded.append((planned, *run.decode(planned, self._views(planned.epoch, planned.ids))))

        try:
            for planned in plan:
                rows = len(planned.ids)
                ahead = min(max(_DECODED_BYTES // (rows * self.samples.size**2 * 3), 2), 32)
                run.read(planned)
                read.append(planned)
                while len(read) > max(-(-_ROWS_READ_AHEAD // rows), 2):
                    decode()
                while len(decoded) > ahead:
                    yield next_step()
            while read:
                decode()
            while decoded:
                yield next_step()
        finally:
            run.close()


def _whole(_: int, ids: Ids) -> list[tuple[Crop, bool]]:
    return [(images.centre, False)] * len(ids)


class _Run:
    """The threads of a plan, and the pieces that they have read and still need."""

    def __init__(self, samples: Samples, threads: int) -> None:
        self._samples = samples
        self._pieces: dict[int, Future[Piece]] = {}
        self._closed = threading.Event()
        self._readers = ThreadPoolExecutor(_READERS, "semiprune-read")
        self._decoders = ThreadPoolExecutor(threads, "semiprune-decode")

    def read(self, planned: Planned) -> None:
        """Begin to read what a step needs that no earlier one did."""
        for piece, ids in planned.first.items():
            self._pieces[piece] = self._readers.submit(self._fetch, ids)

    def decode(self, planned: Planned, views: list[tuple[Crop, bool]]) -> tuple[Step, list[Future[None]]]:
        """Begin to decode a step, which is there when the futures are done."""
        ids, size = planned.ids, self._samples.size
        pieces = [self._pieces[piece] for piece in planned.pieces]
        step = Step(ids, np.empty((len(ids), size, size, 3), np.uint8), planned.valid, planned.num_valid_global)
        futures = []
        for begin in range(0, len(ids), _ROWS_PER_TASK):
            part = slice(begin, begin + _ROWS_PER_TASK)
            futures.append(
                self._decoders.submit(self._fill, step.images[part], ids[part].tolist(), pieces[part], views[part])
            )
        return step, futures

    def release(self, pieces: list[int]) -> None:
        """Forget pieces of which all rows are decoded."""
        for piece in pieces:
            del self._pieces[piece]

    def close(self) -> None:
        """Stop all threads and wait for them."""
        self._closed.set()
        self._readers.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)

    def _fetch(self, ids: Ids) -> Piece:
        for pause in PAUSES:
            try:
                return self._samples.read(ids)
            except SemiPruneError:
                if self._closed.wait(pause):
                    raise
        return self._samples.read(ids)

    def _fill(
        self, out: NDArray[np.uint8], ids: list[int], pieces: list[Future[Piece]], views: list[tuple[Crop, bool]]
    ) -> None:
        samples = self._samples
        for row, sample_id, future, (crop, flip) in zip(out, ids, pieces, views, strict=True):
            piece = future.result()
            offset = piece.offsets[sample_id]
            data = piece.data[offset : offset + int(samples.image_size[sample_id])]
            try:
                images.decode_crop(data, samples.max_pixels, row, crop, flip)
            except images.UndecodableImageError as error:
                raise samples.undecodable(sample_id, error) from error
