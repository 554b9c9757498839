"""What a run directory tells about itself, whole or damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.epochs import EpochLog
from pipeline.errors import CorruptArtifactError, UserError
from pipeline.run import PLAN
from pipeline.stage import MANIFEST, Artifact
from pipeline.status import StageStatus, read_status

STAGES = [
    {"stage": stage, "title": stage, "key": f"{number:x}"} for number, stage in enumerate(("index", "ssl", "proxy"))
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One stage is done, one has two commits, one is to run."""
    (tmp_path / PLAN).write_text(json.dumps({"recipe": {}, "stages": STAGES}))
    (tmp_path / "index" / "0").mkdir(parents=True)
    (tmp_path / "index" / "0" / MANIFEST).write_text(json.dumps({"seconds": 3.14, "key": "0"}))
    log = EpochLog(str(tmp_path / "ssl" / "1" / "training"))
    for epoch in range(2):
        log.commit(epoch, [])
    return tmp_path


def test_done_started_and_to_run(run: Path) -> None:
    assert read_status(str(run)) == [
        StageStatus("index", "0", "done", "3.1 s"),
        StageStatus("ssl", "1", "started", "2 commits"),
        StageStatus("proxy", "2", "to run", ""),
    ]


def test_a_finished_run_is_done_in_the_order_of_its_plan(reference_run: Path, done: dict[str, Artifact]) -> None:
    rows = read_status(str(reference_run))
    assert [(row.title, row.key) for row in rows] == [(title, art.manifest["key"]) for title, art in done.items()]
    assert {row.state for row in rows} == {"done"}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"stages": 3}', '{"stages": [{}]}'])
@pytest.mark.parametrize(
    ("name", "mend"),
    [
        (PLAN, "run the recipe again, which writes it anew"),
        (f"index/0/{MANIFEST}", "delete the folder of that stage"),
        ("ssl/1/training/epoch-00001.json", "delete the folder of that stage"),
    ],
)
def test_damage_is_named(run: Path, name: str, mend: str, content: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(CorruptArtifactError, match=rf"{name}' is damaged: {mend}"):
        read_status(str(run))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda run: run / "index", "is not a run directory: it has no _PLAN.json; name the root of a recipe"),
        (lambda run: run / "nowhere", "is not a run directory"),
        (lambda run: run / PLAN, "_PLAN.json' is a file: name a run directory, which is the root of a recipe$"),
        (lambda run: "/proc", "is not a run directory"),
    ],
)
def test_what_is_no_run_directory(run: Path, place: Callable[[Path], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_status(str(place(run)))
