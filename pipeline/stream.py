"""Images read from the shards for every step, for datasets whose decoded pixels fit nowhere.

Decoders are processes (`pipeline.decoder`). Each reads the pieces that are dealt to it by ranged requests, keeps their
encoded bytes until the last sample of each is used, and decodes straight into memory that the process that trains has
mapped: no pixel is copied from one process into another, and none waits for another's Python. Threads of the process
that trains left a tenth of four cores idle with shards on local disk, and a quarter of them with an object store, whose
client is Python: all of them, and the training loop, waited for one lock.

All workers together hold about 400 MB of encoded images (`pipeline.epoch_order`); where the whole dataset is smaller
than SMALL_BYTES, each of them holds all of it. Each holds its next batches besides.
"""

import socket
from collections import deque
from collections.abc import Generator, Iterable
from itertools import cycle
from multiprocessing.connection import Connection, wait

import numpy as np

from pipeline import forks
from pipeline.batches import Step
from pipeline.decoder import Decode, Done, Read, Settings, Views
from pipeline.epoch_plan import Planned
from pipeline.errors import SemiPruneError
from pipeline.samples import Samples, Span
from pipeline.slots import Slots

PAUSES = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds before a piece is read again; below it, stores are asked again already."""

_DECODED_BYTES = 96 << 20
"""What may wait, decoded, for the training loop; two batches at least, if they are larger."""
_ROWS_READ_AHEAD = 512


class Stream:
    """The images of an index, decoded whenever a plan wants them.

    processes: that decode; views: says which part of each image is wanted in an epoch, and whether mirrored: the centre
    square if None, the same pixels as `Pixels` has.
    """

    def __init__(self, samples: Samples, processes: int = 1, views: Views | None = None) -> None:
        self.samples, self.processes = samples, processes
        self._views = views

    def steps(self, plan: Iterable[Planned]) -> Generator[Step, None, None]:
        """The steps of a plan; close it, or use it up, to end its processes.

        What is read and decoded ahead is bounded: nothing more is begun until the next
        step is asked for. A piece that cannot be read is tried again for some seconds; then the error of
        `shards.read_range` is raised here. DataError names a shard that has changed, or an image that could be decoded
        at indexing and cannot be now. SemiPruneError if a decoder is killed.
        """
        run = _Run(self.samples, self.processes, self._views)
        read: deque[Planned] = deque()
        decoded: deque[Step] = deque()
        try:
            run.start()
            for planned in plan:
                rows = len(planned.ids)
                ahead = min(max(_DECODED_BYTES // (rows * self.samples.size**2 * 3), 2), 32)
                run.read(planned)
                read.append(planned)
                while len(read) > max(-(-_ROWS_READ_AHEAD // rows), 2):
                    decoded.append(run.decode(read.popleft()))
                while len(decoded) > ahead:
                    run.finish()
                    yield decoded.popleft()
            decoded.extend(run.decode(planned) for planned in read)
            while decoded:
                run.finish()
                yield decoded.popleft()
        finally:
            run.close()


class _Run:
    """The decoders of a plan. Steps are numbered as they are begun, and finished in that order."""

    def __init__(self, samples: Samples, processes: int, views: Views | None) -> None:
        self._samples, self._processes = samples, processes
        self._settings = Settings(samples.size, samples.max_pixels, views, PAUSES)
        self._slots = Slots()
        self._decoders: list[Connection] = []
        self._homes: dict[int, int] = {}  # which decoder has a piece
        # Pieces that are begun together go to different decoders. By their numbers, all lanes would turn to the same.
        self._next_home = cycle(range(processes))
        self._begun = self._finished = 0
        self._missing: dict[int, int] = {}  # of a step, answers
        self._errors: dict[int, Exception] = {}

    def start(self) -> None:
        """Start the decoders."""
        try:
            for _ in range(self._processes):
                self._decoders.append(forks.start("pipeline.decoder", self._slots.descriptor, self._settings))
        except (ConnectionError, ChildProcessError) as error:
            raise _killed() from error

    def read(self, planned: Planned) -> None:
        """Begin to read what a step needs that no earlier one did."""
        spans: list[dict[int, Span]] = [{} for _ in self._decoders]
        for piece, ids in planned.first.items():
            self._homes[piece] = next(self._next_home)
            spans[self._homes[piece]][piece] = self._samples.span(ids)
        for home, theirs in enumerate(spans):
            if theirs:
                self._send(home, Read(theirs))

    def decode(self, planned: Planned) -> Step:
        """Begin to decode a step, whose images are there when it is finished."""
        ids, size = planned.ids, self._samples.size
        slot, pixels = self._slots.new((len(ids), size, size, 3))
        homes = np.array([self._homes[piece] for piece in planned.pieces])
        last = [(self._homes.pop(piece), piece) for piece in planned.last]
        here = np.unique(homes).tolist()
        for home in here:
            rows = np.flatnonzero(homes == home)
            order = Decode(
                step=self._begun,
                slot=slot,
                of=len(ids),
                epoch=planned.epoch,
                rows=rows,
                ids=ids[rows],
                pieces=[planned.pieces[row] for row in rows.tolist()],
                last=[piece for its_home, piece in last if its_home == home],
            )
            self._send(home, order)
        self._missing[self._begun] = len(here)
        self._begun += 1
        return Step(ids, planned.visits, pixels, planned.valid, planned.num_valid_global)

    def finish(self) -> None:
        """Wait for the next step, and raise what is wrong with it."""
        step = self._finished
        while self._missing[step]:
            for connection in wait(self._decoders):
                assert isinstance(connection, Connection)
                self._receive(connection)
        if step in self._errors:
            raise self._errors[step]
        del self._missing[step]
        self._finished += 1

    def close(self) -> None:
        """End the decoders and wait until they are gone."""
        for connection in self._decoders:
            with socket.socket(fileno=connection.fileno()) as end:
                end.shutdown(socket.SHUT_WR)
                end.detach()
        for connection in self._decoders:
            with connection:
                while _receive(connection):
                    pass
        self._slots.close()

    def _send(self, home: int, order: Read | Decode) -> None:
        try:
            self._decoders[home].send(order)
        except ConnectionError as error:
            raise _killed() from error

    def _receive(self, connection: Connection) -> None:
        done = _receive(connection)
        if done is None:
            raise _killed()
        if done.step is None:
            assert done.error is not None
            raise done.error
        self._missing[done.step] -= 1
        if done.error:
            self._errors.setdefault(done.step, done.error)


def _receive(connection: Connection) -> Done | None:
    """None if the other side is gone."""
    try:
        done: Done = connection.recv()
    except (EOFError, OSError):
        return None
    return done


def _killed() -> SemiPruneError:
    return SemiPruneError(
        "a process that decodes images was killed, most likely for want of memory: give each worker more of it, or "
        "fewer cores (resources.cpus_per_worker), then run the same command again"
    )
