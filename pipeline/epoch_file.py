"""Records of one rank and epoch as a Parquet file: sorted by sample_id, cut into blocks that are checked one by one.

A block is a row group that holds the rank's records of the ids [k * span, (k + 1) * span), so that a reader of some
ids reads, verifies and decodes only theirs. Floats are split into streams of bytes before LZ4, which then finds the
exponents: under 16 bytes a record, decoded at more than a GB/s a core, read by any Parquet reader. The file's footer
holds the CRC-32 of every block; the manifest that makes the file count holds the footer's.
"""

import io
import json
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import CorruptArtifactError, UserError

STATISTICS = ("p_label", "p_other", "el2n", "entropy")
"""The float32 columns of every record, in this order."""
VECTORS = ("probs", "embedding")
"""Columns of a float32 vector a record, where they were asked for."""

READ_BYTES = 1 << 20
"""Of blocks side by side that are read in one piece, at most, unless one is larger."""


@dataclass(frozen=True)
class Footer:
    """Where a file's footer starts, the CRC-32 of all from there to the file's end, and the ids that are in the file.

    The blocks are all that comes before it, so that every byte of a file is in one checksum. The ids lie between first
    and last, which may be any where nothing else is said.
    """

    start: int
    crc32: int
    first: int = 0
    last: int = 2**63 - 1


def encode(table: pa.Table, span: int) -> tuple[memoryview, Footer]:
    """The file's bytes. table: sample_id ascending and distinct, one row at least; span: ids of a block."""
    ids = table["sample_id"].to_numpy()
    sink = io.BytesIO()
    floats = [name for name in table.column_names if name in STATISTICS]
    vectors = [f"{name}.list.element" for name in table.column_names if name in VECTORS]
    writer = pq.ParquetWriter(
        sink,
        table.schema,
        compression="lz4",
        use_dictionary=False,
        write_statistics=False,
        data_page_size=1 << 24,  # one page a column and block: the streams of bytes are as long as they can be
        column_encoding={**dict.fromkeys([*floats, *vectors], "BYTE_STREAM_SPLIT"), "sample_id": "DELTA_BINARY_PACKED"},
    )
    bounds = np.unique(np.searchsorted(ids, np.arange(ids[0] // span, ids[-1] // span + 2) * span))
    ends = [0]
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)
        ends.append(sink.tell())
    written = sink.getbuffer()
    blocks = {
        "first": ids[bounds[:-1]].tolist(),
        "last": ids[bounds[1:] - 1].tolist(),
        "end": ends[1:],
        "crc32": [zlib.crc32(written[start:stop]) for start, stop in pairwise(ends)],
    }
    del written  # a view that is alive keeps the sink from growing
    writer.add_key_value_metadata({"blocks": json.dumps(blocks)})
    writer.close()
    data = sink.getbuffer()
    return data, Footer(ends[-1], zlib.crc32(data[ends[-1] :]), int(ids[0]), int(ids[-1]))


class EpochFile:
    """A file of `encode` for reading, by blocks; CorruptArtifactError naming it if it is missing or damaged.

    size: in bytes; what: to call it in messages. Only what is asked for is read, and verified first, so that nothing
    but recorded bytes is ever decoded. Not mapped: a copy costs less than the faults of its pages.
    """

    def __init__(self, uri: str, size: int, footer: Footer, what: str) -> None:
        self._uri = uri
        self._size = size
        self._what = what
        self._path = storage.resolve(uri)[1] if storage.is_local(uri) else None
        self._metadata = pq.read_metadata(pa.BufferReader(self._verified([footer.start, size], [footer.crc32])))
        blocks = json.loads(self._metadata.metadata[b"blocks"])
        self.first = np.array(blocks["first"], dtype=np.int64)
        self.last = np.array(blocks["last"], dtype=np.int64)
        self._ends = [0, *blocks["end"]]
        self._crc32 = blocks["crc32"]

    def blocks(
        self, columns: Sequence[str], low: int = 0, high: int = 2**63 - 1
    ) -> Iterator[tuple[NDArray[np.int64] | range, dict[str, NDArray[Any]]]]:
        """Ids, ascending, and these columns, [m] each, vectors [m, C]: of ids low..high-1, a few blocks at a time."""
        block, end = int(np.searchsorted(self.last, low)), int(np.searchsorted(self.first, high))
        while block < end:
            fitting = int(np.searchsorted(self._ends, self._ends[block] + READ_BYTES, side="right")) - 1
            blocks = range(block, min(max(fitting, block + 1), end))
            block = blocks.stop
            ids, values = self._read(blocks, columns)
            start, stop = np.searchsorted(ids, (low, high)) if ids[0] < low or ids[-1] >= high else (0, len(ids))
            if stop - start < len(ids):
                ids, values = ids[start:stop], {name: column[start:stop] for name, column in values.items()}
            yield ids, values

    def _read(self, blocks: range, columns: Sequence[str]) -> tuple[NDArray[np.int64] | range, dict[str, NDArray[Any]]]:
        first, last = int(self.first[blocks[0]]), int(self.last[blocks[-1]])
        data = self._verified(self._ends[blocks.start : blocks.stop + 1], self._crc32[blocks.start : blocks.stop])
        rows = sum(self._metadata.row_group(block).num_rows for block in blocks)
        dense = last - first == rows - 1
        names = [*([] if dense else ["sample_id"]), *columns]
        file = pq.ParquetFile(pa.BufferReader(data), metadata=self._metadata)
        table = file.read_row_groups(list(blocks), columns=names, use_threads=False)
        found = {name: _to_numpy(table[name]) for name in table.column_names}
        ids = range(first, last + 1) if dense else found.pop("sample_id")
        return ids, found

    def _verified(self, bounds: Sequence[int], crc32: Sequence[int]) -> memoryview:
        """As long as the file, with the pieces between `bounds` in their place, where Parquet's offsets find them.

        Valid until this thread verifies something else.
        """
        whole = _room(self._size)
        start, stop = bounds[0], bounds[-1]
        wanted = whole[start:stop]
        try:
            if self._path is None:
                data = storage.read_range(self._uri, start, stop - start)
                count = len(data)
                wanted[:count] = data
            else:
                count = self._read_local(wanted, start)
        except FileNotFoundError as error:
            raise self._missing() from error
        except PermissionError as error:
            raise UserError(f"no permission for {self._uri!r}: allow it to this user") from error
        except OSError as error:
            raise self._damaged("it cannot be read") from error
        if count != stop - start or [zlib.crc32(whole[low:high]) for low, high in pairwise(bounds)] != list(crc32):
            raise self._damaged("its checksum is not the one recorded")
        return whole

    def _read_local(self, wanted: memoryview, start: int) -> int:
        assert self._path is not None
        file = os.open(self._path, os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            if size != self._size:
                raise self._damaged(f"it has {size} bytes, not {self._size}")
            return os.preadv(file, [wanted], start)
        finally:
            os.close(file)

    def _damaged(self, why: str) -> CorruptArtifactError:
        return CorruptArtifactError(f"{self._uri!r} ({self._what}) is damaged, {why}: {storage.MEND}")

    def _missing(self) -> CorruptArtifactError:
        return CorruptArtifactError(
            f"{self._uri!r} ({self._what}) is named by its manifest but missing: {storage.MEND}"
        )


_ROOM = threading.local()


def _room(size: int) -> memoryview:
    """This thread's memory for what it decodes next: taking new memory from the system costs more than filling it.

    What was there before stays where nothing is written; pages that nobody touches take no memory.
    """
    if not hasattr(_ROOM, "bytes") or len(_ROOM.bytes) < size:
        _ROOM.bytes = memoryview(np.zeros(size, dtype=np.uint8))  # type: ignore[arg-type]
    room: memoryview = _ROOM.bytes[:size]
    return room


def _to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        values: NDArray[Any] = array.flatten().to_numpy().reshape(len(array), array.type.list_size)
        return values
    if pa.types.is_boolean(array.type):  # several times faster than to_numpy
        bits = np.frombuffer(array.buffers()[1], dtype=np.uint8)
        return np.unpackbits(bits, count=array.offset + len(array), bitorder="little")[array.offset :].view(bool)
    found: NDArray[Any] = array.to_numpy()
    return found
