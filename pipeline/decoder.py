"""A process that reads pieces of shards and decodes their images into memory that it shares with the one that asks.

One thread takes orders, some read, one decodes: what they do in Python is not waited for by any other process. It ends
at once when the other end of its connection is closed, which is also what becomes of it when that process is killed.
"""

import contextlib
import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.epoch_order import Ids
from pipeline.errors import SemiPruneError
from pipeline.images import Crop
from pipeline.samples import Piece, Span
from pipeline.slots import Mapped, Slot

Views = Callable[[int, Ids], list[tuple[Crop, bool]]]
"""(epoch, sample_ids) -> what to cut out of each image, and whether to mirror it; picklable."""

_READERS = 8


@dataclass(frozen=True)
class Settings:
    """What is the same for all orders. pauses: seconds before a piece is read again; others: as Samples, Stream."""

    size: int
    max_pixels: int
    views: Views | None
    pauses: tuple[float, ...]


class Read(NamedTuple):
    """An order: begin to read these pieces, by number."""

    spans: dict[int, Span]


class Decode(NamedTuple):
    """An order: fill some rows of a step's array, in `slot`, with so many rows in all, and forget the pieces `last`."""

    step: int
    slot: Slot
    of: int
    epoch: int
    rows: NDArray[np.int64]
    ids: Ids
    pieces: list[int]
    last: list[int]


class Done(NamedTuple):
    """The answer to a Decode; step: None where no order at all can be carried out."""

    step: int | None
    error: Exception | None = None


def main(connection: Connection, descriptor: int) -> None:
    """Carry out orders until the connection is closed; descriptor: of the file that Slots shares."""
    warnings.simplefilter("ignore")  # of Pillow's: the index has seen these images
    try:
        _Decoder(connection, Mapped(descriptor)).run()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other process says it
        connection.send(Done(None, _told(error)))
        with contextlib.suppress(EOFError, OSError):
            while True:
                connection.recv_bytes()


class _Decoder:
    def __init__(self, connection: Connection, mapped: Mapped) -> None:
        (self._settings,) = connection.recv()
        self._connection, self._mapped = connection, mapped
        self._pieces: dict[int, Future[Piece]] = {}
        self._readers = ThreadPoolExecutor(_READERS, "read")
        self._orders: SimpleQueue[Decode | Exception] = SimpleQueue()
        threading.Thread(target=self._listen, name="listen", daemon=True).start()

    def run(self) -> None:
        """Decode, order by order."""
        while True:
            order = self._orders.get()
            if isinstance(order, Exception):
                raise order
            try:
                self._fill(order)
            except Exception as error:  # noqa: BLE001 - raised by the other process, which knows what to do
                self._connection.send(Done(order.step, _told(error)))
            else:
                self._connection.send(Done(order.step))
            for piece in order.last:
                del self._pieces[piece]

    def _listen(self) -> None:
        """Begin to read at once; what is to be decoded waits for its turn."""
        try:
            while True:
                order = self._connection.recv()
                if isinstance(order, Read):
                    for piece, span in order.spans.items():
                        self._pieces[piece] = self._readers.submit(self._read, span)
                else:
                    self._orders.put(order)
        except (EOFError, OSError):
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - the other thread sends it
            self._orders.put(error)

    def _read(self, span: Span) -> Piece:
        for pause in self._settings.pauses:
            try:
                return span.read()
            except SemiPruneError:
                time.sleep(pause)
        return span.read()

    def _fill(self, order: Decode) -> None:
        settings = self._settings
        array = self._mapped.array(order.slot, (order.of, settings.size, settings.size, 3))
        whole = [(images.centre, False)] * len(order.ids)
        views = settings.views(order.epoch, order.ids) if settings.views else whole
        for row, sample_id, number, (crop, flip) in zip(
            order.rows.tolist(), order.ids.tolist(), order.pieces, views, strict=True
        ):
            piece = self._pieces[number].result()
            try:
                images.decode_crop(piece.images[sample_id], settings.max_pixels, array[row], crop, flip)
            except images.UndecodableImageError as error:
                raise piece.undecodable(sample_id, error) from error


def _told(error: Exception) -> Exception:
    """As another process can raise it: with its traceback, where it is no sentence of ours."""
    if not isinstance(error, SemiPruneError):
        error.add_note("".join(traceback.format_exception(error)))
    return error
