"""The user's own embeddings: a Parquet table with a vector for every sample, checked against the index."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.embeddings import Vectors
from pipeline.epoch_order import Ids
from pipeline.errors import UserError


def locate(uri: str, column: str, keys: pa.ChunkedArray) -> Ids:
    """The row of the table that has each sample, int64 [N]; keys: the samples' names by sample_id.

    Its column `key`, else `sample_id`, says which sample a row is; rows of samples that the pool has not are left out.
    UserError if a sample has no row, or several.
    """
    with _opened(uri) as table:
        names = table.schema_arrow.names
        by = next((name for name in ("key", "sample_id") if name in names), None)
        if by is None or column not in names:
            lacking = repr(column) if by else "'key' and no column 'sample_id'"
            raise UserError(f"encode.table={uri!r} has no column {lacking} but {', '.join(names)}: name another one")
        column_by = table.read(columns=[by])[by]
    samples = keys.combine_chunks() if by == "key" else pa.array(np.arange(len(keys)))
    try:
        given = column_by.cast(pa.large_string() if by == "key" else pa.int64()).combine_chunks()
    except pa.ArrowException as error:
        raise UserError(f"encode.table={uri!r}: its column {by!r} is of type {column_by.type}: {error}") from error
    rows = pc.index_in(samples, value_set=given)
    if rows.null_count:
        first = int(np.flatnonzero(rows.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(
            f"encode.table={uri!r} lacks {rows.null_count} of the {len(samples)} samples, the first is sample_id "
            f"{first}, key {keys[first].as_py()!r}: add a row for each"
        )
    ours = given.filter(pc.is_in(given, value_set=samples))
    if len(ours) > len(samples):
        counts = pc.value_counts(ours)
        again = counts.filter(pc.greater(counts.field("counts"), 1))
        raise UserError(
            f"encode.table={uri!r} has {len(again)} samples more than once, the first is {again[0]['values'].as_py()!r}"
            ": keep one row of each"
        )
    found: Ids = rows.to_numpy().astype(np.int64)
    return found


def read_vectors(uri: str, column: str, rows: Ids, low: int) -> NDArray[np.float32]:
    """The vectors in these rows, float32 [n, d], of the ids from `low` on.

    Holds one row group at a time, and of that only the rows wanted. UserError if the lengths of vectors differ, or a
    number is missing or not finite.
    """
    found: list[tuple[Ids, Vectors]] = []
    with _opened(uri) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        groups = np.searchsorted(starts, rows, side="right") - 1
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            values = table.read_row_group(int(group), columns=[column])[column]
            taken = values.take(pa.array(rows[places] - starts[group])).combine_chunks()
            found.append((places, _vectors(taken, uri, column, low + places)))
    check_widths([(low + int(places[0]), vectors.shape[1]) for places, vectors in found], uri)
    whole = np.empty((len(rows), found[0][1].shape[1]), dtype=np.float32)
    for places, vectors in found:
        whole[places] = vectors
    return whole


def check_widths(widths: Sequence[tuple[int, int]], uri: str) -> None:
    """UserError if some differ; widths: ids, and of each how many numbers its vector has."""
    (first, width), *others = widths
    for sample_id, other in others:
        if other != width:
            raise UserError(
                f"encode.table={uri!r}: the vector of sample_id {first} has {width} numbers and that of {sample_id} "
                f"{other}: give each the same number of values"
            )


def _vectors(column: Any, uri: str, name: str, ids: Ids) -> Vectors:
    """A list column as [n, d]."""
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise UserError(f"encode.table={uri!r}: its column {name!r} is of type {kind}: it must hold lists of floats")
    if column.null_count:
        raise UserError(f"encode.table={uri!r}: {_some(column.is_null().to_numpy(False), ids)} no vector: {_REPAIR}")
    lengths = column.value_lengths().to_numpy(False)
    other = np.flatnonzero(lengths != lengths[0])
    if len(other):
        check_widths([(int(ids[place]), int(lengths[place])) for place in (0, other[0])], uri)
    if not lengths[0]:
        raise UserError(f"encode.table={uri!r}: the vector of sample_id {ids[0]} is empty: {_REPAIR}")
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(ids), int(lengths[0]))
    with np.errstate(over="ignore"):
        vectors: Vectors = values.astype(np.float32)
    bad = ~np.all(np.isfinite(vectors), axis=1)  # a missing number has become NaN
    if bad.any():
        raise UserError(f"encode.table={uri!r}: {_some(bad, ids)} a number that is NaN or infinite: {_REPAIR}")
    return vectors


_REPAIR = "compute it again"


def _some(bad: NDArray[np.bool_], ids: Ids) -> str:
    """How many of a part of the table, and the first."""
    others = f" (and {bad.sum() - 1} more near it)" if bad.sum() > 1 else ""
    return f"sample_id {ids[int(np.flatnonzero(bad)[0])]}{others} has"


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    try:
        with storage.open_input(uri) as file:
            try:
                table = pq.ParquetFile(file)
            except pa.ArrowInvalid as error:
                raise UserError(f"encode.table={uri!r} cannot be read as Parquet: {error}; write it again") from error
            with table:
                yield table
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"there is no table of embeddings at encode.table={uri!r}: check the path") from error
