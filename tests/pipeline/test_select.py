"""The select stage: its settings, what it writes, what it costs."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline import select
from pipeline.auto import choose as choose_option
from pipeline.dynamics import DynamicsWriter
from pipeline.errors import UserError
from pipeline.mislabel import choose
from pipeline.pool import TablePool
from pipeline.resources import Resources
from pipeline.select import SelectConfig
from pipeline.selectors import SELECTORS, cuts, preferred
from pipeline.selectors.dual_beta import beta_parameters, log_weights
from pipeline.shift import CHOICES, evidence
from pipeline.stage import Artifact, Output, Stage
from pipeline.trust import GIVEN, HARDER_SHARE, HeldOut
from tests.pipeline.selectors.pools import vectors

OPTIONS: dict[str, dict[str, Any]] = {"zcore": {"draws": 50}}


def config(**settings: Any) -> SelectConfig:
    return SelectConfig.model_validate_json(
        json.dumps({"name": "coreset", "keep_fraction": 0.3, "seed": 0, **settings})
    )


def artifact(folder: Path, *tables: pa.Table, **metrics: Any) -> Artifact:
    out = Output(str(folder))
    for table in tables:
        out.write_table(table)
    return Artifact(out.uri, {"parts": [vars(part) for part in out.parts], "metrics": metrics})


def run(folder: Path, settings: SelectConfig, **inputs: Artifact) -> tuple[pa.Table, dict[str, Any]]:
    out = Output(str(folder))
    metrics = select.run(inputs, settings, out, resources=Resources(), progress=lambda *_: None)
    return Artifact(out.uri, {"parts": [vars(part) for part in out.parts]}).table(), metrics


SCORES = pa.table(
    {
        "sample_id": np.arange(100),
        "train_label": np.arange(100) % 3,
        "aum": np.arange(100.0, dtype=np.float32),
        "dual": np.linspace(1, 0, 100, dtype=np.float32),
        "dual_mean": np.linspace(0, 1, 100, dtype=np.float32),
    }
)
EMBEDDING = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
LABELLED = [3, 25, 26, 90]
WRONG = {25: False, 26: True}
"""Of the held-out ones."""


def trusted(folder: Path, wrong: dict[int, bool]) -> Artifact:
    """What the stage before says of these held-out rows."""
    ids = np.array(list(wrong), dtype=np.int64)
    shares = {f"{HARDER_SHARE}{column}": (ids + 0.5) / 100 for column in ("aum", "dual", "dual_mean")}
    given = {f"{GIVEN}{column}": SCORES[column].take(ids) for column in ("aum", "dual", "dual_mean")}
    rows = {"sample_id": ids, "wrong": pa.array(wrong.values(), pa.bool_()), **shares, **given}
    return artifact(folder, pa.table(rows))


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    roles = ["train", "holdout", "holdout", "train"]
    labels = pa.table({"sample_id": LABELLED, "label": [0, 1, 0, 1], "role": roles})
    writer = DynamicsWriter(str(tmp_path / "embed" / "dynamics"), num_samples=100)
    writer.observe(np.arange(100), np.ones((100, 3)), np.arange(100) % 3, EMBEDDING)
    writer.commit_epoch(0)
    harder = {"aum": "low", "dual": "high", "dual_mean": "low"}
    return {
        "score": artifact(tmp_path / "score", SCORES.slice(0, 40), SCORES.slice(40), harder=harder),
        "split": artifact(tmp_path / "split", labels),
        "embed": artifact(tmp_path / "embed"),
        "trust": trusted(tmp_path / "trust", WRONG),
    }


def in_order(settings: SelectConfig, size: int, without: Sequence[int] = ()) -> list[int]:
    """What the selector prefers of all samples but these, in one process."""
    selector = settings.build()
    table = SCORES.append_column("embedding", vectors(EMBEDDING))
    pool = TablePool(table.filter(pa.array(~np.isin(np.arange(100), without))), selector.columns)
    (found,) = cuts(selector, pool, [size], 0)
    ids: list[int] = preferred(pool, found).tolist()
    return ids


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
        "wrong": {"wrong": 1, "seen": 2, "unknown": 28, "expected": 15, "interval": ANY},
        "choice": {"option": "mislabel_fraction", "column": "aum", "auto": False, "used": 0.2, "evidence": ANY},
    }
    assert metrics["choice"]["evidence"]["num_holdout"] == 2
    json.dumps(metrics)


@pytest.mark.parametrize("name", SELECTORS.names())
def test_ranks_are_a_permutation_and_ids_ascend(tmp_path: Path, inputs: dict[str, Artifact], name: str) -> None:
    settings = config(selector=name, options=OPTIONS.get(name, {}))
    table, metrics = run(tmp_path / "out", settings, **inputs)
    ids, rank = table["sample_id"].to_numpy(), table["rank"].to_numpy()
    assert (np.diff(ids) > 0).all() and sorted(rank) == list(range(30)) == list(range(metrics["budget"]))
    assert ids[np.argsort(rank)].tolist() == in_order(settings, 30)
    reads = {"ccs": "aum", "d2": "aum", "double_end": "aum", "dual_beta": "dual", "top_k": "aum"}
    none = dict.fromkeys(("class_balanced", "k_center", "moderate", "random", "typiclust", "zcore"))
    column = metrics["score"]
    assert column == {**reads, **none}.get(name, column) and (metrics["cuts"] is None) == (column is None)
    again, _ = run(tmp_path / "again", settings, **inputs)
    assert again.equals(table)


@pytest.mark.parametrize("name", ["double_end", "dual_beta", "ccs", "class_balanced", "k_center", "random"])
@pytest.mark.parametrize("keep_labelled", [False, True])
@pytest.mark.parametrize("together", [40, 10])
@pytest.mark.usefixtures("ray_local")
def test_parts_that_stay_apart_give_the_same_coreset(
    tmp_path: Path,
    inputs: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    keep_labelled: bool,
    together: int,
) -> None:
    options = {"c_d": "auto"} if name == "dual_beta" else {}
    settings = config(selector=name, keep_labelled=keep_labelled, options=options)
    expected, metrics = run(tmp_path / "one", settings, **inputs)
    monkeypatch.setattr(select, "TOGETHER", together)  # of 100 samples and 30 that are kept
    found, found_metrics = run(tmp_path / "many", settings, **inputs)
    assert found_metrics == metrics
    if together > 30:
        assert found.equals(expected)
        return
    assert found.column_names == ["sample_id"] and found["sample_id"].equals(expected["sample_id"])
    parts = 1 if name == "k_center" else 2  # one for each of the scores', or one where all are looked at together
    assert len(list((tmp_path / "many").iterdir())) == parts


@pytest.mark.parametrize("name", SELECTORS.names())
def test_the_labelled_can_be_kept_within_the_budget(tmp_path: Path, inputs: dict[str, Artifact], name: str) -> None:
    settings = config(selector=name, keep_labelled=True, options=OPTIONS.get(name, {}))
    table, metrics = run(tmp_path / "out", settings, **inputs)
    ids, rank = table["sample_id"].to_numpy(), table["rank"].to_numpy()
    assert len(ids) == 30 == metrics["annotation_bill"] and metrics["labelled_in_coreset"] == 4
    assert ids[np.argsort(rank)][:4].tolist() == LABELLED and sorted(rank) == list(range(30))
    assert ids[np.argsort(rank)][4:].tolist() == in_order(settings, 26, LABELLED)


def test_the_labelled_may_be_the_whole_coreset_but_not_more(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    settings = config(selector="double_end", keep_labelled=True, keep_fraction=0.04)
    table, metrics = run(tmp_path / "out", settings, **inputs)
    assert table.to_pydict() == {"sample_id": [3, 25, 26, 90], "rank": [0, 1, 2, 3]}
    assert metrics["annotation_bill"] == metrics["labelled_in_coreset"] == 4
    assert metrics["cuts"] == {"column": "aum", "low": 3.0, "high": 90.0}
    with pytest.raises(UserError, match="'coreset' keeps the 4 labelled samples but its budget is 3: raise"):
        run(tmp_path / "less", settings.model_copy(update={"keep_fraction": 0.03}), **inputs)


HARD_ARE_WRONG = {i: i < 30 for i in range(1, 100, 2)}


@pytest.fixture
def many_held(tmp_path: Path, inputs: dict[str, Artifact]) -> dict[str, Artifact]:
    """With every second sample held out, the hardest with a wrong pseudo-label."""
    labels = {"sample_id": list(HARD_ARE_WRONG), "label": [0] * 50, "role": ["holdout"] * 50}
    split = artifact(tmp_path / "labels", pa.table(labels))
    return inputs | {"trust": trusted(tmp_path / "more", HARD_ARE_WRONG), "split": split}


def test_an_auto_cut_is_the_one_of_the_rule_and_is_written_down(tmp_path: Path, many_held: dict[str, Artifact]) -> None:
    auto = config(selector="double_end", options={"mislabel_fraction": "auto"})
    share, wrong = (np.array(list(column)) for column in (HARD_ARE_WRONG, HARD_ARE_WRONG.values()))
    chosen = choose((share + 0.5) / 100, wrong, Fraction("0.3"))
    assert chosen == Fraction("0.31")  # the last wrong one is 29, the first right one 31
    table, metrics = run(tmp_path / "auto", auto, **many_held)
    assert metrics["choice"]["auto"] and metrics["choice"]["used"] == 0.31
    assert metrics["choice"]["evidence"]["cuts"][0]["kept_wrong"] == 15
    by_hand = config(selector="double_end", options={"mislabel_fraction": 0.31})
    same, said = run(tmp_path / "by hand", by_hand, **many_held)
    assert table.equals(same) and table["sample_id"].to_pylist() == list(range(31, 61))
    evidence_too = {**metrics["choice"]["evidence"], "kept": said["choice"]["evidence"]["kept"]}
    assert said["choice"] == {**metrics["choice"], "auto": False, "evidence": evidence_too}
    assert metrics["wrong"]["expected"] >= said["wrong"]["expected"] == 0  # by rows that had no part in the choice


def test_an_auto_c_d_is_the_one_of_the_rule_and_is_written_down(tmp_path: Path, many_held: dict[str, Artifact]) -> None:
    table, metrics = run(tmp_path / "auto", config(selector="dual_beta", options={"c_d": "auto"}), **many_held)
    ids = np.array(list(HARD_ARE_WRONG))
    dual, mean = (SCORES[name].to_numpy() for name in ("dual", "dual_mean"))
    anchor = float(mean[:10].mean(dtype=float))

    def logs(c_d: float) -> NDArray[np.float64]:
        return log_weights(dual[ids], mean[ids], *beta_parameters(anchor, 0.3, c_d))

    wrong = np.array(list(HARD_ARE_WRONG.values()))
    expected = evidence((ids + 0.5) / 100, wrong, logs, 0.3, 0)
    facts = {"option": "c_d", "column": "dual_mean", "auto": True, "used": expected["value"]}
    assert metrics["choice"] == {**facts, "evidence": expected}
    assert CHOICES[0] < expected["value"] < 3 and metrics["wrong"]["seen"] > 0
    by_hand = config(selector="dual_beta", options={"c_d": expected["value"]})
    same, said = run(tmp_path / "by hand", by_hand, **many_held)
    assert table.equals(same)
    told = {name: said["choice"]["evidence"][name] for name in ("kept", "bins")}  # of this number, not of a chosen one
    evidence_too = {**metrics["choice"]["evidence"], **told}
    assert said["choice"] == {**metrics["choice"], "auto": False, "evidence": evidence_too}
    assert [metrics["wrong"]["wrong"], metrics["wrong"]["seen"]] == expected["kept"]
    fixed, _ = run(tmp_path / "as published", config(selector="dual_beta"), **many_held)
    assert fixed["sample_id"].to_numpy().mean() < table["sample_id"].to_numpy().mean() - 5  # 0 is the hardest


@pytest.mark.parametrize(("selector", "option"), [("double_end", "mislabel_fraction"), ("dual_beta", "c_d")])
def test_what_is_chosen_is_of_what_is_left_to_draw(
    tmp_path: Path, many_held: dict[str, Artifact], selector: str, option: str
) -> None:
    """With the labelled samples kept, which here are the hardest and half of the budget."""
    forced = np.arange(15)
    roles = pa.array(["train"] * 15)
    many_held["split"] = artifact(tmp_path / "half", pa.table({"sample_id": forced, "role": roles}))
    auto = config(selector=selector, options={option: "auto"}, keep_labelled=True)
    table, metrics = run(tmp_path / "out", auto, **many_held)
    assert table.num_rows == 30 and set(forced) <= set(table["sample_id"].to_pylist())
    built = config(selector=selector, options={option: "auto"}).build()
    others = SCORES.filter(pa.array(~np.isin(np.arange(100), forced)))
    held = HeldOut.load(many_held["trust"])
    harder = many_held["score"].metrics["harder"]
    assert metrics["choice"] == choose_option(built, TablePool(others, built.columns), 15, held, harder, 0)
    whole = choose_option(built, TablePool(SCORES, built.columns), 30, held, harder, 0)
    assert whole is not None and whole["evidence"] != metrics["choice"]["evidence"]


def test_nothing_is_chosen_where_nothing_is_left_to_draw(tmp_path: Path, many_held: dict[str, Artifact]) -> None:
    ids = pa.table({"sample_id": np.arange(30), "role": pa.array(["train"] * 30)})
    many_held["split"] = artifact(tmp_path / "all", ids)
    auto = config(selector="dual_beta", options={"c_d": "auto"}, keep_labelled=True)
    table, metrics = run(tmp_path / "out", auto, **many_held)
    assert table["sample_id"].to_pylist() == list(range(30)) and metrics["choice"] is None


def test_an_auto_cut_goes_from_the_end_that_is_said_to_be_hard(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    inputs |= {"trust": trusted(tmp_path / "more", {i: i >= 70 for i in range(1, 100, 2)})}
    options = {"mislabel_fraction": "auto", "harder": "high"}
    table, metrics = run(tmp_path / "out", config(selector="double_end", options=options), **inputs)
    assert metrics["choice"]["used"] == 0.3 and table["sample_id"].to_pylist() == list(range(40, 70))


@pytest.mark.parametrize(
    ("selector", "option", "usual"), [("double_end", "mislabel_fraction", 0.1), ("dual_beta", "c_d", 3.0)]
)
def test_nothing_chooses_an_auto_option_without_held_out_rows(
    tmp_path: Path, inputs: dict[str, Artifact], selector: str, option: str, usual: float
) -> None:
    inputs |= {"trust": trusted(tmp_path / "none", {})}
    auto = config(selector=selector, options={option: "auto"})
    with pytest.raises(UserError, match=rf"'coreset' has {option}=auto but no label is held out .* set split\."):
        run(tmp_path / "out", auto, **inputs)
    _, metrics = run(tmp_path / "by hand", config(selector=selector), **inputs)
    assert metrics["wrong"] is None
    facts = {"option": option, "auto": False, "used": usual, "evidence": None}
    assert facts.items() <= metrics["choice"].items()


def test_what_is_wrong_in_a_coreset_is_told_by_its_held_out_rows(
    tmp_path: Path, many_held: dict[str, Artifact]
) -> None:
    _, metrics = run(tmp_path / "out", config(selector="top_k"), **many_held)  # ids 0..29
    assert metrics["wrong"] == {"wrong": 15, "seen": 15, "unknown": 15, "expected": 30, "interval": ANY}
    forced = config(selector="top_k", keep_labelled=True, keep_fraction=0.6)
    _, metrics = run(tmp_path / "forced", forced, **many_held)
    assert metrics["wrong"] is None  # forced in, they speak for themselves alone


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
    nested = [config(selector="class_balanced", options=options) for options in ({}, {"options": {}})]
    assert nested[0] == nested[1] and nested[0].options["options"] == {}
    assert Stage("select", 1, short, {}, select.run).key == Stage("select", 1, long, {}, select.run).key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selector": "best"}, "there is no selector 'best': choose from ccs, "),
        ({"selector": "random", "keep_fraction": 0}, "keep_fraction"),
        ({"selector": "random", "keep_fraction": 1.1}, "keep_fraction"),
        ({"selector": "random", "options": {"k": 3}}, "selector 'random' has no option 'k'"),
        ({"selector": "top_k", "options": {"score": "loss"}}, "column 'loss' is not of a known score"),
        (
            {"selector": "double_end", "options": {"mislabel_fraction": 0.75}},
            r"add up to 1\.05, more than",
        ),
        ({"selector": "random", "name": "../up"}, "name"),
        ({"selector": "double_end", "options": {"mislabel_fraction": "most"}}, "'most' is no share: .* or to auto"),
        (
            {
                "selector": "class_balanced",
                "options": {"selector": "double_end", "options": {"mislabel_fraction": "auto"}},
            },
            "mislabel_fraction='auto' is chosen for all classes at once, not class by class",
        ),
        (
            {"selector": "class_balanced", "options": {"selector": "dual_beta", "options": {"c_d": "auto"}}},
            "c_d='auto' is chosen for all classes at once, not class by class",
        ),
        ({"selector": "class_balanced", "options": {"selector": "best"}}, "selector='best' cannot go by class"),
    ],
)
def test_wrong_settings_are_found_without_data(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        config(**settings)
    assert error.value.error_count() == 1
