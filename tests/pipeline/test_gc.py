"""What gc removes, what it never does, and what it leaves when it is killed."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import gc, storage, versions
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from pipeline.fsck import check
from pipeline.run import PLAN
from pipeline.stage import MANIFEST, Output, Stage, write_part
from pipeline.versions import Planned
from tests.pipeline.making import silent
from tests.pipeline.test_versions import Number, make

LATER = 2e10
"""A time at which everything here is old."""


def stage_of(number: int, name: str = "proxy") -> Stage:
    return Stage(name, 1, Number(number=number), {}, lambda *_, **__: {})


def commit(root: str, number: int, epochs: int = 0, finish: bool = True, name: str = "proxy") -> Planned:
    """A stage with a table, the log of a training, and a file that a killed attempt left."""
    stage = stage_of(number, name)
    out = Output(stage.uri(root))
    out.write_table(pa.table({"n": [number]}))
    log = EpochLog(storage.join(out.uri, "training"))
    for epoch in range(epochs):
        log.commit(epoch, [write_part(log.uri, f"epoch-{epoch:05d}-rank-0", ".bin", b"x")], checkpoint=b"c")
    write_part(out.uri, "part", ".parquet", b"nobody's")
    if finish:
        stage.commit(root, out, {}, {})
    return Planned(stage.name, stage.title, stage.key)


def plan(root: str, *stages: Planned) -> None:
    storage.write(storage.join(root, PLAN), json.dumps({"stages": [vars(stage) for stage in stages]}).encode())


def place(planned: Planned) -> str:
    return f"{planned.stage}/{planned.key}"


def is_there(root: str, planned: Planned) -> bool:
    return storage.exists(storage.join(root, planned.stage, planned.key, MANIFEST))


def collect(root: str, keep: int) -> list[gc.Waste]:
    waste = gc.find(root, keep, now=LATER)
    gc.remove(root, keep, waste)
    return waste


def test_only_what_kept_versions_and_the_plan_name_stays(root: str) -> None:
    stages = [commit(root, number, epochs=3 if number == 0 else 0) for number in range(4)]
    unfinished = commit(root, 4, epochs=1, finish=False)
    for number in (1, 2):
        versions.create(root, make(number, stages[number - 1 : number + 1], root))
    plan(root, stages[3])
    waste = gc.find(root, 1, now=LATER)
    assert {each.where: each.kind for each in waste} == {
        place(stages[0]): "stage",
        place(unfinished): "unfinished",
        **{place(stage): "left over" for stage in stages[1:]},
    }
    assert all(is_there(root, stage) for stage in stages), "finding deletes nothing"
    gc.remove(root, 1, waste)
    assert [is_there(root, stage) for stage in stages] == [False, True, True, True]
    assert gc.find(root, 1, now=LATER) == [] and check(root, silent).findings == []
    assert [version.number for version in versions.load(root)] == [1, 2]
    fs, path = storage.resolve(root)
    assert not [name for name in fs.find(path) if stages[0].key in name or unfinished.key in name]


@settings(max_examples=12)
@given(
    named=st.lists(st.sets(st.integers(0, 3), min_size=1), max_size=3),
    planned=st.sets(st.integers(0, 3)),
    unfinished=st.sets(st.integers(0, 3)),
    keep=st.integers(1, 3),
    dies_at=st.integers(0, 12),
)
def test_whatever_is_kept_is_whole_also_when_gc_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
    named: list[set[int]],
    planned: set[int],
    unfinished: set[int],
    keep: int,
    dies_at: int,
) -> None:
    """Killed before any of its steps; a stage that is taken away is gone at once, and a second gc does the rest."""
    root = str(tmp_path_factory.mktemp("gc") / "run")
    unfinished -= set().union(*named)
    stages = [commit(root, number, epochs=number % 3, finish=number not in unfinished) for number in range(4)]
    for number, some in enumerate(named, 1):
        versions.create(root, make(number, [stages[one] for one in some], root))
    plan(root, *(stages[one] for one in planned))
    needed = set().union(planned, *named[-keep:])
    waste = gc.find(root, keep, now=LATER)
    with pytest.MonkeyPatch.context() as patch:
        killed = dying(patch, dies_at)
        try:
            gc.remove(root, keep, waste)
        except KilledError:
            assert killed()
    assert check(root, silent).is_whole
    for number, planned_stage in enumerate(stages):
        if number not in unfinished:
            assert not (number in needed and not is_there(root, planned_stage))
        folder = Path(root) / planned_stage.stage / planned_stage.key
        if folder.exists():
            assert len(EpochLog(str(folder / "training")).commits()) == number % 3
    collect(root, keep)
    assert check(root, silent).is_whole and gc.find(root, keep, now=LATER) == []
    assert all(is_there(root, stages[one]) for one in needed - unfinished)
    assert all((Path(root) / stages[one].stage / stages[one].key).exists() == (one in needed) for one in range(4))


class KilledError(Exception):
    """Stands for SIGKILL."""


def dying(patch: pytest.MonkeyPatch, at: int) -> Callable[[], bool]:
    """Let whatever touches the disk in gc die at its step of that number; whether it did."""
    steps = 0

    def step(does: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > at:
                raise KilledError
            return does(*arguments, **options)

        return counted

    def rmtree(path: Path) -> None:
        for file in sorted(Path(path).rglob("*"), reverse=True):
            step(lambda file: file.rmdir() if file.is_dir() else file.unlink())(file)
        Path(path).rmdir()

    patch.setattr(shutil, "rmtree", rmtree)
    patch.setattr(storage, "delete", step(storage.delete))
    patch.setattr(Path, "rename", step(Path.rename))
    return lambda: steps > at


def test_a_run_that_is_alive_is_spared(tmp_path: Path) -> None:
    root = str(tmp_path)
    old, alive = commit(root, 0), commit(root, 1, finish=False)
    plan(root, alive)
    assert [each.where for each in gc.find(root, 1)] == [place(old)], "what the plan names may be unfinished"
    plan(root)
    with pytest.raises(UserError, match=f"written to {place(alive)} in .* within the hour, .* run gc again once"):
        gc.find(root, 1)
    found = gc.find(root, 1, now=time.time() + gc.YOUNG + 1)
    assert {(each.where, each.kind) for each in found} == {(place(old), "stage"), (place(alive), "unfinished")}


def test_files_that_killed_attempts_left_go_after_an_hour(tmp_path: Path) -> None:
    root = str(tmp_path)
    stage = commit(root, 0, epochs=1)
    plan(root, stage)
    assert gc.find(root, 1) == []
    ((waste),) = collect(root, 1)
    assert waste.kind == "left over" and waste.bytes == len(b"nobody's") and check(root, silent).findings == []


def test_of_a_damaged_stage_nothing_is_removed(tmp_path: Path) -> None:
    root = str(tmp_path)
    stage = commit(root, 0)
    plan(root, stage)
    folder = tmp_path / stage.stage / stage.key
    (folder / MANIFEST).write_text("{}")
    assert gc.find(root, 1, now=LATER) == []


def test_a_stage_that_a_run_needs_since_it_was_found_stays(tmp_path: Path) -> None:
    root = str(tmp_path)
    stage = commit(root, 0)
    plan(root)
    waste = gc.find(root, 1, now=LATER)
    plan(root, stage)
    gc.remove(root, 1, waste)
    assert is_there(root, stage)


def test_two_at_once_and_other_folders_do_no_harm(tmp_path: Path) -> None:
    root = str(tmp_path)
    commit(root, 0)
    others = (
        "index/shards/0123456789abcdef/part",
        "evaluate/trainings/a.json",
        "notes/x.txt",
        "pool/20260901/train-000000.tar",
        "pool/0123456789abcdef/train-000000.tar",
        "proxy/20260901/mine.txt",
        "readme",
    )
    for other in others:
        storage.write(storage.join(root, other), b"{}")
    plan(root)
    waste = gc.find(root, 1, now=LATER)
    gc.remove(root, 1, waste)
    gc.remove(root, 1, waste)
    assert gc.find(root, 1, now=LATER) == []
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [*others, PLAN]
    )


def test_a_name_that_looks_like_wildcards_is_a_name(s3_root: str) -> None:
    root, other = f"{s3_root}/run[1]*", f"{s3_root}/run1"
    stages = [commit(place_, 0, epochs=2) for place_ in (root, other)]
    plan(root)
    gc.remove(root, 1, gc.find(root, 1, now=LATER))
    assert [is_there(root, stages[0]), is_there(other, stages[1])] == [False, True]
    fs, path = storage.resolve(root)
    assert [name.rpartition("/")[2] for name in fs.find(path)] == [PLAN]
    plan(other, stages[1])
    assert check(other, silent).is_whole


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"is not a run directory: it has no {PLAN}"):
        gc.find(str(tmp_path), 3)
