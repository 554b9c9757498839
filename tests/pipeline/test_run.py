"""A plan is carried out: what a whole run leaves, what is not done again, and what is said when it fails."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import plan
from pipeline.errors import SemiPruneError, UserError
from pipeline.recipe import Recipe, load_recipe
from pipeline.run import execute
from pipeline.scores import compute_scores
from pipeline.selectors import select
from pipeline.stage import Artifact, Progress
from pipeline.status import read_status
from tests.running import tiny_recipe


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


def test_every_manifest_says_what_ran_and_with_what(done: dict[str, Artifact]) -> None:
    for title, artifact in done.items():
        assert artifact.manifest["title"] == title
        assert artifact.manifest["seconds"] >= 0 and artifact.manifest["libraries"]["ray"].startswith("2.")
        assert artifact.manifest["resources"]["num_workers"] == 2


def test_scores_and_coresets_can_be_had_again_from_the_record_alone(done: dict[str, Artifact]) -> None:
    uri = f"{done['proxy'].uri}/dynamics"
    again = compute_scores(uri, ["aum", "dual", "el2n", "forgetting"], dual={"T": 8, "J": 4}, el2n={"num_epochs": 5})
    table = done["score"].table()
    for name in again.column_names:
        assert table[name].to_pylist() == again[name].to_pylist()
    kept = select(again, "double_end", keep_fraction=0.3, mislabel_fraction=0.1)
    assert done["select cutoff"].table()["sample_id"].to_pylist() == kept.tolist()


def test_the_bill_is_for_the_labels_in_the_coreset_and_those_paid_for_before(done: dict[str, Artifact]) -> None:
    paid = set(done["split"].table()["sample_id"].to_pylist())
    for title in ("select cutoff", "select beta"):
        kept = set(done[title].table()["sample_id"].to_pylist())
        assert len(kept) == 431 and len(paid) == 100
        assert done[title].metrics["annotation_bill"] == len(kept | paid)


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
