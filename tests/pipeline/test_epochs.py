"""The commit log: what counts after a crash at any write, who wins a race, what is kept."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.epochs import EpochLog
from pipeline.errors import CorruptArtifactError, StorageError, UserError
from pipeline.stage import write_part


class KilledError(Exception):
    """Stands for a crash."""


def train(uri: str, epochs: int) -> None:
    """What a resumable training does: continue after the last commit, with the checkpoint that belongs to it."""
    log = EpochLog(uri)
    last = log.latest()
    state = 0 if last is None else int(log.read_checkpoint(last))
    for epoch in range(last.epoch + 1 if last else 0, epochs):
        state = state * 31 + epoch + 1
        files = [
            write_part(uri, f"epoch-{epoch:05d}-rank-{rank}", ".parquet", b"%d" % (state + rank)) for rank in (0, 1)
        ]
        log.commit(epoch, files, str(state).encode(), {"state": state})


def trained(uri: str) -> list[Any]:
    """What a reader sees of it."""
    log = EpochLog(uri)
    commits = log.commits()
    seen = [(c.epoch, c.facts, [storage.read_verified(f"{uri}/{f.name}", f.sha256) for f in c.files]) for c in commits]
    return [*seen, log.read_checkpoint(commits[-1])]


def test_commits_are_read_in_order_with_all_they_name(tmp_path: Path) -> None:
    log = EpochLog(str(tmp_path))
    assert log.commits() == [] and log.latest() is None
    made = [log.commit(epoch, [], f"state {epoch}".encode(), {"loss": 1 / (epoch + 1)}) for epoch in range(4)]
    assert EpochLog(str(tmp_path)).commits() == made
    assert log.latest() == made[-1]
    assert log.read_checkpoint(made[-1]) == b"state 3"


def test_a_commit_needs_no_checkpoint(tmp_path: Path) -> None:
    commit = EpochLog(str(tmp_path)).commit(0, [])
    assert commit.checkpoint is None
    assert EpochLog(str(tmp_path)).latest() == commit


def test_only_the_checkpoints_of_the_last_two_commits_are_kept(tmp_path: Path) -> None:
    log = EpochLog(str(tmp_path))
    (tmp_path / "checkpoint-00000-left-by-a-killed-attempt.pt").write_bytes(b"x")
    for epoch in range(5):
        log.commit(epoch, [], b"state")
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == [commit.checkpoint.name for commit in log.commits()[-2:] if commit.checkpoint]


def test_who_was_slower_than_another_training_is_told_to_look_again(tmp_path: Path) -> None:
    """The other may just have deleted the checkpoint that this one was about to read: no damage, and it passes."""
    slow, fast = EpochLog(str(tmp_path)), EpochLog(str(tmp_path))
    last = slow.commit(0, [], b"state 0")
    for epoch in range(1, 3):
        fast = EpochLog(str(tmp_path))
        fast.commit(epoch, [], b"state")
        if epoch == 1:
            assert slow.read_checkpoint(last) == b"state 0"
    with pytest.raises(StorageError, match=r"checkpoint of epoch 0 .* is deleted, for another training went on"):
        slow.read_checkpoint(last)


def test_of_two_attempts_at_an_epoch_one_wins(tmp_path: Path) -> None:
    ours, theirs = EpochLog(str(tmp_path)), EpochLog(str(tmp_path))
    won = ours.commit(0, [], b"ours")
    with pytest.raises(UserError, match="epoch 0 is already committed"):
        theirs.commit(0, [], b"theirs")
    assert theirs.latest() == won
    assert theirs.read_checkpoint(won) == b"ours"


def test_an_attempt_that_lost_an_epoch_and_trained_on_commits_nothing_more(tmp_path: Path) -> None:
    zombie, ours = EpochLog(str(tmp_path)), EpochLog(str(tmp_path))
    zombie.commit(0, [], b"both go on from here")
    won = ours.commit(1, [], b"ours")
    with pytest.raises(UserError, match=r"epoch 1 .* does not go on|epoch 1 is already committed"):
        zombie.commit(1, [], b"zombie")
    with pytest.raises(UserError, match=r"epoch 2 .* does not go on from what this training committed"):
        zombie.commit(2, [], b"goes on from the zombie's epoch 1")  # faster than ours this time
    ours.commit(2, [], b"ours, on ours")
    for epoch in (2, 3):
        with pytest.raises(UserError, match="does not go on from what this training committed"):
            zombie.commit(epoch, [], b"zombie")
    assert ours.commits()[1] == won
    assert [ours.read_checkpoint(commit) for commit in ours.commits()[1:]] == [b"ours", b"ours, on ours"]


def test_an_attempt_whose_commit_failed_in_passing_commits_that_epoch_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(uri: str, data: bytes) -> bool:
        raise StorageError("passes")

    logs = [EpochLog(str(tmp_path)) for _ in range(2)]
    for log in logs:
        with monkeypatch.context() as patch:
            patch.setattr(storage, "create", failing)
            with pytest.raises(StorageError):
                log.commit(0, [], b"state")
    logs[0].commit(0, [], b"state")
    with pytest.raises(UserError, match=r"epoch 1 .* does not go on"):
        logs[1].commit(1, [], b"on a state of its own")
    assert logs[0].commit(1, [], b"state").epoch == 1


def test_an_attempt_does_not_go_on_in_a_folder_that_was_deleted_and_filled_anew(tmp_path: Path) -> None:
    old = EpochLog(str(tmp_path))
    old.commit(0, [], b"old")
    for path in tmp_path.iterdir():
        path.unlink()
    EpochLog(str(tmp_path)).commit(0, [], b"new")
    with pytest.raises(UserError, match=r"epoch 1 .* does not go on"):
        old.commit(1, [], b"old")


RACER = """
import json, sys
from pipeline.epochs import EpochLog
from pipeline.errors import StorageError, UserError
from pipeline.stage import write_part

uri, name, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()  # both begin at once
fenced = 0
while True:
    log = EpochLog(uri)
    last = log.latest()
    try:
        history = json.loads(log.read_checkpoint(last)) if last else []
    except StorageError:
        continue
    if len(history) == epochs:
        break
    lost = False
    for epoch in range(len(history), epochs):
        history.append(name)
        data = json.dumps(history).encode()
        files = [write_part(uri, f"epoch-{epoch:05d}-rank-{rank}", ".json", data) for rank in (0, 1)]
        try:
            log.commit(epoch, files, data, {"attempt": name})
            assert not lost, "committed on top of an epoch that it lost"
        except UserError:
            fenced += lost
            if lost:
                break
            lost = True  # and trains on, once, as a zombie would
print(fenced)
"""


def test_of_two_processes_that_race_through_the_same_epochs_one_chain_results(tmp_path: Path) -> None:
    """Every epoch's files and checkpoint are one attempt's, which went on from the epoch before."""
    epochs = 40
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), name, str(epochs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], said
    log = EpochLog(str(tmp_path))
    commits = log.commits()
    assert len(commits) == epochs
    chain: list[str] = []
    for commit in commits:
        chain.append(commit.facts["attempt"])
        for file in commit.files:
            assert json.loads(storage.read_verified(f"{tmp_path}/{file.name}", file.sha256)) == chain
    for commit in commits[-2:]:
        assert json.loads(log.read_checkpoint(commit)) == chain[: commit.epoch + 1]


def test_a_repeated_request_whose_answer_was_lost_is_no_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = storage.create
    monkeypatch.setattr(storage, "create", lambda uri, data: create(uri, data) and create(uri, data))
    assert EpochLog(str(tmp_path)).commit(0, [], b"state") == EpochLog(str(tmp_path)).latest()


def test_epochs_are_committed_in_order(tmp_path: Path) -> None:
    log = EpochLog(str(tmp_path))
    with pytest.raises(UserError, match=r"epoch 1 cannot be committed .* before epoch 0"):
        log.commit(1, [])
    assert not any(tmp_path.iterdir())


def test_a_gap_is_damage_that_names_the_missing_file(tmp_path: Path) -> None:
    log = EpochLog(str(tmp_path))
    for epoch in range(3):
        log.commit(epoch, [])
    (tmp_path / "epoch-00001.json").unlink()
    for read in (log.commits, log.latest):
        with pytest.raises(CorruptArtifactError, match=r"epoch-00001\.json"):
            read()


def test_a_listing_that_was_made_while_epochs_were_committed_is_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EpochLog(str(tmp_path))
    made = [log.commit(epoch, []) for epoch in range(3)]
    monkeypatch.setattr(storage, "names", lambda uri: ["epoch-00000.json", "epoch-00002.json"])
    assert log.commits() == made


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    log = EpochLog(str(tmp_path))
    commit = log.commit(0, [], b"state")
    assert commit.checkpoint is not None
    (tmp_path / commit.checkpoint.name).write_bytes(b"stale")
    with pytest.raises(CorruptArtifactError, match=commit.checkpoint.name):
        log.read_checkpoint(commit)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"epoch": 1, "files": [{}], "checkpoint": null}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    log = EpochLog(str(tmp_path))
    for epoch in range(2):
        log.commit(epoch, [])
    (tmp_path / "epoch-00001.json").write_bytes(content)
    for read in (log.commits, log.latest):
        with pytest.raises(CorruptArtifactError, match=r"epoch-00001\.json' is damaged: delete the folder"):
            read()


def test_any_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    log = EpochLog(str(tmp_path))
    file = write_part(str(tmp_path), "epoch-00000-rank-0", ".parquet", b"x", rows=7)
    log.commit(0, [file], b"state", {"num_samples": 7, "loss": 0.25, "columns": {"el2n": 1}})
    path = tmp_path / "epoch-00000.json"
    whole = path.read_bytes()
    for offset in range(len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptArtifactError, match=r"epoch-00000\.json' is damaged"):
            log.read(0)


def test_the_manifest_of_another_epoch_is_damage(tmp_path: Path) -> None:
    log = EpochLog(str(tmp_path))
    for epoch in range(3):
        log.commit(epoch, [])
    (tmp_path / "epoch-00001.json").write_bytes((tmp_path / "epoch-00002.json").read_bytes())
    with pytest.raises(CorruptArtifactError, match=r"epoch-00001\.json' is damaged"):
        log.commits()


def test_killed_at_any_write_before_or_after_it_a_training_continues_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = str(tmp_path / "reference")
    train(reference, epochs=4)
    calls = 0

    def dying(name: str, at: int, after: bool) -> Any:
        real = getattr(storage, name)

        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at and not after:
                raise KilledError
            result = real(*arguments)
            if calls == at:
                raise KilledError
            return result

        return call

    at = deaths = 0
    while deaths == 2 * at:
        at += 1
        for after in (False, True):
            uri, calls = str(tmp_path / f"{at}-{after}"), 0
            with monkeypatch.context() as patch:
                for name in ("write", "create", "delete"):
                    patch.setattr(storage, name, dying(name, at, after))
                try:
                    train(uri, epochs=4)
                except KilledError:
                    deaths += 1
            for commit in EpochLog(uri).commits():  # nothing that counts is ever in part
                for rank, file in enumerate(commit.files):
                    assert int(storage.read(f"{uri}/{file.name}")) == commit.facts["state"] + rank
            train(uri, epochs=4)
            assert trained(uri) == trained(reference)
            assert len(list(Path(uri).glob("checkpoint-*"))) <= 3  # two, and what the killed attempt left
    assert deaths == 2 * (4 * 4 + 2)  # each write of four epochs, and two checkpoints that are deleted
