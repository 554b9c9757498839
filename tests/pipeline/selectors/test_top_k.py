"""Top-k: which end is kept, and columns of the user's own."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.scores import directions
from pipeline.selectors import select


def test_top_k_keeps_the_end_that_is_meant() -> None:
    rng = np.random.default_rng(0)
    ids = rng.choice(200, 50, replace=False)
    table = pa.table({"sample_id": ids, **{column: rng.random(50) for column in directions()}})
    for column, end in directions().items():
        ranked = table["sample_id"].to_numpy()[np.argsort(table[column].to_numpy())]
        low, high = sorted(ranked[:10].tolist()), sorted(ranked[-10:].tolist())
        hardest, easiest = (high, low) if end == "high" else (low, high)
        assert select(table, "top_k", keep_fraction=0.2, score=column).tolist() == hardest
        assert select(table, "top_k", keep_fraction=0.2, score=column, keep="easiest").tolist() == easiest


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float64"])
def test_a_column_of_the_users_own_needs_its_harder_end(dtype: str) -> None:
    table = pa.table({"sample_id": np.arange(10), "loss": np.arange(10).astype(dtype)})
    assert select(table, "top_k", keep_fraction=0.3, score="loss", harder="high").tolist() == [7, 8, 9]
    assert select(table, "double_end", keep_fraction=0.3, score="loss", harder="low").tolist() == [1, 2, 3]
    with pytest.raises(UserError, match="column 'loss' is not of a known score: say which end is harder"):
        select(table, "top_k", keep_fraction=0.3, score="loss")
