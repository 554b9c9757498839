"""The reducer: all scores of a range of ids in one pass over the epochs; ranges are independent of each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dynamics_store import DynamicsStore
from pipeline.errors import UserError
from pipeline.scores import Records, Request, Score
from pipeline.stage import Progress
from pipeline.windows import Windows

CHUNK = 1 << 15
"""Ids that the scores take in at a time, so that what they work on stays in a core's cache."""

READ_BYTES = 1 << 25
"""Decoded columns that are held at a time: of so many blocks that TOGETHER epochs fit, or more epochs of fewer ids."""

TOGETHER = 16
"""Epochs that a chunk takes in at a time, so that its state comes into the cache once for all of them."""

WORTH_PROCESSES = 1 << 27
"""Records above which processes pay, which take a second or two to start: one scores some 50 million a second."""


@dataclass(frozen=True)
class Reduction:
    """Scores of a store, checked: every epoch and column that they take is recorded.

    takes: the columns to read of each epoch, in order of the epochs that any score takes; prepared: what kernels of a
    score share, by its name.
    """

    store: DynamicsStore
    requests: Sequence[Request]
    takes: Mapping[int, Sequence[str]]
    prepared: Mapping[str, Any]

    @staticmethod
    def of(store: DynamicsStore, requests: Sequence[Request]) -> "Reduction":
        """UserError if a score needs more epochs or other columns than are recorded."""
        recorded = len(store.epochs)
        takes: dict[int, list[str]] = {}
        for request in requests:
            complaint = lacking(store, request)
            if complaint:
                raise UserError(complaint)
            for epoch in request.epochs(recorded):
                columns = takes.setdefault(epoch, [])
                columns += [name for name in request.score.reads if name not in columns]
        prepared = {}
        for request in requests:
            if request.score.prepare.__func__ is not Score.prepare.__func__:  # type: ignore[attr-defined]
                sample = store.sample(request.epochs(recorded)[-1], request.score.reads)
                prepared[request.name] = request.score.prepare(request.options, sample, store.num_classes)
        return Reduction(store, requests, dict(sorted(takes.items())), prepared)

    def range(self, low: int, high: int) -> pa.Table:
        """Scores of ids low..high-1: sample_id ascending and a f32 column per score column.

        The values do not depend on how ids are cut into ranges.
        """
        span, fitting = self.store.span, READ_BYTES // (TOGETHER * self._bytes)
        step = max(1, fitting // span) * span
        bounds = [low, *range(low // span * span + step, high, step), high] if low < high else [low, low]
        chunks = [chunk for start, stop in pairwise(bounds) for chunk in self._chunks(start, stop)]
        columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        return pa.table({"sample_id": np.arange(low, high), **columns})

    @property
    def _bytes(self) -> int:
        """Of the decoded columns of a record, at most."""
        return 4 * max(sum(self.store.columns[name] for name in columns) for columns in self.takes.values())

    def _chunks(self, low: int, high: int) -> list[dict[str, NDArray[np.float32]]]:
        """The columns of ids low..high-1, chunk by chunk."""
        cuts = [(start, min(start + CHUNK, high - low)) for start in range(0, max(high - low, 1), CHUNK)]
        chunks = [_Chunk(self, stop - start) for start, stop in cuts]
        epochs = list(self.takes)
        group = max(1, READ_BYTES // max(1, self._bytes * (high - low)))
        rooms: list[dict[str, NDArray[Any]]] = [{} for _ in epochs[:group]]
        for first in range(0, len(epochs), group):
            read = {
                epoch: self.store.read(epoch, low, high, self.takes[epoch], into=room)
                for epoch, room in zip(epochs[first : first + group], rooms, strict=False)
            }
            for (start, stop), chunk in zip(cuts, chunks, strict=True):
                for epoch, columns in read.items():
                    chunk.update(epoch, {name: column[start:stop] for name, column in columns.items()})
        return [chunk.result() for chunk in chunks]


class _Chunk:
    """The kernels of n examples."""

    def __init__(self, reduction: Reduction, n: int) -> None:
        recorded = len(reduction.store.epochs)
        self._kernels = [
            (request.kernel(n, reduction.prepared.get(request.name)), request.epochs(recorded), request.harder)
            for request in reduction.requests
        ]
        windowed = [(kernel, epochs) for kernel, epochs, _ in self._kernels if kernel.windowed]
        self._windows = {
            J: (Windows(n, J), max(epochs.stop for kernel, epochs in windowed if kernel.options.J == J))
            for J in {kernel.options.J for kernel, _ in windowed}
        }

    def update(self, epoch: int, columns: Mapping[str, NDArray[Any]]) -> None:
        records = Records(epoch, slice(None), columns)
        for J, (windows, stop) in self._windows.items():
            if epoch < stop:
                records.windows[J] = windows.push(records.float64("p_label"), records.rows)
        for kernel, epochs, _ in self._kernels:
            if epoch in epochs:
                kernel.update(records)

    def result(self) -> dict[str, NDArray[np.float32]]:
        found: dict[str, NDArray[np.float32]] = {}
        for kernel, _, harder in self._kernels:
            found.update(zip(harder, kernel.result().values(), strict=True))
        return found


def lacking(store: DynamicsStore, request: Request) -> str | None:
    """Why a score cannot be computed from a store, and what to do; None if it can."""
    epochs = request.lacking(len(store.epochs))
    if epochs:
        return f"{epochs}: lower {request.score.epochs_option}, or record more"
    missing = [name for name in request.score.reads if name not in store.columns]
    if missing:
        return (
            f"{request.name} needs the column {missing[0]!r}, which was not recorded: "
            f"train again with {HOW_TO_RECORD[missing[0]]}"
        )
    return None


HOW_TO_RECORD = {"probs": "DynamicsWriter(.., probs=True)", "embedding": "observe(.., embeddings=..)"}


def reduce_store(uri: str, requests: Sequence[Request]) -> pa.Table:
    """Scores of all ids, as Reduction.range gives them."""
    return reduce_all(Reduction.of(DynamicsStore(uri), requests))


def reduce_all(reduction: Reduction, progress: Progress | None = None) -> pa.Table:
    """The same, range by range: here, or where that is faster in processes, one a core.

    Threads would wait for each other, since kernels are many short calls of numpy. joblib's processes start without a
    look at the main module, so this works in a notebook, a script without a guard and a Ray task as well.
    """
    from joblib import Parallel, cpu_count, delayed

    n, span, cores = reduction.store.num_samples, reduction.store.span, cpu_count()
    step = max(1, n // (4 * cores * span)) * span  # whole blocks: a range in a process opens every file anew
    starts = range(0, n, step)
    worth = n * len(reduction.takes) >= WORTH_PROCESSES
    workers = Parallel(n_jobs=min(cores, len(starts)) if worth else 1, return_as="generator")
    tables = []
    for table in workers(delayed(reduction.range)(low, min(low + step, n)) for low in starts):
        tables.append(table)
        if progress:
            progress(len(tables), len(starts), "ranges")
    return pa.concat_tables(tables).combine_chunks()
