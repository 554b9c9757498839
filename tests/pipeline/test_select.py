"""The select stage: its settings, what it writes, what it costs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline import select
from pipeline.resources import Resources
from pipeline.select import SelectConfig
from pipeline.selectors import SELECTORS, Pool, choose
from pipeline.stage import Artifact, Output, Stage


def config(**settings: Any) -> SelectConfig:
    return SelectConfig.model_validate_json(
        json.dumps({"name": "coreset", "keep_fraction": 0.3, "seed": 0, **settings})
    )


def artifact(folder: Path, *tables: pa.Table) -> Artifact:
    out = Output(str(folder))
    for table in tables:
        out.write_table(table)
    return Artifact(out.uri, {"parts": [vars(part) for part in out.parts]})


def run(folder: Path, settings: SelectConfig, **inputs: Artifact) -> tuple[pa.Table, dict[str, Any]]:
    out = Output(str(folder))
    metrics = select.run(inputs, settings, out, resources=Resources(), progress=lambda *_: None)
    return Artifact(out.uri, {"parts": [vars(part) for part in out.parts]}).table(), metrics


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    scores = pa.table(
        {
            "sample_id": np.arange(100),
            "aum": np.arange(100.0, dtype=np.float32),
            "dual": np.linspace(1, 0, 100, dtype=np.float32),
            "dual_mean": np.linspace(0, 1, 100, dtype=np.float32),
        }
    )
    labels = pa.table(
        {"sample_id": [3, 25, 26, 90], "label": [0, 1, 0, 1], "role": ["train", "train", "holdout", "train"]}
    )
    return {
        "score": artifact(tmp_path / "score", scores.slice(0, 40), scores.slice(40)),
        "split": artifact(tmp_path / "split", labels),
    }


def test_double_end_in_full(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    settings = config(selector="double_end", options={"mislabel_fraction": 0.2})
    table, metrics = run(tmp_path / "out", settings, **inputs)
    assert table.schema == pa.schema({"sample_id": pa.int64(), "rank": pa.int64()})
    assert table["sample_id"].to_pylist() == list(range(20, 50))
    assert table["rank"].to_pylist() == list(range(30))
    assert metrics == {
        "name": "coreset",
        "selector": "double_end",
        "method": SELECTORS.get("double_end").source,
        "score": "aum",
        "keep_fraction": 0.3,
        "budget": 30,
        "num_samples": 100,
        "cuts": {"column": "aum", "low": 20.0, "high": 49.0},
        "labelled_in_coreset": 2,
        "annotation_bill": 32,
    }
    json.dumps(metrics)


@pytest.mark.parametrize("name", SELECTORS.names())
def test_ranks_are_a_permutation_and_ids_ascend(tmp_path: Path, inputs: dict[str, Artifact], name: str) -> None:
    table, metrics = run(tmp_path / "out", config(selector=name), **inputs)
    ids, rank = table["sample_id"].to_numpy(), table["rank"].to_numpy()
    assert (np.diff(ids) > 0).all() and sorted(rank) == list(range(30)) == list(range(metrics["budget"]))
    selector = config(selector=name).build()
    pool = Pool.of(inputs["score"].table(), selector.columns)
    assert ids[np.argsort(rank)].tolist() == pool.sample_ids[choose(selector, pool, 0.3, seed=0)].tolist()
    assert (metrics["cuts"] is None) == (metrics["score"] is None) == (name == "random")
    again, _ = run(tmp_path / "again", config(selector=name), **inputs)
    assert again.equals(table)


def test_the_easiest_are_ranked_from_the_easy_end(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    table, _ = run(tmp_path / "out", config(selector="top_k", options={"keep": "easiest"}), **inputs)
    assert table["sample_id"].to_pylist() == list(range(70, 100))
    assert table["rank"].to_pylist() == list(range(29, -1, -1))


def test_the_seed_is_the_plans_to_say(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    unresolved = config(selector="random", seed=None)
    assert SelectConfig(name="coreset", selector="random", keep_fraction=0.3) == unresolved
    with pytest.raises(AssertionError, match="resolves the seed"):
        run(tmp_path / "out", unresolved, **inputs)
    tables = [run(tmp_path / f"{seed}", config(selector="random", seed=seed), **inputs)[0] for seed in (0, 1)]
    assert not tables[0].equals(tables[1])


def test_settings_are_written_out_so_that_equal_ones_have_equal_keys() -> None:
    short, long = config(selector="double_end"), config(selector="double_end", options={"mislabel_fraction": 0.1})
    assert short.options == {"score": "aum", "mislabel_fraction": 0.1, "harder": None}
    assert short == long == SelectConfig.model_validate_json(short.model_dump_json())
    assert Stage("select", 1, short, {}, select.run).key == Stage("select", 1, long, {}, select.run).key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selector": "best"}, "there is no selector 'best': choose from double_end"),
        ({"selector": "random", "keep_fraction": 0}, "keep_fraction"),
        ({"selector": "random", "keep_fraction": 1.1}, "keep_fraction"),
        ({"selector": "random", "options": {"k": 3}}, "selector 'random' has no option 'k'"),
        ({"selector": "top_k", "options": {"score": "loss"}}, "column 'loss' is not of a known score"),
        (
            {"selector": "double_end", "options": {"mislabel_fraction": 0.75}},
            r"add up to 1\.05, more than",
        ),
        ({"selector": "random", "name": "../up"}, "name"),
    ],
)
def test_wrong_settings_are_found_without_data(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        config(**settings)
    assert error.value.error_count() == 1
