"""The examples that a selector chooses from: partitions that are looked at one by one, here or in other processes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """n examples. sample_ids: int64[n], strictly ascending; columns: numbers [n], or [n, d] of vectors, without NaN."""

    sample_ids: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    def where(self, mask: NDArray[np.bool_]) -> "Rows":
        """Those of the rows."""
        return Rows(self.sample_ids[mask], {name: column[mask] for name, column in self.columns.items()})

    @staticmethod
    def of(table: "pa.Table", columns: Sequence[str]) -> "Rows":
        """From a table with sample_id and these columns, rows in any order; UserError naming what it lacks."""
        for name in ("sample_id", *columns):
            if table.column_names.count(name) != 1:
                number = "more than one" if name in table.column_names else "no"
                raise UserError(f"the table has {number} column {name!r}: it has {', '.join(table.column_names)}")
        ids = _numbers(table, "sample_id", "iu").astype(np.int64)
        values = {name: _numbers(table, name, "iuf") for name in columns}
        if len(ids) and not (np.diff(ids) > 0).all():
            order = np.argsort(ids, kind="stable")
            ids, values = ids[order], {name: column[order] for name, column in values.items()}
            again = ids[1:][ids[1:] == ids[:-1]]
            if len(again):
                raise UserError(f"sample_id {again[0]} is in the table more than once: give every sample one row")
        return Rows(ids, values)


def _numbers(table: "pa.Table", name: str, kinds: str) -> NDArray[Any]:
    """A column as [n] or [n, d] numbers of these kinds; UserError saying what is wrong with it."""
    import pyarrow as pa

    column = table[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    if column.null_count:
        lacks = "sample_id" if name == "sample_id" else f"{name!r}"
        raise UserError(f"{column.null_count} of {len(column)} rows have no {lacks}: leave those samples out")
    width = None
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        values = column.flatten()
        width = len(values) // max(1, len(column))
        lengths = (
            set() if pa.types.is_fixed_size_list(column.type) else set(column.value_lengths().unique().to_pylist())
        )
        if lengths - {width}:
            raise UserError(f"the vectors of column {name!r} differ in length: give each the same number of values")
        column = values
    array: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in kinds:
        raise UserError(f"column {name!r} is of type {table[name].type}: it must hold numbers")
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if width is not None:
        array = array.reshape(len(table), width)
    if array.dtype.kind == "f":
        unknown = int(np.isnan(array).any(axis=tuple(range(1, array.ndim))).sum()) if len(array) else 0
        if unknown:
            raise UserError(f"column {name!r} is NaN in {unknown} of {len(array)} rows: leave those samples out")
    return array


class Pool(ABC):
    """N examples in partitions. No example is in two of them; nothing that is computed may depend on the cut."""

    num_samples: int

    @abstractmethod
    def map(self, function: Callable[[Rows], T]) -> Iterator[T]:
        """`function` of every partition, in any order, each as soon as it is there; it may run in another process."""

    def gather(self, columns: Sequence[str]) -> Rows:
        """All rows in this process: for methods that need them together, which limits N to what memory holds."""
        found = self.map(lambda rows: Rows(rows.sample_ids, {name: rows[name] for name in columns}))
        parts = [part for part in found if len(part)]  # one without rows does not know how long its vectors would be
        for name in columns:
            if len({part[name].shape[1:] for part in parts}) > 1:
                raise UserError(f"the vectors of column {name!r} differ in length: give each the same number of values")
        ids = np.concatenate([part.sample_ids for part in parts])
        order = np.argsort(ids, kind="stable")
        return Rows(ids[order], {name: np.concatenate([part[name] for part in parts])[order] for name in columns})


class TablePool(Pool):
    """One table in memory; UserError if it has no rows, or as Rows.of says."""

    def __init__(self, table: "pa.Table", columns: Sequence[str]) -> None:
        self._rows = Rows.of(table, columns)
        self.num_samples = len(self._rows)
        if not self.num_samples:
            raise UserError("the table has no rows: give every sample one")

    def map(self, function: Callable[[Rows], T]) -> Iterator[T]:
        """Of the one partition."""
        yield function(self._rows)


class Without(Pool):
    """A pool less some of its samples. excluded: int64, each of them in the pool."""

    def __init__(self, pool: Pool, excluded: NDArray[np.int64]) -> None:
        self._pool = pool
        self._excluded = np.sort(excluded)
        self.num_samples = pool.num_samples - len(excluded)

    def map(self, function: Callable[[Rows], T]) -> Iterator[T]:
        """Of what is left of every partition."""
        excluded = self._excluded

        def of_the_rest(rows: Rows) -> T:
            return function(rows.where(~np.isin(rows.sample_ids, excluded)))

        return self._pool.map(of_the_rest)
