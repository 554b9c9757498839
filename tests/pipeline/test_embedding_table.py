"""The user's table of embeddings: any order of rows, and one sentence for whatever is wrong with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.embedding_table import locate, read_vectors
from pipeline.errors import UserError

KEYS = pa.chunked_array([[f"k{n}" for n in range(6)], [f"k{n}" for n in range(6, 10)]])
VECTORS = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)


def write(path: Path, columns: dict[str, Any], rows_per_group: int = 4) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return str(path)


def lists(vectors: Any = VECTORS, kind: Any = None) -> pa.Array:
    return pa.array([None if row is None else list(row) for row in vectors], kind or pa.list_(pa.float32()))


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.float32())])
@pytest.mark.parametrize("by", ["key", "sample_id"])
def test_rows_come_in_any_order_and_of_more_than_the_pool(tmp_path: Path, by: str, kind: pa.DataType) -> None:
    order = np.random.default_rng(1).permutation(10)
    ids = [f"k{n}" for n in order] if by == "key" else [int(n) for n in order]
    more = "elsewhere" if by == "key" else 99
    columns = {by: [more, *ids, more], "h": lists([[0, 0, 0], *VECTORS[order], [1, 1, 1]], kind)}
    uri = write(tmp_path / "t.parquet", columns)
    rows = locate(uri, "h", KEYS)
    assert rows.tolist() == (1 + np.argsort(order)).tolist()
    found = np.concatenate([read_vectors(uri, "h", rows[low : low + 4], low) for low in (0, 4, 8)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, VECTORS)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"embedding": lists()}, "has no column 'key' and no column 'sample_id' but embedding"),
        ({"key": KEYS}, "has no column 'embedding' but key: name another one"),
        (
            {"key": [f"k{n}" for n in (0, 1, 3)], "embedding": lists(VECTORS[:3])},
            "lacks 7 of the 10 samples, the first is sample_id 2, key 'k2': add a row for each",
        ),
        (
            {"sample_id": [*range(10), 3, 5], "embedding": lists([*VECTORS, *VECTORS[:2]])},
            "has 2 samples more than once, the first is 3: keep one row of each",
        ),
        ({"sample_id": [["a"]] * 10, "embedding": lists()}, "its column 'sample_id' is of type list"),
    ],
)
def test_a_table_that_does_not_fit_the_pool_is_one_sentence(
    tmp_path: Path, columns: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        locate(write(tmp_path / "t.parquet", columns), "embedding", KEYS)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (lists([*VECTORS[:7], [1, 2], *VECTORS[8:]]), "sample_id 4 has 3 numbers and that of 7 2"),
        (lists([*VECTORS[:4], *VECTORS[4:, :2]]), "sample_id 0 has 3 numbers and that of 4 2"),
        (lists([*VECTORS[:8], None, VECTORS[9]]), "sample_id 8 has no vector: compute it again"),
        (lists([*VECTORS[:8], [1, np.nan, 2], [1, 2, None]]), "sample_id 8 (and 1 more near it) has a number that is"),
        (lists([*VECTORS[:8], [1, 1e300, 2], VECTORS[9]], pa.list_(pa.float64())), "sample_id 8 has a number that is"),
        (lists([[]] * 10), "the vector of sample_id 0 is empty"),
        (pa.array(range(10)), "its column 'h' is of type int64: it must hold lists of floats"),
        (lists(VECTORS.astype(int), pa.list_(pa.int32())), "it must hold lists of floats"),
    ],
)
def test_a_vector_that_cannot_be_used_is_one_sentence(tmp_path: Path, column: pa.Array, sentence: str) -> None:
    uri = write(tmp_path / "t.parquet", {"key": KEYS, "h": column})
    rows = locate(uri, "h", KEYS)
    with pytest.raises(UserError) as caught:
        read_vectors(uri, "h", rows, 0)
    assert sentence in str(caught.value) and repr(uri) in str(caught.value)


def test_a_table_that_is_not_there_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no table of embeddings at"):
        locate(str(tmp_path / "absent.parquet"), "h", KEYS)
    (tmp_path / "t.parquet").write_bytes(b"key,h\n")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        locate(str(tmp_path / "t.parquet"), "h", KEYS)
