"""Rows and pools: what a table must be, and every sentence when it is not."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.pool import Rows, TablePool, Without
from tests.pipeline.selectors.pools import PartitionedPool, scored

FLOATS = pa.list_(pa.float32())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"sample_id": [1, 2, 1], "x": [0.0, 1.0, 2.0]},
            "sample_id 1 is in the table more than once: give every sample",
        ),
        ({"sample_id": [1, 2, 3], "x": [0.0, math.nan, math.nan]}, "column 'x' is NaN in 2 of 3 rows: leave those"),
        ({"sample_id": [1, 2, 3], "x": [0.0, None, math.nan]}, "1 of 3 rows have no 'x': leave those samples out"),
        ({"sample_id": [1, 2], "x": [None, None]}, "2 of 2 rows have no 'x'"),
        ({"sample_id": [1, 2, 3], "x": ["a", "b", "c"]}, "column 'x' is of type string: it must hold numbers"),
        ({"sample_id": [1, 2], "x": [True, False]}, "column 'x' is of type bool: it must hold numbers"),
        ({"sample_id": [1, 2], "x": [[[1.0]], [[2.0]]]}, "column 'x' is of type list.*: it must hold numbers"),
        (
            {"sample_id": [1.5, 2, 3], "x": [0.0, 1.0, 2.0]},
            "column 'sample_id' is of type double: it must hold numbers",
        ),
        ({"sample_id": [1, None, 3], "x": [0.0, 1.0, 2.0]}, "1 of 3 rows have no sample_id: leave those samples out"),
        (
            {"sample_id": pa.array([], pa.int64()), "x": pa.array([], FLOATS)},
            "the table has no rows: give every sample",
        ),
        ({"x": [0.0, 1.0]}, "the table has no column 'sample_id': it has x"),
        ({"sample_id": [1, 2]}, "the table has no column 'x': it has sample_id"),
        ({"sample_id": [1, 2, 3], "x": [[1.0], [1.0, 2.0], [3.0]]}, "the vectors of column 'x' differ in length: give"),
        ({"sample_id": [1, 2], "x": [[1.0], [1.0, 2.0, 3.0]]}, "the vectors of column 'x' differ in length"),
        ({"sample_id": [1, 2], "x": [[1.0, None], [3.0, 4.0]]}, "column 'x' is NaN in 1 of 2 rows"),
        ({"sample_id": [1, 2], "x": pa.array([[1.0], None], pa.list_(pa.float32(), 1))}, "1 of 2 rows have no 'x'"),
    ],
)
def test_a_table_that_cannot_be_used_is_said_in_one_sentence(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        TablePool(pa.table(table), ["x"])
    assert "\n" not in str(error.value)


def test_a_column_that_is_there_twice_is_said() -> None:
    table = pa.table([[1, 2], [0.0, 1.0], [1.0, 0.0]], names=["sample_id", "x", "x"])
    with pytest.raises(UserError, match="the table has more than one column 'x': it has sample_id, x, x"):
        TablePool(table, ["x"])


@pytest.mark.parametrize(
    "kind", [FLOATS, pa.large_list(pa.float64()), pa.list_(pa.float16(), 2), pa.list_(pa.int8(), 2)]
)
def test_vectors_of_any_list_type_are_read_in_the_order_of_their_ids(kind: pa.DataType) -> None:
    chunks = [pa.array([[5, 6]], kind), pa.array([[1, 2], [3, 4]], kind)]
    table = pa.table({"sample_id": pa.array([7, 2, 4], pa.uint16()), "x": pa.chunked_array(chunks)})
    rows = Rows.of(table, ["x"])
    assert rows.sample_ids.dtype == np.int64 and rows.sample_ids.tolist() == [2, 4, 7]
    assert rows["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert Rows.of(table.slice(1, 2), ["x"])["x"].tolist() == [[1, 2], [3, 4]]
    few = rows.where(rows.sample_ids > 2)
    assert len(few) == 2 and few["x"].tolist() == [[3, 4], [5, 6]]


def test_a_table_without_rows_is_a_partition_like_others() -> None:
    empty = pa.table({"sample_id": pa.array([], pa.int64()), "x": pa.array([], FLOATS), "y": pa.array([], pa.int8())})
    rows = Rows.of(empty, ["x", "y"])
    assert len(rows) == len(rows["x"]) == len(rows["y"]) == 0


def test_gathering_puts_partitions_together_by_id() -> None:
    table = scored(50)
    whole = Rows.of(table, ["aum", "embedding"])
    for partitions in (1, 3, 60):
        rows = PartitionedPool(table, ["aum", "embedding", "dual"], partitions).gather(["aum", "embedding"])
        assert sorted(rows.columns) == ["aum", "embedding"]
        assert rows.sample_ids.tolist() == whole.sample_ids.tolist()
        assert all((rows[name] == whole[name]).all() for name in rows.columns)


def test_partitions_whose_vectors_differ_in_length_are_said() -> None:
    table = pa.table({"sample_id": [1, 2], "x": [[1.0], [1.0, 2.0]]})

    class Two(TablePool):
        def map(self, function: Any) -> Any:
            return (function(Rows.of(table.slice(i, 1), ["x"])) for i in range(2))

    pool = Two(pa.table({"sample_id": [1, 2], "x": [1.0, 2.0]}), ["x"])
    with pytest.raises(UserError, match="the vectors of column 'x' differ in length: give each the same number"):
        pool.gather(["x"])


def test_a_pool_without_some_samples_has_the_others() -> None:
    table = scored(40)
    ids = table["sample_id"].to_numpy()
    pool = Without(PartitionedPool(table, ["aum"], 5), ids[[30, 2, 11]])
    assert pool.num_samples == 37
    rows = pool.gather(["aum"])
    assert rows.sample_ids.tolist() == np.delete(ids, [30, 2, 11]).tolist()
    assert (rows["aum"] == np.delete(table["aum"].to_numpy(), [30, 2, 11])).all()
