"""A pool that grows day by day: versions of its coreset, and what they go on from."""

import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import training
from pipeline import lease, plan, select, split, ssl, storage, versions
from pipeline import refresh as refresh_module
from pipeline.epochs import EpochLog
from pipeline.errors import DataError, SemiPruneError, UserError
from pipeline.fsck import check
from pipeline.gc import find, remove
from pipeline.index import load_index
from pipeline.lease import Holder, Lease, hold
from pipeline.recipe import load_recipe
from pipeline.refresh import Refreshed, _check_order, _since, refresh
from pipeline.resources import Resources
from pipeline.selectors import exact
from pipeline.split import SplitConfig, SplitStageConfig
from pipeline.stage import MANIFEST, Artifact, Output, Stage
from pipeline.status import read_status
from pipeline.training import Worker
from pipeline.versions import Past, Planned, Since, Version
from pipeline.warm_start import Learned, RefreshConfig, decide
from tests.pipeline.making import run_stage, silent, table_artifact
from tests.pipeline.test_lease import elsewhere
from tests.pipeline.test_run import Silent
from tests.pipeline.test_select import config as select_config
from tests.pipeline.test_split import make_index
from tests.pipeline.test_ssl import config_of
from tests.running import finish, kill_tree, run, start, tiny_recipe, wait_for

SHARDS = [f"train-{number:06d}.tar" for number in range(6)]
THEN = Learned(version=3, learner="a", num_samples=800, num_labels=100)


@pytest.mark.parametrize(
    ("how", "samples", "labels", "learner", "warm", "why"),
    [
        ("auto", 1000, 100, "a", True, "warm: 20.0% of the samples are new since version 3 was trained from scratch"),
        (
            "auto",
            1001,
            100,
            "a",
            False,
            "from scratch: 20.1% of the samples are new .* refresh.retrain_above=0.2",
        ),
        ("auto", 800, 126, "a", False, "from scratch: 20.6% of the labels"),
        ("auto", 800, 90, "a", True, "warm: 0.0% of the samples"),
        ("auto", 800, 100, "b", False, "from scratch: version 3 was trained with other settings"),
        ("always", 8000, 100, "a", True, "warm: as refresh.warm_start says"),
        ("never", 800, 100, "a", False, "from scratch: as refresh.warm_start says"),
    ],
)
def test_how_much_is_new_decides(how: Any, samples: int, labels: int, learner: str, warm: bool, why: str) -> None:
    found, said = decide(RefreshConfig(warm_start=how), THEN, Learned(4, learner, samples, labels))
    assert found == warm
    assert re.match(why, said), said


def test_a_model_of_other_settings_cannot_go_on() -> None:
    with pytest.raises(UserError, match=r"refresh.warm_start=always, but .* version 3, .*: set it to auto or never"):
        decide(RefreshConfig(warm_start="always"), THEN, Learned(4, "b", 800, 100))


def past(stage: str, key: str = "0" * 16) -> Past:
    return Past.of(Planned(stage, stage, key), 1)


def keys(recipe: Path, *overrides: str, since: Since | None = None) -> dict[str, str]:
    return {stage.title: stage.key for stage in plan.build(load_recipe(str(recipe), overrides), since)}


def test_keys_depend_on_what_a_refresh_goes_on_from_and_not_on_its_settings(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "data", tmp_path / "run")
    plain = keys(recipe)
    assert keys(recipe, "refresh={warm_start: never, retrain_above: 0.5, budget: per_batch}") == plain
    assert keys(recipe, "split.labels=null") == plain
    tried = [
        Since(ssl={"ssl": {"start": past("ssl")}}, steps_fraction=0.25),
        Since(ssl={"ssl": {"start": past("ssl", "1" * 16)}}, steps_fraction=0.25),
        Since(ssl={"ssl": {"start": past("ssl")}}, steps_fraction=0.5),
    ]
    warm = [keys(recipe, since=since) for since in tried]
    assert len({found["ssl"] for found in [plain, *warm]}) == 4
    assert warm[0]["ssl of version 1"] == "0" * 16 and warm[0]["split"] == plain["split"]
    stay = keys(recipe, since=Since(select={"beta": {"earlier": past("select")}}))
    assert {title for title in plain if plain[title] != stay[title]} == {
        "select beta",
        "export beta",
        "evaluate",
        "report",
    }
    (shorter,) = (s for s in plan.build(load_recipe(str(recipe)), tried[0]) if s.title == "ssl")
    assert shorter.config.training.steps == 15


def test_each_training_goes_on_from_the_same_one_of_the_version_before(tmp_path: Path) -> None:
    overrides = ("ssl.second_round={}", "split.folds=2")
    recipe = load_recipe(str(tiny_recipe(tmp_path / "data", tmp_path / "run")), overrides)
    planned = [Planned(stage.name, stage.title, stage.key) for stage in plan.build(recipe)]
    last = Version(1, "", "", "", 0, 0, 0, THEN, None, "", [], planned, [])
    assert not any("start" in stage.inputs for stage in plan.build(recipe, _since(recipe, last, warm=False)))
    stages = {stage.title: stage for stage in plan.build(recipe, _since(recipe, last, warm=True))}
    trained = [title for title, stage in stages.items() if stage.name == "ssl" and not isinstance(stage, Past)]
    assert len(trained) == 6
    for title in trained:
        assert stages[title].inputs["start"].key == last.of(title).key != stages[title].key
        assert stages[title].config.training.steps == 15
    assert stages["ssl round 2"].inputs["first_round"] is stages["pseudo_label"]


# --- the split


def split_of(
    root: Path, known: list[int | None], before: tuple[Artifact, int] | None = None, **choices: Any
) -> Artifact:
    """The split of a pool with these labels; before: an earlier one, and how large its pool was."""
    inputs = {"index": make_index(root, known, num_classes=3)}
    if before is not None:
        inputs |= {"earlier": before[0], "earlier_pool": Artifact("", {"metrics": {"num_samples": before[1]}})}
    return run_stage(root, "split", split.run, SplitStageConfig.of(0, SplitConfig(**choices)), inputs)


def roles(artifact: Artifact) -> dict[int, str]:
    table = artifact.table()
    return dict(zip(table["sample_id"].to_pylist(), table["role"].to_pylist(), strict=True))


def table_of(path: Path, labels: dict[str, int]) -> str:
    path.write_text("\n".join(["key,label", *(f"{key},{label}" for key, label in labels.items())]) + "\n")
    return str(path)


POOL: list[int | None] = [n % 3 for n in range(200)]


@pytest.mark.parametrize("draw", ["uniform", "per_class"])
def test_what_was_visible_stays_so_and_keeps_its_role(tmp_path: Path, draw: Any) -> None:
    first = split_of(tmp_path / "a", POOL[:100], num_labelled=30, draw=draw)
    same = split_of(tmp_path / "b", POOL, (first, 100), num_labelled=30, draw=draw)
    assert roles(same) == roles(first) != roles(split_of(tmp_path / "c", POOL, num_labelled=30, draw=draw))
    more = split_of(tmp_path / "d", POOL, (first, 100), num_labelled=60, draw=draw)
    assert roles(first).items() < roles(more).items() and len(roles(more)) == 60
    new = [role for id_, role in roles(more).items() if id_ not in roles(first)]
    assert sorted(new) == ["holdout"] * 6 + ["train"] * 24


def test_what_annotators_gave_back_is_trained_on_and_never_held_out(tmp_path: Path) -> None:
    first = split_of(tmp_path / "a", POOL[:100], num_labelled=30, labels=table_of(tmp_path / "none.csv", {}))
    held = next(id_ for id_, role in roles(first).items() if role == "holdout")
    hidden = [id_ for id_ in range(100) if id_ not in roles(first)][:10]
    labels = {f"k{id_}": 0 for id_ in [*hidden, held]} | {"unheard-of": 1}
    table = table_of(tmp_path / "some.csv", labels)
    second = split_of(tmp_path / "b", POOL, (first, 100), num_labelled=30, labels=table)
    assert roles(second) == roles(first) | dict.fromkeys(hidden, "train")
    given = dict(zip(*(second.table()[name].to_pylist() for name in ("sample_id", "label")), strict=True))
    assert {given[id_] for id_ in [*hidden, held]} == {0}
    assert second.metrics["num_annotated"] == 11 and second.metrics["annotations_unmatched"] == 1
    third = split_of(tmp_path / "c", POOL, (second, 200), num_labelled=31, labels=table)
    assert roles(second).items() < roles(third).items() and len(roles(third)) == 41


def test_where_every_label_is_held_out_in_turn_the_pool_is_taught_all(tmp_path: Path) -> None:
    first = split_of(tmp_path / "a", POOL[:100], num_labelled=30)
    second = split_of(tmp_path / "b", POOL, (first, 100), num_labelled=40, folds=3)
    assert roles(first).keys() < roles(second).keys() and set(roles(second).values()) == {"train"}


def test_labels_that_come_to_known_images_are_annotators(tmp_path: Path) -> None:
    sparse = [label if n < 60 else None for n, label in enumerate(POOL[:100])]
    first = split_of(tmp_path / "a", sparse)
    second = split_of(tmp_path / "b", POOL, (first, 100))
    new = {id_: role for id_, role in roles(second).items() if id_ not in roles(first)}
    assert roles(first).items() < roles(second).items() and len(roles(second)) == 200
    assert {new[id_] for id_ in range(60, 100)} == {"train"}
    assert [new[id_] for id_ in range(100, 200)].count("holdout") == 20


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"k1": 3}, "gives the key 'k1' the label 3, outside 0..2: correct the table"),
        ({"x1": 1}, "split.labels: none of the 1 keys in .* look like 'k0' and not like 'x1'"),
    ],
)
def test_annotations_that_fit_nothing_are_one_sentence(tmp_path: Path, labels: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_of(tmp_path, POOL, labels=table_of(tmp_path / "labels.csv", labels))


def test_annotations_enter_the_key_by_their_content(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "data", tmp_path / "run")
    found = []
    for label in (0, 1):
        table = table_of(tmp_path / "labels.csv", {"k1": label})
        found.append(keys(recipe, f"split.labels={table}"))
    assert found[0]["split"] != found[1]["split"] != keys(recipe)["split"] and found[0]["index"] == found[1]["index"]
    with pytest.raises(UserError, match=r"split.labels: there is no table of labels at"):
        keys(recipe, f"split.labels={tmp_path}/absent.csv")


# --- the selection


@settings(max_examples=10)
@given(
    days=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    fraction=st.sampled_from([0.1, 0.29, 0.5, 1.0]),
    selector=st.sampled_from(["random", "double_end", "dual_beta", "ccs", "class_balanced"]),
)
def test_what_was_selected_stays_and_every_budget_is_exact(
    tmp_path_factory: pytest.TempPathFactory, days: list[int], fraction: float, selector: str
) -> None:
    days[0] += 10
    folder = tmp_path_factory.mktemp("select")
    options = {"double_end": {"mislabel_fraction": min(0.5, 1 - fraction)}, "ccs": {"mislabel_fraction": 0.0}}
    chosen = select_config(selector=selector, keep_fraction=fraction, options=options.get(selector, {}))
    rng = np.random.default_rng(len(days))
    before: Artifact | None = None
    kept: set[int] = set()
    for day, size in enumerate(np.cumsum(days).tolist()):
        scores = {name: rng.random(size, dtype=np.float32) for name in ("aum", "dual", "dual_mean")}
        table = pa.table({"sample_id": np.arange(size), "train_label": rng.integers(0, 3, size), **scores})
        harder = {"aum": "low", "dual": "high", "dual_mean": "low"}
        score = table_artifact(folder / str(day), "score", [table])
        held = pa.table({"sample_id": pa.array([], pa.int64()), "wrong": pa.array([], pa.bool_())})
        inputs = {
            "score": Artifact(score.uri, {**score.manifest, "metrics": {"harder": harder}}),
            "split": table_artifact(folder / str(day), "split", [pa.table({"sample_id": np.arange(0, size, 2)})]),
            "trust": table_artifact(folder / str(day), "trust", [held]),
        }
        out = Output(str(folder / str(day) / "out"))
        inputs |= {"earlier": before} if before else {}
        metrics = select.run(inputs, chosen, out, resources=Resources(), progress=silent)
        before = Artifact(out.uri, {"parts": [vars(part) for part in out.parts], "metrics": metrics})
        now = set(before.table()["sample_id"].to_pylist())
        assert kept <= now and len(now) == metrics["budget"] == math.floor(exact(fraction) * size)
        assert all(id_ >= size - days[day] for id_ in now - kept)
        assert metrics["labelled_in_coreset"] == sum(id_ % 2 == 0 for id_ in now)
        kept = now
    with pytest.raises(UserError, match=r"keeps what was selected at keep_fraction=.*: put it back, or set refresh"):
        other = chosen.model_copy(update={"selector": "random", "keep_fraction": 0.97, "options": {}})
        select.run(inputs | {"earlier": before}, other, out, resources=Resources(), progress=silent)


# --- the warm start


def test_a_warm_start_begins_with_the_average_of_the_model_before(
    done: dict[str, Artifact], lone_worker: Worker, tmp_path: Path
) -> None:
    config = config_of(done, steps=1, checkpoint_every=1, batch_size=8, lr=1e-30, weight_decay=0.0)
    arguments = (lone_worker, done["index"], done["split"], config)
    ssl._loop(*arguments, str(tmp_path / "warm"), Resources(), start=done["ssl"])
    log = EpochLog(str(tmp_path / "warm"))
    state = training.load(log.read_checkpoint(log.commits()[-1]), torch.device("cpu"))
    before = training.load(done["ssl"].read(done["ssl"].parts("model")[0]), torch.device("cpu"))
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(state["model"][name], value)
            assert torch.allclose(state["ema"][name], value)


# --- the whole


@pytest.fixture
def copied(reference_run: Path, tmp_path: Path) -> Path:
    """The recipe of a run that is done, as it is in a copy of it."""
    shutil.copytree(reference_run, tmp_path / "run")
    recipe = reference_run.parent / "run.yaml"
    (tmp_path / "run.yaml").write_text(recipe.read_text().replace(str(reference_run), str(tmp_path / "run")))
    return tmp_path / "run.yaml"


def refreshed(recipe: Path, *overrides: str, display: Silent | None = None) -> Refreshed:
    return refresh(load_recipe(str(recipe), overrides), display or Silent())


def test_a_run_that_is_done_is_the_first_version_and_then_nothing_is_new(copied: Path) -> None:
    root, display = copied.with_suffix(""), Silent()
    made = refreshed(copied, display=display)
    assert display.ran == [] and made.is_new and made.version.number == 1
    assert [(each.name, each.size, each.added, each.dropped) for each in made.version.coresets] == [
        ("cutoff", 431, 431, 0),
        ("beta", 431, 431, 0),
    ]
    assert made.version.num_samples == 1437 and made.version.num_labels == 100
    for name in ("added", "dropped", "to_annotate"):
        counts = [getattr(each, name) for each in made.version.coresets]
        assert versions.manifest(str(root), made.version).table(name).num_rows == sum(counts)
    exports = [made.version.artifact(str(root), f"export {each.name}").uri for each in made.version.coresets]
    lists = pa.concat_tables([pyarrow.csv.read_csv(f"{uri}/to_annotate.csv") for uri in exports])
    assert lists.to_pylist() == versions.manifest(str(root), made.version).table("to_annotate").to_pylist()
    before = sorted(root.rglob("*"))
    again = refreshed(copied)
    assert not again.is_new and again.version == made.version and sorted(root.rglob("*")) == before
    assert check(str(root), silent).is_whole and find(str(root), 1) == []


def test_a_shard_of_the_pool_which_is_overwritten_is_named_though_nothing_is_new(copied: Path, digits: Path) -> None:
    refreshed(copied)
    for shard in (digits / "train-000003.tar", digits / "test-000000.tar"):
        original = shard.read_bytes()
        try:
            shard.write_bytes(original[:-512] + b"x" * 512)
            with pytest.raises(DataError, match=rf"{shard.name}.*changed since indexing"):
                refreshed(copied)
        finally:
            shard.write_bytes(original)
    assert not refreshed(copied).is_new


def test_a_stage_that_another_recipe_made_under_another_title_is_found(copied: Path) -> None:
    manifests = list(copied.with_suffix("").glob(f"*/*/{MANIFEST}"))
    for path in manifests:
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "title": f"{manifest['title']} test"}))
    assert manifests and refreshed(copied).version.num_samples == 1437


@pytest.mark.parametrize(
    ("looks", "message"),
    [
        (True, "the lease of the refresh in .*/run/versions' is gone: another attempt has finished it"),
        (False, "version 1 of .* was made by another refresh while this one ran"),
    ],
)
def test_of_two_that_come_as_far_as_the_version_one_gets_the_number(
    copied: Path, monkeypatch: pytest.MonkeyPatch, looks: bool, message: str
) -> None:
    """The first one seems dead between its last look at the lease and the version."""
    root, create = str(copied.with_suffix("")), versions.create
    monkeypatch.setattr(Holder, "is_gone", lambda holder: True)
    if not looks:
        monkeypatch.setattr(Lease, "verify", lambda held: None)

    def later(place: str, version: Version) -> bool:
        monkeypatch.setattr(versions, "create", create)
        assert refreshed(copied).is_new
        return create(place, version)

    monkeypatch.setattr(versions, "create", later)
    with pytest.raises(SemiPruneError, match=message):
        refreshed(copied)
    assert len(versions.load(root)) == 1
    waste = find(root, 1, now=2e10)
    assert [(each.where, each.kind, len(each.files)) for each in waste if each.where.startswith("versions")] == [
        ("versions/000001", "left over", 3)
    ]


def test_images_keep_their_ids_or_it_is_said_which_does_not(tmp_path: Path) -> None:
    def index(name: str, *names: str) -> Artifact:
        return table_artifact(tmp_path / name, "index", [pa.table({"key": list(names)})])

    version = versions.load(str(tmp_path)) or [Version(2, "", "", "", 0, 0, 0, THEN, None, "", [], [], [])]
    before = index("a", "x", "y")
    _check_order(version[0], before, index("b", "x", "y", "z"))
    with pytest.raises(DataError, match=r"sample_id 1 was 'y' in version 2 and would be 'w': name new shards so that"):
        _check_order(version[0], before, index("c", "x", "w", "y"))
    with pytest.raises(DataError, match=r"the pool has 1 samples, and had 2 in version 2"):
        _check_order(version[0], before, index("d", "x"))


@pytest.fixture
def days(digits: Path, tmp_path: Path) -> tuple[Path, Callable[[int], None]]:
    """A recipe whose shards are behind a wildcard, and what lets those of a day arrive: two of six."""
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    changes: dict[str, Any] = {
        "data.shards": f"{arrived}/*.tar",
        "split.labels": table_of(tmp_path / "annotated.csv", {}),
        "ssl.steps": 20,
        "proxy.epochs": 3,
        "score": {"aum": {}},
        "select": [{"name": "cutoff", "selector": "double_end", "keep_fraction": 0.3}],
        "evaluate": None,
        "resources": {"num_workers": 1, "cache_dir": str(tmp_path / "cache")},
        "refresh": {"retrain_above": 0.5},
    }
    recipe = tiny_recipe(digits, tmp_path / "run", **changes)

    def arrive(day: int) -> None:
        for name in SHARDS[2 * day : 2 * day + 2]:
            shutil.copy(digits / name, arrived / name)

    return recipe, arrive


def coreset(root: Path, version: Version) -> set[int]:
    return set(version.artifact(str(root), "select cutoff").table()["sample_id"].to_pylist())


def annotate(recipe: Path, version: Version, count: int) -> None:
    """The first images that a version wants labels of get them; the shards know which."""
    root = str(recipe.with_suffix(""))
    labels = load_index(version.artifact(root, "index"), ["label"])["label"]
    wanted = versions.manifest(root, version).table("to_annotate").slice(0, count).to_pylist()
    with (recipe.parent / "annotated.csv").open("a") as file:
        file.writelines(f"{row['key']},{labels[row['sample_id']].as_py()}\n" for row in wanted)


ENOUGH = SemiPruneError("the work failed")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are quick to tell."""
    for name, value in {"BEAT": 0.05, "LOOK": 0.02}.items():
        monkeypatch.setattr(lease, name, value)


@pytest.mark.usefixtures("fast")
def test_a_second_refresh_stops_though_shards_came_meanwhile(
    days: tuple[Path, Callable[[int], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, arrive = days
    arrive(0)
    ran: list[str] = []

    def execute(stages: list[Stage], *_: object) -> None:
        ran.append(stages[-1].key)
        if len(ran) == 1:
            arrive(1)
            with pytest.raises(UserError, match=rf"the refresh in .* is being run by .*\(pid {os.getpid()}, since .*;"):
                refreshed(recipe)
        raise ENOUGH

    monkeypatch.setattr("pipeline.refresh.execute", execute)
    for _ in range(2):
        with pytest.raises(SemiPruneError, match="the work failed"):
            refreshed(recipe)
    assert len(set(ran)) == len(ran) == 2, "the first one, and who came when it had let go"


@pytest.mark.usefixtures("fast")
def test_the_lease_of_a_dead_refresh_is_taken_and_the_pool_looked_at_again(
    days: tuple[Path, Callable[[int], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, arrive = days
    arrive(0)
    monkeypatch.setattr(lease, "LAPSE", 0.1)
    dead, before = elsewhere(f"{recipe.with_suffix('')}/versions"), keys(recipe)["report"]
    ran: list[str] = []

    class Waiting(Silent):
        def note(self, title: str, text: str) -> None:
            assert (title, text) == ("refresh", f"looks for up to 0 s whether {dead}, who has it, is alive")
            arrive(1)

    def execute(stages: list[Stage], *_: object) -> None:
        ran.append(stages[-1].key)
        raise ENOUGH

    monkeypatch.setattr("pipeline.refresh.execute", execute)
    with pytest.raises(SemiPruneError, match="the work failed"):
        refreshed(recipe, display=Waiting())
    assert ran == [keys(recipe)["report"]] != [before]


@pytest.mark.usefixtures("fast")
def test_a_refresh_whose_lease_was_taken_stops_at_its_next_progress(
    days: tuple[Path, Callable[[int], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, arrive = days
    arrive(0)
    taken = Holder(**{**vars(Holder.new()), "user": "ana", "host": "elsewhere"})

    def execute(stages: list[Stage], root: str, resources: Resources, display: Silent, _: object) -> None:
        storage.create(f"{root}/versions/_LEASE-000002.json", taken.encode())
        with display.stage("ssl") as progress:
            for done in range(1000):
                progress(done, 1000, "steps")
                time.sleep(0.02)

    monkeypatch.setattr("pipeline.refresh.execute", execute)
    with pytest.raises(UserError, match=r"the refresh in .*/run/versions' was taken over by ana@elsewhere"):
        refreshed(recipe)


@pytest.mark.usefixtures("fast")
def test_beside_a_running_one_a_refresh_with_nothing_new_ends_well(copied: Path) -> None:
    root = copied.with_suffix("")
    made = refreshed(copied).version
    with hold(f"{root}/versions", "refresh", pytest.fail):
        before = {path for path in root.rglob("*") if "_ALIVE-" not in path.name}
        assert not refreshed(copied).is_new
        assert {path for path in root.rglob("*") if "_ALIVE-" not in path.name} == before
        assert versions.load(str(root)) == [made] and {row.state for row in read_status(str(root))} == {"done"}
        assert check(str(root), silent).findings == [] and find(str(root), 1, now=2e10) == []
        shutil.rmtree(made.of("report").uri(str(root)))
        with pytest.raises(UserError, match=r"the refresh in .* is being run by"):
            refreshed(copied)
    assert not refreshed(copied).is_new and sorted(path.name for path in (root / "versions").iterdir()) == ["000001"]
    assert check(str(root), silent).findings == []


@pytest.mark.usefixtures("fast")
def test_a_refresh_whose_lease_is_gone_makes_no_version(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, make = copied.with_suffix(""), refresh_module._make

    def made(*arguments: Any) -> Refreshed:
        found = make(*arguments)
        for path in (root / "versions").glob("_LEASE-*"):
            path.unlink()
        return found

    monkeypatch.setattr(refresh_module, "_make", made)
    with pytest.raises(UserError, match=r"the lease of the refresh in .* is gone"):
        refreshed(copied)
    assert versions.load(str(root)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_process_refreshes_and_one_that_was_killed_is_followed_at_once(
    days: tuple[Path, Callable[[int], None]],
) -> None:
    recipe, arrive = days
    root, long = recipe.with_suffix(""), ("--set", "ssl.steps=1000000")

    def trains(number: int) -> bool:
        return len(list(root.glob("ssl/*/training/epoch-00000.json"))) == number

    arrive(0)
    first = start("refresh", str(recipe), *long)
    wait_for(lambda: trains(1), first, "training")
    arrive(1)
    status, _, err = run("refresh", str(recipe), *long)
    assert status == 2 and re.search(rf"error: the refresh in .* is being run by .*\(pid {first.pid}, since ", err), err
    assert len(list(root.glob("index/*/_MANIFEST.json"))) == 1, "nothing was run"
    kill_tree(first)
    third = start("refresh", str(recipe), *long)
    wait_for(lambda: trains(2), third, "training")
    third.send_signal(signal.SIGINT)
    status, _, err = finish(third)
    assert status == 130 and "looks for" not in err, err
    assert not lease.running(f"{root}/versions", storage.names(f"{root}/versions"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_days_of_shards_and_labels(ray_local: None, days: tuple[Path, Callable[[int], None]]) -> None:
    recipe, arrive = days
    root = recipe.with_suffix("")
    arrive(0)
    first = refreshed(recipe).version
    assert (first.num_shards, first.num_samples, first.num_labels) == (2, 480, 100)
    assert first.started_from is None and len(coreset(root, first)) == math.floor(0.3 * 480)
    was = roles(first.artifact(str(root), "split"))
    wanted = versions.manifest(str(root), first).table("to_annotate")
    assert set(wanted["sample_id"].to_pylist()) == coreset(root, first) - was.keys()
    assert wanted["rank"].to_pylist() == sorted(wanted["rank"].to_pylist())

    # 20 labels come back with the second day's shards; the refresh is killed, and goes on.
    annotate(recipe, first, 20)
    arrive(1)
    driver = start("refresh", str(recipe))
    wait_for(lambda: len(list(root.glob("ssl/*/_MANIFEST.json"))) > 1, driver, "second model", timeout=300)
    kill_tree(driver)
    assert versions.load(str(root)) == [first]
    display = Silent()
    second = refreshed(recipe, display=display).version
    assert "ssl" not in display.ran and "proxy" in display.ran
    assert (second.num_samples, second.num_labels, second.started_from) == (959, 120, 1), second.why
    assert second.learned == first.learned and len(coreset(root, second)) == math.floor(0.3 * 959)
    (change,) = second.coresets
    assert change.added == len(coreset(root, second) - coreset(root, first)) == 287 - 144 + change.dropped
    now = roles(second.artifact(str(root), "split"))
    assert was.items() <= now.items() and {now[id_] for id_ in now.keys() - was} == {"train"}
    assert change.to_annotate == len(coreset(root, second) - now.keys())
    model = second.artifact(str(root), "ssl").manifest
    assert model["inputs"]["start"] == first.of("ssl").key and model["config"]["training"]["steps"] == 5

    before, display = sorted(root.rglob("*")), Silent()
    assert not refreshed(recipe, display=display).is_new
    assert sorted(root.rglob("*")) == before and display.ran == display.found == []

    # With the third day's come so many labels that the model is trained from scratch.
    arrive(2)
    annotate(recipe, second, 200)
    third = refreshed(recipe, "refresh.budget=per_batch").version
    assert (third.num_samples, third.num_labels, third.started_from) == (1437, 320, None), third.why
    assert len(coreset(root, third)) == math.floor(0.3 * 1437) and coreset(root, second) < coreset(root, third)
    assert min(coreset(root, third) - coreset(root, second)) >= 959
    (change,) = third.coresets
    assert change.dropped == 0 and change.to_annotate < 431 - 200
    assert versions.load(str(root)) == [first, second, third]

    assert check(str(root), silent).is_whole
    waste = find(str(root), 1, now=2e10)
    assert {"ssl/" + first.of("ssl").key, "proxy/" + first.of("proxy").key} <= {each.where for each in waste}
    remove(str(root), 1, waste)
    assert find(str(root), 1, now=2e10) == [] and check(str(root), silent).is_whole
    assert not refreshed(recipe, "refresh.budget=per_batch").is_new
