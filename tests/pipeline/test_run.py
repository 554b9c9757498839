"""A plan is carried out: what a whole run leaves, what is not done again, and what is said when it fails."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline import plan
from pipeline.errors import SemiPruneError, UserError
from pipeline.recipe import Recipe, load_recipe
from pipeline.run import execute
from pipeline.scores import compute_scores
from pipeline.selectors import select
from pipeline.stage import Artifact, Part, Progress
from pipeline.status import read_status
from tests.running import tiny_recipe


class Silent:
    """A display that remembers which stages ran, and what was decided."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.found: list[str] = []
        self.noted: list[tuple[str, str]] = []

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        self.ran.append(title)
        yield lambda done, total, unit: None

    def skipped(self, title: str, key: str) -> None:
        self.found.append(title)

    def note(self, title: str, text: str) -> None:
        self.noted.append((title, text))


def run_here(recipe: Recipe, until: str | None = None, display: Silent | None = None) -> Silent:
    stages = plan.build(recipe)
    if until is not None:
        stages = plan.needed(stages, until)
    display = display or Silent()
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


def test_an_export_says_what_is_labelled_and_lists_the_rest(done: dict[str, Artifact]) -> None:
    paid = done["split"].table()["sample_id"]
    for name in ("cutoff", "beta"):
        rows = pq.read_table(f"{done[f'export {name}'].uri}/coreset.parquet")
        assert rows["labelled"].equals(pc.is_in(rows["sample_id"], paid))
        assert pc.sum(rows["labelled"]).as_py() == done[f"select {name}"].metrics["labelled_in_coreset"] > 0
        left = pyarrow.csv.read_csv(f"{done[f'export {name}'].uri}/to_annotate.csv")
        wanted = rows.filter(pc.invert(rows["labelled"])).sort_by("rank")
        for column in ("sample_id", "key", "rank"):
            assert left[column].to_pylist() == wanted[column].to_pylist()


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
    with pytest.raises(SemiPruneError, match="the stage 'index test' was given up: OutOfMemoryError: Task") as caught:
        run_here(recipe)
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "run" / "_PLAN.json").read_text())["stages"][0]["title"] == "index test"
    assert read_status(str(tmp_path / "run"))[0].state == "to run"


def content(artifact: Artifact) -> dict[str, bytes]:
    """Every file that a stage published, but for the random end of its name."""
    parts = [Part(**row) for row in artifact.manifest["parts"]]
    return {re.sub(r"-[0-9a-f]{8}(?=\.)", "", part.name): artifact.read(part) for part in parts}


@pytest.mark.slow
def test_images_from_the_shards_give_the_same_coresets_as_those_from_the_cache(
    ray_local: None, done: dict[str, Artifact], reference_run: Path, tmp_path: Path
) -> None:
    """To the byte, models, scores, exported shards and the evaluation included; the reference run took the cache."""
    recipe = load_recipe(
        str(reference_run.parent / "run.yaml"),
        (f"root={tmp_path}/run", f"resources={{images: stream, cache_dir: {tmp_path}/cache}}"),
    )
    display = Silent()
    stages = [stage for stage in plan.build(recipe) if stage.name != "report"]
    streamed = execute(stages, recipe.root, recipe.resources, display, recipe.model_dump(mode="json"))
    why = "stream: as resources.images says"
    assert display.noted == [("images", why), ("images test", why)]
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    assert [artifact.manifest["title"] for artifact in streamed] == [title for title in done if title != "report"]
    for artifact in streamed:
        theirs = done[artifact.manifest["title"]]
        assert (artifact.manifest["resources"]["images"], theirs.manifest["resources"]["images"]) == ("stream", "auto")
        assert content(artifact) == content(theirs)
        assert artifact.metrics == theirs.metrics


def test_images_are_decoded_before_the_first_stage_that_wants_them_and_once(
    ray_local: None, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ssl.run", lambda *_, **__: {})
    monkeypatch.setattr("pipeline.pseudo_label.run", lambda *_, **__: {})
    cache = tmp_path / "cache"
    recipe = load_recipe(str(tiny_recipe(digits, tmp_path / "run")), (f"resources={{cache_dir: {cache}}}",))
    display = run_here(recipe, until="pseudo_label")
    assert display.ran == ["index", "split", "images", "ssl", "pseudo_label"]
    ((title, why),) = display.noted
    assert title == "images" and why.startswith("cache: 276 kB decoded, ")
    assert sum(path.stat().st_size for path in cache.rglob("*.arrow")) == pytest.approx(1437 * 192, rel=0.05)
    # Another run finds them, and one that is done does not ask.
    display = run_here(recipe.model_copy(update={"root": str(tmp_path / "other")}), until="ssl")
    assert display.ran == ["index", "split", "ssl"] and len(display.noted) == 1
    display = run_here(recipe, until="pseudo_label")
    assert display.ran == display.noted == []


def test_a_run_that_crops_its_images_caches_none(
    ray_local: None, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("ssl", "pseudo_label", "proxy"):
        monkeypatch.setattr(f"pipeline.{stage}.run", lambda *_, **__: {})
    recipe = load_recipe(
        str(tiny_recipe(digits, tmp_path / "run")),
        (f"resources={{cache_dir: {tmp_path}/cache, cache_gb: 1.0e-5}}", "proxy.random_crop={}"),
    )
    display = run_here(recipe, until="proxy")
    assert display.ran == ["index", "split", "ssl", "pseudo_label", "proxy"]
    assert [why.partition(":")[0] for _, why in display.noted] == ["stream"]


NO_SPACE = r"no space left to write '.*': free some, then run the same command again"


def test_a_full_disk_is_one_sentence(ray_local: None, digits: Path, tmp_path: Path, small_disk: Path) -> None:
    recipe = load_recipe(str(tiny_recipe(digits, tmp_path / "run")), (f"root={small_disk}/run",))
    (small_disk / "filling").write_bytes(bytes((1 << 20) - (32 << 10)))  # a plan can be written, and not all parts
    with pytest.raises(UserError, match=NO_SPACE):
        run_here(recipe)
    assert [row.state for row in read_status(recipe.root)][:2] == ["started", "to run"]


def test_a_full_cache_is_one_sentence(ray_local: None, digits: Path, tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "filling").write_bytes(bytes((1 << 20) - (100 << 10)))
    recipe = load_recipe(
        str(tiny_recipe(digits, tmp_path / "run")), (f"resources={{cache_dir: {small_disk}, cache_gb: 1}}",)
    )
    with pytest.raises(UserError, match=NO_SPACE):
        run_here(recipe)
    assert [row.state for row in read_status(recipe.root)][:4] == ["done", "done", "done", "to run"]
