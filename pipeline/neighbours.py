"""Stage `neighbours`: the most similar others of every sample, exactly.

Every pair of samples is looked at, which takes 2 N^2 d operations. A core of an AMD EPYC does 60 (N = 50,000) to 85
(300,000) GFLOP/s at d = 384, of the 112 of a float32 matrix product alone: half a minute for 50,000 samples, some 4
hours for 1.28 million, or 5 minutes of 48 cores. Beyond some ten million samples another method is needed. A task holds
8192 queries, one file of embeddings and 16 MB of similarities; it reads all files, of N * d numbers.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipeline.config import Config
from pipeline.embeddings import embedding_blocks, read_range
from pipeline.errors import UserError
from pipeline.geometry import Nearest, unit
from pipeline.parallel import map_items
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Part, Progress, write_table_part

ROWS_PER_TASK = 8192
QUERIES = 512
"""Samples whose similarities to a file of embeddings are computed at a time."""


class NeighboursConfig(Config):
    """k: how many of each sample."""

    k: Annotated[int, Field(ge=1)]


def run(
    inputs: Mapping[str, Artifact], config: NeighboursConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Find them by cosine similarity; parts: sample_id ascending, neighbours int64[k], most similar first, equals by
    sample_id. Never the sample itself, though a copy of it is another sample.

    inputs: encode. UserError if the pool has no k others.
    """
    num_samples = inputs["encode"].metrics["num_samples"]
    if config.k >= num_samples:
        raise UserError(
            f"cluster.neighbours={config.k} but the pool has {num_samples} samples: lower it below that number"
        )
    spans = [(low, min(low + ROWS_PER_TASK, num_samples)) for low in range(0, num_samples, ROWS_PER_TASK)]
    task = partial(_find, encode=inputs["encode"], k=config.k, uri=out.uri)
    for part in map_items(spans, task, resources=resources, progress=progress, unit="parts"):
        out.add(part)
    return {"num_samples": num_samples, "k": config.k}


def load_neighbours(artifact: Artifact) -> NDArray[np.int32]:
    """What the stage found, int32 [N, k] by sample_id."""
    whole = np.empty((artifact.metrics["num_samples"], artifact.metrics["k"]), dtype=np.int32)
    low = 0
    for table in artifact.tables(columns=["neighbours"]):
        found = table["neighbours"].combine_chunks().flatten().to_numpy().reshape(-1, whole.shape[1])
        whole[low : low + len(found)] = found
        low += len(found)
    return whole


def _find(span: tuple[int, int], encode: Artifact, k: int, uri: str) -> Part:
    """One task: the neighbours of the ids low .. high - 1."""
    low, high = span
    queries = unit(read_range(encode, low, high))
    starts = range(0, high - low, QUERIES)
    found = [Nearest(queries[start : start + QUERIES], low + start, k) for start in starts]
    for first, vectors in embedding_blocks(encode):
        block = unit(vectors)
        for nearest in found:
            nearest.look_at(block, first)
    ids = np.concatenate([nearest.ids() for nearest in found])
    values = pa.array(ids.reshape(-1))
    kind = pa.list_(pa.field("element", values.type, nullable=False), k)
    column = pa.FixedSizeListArray.from_arrays(values, type=kind)
    fields = [pa.field("sample_id", pa.int64(), False), pa.field("neighbours", kind, False)]
    table = pa.Table.from_arrays([pa.array(np.arange(low, high)), column], schema=pa.schema(fields))
    return write_table_part(uri, f"part-{low:012d}", table)
