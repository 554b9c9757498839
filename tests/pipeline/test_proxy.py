"""The record that the proxy's training leaves behind, and its loop alone in this process."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import epoch_plan, proxy
from pipeline.dynamics import DynamicsStore, DynamicsWriter
from pipeline.epochs import EpochLog
from pipeline.proxy import ProxyConfig
from pipeline.stage import Artifact
from pipeline.training import Worker

N, EPOCHS = 1437, 8

Learn = Callable[..., bytes]
"""Runs the loop for 2 epochs; returns the last checkpoint."""


class KilledError(Exception):
    """Stands for a worker that dies."""


def config_of(done: dict[str, Artifact], **changes: object) -> ProxyConfig:
    config = ProxyConfig.model_validate_json(json.dumps(done["proxy"].manifest["config"]))
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


@pytest.fixture
def learn(done: dict[str, Artifact], lone_worker: Worker) -> Learn:
    def run(folder: Path, tick: Callable[[int], None] = lambda done: None, **changes: object) -> bytes:
        config = config_of(done, **{"epochs": 2, "batch_size": 256, **changes})
        worker = replace(lone_worker, tick=tick)
        proxy._loop(worker, done["pixels"], done["pseudo_label"], config, str(folder))
        log = EpochLog(str(folder))
        return log.read_checkpoint(log.commits()[-1])

    return run


@pytest.fixture(scope="module")
def record(done: dict[str, Artifact]) -> list[dict[str, Any]]:
    """What was recorded of all ids, per epoch."""
    store = DynamicsStore(f"{done['proxy'].uri}/dynamics")
    return [store.read(epoch, 0, N, ["p_label", "p_other", "correct"]) for epoch in store.epochs]


def test_every_epoch_records_every_id_once(done: dict[str, Artifact]) -> None:
    commits = EpochLog(f"{done['proxy'].uri}/dynamics").commits()
    assert len(commits) == EPOCHS
    for commit in commits:
        assert len(commit.files) == 2 and sum(file.rows for file in commit.files) == N
        assert commit.facts["duplicates"] == 0 and commit.facts["num_samples"] == N


def test_accuracy_is_the_share_of_records_that_are_correct(
    done: dict[str, Artifact], record: list[dict[str, Any]]
) -> None:
    history = done["proxy"].table("history")
    assert history["epoch"].to_pylist() == list(range(EPOCHS))
    assert history["accuracy"].to_pylist() == pytest.approx([epoch["correct"].mean() for epoch in record])
    assert done["proxy"].metrics["accuracy"] == history["accuracy"].to_pylist()[-1]


def test_the_loss_is_the_mean_over_steps_of_what_each_batch_lost(
    done: dict[str, Artifact], record: list[dict[str, Any]]
) -> None:
    losses = [
        np.mean(
            [
                -np.log(recorded["p_label"][ids]).mean()
                for ids, _, _ in epoch_plan.epoch_batches(0, "proxy", epoch, np.arange(N), 64, rank=0, world_size=1)
            ]
        )
        for epoch, recorded in enumerate(record)
    ]
    assert done["proxy"].table("history")["loss"].to_pylist() == pytest.approx(losses, rel=1e-4)


def test_a_record_is_correct_where_the_label_was_ahead(record: list[dict[str, Any]]) -> None:
    for epoch in record:
        assert np.array_equal(epoch["correct"], epoch["p_label"] > epoch["p_other"])


def test_the_metrics_say_how_long_it_was_and_by_how_many(done: dict[str, Artifact]) -> None:
    metrics = done["proxy"].metrics
    assert metrics["epochs"] == EPOCHS and metrics["world_sizes"] == [2]


def test_it_learns_the_labels_to_train_on_and_not_those_of_the_model(
    learn: Learn, done: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = np.full(N, -1)
    observe = DynamicsWriter.observe

    def remember(writer: DynamicsWriter, ids: Any, logits: Any, labels: Any, *others: Any) -> None:
        seen[ids] = labels
        observe(writer, ids, logits, labels, *others)

    monkeypatch.setattr(DynamicsWriter, "observe", remember)
    learn(tmp_path / "log", epochs=1)
    table = done["pseudo_label"].table()
    assert np.array_equal(seen, table["train_label"].to_numpy())
    assert not np.array_equal(seen, table["pseudo_label"].to_numpy())


@pytest.mark.parametrize("moment", [2, 7, 9])
def test_a_training_that_died_in_any_epoch_ends_in_the_same_bytes(learn: Learn, tmp_path: Path, moment: int) -> None:
    calls = 0

    def die(done: int) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            raise KilledError

    expected = learn(tmp_path / "through")
    with pytest.raises(KilledError):
        learn(tmp_path / "died", die)
    assert learn(tmp_path / "died") == expected
    records = [DynamicsStore(str(tmp_path / name)) for name in ("through", "died")]
    for epoch in range(2):
        ours, theirs = (store.read(epoch, 0, N, ["p_label", "correct"]) for store in records)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_after_the_last_epoch_nothing_is_trained(learn: Learn, tmp_path: Path) -> None:
    first = learn(tmp_path / "log")
    before = sorted(path.name for path in (tmp_path / "log").iterdir())
    told: list[int] = []
    assert learn(tmp_path / "log", told.append) == first
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == before
    assert told == [2 * N]


def test_one_that_continues_says_so_at_once(learn: Learn, tmp_path: Path) -> None:
    learn(tmp_path / "log", epochs=1)
    told: list[int] = []
    learn(tmp_path / "log", told.append, epochs=2)
    assert told[0] == N and told == sorted(told)
