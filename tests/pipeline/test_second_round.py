"""Which pseudo-labels join the labels, what the second training makes of them, and how the rounds are compared."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from pipeline import ssl, trust
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from pipeline.pseudo_label import Holdout
from pipeline.resources import Resources
from pipeline.second_round import compare, joining
from pipeline.stage import Artifact, Output
from pipeline.training import Worker
from tests.pipeline.making import silent, table_artifact
from tests.pipeline.test_ssl import config_of, with_other_labels
from tests.running import artifacts, run

Teach = Callable[..., bytes]
"""Runs the loop of a second round for 2 steps; returns its checkpoint."""


@pytest.fixture
def teach(done: dict[str, Artifact], lone_worker: Worker, tmp_path: Path) -> Teach:
    def teach(name: str, confident: float, split: Artifact, **changes: object) -> bytes:
        config = config_of(done, steps=2, checkpoint_every=2, batch_size=8, **changes)
        config = config.model_copy(update={"confident": confident})
        arguments = (lone_worker, done["index"], split, config, str(tmp_path / name), Resources())
        ssl._loop(*arguments, first_round=done["pseudo_label"])
        log = EpochLog(str(tmp_path / name))
        return log.read_checkpoint(log.commits()[-1])

    return teach


@pytest.mark.parametrize("confident", [0.0, 0.6, 0.95])
def test_who_is_confident_and_not_labelled_joins_with_the_models_word(
    done: dict[str, Artifact], confident: float
) -> None:
    ids, labels = joining(done["pseudo_label"], done["split"], confident)
    roles = {row["sample_id"]: row["role"] for row in done["split"].table().to_pylist()}
    expected = {
        row["sample_id"]: row["pseudo_label"]
        for row in done["pseudo_label"].table().to_pylist()
        if row["confidence"] >= np.float32(confident) and roles.get(row["sample_id"]) != "train"
    }
    assert dict(zip(ids.tolist(), labels.tolist(), strict=True)) == expected
    assert ids.tolist() == sorted(expected)


def test_a_threshold_is_met_by_what_is_equal_to_it_and_parts_may_come_in_any_order(tmp_path: Path) -> None:
    confidence = np.array([0.9, 0.8999, 1.0, 0.2], np.float32)
    ids = np.arange(4)
    tables = [
        pa.table({"sample_id": ids[rows], "pseudo_label": 3 - ids[rows], "confidence": confidence[rows]})
        for rows in ([3, 2], [1, 0])
    ]
    none = pa.table({"sample_id": pa.array([], pa.int64()), "role": pa.array([], pa.string())})
    split = table_artifact(tmp_path, "split", [none])
    found = joining(table_artifact(tmp_path, "pseudo_label", tables), split, 0.9)
    assert [column.tolist() for column in found] == [[0, 2], [3, 1]]


@pytest.mark.parametrize("changes", [{}, {"class_balanced": True}, {"logit_adjustment": 1.0}])
def test_labels_that_are_held_out_teach_nothing_in_the_second_round_either(
    teach: Teach, done: dict[str, Artifact], tmp_path: Path, changes: dict[str, object]
) -> None:
    expected = teach("log", 0.5, done["split"], **changes)
    assert teach("held", 0.5, with_other_labels(done["split"], "holdout", tmp_path), **changes) == expected
    assert teach("taught", 0.5, with_other_labels(done["split"], "train", tmp_path), **changes) != expected
    assert teach("other", 0.3, done["split"], **changes) != expected


def test_without_a_confident_row_it_says_so_before_it_trains(done: dict[str, Artifact], tmp_path: Path) -> None:
    config = config_of(done).model_copy(update={"confident": 1.0})
    inputs = {"index": done["index"], "split": done["split"], "first_round": done["pseudo_label"]}
    with pytest.raises(UserError, match=r"^ssl.second_round.confident=1, but the first round is so sure of no pseudo"):
        ssl.run(inputs, config, Output(str(tmp_path)), resources=Resources(), progress=silent)


def test_rounds_are_counted_on_the_same_rows() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(200).astype(np.float32)
    before, after = rng.random((2, 200)) < 0.3
    found = compare(0.7, confidence, (before, after))
    counted = {
        "rounds": [sum(not wrong for wrong in column) for column in (before.tolist(), after.tolist())],
        "confident": sum(not wrong for wrong, sure in zip(before, confidence, strict=True) if sure >= 0.7),
        "mended": sum(was and not is_ for was, is_ in zip(before, after, strict=True)),
        "broken": sum(is_ and not was for was, is_ in zip(before, after, strict=True)),
    }
    assert [row["correct"] for row in found["rounds"]] == counted["rounds"]
    assert found["confident"]["correct"] == counted["confident"]
    assert found["confident"]["total"] == (confidence >= 0.7).sum()
    assert (found["mended"], found["broken"]) == (counted["mended"], counted["broken"])
    assert compare(2.0, confidence, (before, after))["confident"] == {"correct": 0, "total": 0, "interval": None}


def judged(done: dict[str, Artifact], folder: Path, held: bool = True) -> dict[str, Any]:
    """What trust says of a second round whose pseudo-labels are those of the first; without rows held out if asked."""
    manifest = {"config": {"confident": 0.5}, "metrics": {"joined": [3, 0, *[1] * 8]}}
    labels = done["pseudo_label"]
    parts = [part for part in labels.manifest["parts"] if held or not part["name"].startswith("holdout")]
    labels = dataclasses.replace(labels, manifest={**labels.manifest, "parts": parts})
    inputs = {name: done[name] for name in ("split", "proxy", "score")} | {"pseudo_label": labels}
    inputs |= {"first_round": labels, "ssl": Artifact("", manifest)}
    config = trust.TrustConfig(seed=0)
    return trust.run(inputs, config, Output(str(folder)), resources=Resources(), progress=silent)


def test_trust_has_both_rounds(done: dict[str, Artifact], tmp_path: Path) -> None:
    plain, found = done["trust"].metrics, judged(done, tmp_path / "held")
    second = found["second_round"]
    assert (second["confident"], second["joined"], second["joined_by_class"]) == (0.5, 11, [3, 0, *[1] * 8])
    same = {"correct": 20 - plain["num_wrong"], "total": 20, "interval": plain["interval"]}
    assert second["held_out"]["rounds"] == [same, same]
    confidence = Holdout.load(done["pseudo_label"]).logits
    softmax = np.exp(confidence) / np.exp(confidence).sum(axis=1, keepdims=True)
    assert second["held_out"]["confident"]["total"] == (softmax.max(axis=1) >= 0.5).sum()
    assert f"({same['correct']} after the first round)" in found["verdict"]["why"]
    assert {name: value for name, value in found.items() if name not in ("second_round", "verdict")} == {
        name: value for name, value in plain.items() if name != "verdict"
    }
    alone = judged(done, tmp_path / "alone", held=False)
    assert alone["second_round"]["held_out"] is None and alone["verdict"]["level"] == "not measured"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_with_a_second_round_goes_on_from_one_without(reference_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(reference_run, root)
    content = yaml.safe_load((reference_run.parent / "run.yaml").read_text())
    content["ssl"]["second_round"] = {"confident": 0.5}
    recipe = tmp_path / "run.yaml"
    recipe.write_text(yaml.safe_dump({**content, "root": str(root), "evaluate": None}))
    status, out, err = run("run", str(recipe))
    assert status == 0, err
    assert "pseudo_label  found done" in err and "ssl round 2  started" in err
    found = artifacts(root)
    joined, _ = joining(found["pseudo_label"], found["split"], 0.5)
    metrics = found["trust"].metrics["second_round"]
    assert metrics["joined"] == sum(found["ssl round 2"].metrics["joined"]) == len(joined) > 0
    assert "after the first round" in out
    assert found["proxy"].manifest["inputs"]["pseudo_label"] == found["pseudo_label round 2"].manifest["key"]
    report = Path(found["report"].uri, "report.html").read_text()
    assert "The second round" in report and "Semi-supervised, round 2: loss" in report
    status, out, _ = run("status", str(root))
    assert status == 0 and "ssl round 2" in out and "to run" not in out
