"""Double-end pruning: pinned vectors, and the coresets of the authors' code."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.selectors import select

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "dynamics_reference.npz")


def test_double_end_drops_the_hard_end_and_keeps_the_next() -> None:
    table = pa.table({"sample_id": np.arange(100), "aum": np.arange(100.0), "el2n": -np.arange(100.0)})
    for column in ("aum", "el2n"):
        kept = select(table, "double_end", keep_fraction=0.3, score=column, mislabel_fraction=0.2)
        assert kept.tolist() == list(range(20, 50))
    assert select(table, "double_end", keep_fraction=0.3, mislabel_fraction=0.7).tolist() == list(range(70, 100))
    assert select(table, "double_end", keep_fraction=0.7, mislabel_fraction=0.3).tolist() == list(range(30, 100))


@pytest.mark.parametrize(("m", "r"), [(0.2, 0.3), (0.4, 0.1), (0.0, 0.5)])
def test_double_end_keeps_what_the_authors_code_keeps(m: float, r: float) -> None:
    table = pa.table({"sample_id": np.arange(400), "aum": GOLDEN["aum"]})
    kept = select(table, "double_end", keep_fraction=r, mislabel_fraction=m)
    assert kept.tolist() == GOLDEN[f"double_end_m{m}_r{r}"].tolist()


@pytest.mark.parametrize(("name", "option"), [("double_end", "mislabel_fraction"), ("dual_beta", "c_d")])
def test_a_table_of_scores_cannot_choose_an_auto_option(name: str, option: str) -> None:
    columns = {"aum": np.arange(100.0), "dual": np.arange(100.0), "dual_mean": np.linspace(0, 1, 100)}
    table = pa.table({"sample_id": np.arange(100), **columns})
    with pytest.raises(UserError, match=rf"{option}='auto' is chosen from held-out labels, .* `semiprune run`"):
        select(table, name, keep_fraction=0.3, **{option: "auto"})
