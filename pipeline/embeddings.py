"""Embeddings of the pool: Arrow files of sample_id and embedding, ids ascending over all of them, none missing.

Arrow and not Parquet, because nearest neighbours read everything many times, and here reading is no decoding.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from pipeline.stage import Artifact, Part, write_part

Vectors = NDArray[np.floating[Any]]


def write_embeddings(uri: str, low: int, vectors: Vectors) -> Part:
    """One file: float16 or float32 [n, d] of the ids low .. low + n - 1."""
    n, width = vectors.shape
    values = pa.array(vectors.reshape(-1))
    element = pa.field("element", values.type, nullable=False)
    column = pa.FixedSizeListArray.from_arrays(values, type=pa.list_(element, width))
    names = [pa.field("sample_id", pa.int64(), False), pa.field("embedding", column.type, False)]
    table = pa.Table.from_arrays([pa.array(np.arange(low, low + n)), column], schema=pa.schema(names))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return write_part(uri, f"part-{low:012d}", ".arrow", sink.getbuffer(), n)


def embedding_blocks(artifact: Artifact) -> Iterator[tuple[int, Vectors]]:
    """Each file of a finished stage `encode`: its first id, and the vectors [n, d]."""
    low = 0
    for part in artifact.parts():
        yield low, read_block(artifact, part)
        low += part.rows


def read_block(artifact: Artifact, part: Part) -> Vectors:
    """The vectors of one file, float [n, d], verified; read-only."""
    column = pa.ipc.open_file(pa.py_buffer(artifact.read(part))).read_all()["embedding"].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    vectors: Vectors = column.flatten().to_numpy().reshape(part.rows, column.type.list_size)
    return vectors


def read_range(artifact: Artifact, low: int, high: int) -> Vectors:
    """The vectors of the ids low .. high - 1; files without one of them are not read."""
    found, start = [], 0
    for part in artifact.parts():
        if start < high and start + part.rows > low:
            found.append(read_block(artifact, part)[max(0, low - start) : high - start])
        start += part.rows
    return np.concatenate(found)


def read_all(artifact: Artifact) -> Vectors:
    """All of them, [N, d], filled in place: what is held besides is one file."""
    whole = np.empty((artifact.metrics["num_samples"], artifact.metrics["width"]), artifact.metrics["dtype"])
    for low, vectors in embedding_blocks(artifact):
        whole[low : low + len(vectors)] = vectors
    return whole
