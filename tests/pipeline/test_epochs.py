"""The commit log: what counts after a crash at any write, who wins a race, what is kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.epochs import EpochLog
from pipeline.errors import CorruptArtifactError, UserError
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
        file = write_part(uri, f"epoch-{epoch:05d}-rank-0", ".arrow", str(state).encode(), rows=1)
        log.commit(epoch, [file], str(state).encode(), {"state": state})


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
    with pytest.raises(CorruptArtifactError, match=r"checkpoint-00002-.* missing"):
        log.read_checkpoint(log.commits()[2])


def test_of_two_attempts_at_an_epoch_one_wins(tmp_path: Path) -> None:
    ours, theirs = EpochLog(str(tmp_path)), EpochLog(str(tmp_path))
    won = ours.commit(0, [], b"ours")
    with pytest.raises(UserError, match="epoch 0 is already committed"):
        theirs.commit(0, [], b"theirs")
    assert theirs.latest() == won
    assert theirs.read_checkpoint(won) == b"ours"


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
                assert json.loads(storage.read(f"{uri}/{commit.files[0].name}")) == commit.facts["state"]
            train(uri, epochs=4)
            assert trained(uri) == trained(reference)
            assert len(list(Path(uri).glob("checkpoint-*"))) <= 3  # two, and what the killed attempt left
    assert deaths == 2 * (4 * 3 + 2)  # each write of four epochs, and two checkpoints that are deleted
