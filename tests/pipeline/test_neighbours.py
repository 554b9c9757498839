"""The neighbours stage, against all pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import neighbours
from pipeline.embeddings import write_embeddings
from pipeline.errors import UserError
from pipeline.neighbours import NeighboursConfig, load_neighbours
from pipeline.stage import Artifact
from tests.pipeline.making import run_stage
from tests.pipeline.test_geometry import plain_nearest

N = 61


def encoded(folder: Path, vectors: np.ndarray, rows: int = 17) -> Artifact:
    """A finished stage encode of these vectors."""
    parts = [write_embeddings(str(folder), low, vectors[low : low + rows]) for low in range(0, len(vectors), rows)]
    metrics = {"num_samples": len(vectors), "width": vectors.shape[1], "dtype": str(vectors.dtype)}
    return Artifact(str(folder), {"parts": [vars(part) for part in parts], "metrics": metrics})


@pytest.fixture
def vectors() -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((N, 5)).astype(np.float16)
    found[40:50] = found[:10]
    return found


def test_it_finds_the_most_similar_others_of_all(
    tmp_path: Path, vectors: np.ndarray, ray_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ROWS_PER_TASK", 25)
    done = run_stage(
        tmp_path, "neighbours", neighbours.run, NeighboursConfig(k=4), {"encode": encoded(tmp_path / "e", vectors)}
    )
    assert [part.rows for part in done.parts()] == [25, 25, 11]
    assert done.table()["sample_id"].to_pylist() == list(range(N))
    assert done.table().schema.field("neighbours").type.list_size == 4
    assert pa.types.is_int64(done.table().schema.field("neighbours").type.value_type)
    found = load_neighbours(done)
    assert found.dtype == np.int32
    assert found.tolist() == plain_nearest(neighbours.unit(vectors), 4)
    assert found[:10, 0].tolist() == list(range(40, 50))


def test_blocks_of_any_size_make_no_difference(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name, (queries, rows) in enumerate([(64, 61), (7, 3)]):
        monkeypatch.setattr(neighbours, "QUERIES", queries)
        part = neighbours._find((0, N), encoded(tmp_path / f"{name}", vectors, rows), 6, str(tmp_path / "out"))
        found.append(part.sha256)
    assert found[0] == found[1]


def test_more_neighbours_than_there_are_samples(tmp_path: Path, vectors: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"cluster.neighbours=61 but the pool has 61 samples: lower it"):
        run_stage(
            tmp_path, "neighbours", neighbours.run, NeighboursConfig(k=N), {"encode": encoded(tmp_path / "e", vectors)}
        )
