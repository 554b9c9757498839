"""Tables to select from, and pools that cut them in any way."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipeline.pool import Pool, Rows
from pipeline.scores import directions

T = TypeVar("T")


class PartitionedPool(Pool):
    """A table's rows, shuffled, dealt out to partitions, some of them perhaps empty, which come in any order."""

    def __init__(self, table: pa.Table, columns: Sequence[str], partitions: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.num_samples = len(table)
        shuffled = table.take(pa.array(rng.permutation(len(table))))
        bounds = np.sort(rng.integers(0, len(table) + 1, partitions - 1)).tolist()
        cuts = zip([0, *bounds], [*bounds, len(table)], strict=True)
        self._parts = [Rows.of(shuffled.slice(start, stop - start), columns) for start, stop in cuts]
        self._rng = rng

    def map(self, function: Callable[[Rows], T]) -> Iterator[T]:
        """In another order every time."""
        for place in self._rng.permutation(len(self._parts)):
            yield function(self._parts[place])


def vectors(values: np.ndarray) -> pa.Array:
    """A column of vectors from [n, d]."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def scored(n: int, seed: int = 0, ties: bool = False) -> pa.Table:
    """A table of every score column, a class and an embedding; ids have gaps; ties: few values, copies of points."""
    rng = np.random.default_rng(seed)
    values = {name: rng.random(n) for name in directions()}
    label = rng.choice([-7, 2, 40], n, p=[0.6, 0.3, 0.1])
    embedding = rng.standard_normal((n, 3)) + 2 * label[:, None] / 47
    if ties:
        values = {name: np.round(x * 3) / 3 for name, x in values.items()}
        embedding = np.round(embedding)
    ids = np.sort(rng.choice(4 * n, n, replace=False))
    columns = {name: x.astype(np.float32) for name, x in values.items()}
    return pa.table(
        {
            "sample_id": ids,
            **columns,
            "train_label": label.astype(np.int32),
            "embedding": vectors(embedding.astype(np.float32)),
        }
    )
