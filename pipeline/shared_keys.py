"""Which shards hold the same key: found on disk, with a 256th of all hashes in memory at a time."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StorageError

TOGETHER = 1 << 22
"""Hashes that wait in memory for their way to the disk."""

BUCKETS = 256
"""Equal hashes have the same leading byte, and meet there."""

_RECORD = np.dtype([("hash", np.uint64), ("shard", np.int32)])


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            "the hashes of all keys, 12 bytes a sample, cannot be written into the temporary folder: "
            f"{error.strerror}: free some of it, or set TMPDIR to a larger place on a disk"
        ) from error


class SharedKeys:
    """Hashes of keys, 12 bytes each in a nameless file of the temporary folder, which ends with this process."""

    def __init__(self) -> None:
        with _explained():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  it is closed when all is found
        self._written = 0
        self._bounds: list[NDArray[np.int64]] = []  # of every run in the file, where its buckets begin and end
        self._waiting: list[NDArray[np.void]] = []
        self._num_waiting = 0

    def add(self, shard: int, hashes: bytes) -> None:
        """The keys of a shard, 8 bytes each; shards in any order. StorageError if they do not fit on the disk."""
        records = np.empty(len(hashes) // 8, _RECORD)
        records["hash"], records["shard"] = np.frombuffer(hashes, np.uint64), shard
        self._waiting.append(records)
        self._num_waiting += len(records)
        if self._num_waiting >= TOGETHER:
            self._write()

    def earlier(self) -> dict[int, set[int]]:
        """For every shard with a hash that one of a smaller number has: the first of those, of each such hash.

        Equal hashes are not yet equal keys. Once, as the file is gone afterwards.
        """
        self._write()
        found: dict[int, set[int]] = {}
        for bucket in range(BUCKETS):
            records = self._read(bucket)
            hashes = np.sort(records["hash"])
            repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
            if not len(repeated):
                continue
            place = np.searchsorted(repeated[:-1], records["hash"])  # of the last one too: the first not smaller
            among = np.sort(records[repeated[place] == records["hash"]])
            first = among["shard"][np.searchsorted(among["hash"], among["hash"])]
            for shard, owner in np.unique(np.stack([among["shard"], first], axis=1), axis=0).tolist():
                if shard != owner:
                    found.setdefault(shard, set()).add(owner)
        self._file.close()
        return found

    def _write(self) -> None:
        """What waits, as one run that is ordered by bucket."""
        if not self._waiting:
            return
        records = np.concatenate(self._waiting)
        self._waiting, self._num_waiting = [], 0
        leading = (records["hash"] >> np.uint64(56)).astype(np.uint8)
        sizes = np.bincount(leading, minlength=BUCKETS)
        with _explained():
            self._file.write(records[np.argsort(leading, kind="stable")].tobytes())
            self._file.flush()
        self._bounds.append(self._written + np.concatenate([[0], np.cumsum(sizes)]))
        self._written += len(records)

    def _read(self, bucket: int) -> NDArray[np.void]:
        width, parts = _RECORD.itemsize, []
        for bounds in self._bounds:
            low, high = bounds[bucket : bucket + 2].tolist()
            parts.append(os.pread(self._file.fileno(), (high - low) * width, low * width))
        return np.frombuffer(b"".join(parts), _RECORD)
