"""What is said of every image, against the model, the split and a recount."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from models.training import Predictor
from pipeline import pseudo_label
from pipeline.pixels import Pixels
from pipeline.resources import Resources
from pipeline.ssl import SslConfig
from pipeline.stage import Artifact

N = 1437


@pytest.fixture(scope="module")
def table(done: dict[str, Artifact]) -> pa.Table:
    return done["pseudo_label"].table()


@pytest.fixture(scope="module")
def probabilities(done: dict[str, Artifact]) -> torch.Tensor:
    """What the network of the stage before says of every image, float32 [n, C]."""
    config = SslConfig.model_validate_json(json.dumps(done["ssl"].manifest["config"])).training
    (part,) = done["ssl"].parts("model")
    predictor = Predictor(config.model, 10, done["ssl"].read(part), config.precision, torch.device("cpu"))
    return predictor.predict(Pixels.open(done["pixels"]).take(np.arange(N))).softmax(dim=1)


def test_every_id_is_there_once_and_in_order(table: pa.Table) -> None:
    assert table["sample_id"].to_pylist() == list(range(N))


def test_it_is_the_class_that_the_network_puts_first(table: pa.Table, probabilities: torch.Tensor) -> None:
    chosen = torch.tensor(table["pseudo_label"].to_pylist())[:, None]
    assert torch.allclose(probabilities.gather(1, chosen)[:, 0], probabilities.amax(dim=1), atol=1e-4)


def test_confidence_and_margin_are_those_of_the_first_two_classes(table: pa.Table, probabilities: torch.Tensor) -> None:
    ordered = np.sort(probabilities.numpy(), axis=1)
    np.testing.assert_allclose(table["confidence"].to_numpy(), ordered[:, -1], atol=1e-4)
    np.testing.assert_allclose(table["margin"].to_numpy(), ordered[:, -1] - ordered[:, -2], atol=1e-4)


def test_confidence_is_at_least_that_of_a_guess_and_never_below_the_margin(table: pa.Table) -> None:
    confidence, margin = table["confidence"].to_numpy(), table["margin"].to_numpy()
    assert ((confidence >= 0.1) & (confidence <= 1)).all()
    assert ((margin >= 0) & (margin <= confidence)).all()


def test_where_a_label_was_paid_for_it_trains_the_proxy_and_elsewhere_the_models(
    table: pa.Table, done: dict[str, Artifact]
) -> None:
    split = done["split"].table()
    expected = table["pseudo_label"].to_numpy().copy()
    expected[split["sample_id"].to_numpy()] = split["label"].to_numpy()
    assert np.array_equal(table["train_label"].to_numpy(), expected)


def test_the_metrics_are_a_recount_of_the_held_out_labels(table: pa.Table, done: dict[str, Artifact]) -> None:
    guesses = table["pseudo_label"].to_pylist()
    rows = [row for row in done["split"].table().to_pylist() if row["role"] == "holdout"]
    right = [row for row in rows if guesses[row["sample_id"]] == row["label"]]
    metrics = done["pseudo_label"].metrics
    assert metrics["num_holdout"] == len(rows) == 20
    assert metrics["holdout_correct"] == len(right)
    assert metrics["holdout_accuracy"] == pytest.approx(len(right) / len(rows))
    assert metrics["holdout_per_class"] == {
        str(label): [sum(row["label"] == label for row in right), sum(row["label"] == label for row in rows)]
        for label in sorted({row["label"] for row in rows})
    }
    assert metrics["num_samples"] == N
    assert metrics["mean_confidence"] == pytest.approx(sum(table["confidence"].to_pylist()) / N)


def test_without_a_held_out_label_the_accuracy_is_unknown_and_not_zero(table: pa.Table, done: dict[str, Any]) -> None:
    split = done["split"].table()
    metrics = pseudo_label._check(table, split.filter(pc.equal(split["role"], "train")))
    assert metrics["holdout_accuracy"] is None
    assert (metrics["num_holdout"], metrics["holdout_correct"], metrics["holdout_per_class"]) == (0, 0, {})


def predict(done: dict[str, Artifact], folder: Path, start: int, labelled_rows: str = "ground_truth") -> pa.Table:
    """One task of the stage, in this process."""
    inputs = {"pixels": done["pixels"], "split": done["split"], "ssl": done["ssl"]}
    part = pseudo_label._predict(
        start, **inputs, labelled_rows=labelled_rows, uri=str(folder), resources=Resources(cpus_per_worker=1)
    )
    written = pq.read_table(folder / part["name"])
    assert part["rows"] == written.num_rows
    return written


def test_the_models_own_labels_train_the_proxy_where_that_is_asked_for(
    done: dict[str, Artifact], table: pa.Table, tmp_path: Path
) -> None:
    model = predict(done, tmp_path, 0, labelled_rows="model")
    assert model["train_label"].equals(model["pseudo_label"])
    assert model["pseudo_label"].equals(table["pseudo_label"])


def test_the_rows_do_not_depend_on_where_the_pool_is_cut(
    done: dict[str, Artifact], table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_label, "ROWS_PER_TASK", 600)
    pieces = [predict(done, tmp_path, start) for start in (0, 600, 1200)]
    assert [piece.num_rows for piece in pieces] == [600, 600, 237]
    assert pa.concat_tables(pieces).equals(table)
