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

from models.augment import Draw, crop
from models.training import Predictor
from pipeline import pseudo_label
from pipeline.pseudo_label import Holdout, PseudoLabelConfig
from pipeline.resources import Resources
from pipeline.ssl import SslConfig
from pipeline.stage import Artifact
from tests.pipeline.making import take

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
    return predictor.predict(take(done["index"], range(N))).softmax(dim=1)


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


def test_where_the_model_was_given_a_label_that_trains_the_proxy_and_elsewhere_the_models(
    table: pa.Table, done: dict[str, Artifact]
) -> None:
    split = done["split"].table()
    split = split.filter(pc.equal(split["role"], "train"))
    expected = table["pseudo_label"].to_numpy().copy()
    expected[split["sample_id"].to_numpy()] = split["label"].to_numpy()
    assert np.array_equal(table["train_label"].to_numpy(), expected)


def test_the_held_out_rows_are_kept_with_what_the_network_says_of_them(
    table: pa.Table, probabilities: torch.Tensor, done: dict[str, Artifact]
) -> None:
    held = Holdout.load(done["pseudo_label"])
    split = done["split"].table()
    expected = split.filter(pc.equal(split["role"], "holdout")).sort_by("sample_id")
    assert held.sample_ids.tolist() == expected["sample_id"].to_pylist()
    assert held.labels.tolist() == expected["label"].to_pylist()
    softmax = torch.tensor(held.logits).softmax(dim=1)
    assert torch.allclose(softmax, probabilities[torch.tensor(held.sample_ids)], atol=1e-4)
    assert held.logits.argmax(axis=1).tolist() == table["pseudo_label"].take(held.sample_ids).to_pylist()
    assert held.features.shape == (20, 32) and np.isfinite(held.features).all()


def test_without_a_held_out_row_there_is_no_part_of_them(tmp_path: Path) -> None:
    held = Holdout.load(Artifact(str(tmp_path), {"parts": []}))
    assert (len(held.sample_ids), len(held.labels), len(held.logits), len(held.features)) == (0, 0, 0, 0)


def test_the_metrics_are_a_recount(table: pa.Table, done: dict[str, Artifact]) -> None:
    mean = sum(table["confidence"].to_pylist()) / N
    assert done["pseudo_label"].metrics == {"num_samples": N, "mean_confidence": pytest.approx(mean)}


def predict(
    done: dict[str, Artifact], folder: Path, start: int, config: dict[str, Any] | None = None, **resources: Any
) -> pa.Table:
    """One task of the stage, in this process."""
    inputs = {"index": done["index"], "split": done["split"], "ssl": done["ssl"]}
    part, *_ = pseudo_label._predict(
        start, **inputs, config=PseudoLabelConfig(**(config or {})), uri=str(folder), resources=Resources(**resources)
    )
    written = pq.read_table(folder / part.name)
    assert part.rows == written.num_rows
    return written


def test_the_models_own_labels_train_the_proxy_where_that_is_asked_for(
    done: dict[str, Artifact], table: pa.Table, tmp_path: Path
) -> None:
    model = predict(done, tmp_path, 0, {"labelled_rows": "model"})
    assert model["train_label"].equals(model["pseudo_label"])
    assert model["pseudo_label"].equals(table["pseudo_label"])


def test_the_rows_do_not_depend_on_where_the_pool_is_cut(
    done: dict[str, Artifact], table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudo_label, "ROWS_PER_TASK", 600)
    pieces = [predict(done, tmp_path, start) for start in (0, 600, 1200)]
    assert [piece.num_rows for piece in pieces] == [600, 600, 237]
    assert pa.concat_tables(pieces).equals(table)


def test_images_from_the_shards_are_said_to_be_the_same(
    done: dict[str, Artifact], table: pa.Table, tmp_path: Path
) -> None:
    assert predict(done, tmp_path, 0, images="stream").equals(table)


def test_probabilities_and_embeddings_are_kept_where_that_is_asked_for(
    done: dict[str, Artifact], table: pa.Table, probabilities: torch.Tensor, tmp_path: Path
) -> None:
    assert predict(done, tmp_path, 0, {"keep": ("probabilities", "embedding")}).equals(table)
    kept = pq.read_table(next(tmp_path.glob("probabilities-000000*")))
    assert kept["sample_id"].equals(table["sample_id"])
    rows = np.stack(kept["probabilities"].to_numpy())
    assert rows.dtype == np.float16 and rows.shape == (N, 10)
    np.testing.assert_allclose(rows, probabilities, atol=1e-3)
    held = Holdout.load(done["pseudo_label"])
    embedding = pq.read_table(next(tmp_path.glob("embedding-000000*")))["embedding"].take(pa.array(held.sample_ids))
    np.testing.assert_allclose(np.stack(embedding.to_numpy()), held.features, rtol=1e-3, atol=1e-5)


def test_several_views_are_averaged_and_the_same_ones_wherever_the_pool_is_cut(
    done: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the network's probabilities of every view, taken one image at a time from the first 20."""
    whole = predict(done, tmp_path, 0, {"views": 3})
    config = SslConfig.model_validate_json(json.dumps(done["ssl"].manifest["config"]))
    (part,) = done["ssl"].parts("model")
    predictor = Predictor(
        config.training.model, 10, done["ssl"].read(part), config.training.precision, torch.device("cpu")
    )
    for row in range(20):
        image = torch.from_numpy(take(done["index"], [row]))
        draws = [Draw(config.seed, "pseudo-label", view, np.array([row])) for view in range(3)]
        views = [predictor.predict(crop(image, config.training.augment, draw)) for draw in draws]
        mean = torch.stack([logits.softmax(dim=1)[0] for logits in views]).mean(dim=0)
        assert whole["pseudo_label"][row].as_py() == mean.argmax()
        assert whole["confidence"][row].as_py() == pytest.approx(mean.max().item(), abs=1e-5)
    monkeypatch.setattr(pseudo_label, "ROWS_PER_TASK", 800)
    pieces = [predict(done, tmp_path, start, {"views": 3}) for start in (0, 800)]
    assert pa.concat_tables(pieces).equals(whole)
    assert not whole["confidence"].equals(predict(done, tmp_path, 0)["confidence"])
