"""What a whole run leaves in its directory, stage by stage."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from pipeline import plan
from pipeline.dynamics import DynamicsStore
from pipeline.errors import SemiPruneError, UserError
from pipeline.recipe import Recipe, load_recipe
from pipeline.run import execute
from pipeline.scores import compute_scores
from pipeline.selectors import select
from pipeline.stage import Artifact, Progress
from pipeline.status import read_status
from tests.running import artifacts, tiny_recipe


class Silent:
    """A display that remembers which stages ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.found: list[str] = []

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        self.ran.append(title)
        yield lambda done, total, unit: None

    def skipped(self, title: str, key: str) -> None:
        self.found.append(title)


def run_here(recipe: Recipe, until: str | None = None) -> Silent:
    stages = plan.build(recipe)
    if until is not None:
        stages = plan.needed(stages, until)
    display = Silent()
    execute(stages, recipe.root, recipe.resources, display, recipe.model_dump(mode="json"))
    return display


@pytest.fixture(scope="module")
def done(reference_run: Path) -> dict[str, Artifact]:
    return artifacts(reference_run)


def test_every_manifest_says_what_ran_and_with_what(done: dict[str, Artifact]) -> None:
    for title, artifact in done.items():
        assert artifact.manifest["title"] == title
        assert artifact.manifest["seconds"] >= 0 and artifact.manifest["libraries"]["ray"].startswith("2.")
        assert artifact.manifest["resources"]["num_workers"] == 2


def test_pseudo_labels_cover_the_pool_and_paid_labels_train_the_proxy(done: dict[str, Artifact]) -> None:
    table, split = done["pseudo_label"].table(), done["split"].table()
    assert table["sample_id"].to_pylist() == list(range(1437))
    confidence, margin = table["confidence"].to_numpy(), table["margin"].to_numpy()
    assert ((confidence >= 0.1) & (confidence <= 1) & (margin >= 0) & (margin <= confidence)).all()
    ids = split["sample_id"].to_numpy()
    train_label, pseudo_label = table["train_label"].to_numpy(), table["pseudo_label"].to_numpy()
    assert np.array_equal(train_label[ids], split["label"].to_numpy())
    others = np.setdiff1d(np.arange(1437), ids)
    assert np.array_equal(train_label[others], pseudo_label[others])
    holdout = split.filter(pc.equal(split["role"], "holdout"))
    right = pseudo_label[holdout["sample_id"].to_numpy()] == holdout["label"].to_numpy()
    metrics = done["pseudo_label"].metrics
    assert metrics["holdout_correct"] == right.sum() and metrics["num_holdout"] == len(right) == 20
    assert metrics["holdout_accuracy"] == pytest.approx(right.mean())


def test_dynamics_hold_every_sample_in_every_epoch_and_give_the_scores(done: dict[str, Artifact]) -> None:
    uri = f"{done['proxy'].uri}/dynamics"
    store = DynamicsStore(uri)
    assert (len(store.epochs), store.num_samples, store.coverage) == (8, 1437, 1.0)
    again = compute_scores(uri, ["aum", "dual", "el2n", "forgetting"], dual={"T": 8, "J": 4}, el2n={"num_epochs": 5})
    table = done["score"].table()
    for name in again.column_names:
        assert table[name].to_pylist() == again[name].to_pylist()
    kept = select(again, "double_end", keep_fraction=0.3, mislabel_fraction=0.1)
    assert done["select cutoff"].table()["sample_id"].to_pylist() == kept.tolist()


def test_the_evaluation_trains_on_each_subset_and_counts_the_bill(done: dict[str, Artifact]) -> None:
    rows = done["evaluate"].metrics["rows"]
    assert [(row["subset"], row["num_samples"]) for row in rows] == [
        ("full", 1437),
        ("random", 431),
        ("cutoff", 431),
        ("beta", 431),
    ]
    assert all(0 <= row["mean"] <= 1 and row["seeds"] == 1 for row in rows)
    chosen = done["select cutoff"]
    labelled = set(done["split"].table()["sample_id"].to_pylist())
    both = labelled & set(chosen.table()["sample_id"].to_pylist())
    assert chosen.metrics["annotation_bill"] == 431 - len(both) + 100


def test_the_status_needs_nothing_but_the_directory(reference_run: Path, done: dict[str, Artifact]) -> None:
    rows = read_status(str(reference_run))
    assert [row.title for row in rows] == list(done) and {row.state for row in rows} == {"done"}


def test_a_changed_selector_trains_nothing(ray_local: None, reference_run: Path, tmp_path: Path) -> None:
    shutil.copytree(reference_run, tmp_path / "run")
    recipe = load_recipe(
        str(reference_run.parent / "run.yaml"),
        (f"root={tmp_path}/run", "select.0.name=top", "select.0.selector=top_k", "select.0.options={}"),
    )
    display = run_here(recipe, until="export")
    assert display.ran == ["select top", "export top"]


def test_what_ray_gives_up_on_is_one_sentence(
    ray_local: None, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import OutOfMemoryError

    def run_out(*_: object, **__: object) -> dict[str, object]:
        raise OutOfMemoryError("Task was killed due to the node running low on memory.\nmuch more")

    monkeypatch.setattr("pipeline.index.run", run_out)
    recipe = load_recipe(str(tiny_recipe(digits, tmp_path / "run")))
    with pytest.raises(SemiPruneError, match="the stage 'index' was given up: OutOfMemoryError: Task") as caught:
        run_here(recipe)
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "run" / "_PLAN.json").read_text())["stages"][0]["title"] == "index"
    assert read_status(str(tmp_path / "run"))[0].state == "to run"


def test_a_full_disk_is_one_sentence(ray_local: None, digits: Path, tmp_path: Path, small_disk: Path) -> None:
    recipe = load_recipe(str(tiny_recipe(digits, tmp_path / "run")), (f"root={small_disk}/run", "data.image_size=32"))
    with pytest.raises(UserError, match=r"no space left to write '.*': free some, then run the same command again"):
        run_here(recipe)
    assert [row.state for row in read_status(recipe.root)][:2] == ["done", "started"]
