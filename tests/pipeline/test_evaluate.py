import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import evaluate, plan
from pipeline.errors import UserError
from pipeline.recipe import load_recipe
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output
from tests.running import artifacts, tiny_recipe


@pytest.fixture(scope="module")
def inputs(reference_run: Path) -> dict[str, Artifact]:
    done = artifacts(reference_run)
    return {
        "index": done["index"],
        "pixels": done["pixels"],
        "test_index": done["index test"],
        "test_pixels": done["pixels test"],
        "select:cutoff": done["select cutoff"],
        "select:beta": done["select beta"],
    }


def config_of(reference_run: Path, **settings: object) -> evaluate.EvaluateConfig:
    content = artifacts(reference_run)["evaluate"].manifest["config"]
    content["settings"] |= settings
    return evaluate.EvaluateConfig.model_validate_json(json.dumps(content))


def nothing(done: int, total: int, unit: str) -> None:
    pass


def test_a_finished_training_is_not_done_again(
    ray_local: None, reference_run: Path, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One selection less: all that is left was trained before, and a training now would fail."""
    monkeypatch.setattr("pipeline.final._train", lambda *_, **__: pytest.fail("trained again"))
    fewer = {name: artifact for name, artifact in inputs.items() if name != "select:beta"}
    out = Output(str(reference_run / "evaluate" / "fewer"))
    again = evaluate.run(fewer, config_of(reference_run), out, resources=Resources(), progress=nothing)
    before = artifacts(reference_run)["evaluate"].metrics["rows"]
    assert again["rows"] == [row for row in before if row["subset"] != "beta"]


def test_the_spread_is_over_seeds() -> None:
    rows = [
        {"subset": "random", "keep_fraction": 0.3, "num_samples": 3, "seed": seed, "accuracy": accuracy}
        for seed, accuracy in enumerate([0.5, 0.6, 0.7])
    ]
    (summary,) = evaluate._summary(rows)
    assert summary["mean"] == pytest.approx(0.6) and summary["std"] == pytest.approx(np.std([5, 6, 7], ddof=1) / 10)
    assert evaluate._summary(rows[:1])[0]["std"] == 0


def test_each_random_training_draws_its_own_coreset(reference_run: Path, inputs: dict[str, Artifact]) -> None:
    selections = {"cutoff": inputs["select:cutoff"]}
    jobs = evaluate._subsets(selections, 1437, config_of(reference_run, seeds=3))
    random = [subset.ids for subset, _ in jobs if subset.name == "random"]
    assert len(random) == 3 and {len(ids) for ids in random} == {431}
    assert not np.array_equal(random[0], random[1])


def test_missing_labels_are_one_sentence(reference_run: Path, inputs: dict[str, Artifact]) -> None:
    jobs = evaluate._subsets({"cutoff": inputs["select:cutoff"]}, 1437, config_of(reference_run, baselines=()))
    labels = np.full(1437, -1, dtype=np.int64)
    with pytest.raises(UserError, match="431 of 431 images of 'cutoff' have no label: annotate them"):
        evaluate._check_labels([subset for subset, _ in jobs], labels)


def test_annotations_made_later_are_another_evaluation(tmp_path: Path, digits: Path) -> None:
    table = tmp_path / "annotated.csv"
    recipe = str(tiny_recipe(digits, tmp_path / "run", **{"evaluate.labels": str(table)}))
    with pytest.raises(UserError, match=r"evaluate.labels: there is no table of labels at"):
        plan.build(load_recipe(recipe))
    keys = []
    for content in ("key,label\n", "key,label\ndigit-0001,3\n"):
        table.write_text(content)
        keys.append({stage.title: stage.key for stage in plan.build(load_recipe(recipe))})
    assert {title for title in keys[0] if keys[0][title] != keys[1][title]} == {"evaluate", "report"}
