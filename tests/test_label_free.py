"""A whole run on the digits that is given no label, and that of a labelled subset chosen by its embeddings."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipeline.index import load_index
from pipeline.stage import Artifact
from tests.running import artifacts, run, tiny_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLUSTER = {
    "neighbours": 20,
    "heads": 8,
    "hidden": 128,
    "bottleneck": 64,
    "epochs": 60,
    "warmup_epochs": 6,
    "batch_size": 256,
    "lr": 1e-3,
    "teacher_decay": 0.98,
}


@pytest.fixture(scope="module")
def free(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The finished stages of the run, by title; its table of labels names no image."""
    root = tmp_path_factory.mktemp("free") / "run"
    recipe = tiny_recipe(digits, root)
    content = yaml.safe_load(recipe.read_text())
    del content["ssl"]
    own = {"split": {"num_labelled": 0}, "encode": {"encoder": "pixels"}, "cluster": CLUSTER}
    recipe.write_text(yaml.safe_dump(content | own))
    status, _, err = run("run", str(recipe))
    assert status == 0, err
    return artifacts(root)


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples whose label is the most frequent one of their cluster."""
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (clusters, labels), 1)
    return counts.max(axis=1).sum() / len(labels)


def test_clusters_are_classes_though_no_label_was_seen(free: dict[str, Artifact]) -> None:
    table = free["pseudo_label"].table()
    labels = load_index(free["index"], ["label"])["label"].to_numpy()
    found = table["pseudo_label"].to_numpy()
    assert purity(found, labels) > 0.7  # k-means of the pixels: 0.8; one class for all: 0.1
    losses = free["cluster"].table("heads")["loss"].to_numpy()
    assert free["cluster"].metrics["head"] == losses.argmin()
    assert free["cluster"].metrics["world_sizes"] == [2]


def test_the_rest_of_the_run_is_as_ever_and_only_the_coreset_is_to_be_paid_for(free: dict[str, Artifact]) -> None:
    assert free["split"].table().num_rows == 0
    for name in ("cutoff", "beta"):
        metrics = free[f"select {name}"].metrics
        assert metrics["annotation_bill"] == metrics["budget"] == 431 and metrics["labelled_in_coreset"] == 0
    assert free["trust"].metrics["accuracy"] is None and free["report"].metrics["headline"]
    assert {row["subset"] for row in free["evaluate"].metrics["rows"]} == {"cutoff", "beta", "random", "full"}


def test_clusters_are_exported_as_such(free: dict[str, Artifact]) -> None:
    rows = pq.read_table(f"{free['export cutoff'].uri}/coreset.parquet")
    assert rows["cluster"].equals(free["pseudo_label"].table()["pseudo_label"].take(rows["sample_id"]))
    assert not {"pseudo_label", "train_label"} & set(rows.column_names)
    assert not any(rows["labelled"].to_pylist())


def test_embeddings_that_cannot_be_used_are_one_sentence_and_status_2(digits: Path, tmp_path: Path) -> None:
    """Weights that are not there, or are code; a table without a row for every image."""
    recipe = tiny_recipe(digits, tmp_path / "run")
    content = yaml.safe_load(recipe.read_text())
    del content["ssl"], content["evaluate"]
    code, few = tmp_path / "code.pt", tmp_path / "few.parquet"
    torch.save(torch.nn.Linear(1, 1), code)  # a whole module: loading it would run what it says
    pq.write_table(pa.table({"sample_id": [0, 1], "embedding": [[0.5], [1.0]]}), few)
    for encode, sentence in (
        ({"encoder": "resnet18", "weights": "/absent.pt"}, "there is no file at encode.weights='/absent.pt'"),
        ({"encoder": "resnet18", "weights": str(code)}, "holds more than tensors, which is not safe to load"),
        ({"table": str(few)}, "lacks 1435 of the 1437 samples, the first is sample_id 2"),
    ):
        own = {"split": {"num_labelled": 0}, "encode": encode, "cluster": CLUSTER}
        recipe.write_text(yaml.safe_dump(content | own))
        status, _, err = run("run", str(recipe))
        assert status == 2 and sentence in err and "Traceback" not in err, err
