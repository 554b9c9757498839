"""The comparison: which subsets are trained on, with which labels, and how it is summed up."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import evaluate
from pipeline.errors import UserError
from pipeline.evaluate import EvaluateConfig, Subset
from pipeline.index import load_index
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output
from tests.pipeline.making import silent

N = 1437


@pytest.fixture(scope="module")
def inputs(done: dict[str, Artifact]) -> dict[str, Artifact]:
    return {
        "index": done["index"],
        "test_index": done["index test"],
        "select:cutoff": done["select cutoff"],
        "select:beta": done["select beta"],
    }


def config_of(done: dict[str, Artifact], **settings: object) -> EvaluateConfig:
    content = json.loads(json.dumps(done["evaluate"].manifest["config"]))
    content["settings"] |= settings
    return EvaluateConfig.model_validate_json(json.dumps(content))


def subsets(done: dict[str, Artifact], inputs: dict[str, Artifact], **settings: object) -> list[tuple[Subset, int]]:
    selections = {"cutoff": inputs["select:cutoff"], "beta": inputs["select:beta"]}
    return evaluate._subsets(selections, N, config_of(done, **settings))


def test_every_subset_is_trained_on_and_summed_up(done: dict[str, Artifact]) -> None:
    metrics = done["evaluate"].metrics
    assert [(row["subset"], row["num_samples"]) for row in metrics["rows"]] == [
        ("full", N),
        ("random", 431),
        ("cutoff", 431),
        ("beta", 431),
    ]
    assert all(0 <= row["mean"] <= 1 and row["std"] == 0 and row["seeds"] == 1 for row in metrics["rows"])
    assert metrics["test_size"] == 360
    assert done["evaluate"].table()["accuracy"].to_pylist() == [row["mean"] for row in metrics["rows"]]


def test_a_finished_training_is_not_done_again(
    ray_local: None,
    done: dict[str, Artifact],
    reference_run: Path,
    inputs: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One selection less: all that is left was trained before, and a training now would fail."""
    monkeypatch.setattr("pipeline.final._train", lambda *_, **__: pytest.fail("trained again"))
    fewer = {name: artifact for name, artifact in inputs.items() if name != "select:beta"}
    out = Output(str(reference_run / "evaluate" / "fewer"))
    again = evaluate.run(fewer, config_of(done), out, resources=Resources(), progress=silent)
    shutil.rmtree(out.uri)  # other tests look at the run as it was
    assert again["rows"] == [row for row in done["evaluate"].metrics["rows"] if row["subset"] != "beta"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_the_spread_is_that_of_a_sample_over_seeds(accuracies: list[float]) -> None:
    rows = [
        {"subset": "random", "keep_fraction": 0.3, "num_samples": 3, "seed": seed, "accuracy": accuracy}
        for seed, accuracy in enumerate(accuracies)
    ]
    (summary,) = evaluate._summary(rows)
    mean = sum(accuracies) / len(accuracies)
    variance = sum((accuracy - mean) ** 2 for accuracy in accuracies) / max(len(accuracies) - 1, 1)
    assert summary["mean"] == pytest.approx(mean) and summary["seeds"] == len(accuracies)
    assert summary["std"] == pytest.approx(variance**0.5, abs=1e-9)


def test_subsets_of_one_name_and_different_size_are_summed_up_apart() -> None:
    rows = [
        {"subset": "random", "keep_fraction": fraction, "num_samples": size, "seed": 0, "accuracy": fraction}
        for fraction, size in ((0.3, 300), (0.1, 100))
    ]
    assert [(row["num_samples"], row["mean"]) for row in evaluate._summary(rows)] == [(300, 0.3), (100, 0.1)]


def test_each_random_training_draws_its_own_coreset(done: dict[str, Artifact], inputs: dict[str, Artifact]) -> None:
    random = [subset.ids for subset, _ in subsets(done, inputs, seeds=3) if subset.name == "random"]
    assert len(random) == 3
    for ids in random:
        assert len(np.unique(ids)) == 431 and ids.min() >= 0 and ids.max() < N
    assert len({ids.tobytes() for ids in random}) == 3


def test_a_coreset_and_everything_are_the_same_images_for_every_seed(
    done: dict[str, Artifact], inputs: dict[str, Artifact]
) -> None:
    jobs = subsets(done, inputs, seeds=3)
    assert [seed for subset, seed in jobs if subset.name == "beta"] == [0, 1, 2]
    kept = inputs["select:beta"].table()["sample_id"].to_pylist()
    assert all(subset.ids.tolist() == kept for subset, _ in jobs if subset.name == "beta")
    assert all(subset.ids.tolist() == list(range(N)) for subset, _ in jobs if subset.name == "full")


@pytest.mark.parametrize("baselines", [[], ["random"], ["full"]])
def test_only_the_baselines_that_were_asked_for(
    done: dict[str, Artifact], inputs: dict[str, Artifact], baselines: list[str]
) -> None:
    names = {subset.name for subset, _ in subsets(done, inputs, baselines=baselines)}
    assert names == {"cutoff", "beta", *baselines}


def test_missing_labels_are_one_sentence(done: dict[str, Artifact], inputs: dict[str, Artifact]) -> None:
    jobs = subsets(done, inputs, baselines=[])
    labels = np.full(N, -1, dtype=np.int64)
    with pytest.raises(UserError, match="431 of 431 images of 'cutoff' have no label: annotate them"):
        evaluate._check_labels([subset for subset, _ in jobs], labels)


def test_a_label_is_needed_only_where_it_is_trained_on() -> None:
    labels = np.array([0, -1, 1])
    evaluate._check_labels([Subset("cutoff", 0.6, np.array([0, 2]))], labels)
    with pytest.raises(UserError, match="1 of 3 images of 'full' have no label"):
        evaluate._check_labels([Subset("full", 1.0, np.arange(3))], labels)


def test_one_image_is_too_few_to_train_on() -> None:
    with pytest.raises(UserError, match="'cutoff' has one image, too few to train on: raise its keep_fraction"):
        evaluate._check_labels([Subset("cutoff", 0.1, np.array([0]))], np.zeros(3, dtype=np.int64))


def test_annotations_override_the_shards_where_they_speak(
    done: dict[str, Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    index = load_index(inputs["index"], ["key", "label"])
    truth, key = index["label"].to_numpy(), index["key"][5].as_py()
    table = tmp_path / "annotated.csv"
    table.write_text(f"key,label\n{key},{(truth[5] + 1) % 10}\nunknown,3\n")
    labels = evaluate._labels(inputs["index"], config_of(done, labels=str(table)))
    assert np.flatnonzero(labels != truth).tolist() == [5]
    assert np.array_equal(evaluate._labels(inputs["index"], config_of(done)), truth)


def test_an_annotation_that_is_no_class_is_one_sentence(
    done: dict[str, Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    table = tmp_path / "annotated.csv"
    table.write_text("key,label\ndigit-0001,10\n")
    with pytest.raises(UserError, match=r"gives the key 'digit-0001' the label 10, outside 0\.\.9: correct the table"):
        evaluate._labels(inputs["index"], config_of(done, labels=str(table)))


def test_a_test_on_images_that_are_trained_on_is_refused(inputs: dict[str, Artifact]) -> None:
    evaluate._check_apart(inputs["index"], inputs["test_index"])
    with pytest.raises(
        UserError, match=r"train-000000.tar' holds the same bytes as '.*train-000000.tar' of data.shards"
    ):
        evaluate._check_apart(inputs["index"], inputs["index"])
