"""Columns out of artifacts by sample_id, for pools of millions: only the named columns, one part at a time."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.stage import Artifact


def by_id(artifact: Artifact, columns: Sequence[str], num_samples: int) -> dict[str, NDArray[Any]]:
    """Each column as an array [N] whose index is the sample_id, whatever the order of rows and parts."""
    dense: dict[str, NDArray[Any]] = {}
    seen = np.zeros(num_samples, dtype=bool)
    for table in artifact.tables(columns=["sample_id", *columns]):
        ids = table["sample_id"].to_numpy()
        seen[ids] = True
        for name in columns:
            values = table[name].to_numpy()
            dense.setdefault(name, np.empty(num_samples, dtype=values.dtype))[ids] = values
    assert seen.all(), f"{artifact.uri} lacks {num_samples - int(seen.sum())} of {num_samples} sample_ids"
    return dense


def keys(index: Artifact, sample_ids: NDArray[np.int64]) -> dict[int, str]:
    """The key of each of a few sample_ids; parts of the index that hold none of them are not read."""
    wanted = np.unique(sample_ids)
    found: dict[int, str] = {}
    start = 0
    for part in index.parts():
        here = wanted[(wanted >= start) & (wanted < start + part.rows)]
        if len(here):
            column = pq.read_table(io.BytesIO(index.read(part)), columns=["key"])["key"]
            found.update(zip(here.tolist(), column.take(pa.array(here - start)).to_pylist(), strict=True))
        start += part.rows
    return found


def head(artifact: Artifact, prefix: str, rows: int) -> list[dict[str, Any]]:
    """The first rows of the parts with that prefix, as dictionaries."""
    result: list[dict[str, Any]] = []
    for table in artifact.tables(prefix):
        result += table.slice(0, rows - len(result)).to_pylist()
        if len(result) >= rows:
            break
    return result


def history(artifact: Artifact, columns: Sequence[str], points: int = 200) -> dict[str, list[float | None]]:
    """A training history as at most `points` means of consecutive rows; a value that is not finite becomes None."""
    table = artifact.table("history").sort_by(columns[0])
    block = -(-max(table.num_rows, 1) // points)
    starts = np.arange(0, table.num_rows, block)

    def means(name: str) -> list[float | None]:
        if not len(starts):
            return []
        values = table[name].to_numpy().astype(np.float64)
        mean = np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))
        return [float(value) if np.isfinite(value) else None for value in mean]

    return {name: means(name) for name in columns}
