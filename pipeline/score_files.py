"""Scores in Parquet files: of the user's own, of `semiprune score`, or of a finished stage."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError
from pipeline.pool import Pool, Rows, TablePool
from pipeline.stage import MANIFEST, Progress
from pipeline.threads import in_threads

T = TypeVar("T")

TOGETHER = 1 << 24
"""Samples whose scores are read at once; of more, every row group of the files is a partition."""


def open_scores(uri: str, columns: Sequence[str]) -> "ScoreFiles | TablePool":
    """The samples in a Parquet file, or in those of a folder, with sample_id and these columns; other columns stay.

    UserError if there is none, if a file is damaged, or if a sample is there twice.
    """
    groups: list[tuple[str, int]] = []
    num_samples = 0
    for file in _files(uri):
        with _parquet(file) as opened:
            sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            groups += [(file, group) for group, size in enumerate(sizes) if size]
            num_samples += sum(sizes)
    if not num_samples:
        raise UserError(f"{uri!r} has no rows: give every sample one")
    if num_samples > TOGETHER:
        return ScoreFiles(groups, num_samples, columns)
    return TablePool(pa.concat_tables([_read(*group, columns) for group in groups]), columns)


class ScoreFiles(Pool):
    """Row groups as partitions, looked at by threads: numpy and Arrow free the interpreter for arrays so long.

    progress: told of every row group that was looked at.
    """

    def __init__(self, groups: Sequence[tuple[str, int]], num_samples: int, columns: Sequence[str]) -> None:
        self.num_samples = num_samples
        self.progress: Progress = lambda done, total, unit: None
        self._groups = groups
        self._columns = columns
        self._is_checked = False

    def map(self, function: Callable[[Rows], T]) -> Iterator[T]:
        """In threads of this process. UserError, at the first look, if a sample is in two row groups."""
        if not self._is_checked:
            ends = sorted(self._map(lambda rows: (int(rows.sample_ids[0]), int(rows.sample_ids[-1])), []))
            for (_, last), (first, _) in pairwise(ends):
                if first <= last:
                    raise UserError(
                        f"sample_ids {first} to {last} are in two row groups: sort files of more than {TOGETHER:,} "
                        "rows by sample_id, and give every sample one row"
                    )
            self._is_checked = True
        return self._map(function, self._columns)

    def _map(self, function: Callable[[Rows], T], columns: Sequence[str]) -> Iterator[T]:
        def look(group: tuple[str, int]) -> T:
            return function(Rows.of(_read(*group, columns), columns))

        self.progress(0, len(self._groups), "row groups")
        for done, found in enumerate(in_threads(look, self._groups), start=1):
            yield found
            self.progress(done, len(self._groups), "row groups")


def _files(uri: str) -> list[str]:
    """The Parquet files of a folder, those that count if it is a stage's; or the file itself."""
    names = storage.names(uri)
    if names == [uri.rsplit("/", 1)[-1]] or not names:  # listing a file gives its own name
        return [uri]
    if MANIFEST in names:
        parts = storage.read_json(storage.join(uri, MANIFEST))["parts"]
        names = [part["name"] for part in parts]
    found = [storage.join(uri, name) for name in names if name.endswith(".parquet")]
    if not found:
        raise UserError(f"{uri!r} holds no Parquet file: name one, or write one with `semiprune score`")
    return found


def _read(file: str, group: int, columns: Sequence[str]) -> pa.Table:
    with _parquet(file) as opened:
        names = opened.schema_arrow.names
        for name in ("sample_id", *columns):
            if names.count(name) != 1:
                number = "more than one" if name in names else "no"
                raise UserError(f"{file!r} has {number} column {name!r}: it has {', '.join(names)}")
        return opened.read_row_group(group, columns=["sample_id", *columns])


@contextlib.contextmanager
def _parquet(file: str) -> Iterator[pq.ParquetFile]:
    """An open Parquet file; UserError if it is none, or damaged where it is read."""
    try:
        with storage.open_input(file) as source:
            try:
                yield pq.ParquetFile(source)
            except (pa.ArrowException, OSError, ValueError) as error:
                if isinstance(error, UserError) or getattr(error, "errno", None):  # of the place, not of its contents
                    raise
                raise UserError(
                    f"{file!r} is no whole Parquet file: write it again, as with `semiprune score`"
                ) from error
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file!r}: write one with `semiprune score`") from error
