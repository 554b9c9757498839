"""fsck: a whole run is whole, and whatever is damaged in it is told with place, kind and what to do."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import cli
from pipeline import dynamics, storage
from pipeline.config import Config
from pipeline.dynamics import DynamicsWriter
from pipeline.dynamics_store import DynamicsStore
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from pipeline.fsck import check, id_runs, verification, walk
from pipeline.fsck.finding import Finding
from pipeline.run import PLAN
from pipeline.stage import MANIFEST, Output, Stage
from tests.pipeline.making import silent

N, EPOCHS = 200, 4


class Nothing(Config):
    """No settings."""


def make_stage(root: str, name: str, parts: list[str]) -> str:
    """A committed stage; returns its folder."""
    stage = Stage(name, 1, Nothing(), {}, lambda: {})
    out = Output(stage.uri(root))
    for part in parts:
        out.publish(part, f"content of {part}".encode() * 50)
    stage.commit(root, out, {}, {})
    return out.uri


def record(uri: str, epochs: int = EPOCHS) -> None:
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "BLOCK_ROWS", 32)
        writers = [DynamicsWriter(uri, N, rank, 2) for rank in range(2)]
        for epoch in range(epochs):
            for writer, ids in zip(writers, np.array_split(rng.permutation(N), 2), strict=True):
                writer.observe(ids, rng.normal(0, 2, (len(ids), 3)).astype(np.float32), ids % 3)
            writers[0].commit_epoch(epoch, [writer.flush(epoch) for writer in writers], checkpoint=b"weights" * 9)


def make_run(root: str) -> None:
    storage.write(f"{root}/{PLAN}", json.dumps({"recipe": {}, "stages": []}).encode())
    make_stage(root, "index", ["part-0.parquet", "part-1.parquet"])
    make_stage(root, "export", ["shards/coreset-000000.tar", "shards/coreset-000001.tar", "keys.txt"])
    storage.write(f"{root}/evaluate/trainings/ab12.json", b'{"accuracy": 0.5}')
    ssl = EpochLog(f"{make_stage(root, 'ssl', ['model.pt'])}/training")
    for epoch in range(3):
        ssl.commit(epoch, [], b"state")
    record(f"{make_stage(root, 'proxy', ['history.parquet'])}/dynamics")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "run"
    make_run(str(root))
    return root


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole_run, tmp_path / "run")
    return tmp_path / "run"


def one(run: Path, pattern: str) -> Path:
    return sorted(run.glob(pattern))[0]


def findings(run: Path) -> list[Finding]:
    return check(str(run), silent).findings


def test_a_whole_run_is_whole_and_every_named_file_was_read(root: str) -> None:
    make_run(root)
    told: list[tuple[int, int, str]] = []
    report = check(root, lambda *progress: told.append(progress))
    assert report.is_whole and report.findings == []
    files = 2 + 3 + 1 + 2 + 1 + EPOCHS * 2 + 2
    assert (report.files, told[0], told[-1]) == (files, (0, files, "files"), (files, files, "files"))
    assert sorted(told) == told
    dynamics_folder = f"{root}/proxy/{storage.names(f'{root}/proxy')[0]}/dynamics"
    for below in (dynamics_folder, dynamics_folder + "/", dynamics_folder.rsplit("/", 1)[0]):
        assert check(below, silent).findings == []


def test_a_run_of_every_stage_is_whole_and_nothing_is_left_over(reference_run: Path) -> None:
    assert check(str(reference_run), silent).findings == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("pattern", "damage", "kind", "detail"),
    [
        ("index/*/part-0.parquet", flip, "damaged", "SHA-256"),
        ("index/*/part-0.parquet", truncate, "damaged", "bytes, not"),
        ("index/*/part-0.parquet", Path.unlink, "missing", "a manifest names it"),
        ("index/*/part-0.parquet", replace_by_a_folder, "damaged", "not what was written"),
        ("export/*/shards/coreset-000001.tar", flip, "damaged", "SHA-256"),
        ("ssl/*/model.pt", flip, "damaged", "SHA-256"),
        ("ssl/*/training/checkpoint-00002-*", flip, "damaged", "SHA-256"),
        ("ssl/*/training/checkpoint-00001-*", Path.unlink, "missing", "a manifest names it"),
        ("ssl/*/training/epoch-00001.json", flip, "damaged", "not what was written"),
        ("ssl/*/training/epoch-00000.json", Path.unlink, "gap", "lacks epochs 0, and has later ones"),
        ("proxy/*/dynamics/checkpoint-00003-*", flip, "damaged", "SHA-256"),
        (f"proxy/*/{MANIFEST}", truncate, "damaged", "not what was written"),
    ],
)
def test_damage_is_told_with_place_and_remedy(
    run: Path, pattern: str, damage: Callable[[Path], None], kind: str, detail: str
) -> None:
    path = one(run, pattern)
    stage = "/".join(path.relative_to(run).parts[:2])
    damage(path)
    (found,) = [finding for finding in findings(run) if finding.is_damage]
    where = path.parent if kind == "gap" else path
    assert (found.where, found.kind) == (str(where.relative_to(run)), kind)
    assert detail in found.detail
    assert found.fix == f"delete {run}/{stage} and run the same command again"


@pytest.mark.parametrize(
    ("path", "fix"),
    [(PLAN, "run the recipe again, which writes it anew"), ("evaluate/trainings/ab12.json", "delete {}")],
)
def test_plan_and_shared_results_are_verified_as_far_as_they_can_be(run: Path, path: str, fix: str) -> None:
    (run / path).write_text("{")
    (found,) = findings(run)
    assert (found.where, found.kind) == (path, "damaged")
    assert found.fix.startswith(fix.format(run / path))


def test_a_manifest_of_another_stage_is_damage(run: Path) -> None:
    shutil.copy(one(run, f"ssl/*/{MANIFEST}"), one(run, f"index/*/{MANIFEST}"))
    told = [(finding.kind, finding.detail) for finding in findings(run)]
    assert ("damaged", f"it is that of the stage {one(run, 'ssl/*').name}") in told
    assert ("missing", "a manifest names it") in told


def test_lost_records_are_told_as_ids(run: Path) -> None:
    """All of a file that is gone; of one that is damaged, those of the damaged block."""
    store = DynamicsStore(str(one(run, "proxy/*/dynamics")))
    gone, hurt = store.commits[1].files[0], store.commits[2].files[1]
    lost = [i for ids, _ in store.files(1)[0].blocks([]) for i in ids]
    file = store.files(2)[1]
    hurt_ids = [i for ids, _ in file.blocks([], int(file.first[1]), int(file.last[1]) + 1) for i in ids]
    (Path(store.uri) / gone.name).unlink()
    path = Path(store.uri) / hurt.name
    data = bytearray(path.read_bytes())
    data[file._ends[1] + 1] ^= 4
    path.write_bytes(data)
    told = {(Path(finding.where).name, finding.kind): finding.detail for finding in findings(run)}
    assert set(told) == {
        (gone.name, "missing"),
        ("epoch-00001.json", "coverage"),
        (hurt.name, "damaged"),
        ("epoch-00002.json", "coverage"),
    }
    for name, ids in (("epoch-00001.json", lost), ("epoch-00002.json", hurt_ids)):
        words = told[name, "coverage"]
        assert words.startswith(f"of {N} samples it lacks {ids[0]}") and f".. ({len(ids)} in all)" in words
        assert words.count(",") == id_runs.SHOWN


def test_ids_that_an_epoch_has_twice_or_lacks_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer refuses such an epoch: here its manifest comes from elsewhere."""
    writers = [DynamicsWriter(str(tmp_path), 10, rank, 2) for rank in range(2)]
    for writer, ids in zip(writers, ([0, 1, 2, 3, 4, 5], [4, 5, 7, 8]), strict=True):
        writer.observe(np.array(ids), np.zeros((len(ids), 2), np.float32), np.zeros(len(ids), np.int64))
    monkeypatch.setattr(dynamics, "_digest_of_range", lambda n: sum(part.digest for part in parts) % 2**64)
    parts = [writer.flush(0) for writer in writers]
    writers[0].commit_epoch(0, parts)
    told = [(finding.where, finding.kind, finding.detail) for finding in findings(tmp_path)]
    assert told == [
        ("epoch-00000.json", "coverage", "of 10 samples it lacks 6, 9"),
        ("epoch-00000.json", "coverage", "of 10 samples it has twice 4-5"),
    ]


def test_what_killed_attempts_left_is_counted_and_is_no_damage(run: Path) -> None:
    proxy = one(run, "proxy/*/dynamics")
    (proxy / "epoch-00004-rank-0-0a0b0c0d.parquet").write_bytes(b"x" * 1000)
    (proxy / ".epoch-00004.json.0123.tmp").write_bytes(b"x" * 30)
    (proxy / "checkpoint-00001-0a0b0c0d.pt").write_bytes(b"x" * 4)
    (run / "score" / "0123").mkdir(parents=True)
    (run / "score" / "0123" / "part-0.parquet").write_bytes(b"x" * 5)
    for somebodys in ("train-000000.tar", "classes.json", "pool/0123456789abcdef/train-000000.tar"):
        (run / somebodys).parent.mkdir(parents=True, exist_ok=True)
        (run / somebodys).write_bytes(b"not of the run")
    report = check(str(run), silent)
    assert report.is_whole
    assert {(finding.where, finding.kind, finding.detail) for finding in report.findings} == {
        (str(proxy.relative_to(run)), "left over", "no manifest names 3 of its files, 1,034 bytes"),
        ("score/0123", "left over", "no manifest names 1 of its files, 5 bytes"),
    }


def test_coverage_is_the_same_however_many_ids_are_counted_at_a_time(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one(run, "proxy/*/dynamics/epoch-00001-rank-1-*").unlink()
    expected = findings(run)
    assert len(expected) == 2
    monkeypatch.setattr(verification, "IDS", 1)
    monkeypatch.setattr(verification, "PIECE", 100)
    assert findings(run) == expected


@given(st.lists(st.booleans(), max_size=60), st.sets(st.integers(1, 59)))
def test_ids_are_told_as_runs_wherever_they_are_cut(is_there: list[bool], cuts: set[int]) -> None:
    ids = np.flatnonzero(is_there).tolist()
    found = id_runs.IdRuns()
    for piece in np.split(np.array(ids, dtype=np.int64), np.searchsorted(ids, sorted(cuts))):
        found.add(piece)
    runs: list[list[int]] = []
    for i in ids:
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    told = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    cut = told[: id_runs.SHOWN] + ([f".. ({len(ids)} in all)"] if len(told) > id_runs.SHOWN else [])
    assert (found.count, str(found)) == (len(ids), ", ".join(cut))


def test_a_training_that_goes_on_meanwhile_is_not_damaged(tmp_path: Path) -> None:
    log = EpochLog(str(tmp_path))
    for epoch in range(4):
        log.commit(epoch, [], b"state")
        if epoch == 1:
            listed = list(walk.items(str(tmp_path)))
    assert not list(tmp_path.glob("checkpoint-00001-*"))
    assert [found for item in listed for found in verification.verify(item)[2]] == []


def test_links_that_lead_in_a_circle_end(run: Path) -> None:
    (run / "index" / "round").symlink_to(run / "index")
    assert check(str(run), silent).is_whole


@pytest.mark.parametrize("place", ["nowhere", "index", PLAN, "evaluate/trainings", "epoch-00000.json"])
def test_a_path_that_is_no_run_is_the_user_s_mistake(run: Path, place: str) -> None:
    (run / "epoch-00000.json").touch()
    with pytest.raises(UserError, match=r"is not a run directory: it has no _PLAN\.json; name"):
        check(str(run / place), silent)


def test_the_command_says_it_in_a_table_and_by_its_status(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def semiprune(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["semiprune", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        return (status, *capsys.readouterr())

    status, out, err = semiprune("fsck", str(run))
    assert status == 0 and "fsck  done" in err
    assert out.startswith(f"{run} is whole: 19 files, ") and out.count("\n") == 1
    path = one(run, "index/*/part-1.parquet")
    flip(path)
    status, out, _ = semiprune("fsck", str(run))
    assert status == 1
    assert str(path.relative_to(run)) in out and f"{run} is damaged in 1 place: 19 files, " in out
    status, out, err = semiprune("fsck", str(run / "nowhere"))
    assert (status, out) == (2, "") and err.count("is not a run directory") == 1
