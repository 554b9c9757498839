"""Memory that processes share for arrays that one of them hands out and the others fill; no name, no copy.

One file in memory, cut into slots. A slot is used again once the array that was handed out in it is garbage, and
another is added where none is free: as many arrays as are wanted may be kept, as long as they are wanted.
"""

import mmap
import os
import sys
import tempfile
import weakref
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Slot(NamedTuple):
    """A part of the file, in bytes, both multiples of a page."""

    offset: int
    size: int


class Slots:
    """The side that hands out arrays."""

    def __init__(self) -> None:
        self.descriptor = _anonymous_file()
        self._end = 0
        self._free: list[tuple[Slot, mmap.mmap]] = []

    def new(self, shape: tuple[int, ...]) -> tuple[Slot, NDArray[np.uint8]]:
        """An array of bytes with whatever was there before, and where others find it."""
        wanted = max(int(np.prod(shape)), 1)
        fitting = (place for place, (slot, _) in enumerate(self._free) if slot.size >= wanted)
        place = next(fitting, None)
        slot, memory = self._grown(wanted) if place is None else self._free.pop(place)
        base = np.frombuffer(memory, np.uint8)
        # All views of an array keep alive the one whose memory it is.
        weakref.finalize(base, self._free.append, (slot, memory)).atexit = False
        return slot, base[: int(np.prod(shape))].reshape(shape)

    def close(self) -> None:
        """Nothing more is handed out; arrays that were, stay."""
        os.close(self.descriptor)

    def _grown(self, wanted: int) -> tuple[Slot, mmap.mmap]:
        # To a power of two: the next array may be a little larger, and a page that nobody touches takes no memory.
        slot = Slot(self._end, max(1 << (wanted - 1).bit_length(), mmap.ALLOCATIONGRANULARITY))
        self._end += slot.size
        os.ftruncate(self.descriptor, self._end)
        return slot, mmap.mmap(self.descriptor, slot.size, offset=slot.offset)


class Mapped:
    """The side that fills them; descriptor: of the other side's file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._memory: dict[Slot, NDArray[np.uint8]] = {}

    def array(self, slot: Slot, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """What the other side has handed out."""
        if slot not in self._memory:
            memory = mmap.mmap(self._descriptor, slot.size, offset=slot.offset)
            self._memory[slot] = np.frombuffer(memory, np.uint8)
        return self._memory[slot][: int(np.prod(shape))].reshape(shape)


def _anonymous_file() -> int:
    """That ends with its last descriptor; not in /dev/shm, which containers keep small."""
    if sys.platform == "linux":
        return os.memfd_create("semiprune")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
