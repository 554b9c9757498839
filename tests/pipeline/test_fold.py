"""Every labelled row is held out once, and what the folds say is put together."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cross_fit, fold, select
from pipeline.errors import UserError
from pipeline.fold import FoldConfig
from pipeline.pseudo_label import Holdout
from pipeline.recipe import load_recipe
from pipeline.resources import Resources
from pipeline.select import SelectConfig
from pipeline.split import SplitConfig, fold_of
from pipeline.stage import Artifact, Output
from pipeline.trust import HeldOut, TrustConfig, expected_wrong
from tests.pipeline.making import run_stage, silent
from tests.pipeline.test_second_round import judged
from tests.pipeline.test_split import run as run_split
from tests.running import artifacts, run, tiny_recipe

N = 1437


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    folds=st.integers(2, 7),
    seed=st.integers(0, 2**40),
    extra=st.integers(0, 5),
)
def test_each_training_has_every_class_and_rows_stay_where_they_are(
    labels: list[int], folds: int, seed: int, extra: int
) -> None:
    ids, classes = np.arange(len(labels)) * 3, np.array(labels)
    annotated = ids[: min(extra, len(ids))]
    found = fold_of(ids, classes, annotated, seed, folds)
    assert ((found >= -1) & (found < folds)).all() and (found[: len(annotated)] == -1).all()
    for number in range(folds):
        assert set(classes[found != number]) == set(classes)
    spared = found[len(annotated) :] == -1
    assert all(spared[classes[len(annotated) :] == label].sum() <= 1 for label in set(labels))
    some = np.arange(len(ids)) % 2 == 0
    alone = fold_of(ids[some], classes[some], annotated, seed, folds)
    both = (alone >= 0) & (found[some] >= 0)
    assert np.array_equal(alone[both], found[some][both])


def test_the_folds_hold_every_label_out_once(tmp_path: Path) -> None:
    split, rows = run_split(tmp_path, num_labelled=60, folds=3)
    assert {row["role"] for row in rows} == {"train"} and split.metrics["num_train"] == 60
    held: list[int] = []
    for number in range(3):
        config = FoldConfig(seed=0, settings=SplitConfig(num_labelled=60, folds=3), fold=number)
        found = run_stage(tmp_path, "fold", fold.run, config, {"split": split})
        table = found.table()
        assert table.drop_columns("role").equals(split.table().drop_columns("role"))
        roles = np.array(table["role"].to_pylist())
        held += table["sample_id"].to_numpy()[roles == "holdout"].tolist()
        assert found.metrics["num_holdout"] == (roles == "holdout").sum()
        counts = np.bincount(table["label"].to_numpy()[roles == "train"], minlength=3)
        assert found.metrics["class_counts"] == {str(label): int(count) for label, count in enumerate(counts)}
    assert sorted(held) == [row["sample_id"] for row in rows]


def test_a_fold_without_a_row_is_told_before_any_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^split.folds=50, but none of the 4 labels falls into fold \d+: lower it"):
        run_split(tmp_path, num_labelled=4, folds=50)


def put_together(done: dict[str, Artifact], folder: Path, second_round: bool = False) -> Artifact:
    """The held-out rows of the reference run as three folds; if asked, each with a second round like the first."""
    table, held = done["trust"].table(), Holdout.load(done["pseudo_label"])
    split = done["split"]
    inputs = {"score": done["score"]}
    inputs["split"] = dataclasses.replace(
        split, manifest={**split.manifest, "metrics": {**split.metrics, "num_train": 100, "num_holdout": 0}}
    )
    for number in range(3):
        own = np.flatnonzero(np.arange(len(held.labels)) % 3 == number)
        out = Output(str(folder / f"fold{number}"))
        columns = {"sample_id": held.sample_ids[own], "label": held.labels[own]}
        columns |= {name: list(getattr(held, name)[own]) for name in ("logits", "features")}
        out.write_table(pa.table(columns), "holdout")
        inputs[f"pseudo_label:{number}"] = Artifact(out.uri, {"parts": [vars(part) for part in out.parts]})
        out = Output(str(folder / f"trust{number}"))
        out.write_table(table.take(own))
        metrics = judged(done, folder / f"round{number}") if second_round else {}
        inputs[f"trust:{number}"] = Artifact(out.uri, {"parts": [vars(part) for part in out.parts], "metrics": metrics})
    if second_round:
        inputs["ssl"] = Artifact("", {"config": {"confident": 0.5}, "metrics": {"joined": [3, *[1] * 9]}})
    out = Output(str(folder / "out"))
    metrics = cross_fit.run(inputs, TrustConfig(seed=0), out, resources=Resources(), progress=silent)
    return Artifact(out.uri, {"parts": [vars(part) for part in out.parts], "metrics": metrics})


def test_a_holdout_cut_into_folds_says_the_same_when_they_are_put_together(
    done: dict[str, Artifact], tmp_path: Path
) -> None:
    merged, whole = put_together(done, tmp_path), done["trust"]
    assert merged.table().equals(whole.table())
    found, expected = merged.metrics, whole.metrics
    same = ("num_holdout", "num_wrong", "accuracy", "interval", "per_class", "by_confidence", "calibration", "along")
    for name in (*same, "rank_correlation", "num_samples", "verdict"):
        assert found[name] == expected[name], name
    assert (found["folds"], found["num_train"], found["more_labels"]) == (3, 100, None)
    pool = expected_wrong(found["num_wrong"], 20, N - 100)
    assert pool is not None
    assert found["pool"]["expected"] == pytest.approx(found["num_wrong"] / 20 * (N - 100))
    assert found["pool"]["interval"] == [end - found["num_wrong"] for end in pool["interval"]]


def test_second_rounds_of_the_folds_are_added_up(done: dict[str, Artifact], tmp_path: Path) -> None:
    found = put_together(done, tmp_path, second_round=True).metrics
    one = judged(done, tmp_path / "one")["second_round"]["held_out"]
    second = found["second_round"]
    assert second["joined"] == 12
    for mine, each in zip(second["held_out"]["rounds"], one["rounds"], strict=True):
        assert (mine["correct"], mine["total"]) == (3 * each["correct"], 3 * each["total"])
    assert second["held_out"]["confident"]["total"] == 3 * one["confident"]["total"]
    assert f"({3 * one['rounds'][0]['correct']} after the first round)" in found["verdict"]["why"]


def selected(done: dict[str, Artifact], folder: Path, selector: str, **options: Any) -> dict[str, Any]:
    config = SelectConfig(name="x", selector=selector, keep_fraction=0.3, seed=0, options=options)
    inputs = {"score": done["score"], "split": done["split"], "trust": put_together(done, folder)}
    return select.run(inputs, config, Output(str(folder / "select")), resources=Resources(), progress=silent)


def test_a_coreset_is_judged_by_the_cut_in_the_pools_of_the_folds(done: dict[str, Artifact], tmp_path: Path) -> None:
    held = HeldOut.load(done["trust"])
    assert held.in_pool and not HeldOut.load(put_together(done, tmp_path / "own")).in_pool
    metrics = selected(done, tmp_path / "fixed", "double_end", mislabel_fraction=0.1)
    share = held.harder_share("aum")
    kept = [wrong for u, wrong in zip(share, held.wrong, strict=True) if 0.1 <= u < 0.1 + 0.3]
    assert (metrics["wrong"]["wrong"], metrics["wrong"]["seen"]) == (sum(kept), len(kept))
    unknown = 431 - metrics["labelled_in_coreset"]
    assert metrics["wrong"]["expected"] == pytest.approx(sum(kept) / len(kept) * unknown)
    seen = []
    for selector, option, value in [
        ("double_end", "mislabel_fraction", "auto"),
        *(("dual_beta", "c_d", c) for c in ("auto", 3.0)),
    ]:
        chosen = selected(done, tmp_path / f"{selector} {value}", selector, **{option: value})
        found = chosen["wrong"] or {"wrong": 0, "seen": 0}  # nothing is expected where no held-out row is kept
        assert [found["wrong"], found["seen"]] == chosen["choice"]["evidence"]["kept"]
        seen.append(found["seen"])
    assert any(seen)
    assert selected(done, tmp_path / "any", "random")["wrong"] is None


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ("split.folds=5", "split.holdout_fraction=0.2"),
            "split: folds=5 holds every label out in turn, and holdout_fraction=0.2 keeps some from all trainings: ",
        ),
        (("split.folds=1",), "split.folds: 1 cannot be used"),
    ],
)
def test_one_of_folds_and_holdout_fraction(overrides: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    recipe = str(tiny_recipe(tmp_path / "data", tmp_path / "run"))
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, overrides)
    assert sentence in str(caught.value)
    chosen = load_recipe(recipe, ("split.folds=5", "select.0.options.mislabel_fraction=auto"))
    assert (chosen.split.folds, chosen.split.holdout_fraction) == (5, 0.0)
    assert type(chosen).model_validate_json(chosen.model_dump_json()) == chosen


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_whose_labels_all_judge(digits: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(digits, tmp_path / "run", **{"split.folds": 2, "ssl.steps": 20, "proxy.epochs": 3})
    content = yaml.safe_load(recipe.read_text())
    content |= {"score": {"aum": {}}, "evaluate": None, "select": content["select"][:1]}
    content["select"][0]["options"] = {"mislabel_fraction": "auto"}
    recipe.write_text(yaml.safe_dump(content))
    status, out, err = run("run", str(recipe))
    assert status == 0, err
    found = artifacts(tmp_path / "run")
    table, metrics = found["trust"].table(), found["trust"].metrics
    assert table["sample_id"].to_pylist() == found["split"].table()["sample_id"].to_pylist()
    assert metrics["num_train"] == metrics["num_holdout"] == 100 and metrics["rank_correlation"]["aum"]
    for number in (1, 2):
        roles = found[f"fold {number}"].table()
        guesses = found[f"pseudo_label fold {number}"].table()["pseudo_label"].to_numpy()
        for row in roles.to_pylist():
            if row["role"] == "holdout":
                (mine,) = (each for each in table.to_pylist() if each["sample_id"] == row["sample_id"])
                assert mine["pseudo_label"] == guesses[row["sample_id"]]
                assert mine["wrong"] == (mine["pseudo_label"] != row["label"])
    assert found["select cutoff"].metrics["choice"]["evidence"]["num_holdout"] == 100
    report = Path(found["report"].uri, "report.html").read_text()
    assert "Each label was held out once, from trainings of its own that knew 1 of 2 parts" in report
    assert "of 100 held-out pseudo-labels are right" in out
