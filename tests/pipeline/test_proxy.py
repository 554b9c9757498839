"""The record that the proxy's training leaves behind, and its loop alone in this process."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from models.supervised import SupervisedTrainer
from pipeline import proxy, true_dynamics
from pipeline.dynamics_store import DynamicsStore
from pipeline.epoch_plan import Plan
from pipeline.epochs import EpochLog
from pipeline.images import decode_crop
from pipeline.proxy import ProxyConfig
from pipeline.pseudo_label import Holdout
from pipeline.random_crop import RandomCrop
from pipeline.resources import Resources
from pipeline.stage import Artifact
from pipeline.training import Worker
from pipeline.true_dynamics import store_uri
from tests.pipeline.making import open_samples

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
    def run(
        folder: Path,
        tick: Callable[[int], None] = lambda done: None,
        images: Literal["cache", "stream"] = "cache",
        seed: int = 0,
        **changes: object,
    ) -> bytes:
        config = config_of(done, **{"epochs": 2, "batch_size": 256, **changes}).model_copy(update={"seed": seed})
        worker = replace(lone_worker, tick=tick)
        proxy._loop(worker, done["index"], done["pseudo_label"], config, str(folder), Resources(images=images))
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
    plan = Plan(open_samples(done["index"]), 0, "proxy", 64)
    steps = islice(plan.epochs(), EPOCHS * plan.num_steps)
    losses = [
        np.mean([-np.log(record[epoch]["p_label"][step.ids]).mean() for step in of_epoch])
        for epoch, of_epoch in groupby(steps, key=lambda step: step.epoch)
    ]
    assert len(losses) == EPOCHS
    assert done["proxy"].table("history")["loss"].to_pylist() == pytest.approx(losses, rel=1e-4)


def test_a_record_is_correct_where_the_label_was_ahead(record: list[dict[str, Any]]) -> None:
    for epoch in record:
        assert np.array_equal(epoch["correct"], epoch["p_label"] > epoch["p_other"])


def test_the_metrics_say_how_long_it_was_and_by_how_many(done: dict[str, Artifact]) -> None:
    metrics = done["proxy"].metrics
    assert metrics["epochs"] == EPOCHS and metrics["world_sizes"] == [2]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, tuple[np.ndarray, int]]]:
    """What is trained on from now on: image and label by id, for every epoch."""
    epochs: list[dict[int, tuple[np.ndarray, int]]] = []
    train_epoch = SupervisedTrainer.train_epoch

    def remember(trainer: SupervisedTrainer, epoch: int, batches: Any, **others: Any) -> dict[str, float]:
        batches = list(batches)
        rows = (row for b in batches for row in zip(b.sample_ids, b.images.numpy(), b.labels, strict=True))
        epochs.append({int(n): (image, int(label)) for n, image, label in rows})
        return train_epoch(trainer, epoch, batches, **others)

    monkeypatch.setattr(SupervisedTrainer, "train_epoch", remember)
    return epochs


def test_it_learns_the_labels_to_train_on_and_not_those_of_the_model(
    learn: Learn, done: dict[str, Artifact], tmp_path: Path, shown: list[dict[int, tuple[np.ndarray, int]]]
) -> None:
    learn(tmp_path / "log", epochs=1)
    labels = [shown[0][n][1] for n in range(N)]
    table = done["pseudo_label"].table()
    assert labels == table["train_label"].to_pylist()
    assert labels != table["pseudo_label"].to_pylist()


def test_held_out_rows_are_recorded_in_the_same_passes_with_their_true_labels(
    done: dict[str, Artifact], record: list[dict[str, Any]]
) -> None:
    held = Holdout.load(done["pseudo_label"])
    store = DynamicsStore(store_uri(f"{done['proxy'].uri}/dynamics"))
    assert (store.num_samples, len(store.epochs), store.coverage) == (20, EPOCHS, 1)
    trained = done["pseudo_label"].table()["train_label"].to_numpy()[held.sample_ids]
    same = trained == held.labels
    assert 0 < same.sum() < 20
    for epoch in range(EPOCHS):
        true = store.read(epoch, 0, 20, ["p_label", "p_other", "correct"])
        given = {name: column[held.sample_ids] for name, column in record[epoch].items()}
        assert all(np.array_equal(true[name][same], given[name][same]) for name in true)
        assert (true["p_label"][~same] <= given["p_other"][~same]).all()
        assert (true["p_other"][~same] >= given["p_label"][~same]).all()


def test_a_store_of_true_labels_whose_publishing_was_cut_short_is_completed(learn: Learn, tmp_path: Path) -> None:
    learn(tmp_path / "log")
    commits = EpochLog(str(tmp_path / "log")).commits()
    true_dynamics.publish(commits[:1], str(tmp_path / "log"))
    true_dynamics.publish(commits, str(tmp_path / "log"))
    true_dynamics.publish(commits, str(tmp_path / "log"))
    store = DynamicsStore(store_uri(str(tmp_path / "log")))
    assert len(store.epochs) == 2 and store.read(1, 0, 20, ["p_label"])["p_label"].shape == (20,)


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
    for name in ("through", "died"):
        true_dynamics.publish(EpochLog(str(tmp_path / name)).commits(), str(tmp_path / name))
    for place, n in ((str, N), (store_uri, 20)):
        records = [DynamicsStore(place(str(tmp_path / name))) for name in ("through", "died")]
        for epoch in range(2):
            ours, theirs = (store.read(epoch, 0, n, ["p_label", "correct"]) for store in records)
            assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_images_from_the_cache_and_from_the_shards_train_the_same_model(learn: Learn, tmp_path: Path) -> None:
    assert learn(tmp_path / "cached") == learn(tmp_path / "streamed", images="stream")


def test_random_crops_are_those_of_seed_and_epoch_and_a_training_on_them_continues(
    learn: Learn, done: dict[str, Artifact], tmp_path: Path, shown: list[dict[int, tuple[np.ndarray, int]]]
) -> None:
    crop = RandomCrop(area=(0.3, 0.8))
    expected = learn(tmp_path / "through", random_crop=crop)
    learn(tmp_path / "other seed", seed=1, epochs=1, random_crop=crop)
    samples, pixels = open_samples(done["index"]), np.empty((8, 8, 3), np.uint8)
    for seed, epoch, seen in zip((0, 0, 1), (0, 1, 0), shown, strict=True):
        assert len(seen) == N
        for n, (box, flip) in enumerate(crop.views(seed, "proxy", epoch, np.arange(50))):
            piece = samples.span(np.array([n])).read()
            decode_crop(piece.images[n], samples.max_pixels, pixels, box, flip)
            assert np.array_equal(seen[n][0], pixels)
    first, *others = shown
    for other in others:
        assert np.mean([np.array_equal(first[n][0], other[n][0]) for n in range(N)]) < 0.1

    def die(done: int) -> None:
        if done > N + 300:
            raise KilledError

    with pytest.raises(KilledError):
        learn(tmp_path / "died", die, random_crop=crop)
    assert learn(tmp_path / "died", random_crop=crop) == expected


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
