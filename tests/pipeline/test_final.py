"""Final trainings: kept under the hash of their content, never done twice, none like another."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.augment import WeakConfig
from models.backbones import ModelConfig
from models.supervised import SupervisedTrainer
from pipeline import final
from pipeline.errors import UserError
from pipeline.final import FinalConfig, Images, train_and_test
from pipeline.random_crop import CroppedTraining, RandomCrop
from pipeline.resources import Resources
from pipeline.stage import Artifact
from tests.pipeline.making import encoded, run_index, silent, write_shard

TRAINING = CroppedTraining(
    model=ModelConfig(name="resnet9", width=4), epochs=1, batch_size=4, augment=WeakConfig(flip=False)
)
CONFIG = FinalConfig(seed=0, num_classes=3, min_steps=1, training=TRAINING)
IDS = np.array([1, 4, 6], dtype=np.int64)
RESOURCES = Resources(num_workers=2, cpus_per_worker=2)


def images(folder: Path, n: int) -> Images:
    """Image i is of one grey, i; its class is i % 3."""
    grey = [encoded(np.full((8, 8, 3), i, dtype=np.uint8)) for i in range(n)]
    shard = write_shard(folder / "train.tar", [(f"s{i:03d}", {"png": data}) for i, data in enumerate(grey)])
    return Images(run_index(folder / "run", str(shard), num_classes=3), np.arange(n, dtype=np.int64) % 3)


@pytest.fixture(scope="module")
def pool(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Images:
    return images(tmp_path_factory.mktemp("pool"), 12)


@pytest.fixture(scope="module")
def test(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Images:
    return images(tmp_path_factory.mktemp("test"), 10)


def with_label(these: Images, sample_id: int, label: int) -> Images:
    labels = these.labels.copy()
    labels[sample_id] = label
    return replace(these, labels=labels)


def with_key(these: Images, key: str) -> Images:
    return replace(these, index=Artifact(these.index.uri, {**these.index.manifest, "key": key}))


def trained(**changes: object) -> FinalConfig:
    return CONFIG.model_copy(update={"training": TRAINING.model_copy(update=changes)})


CHANGES: dict[str, Callable[[Images, Images], tuple[Any, ...]]] = {
    "other ids": lambda pool, test: (IDS + 1, 0, pool, test, CONFIG),
    "fewer ids": lambda pool, test: (IDS[:2], 0, pool, test, CONFIG),
    "the order of the ids": lambda pool, test: (IDS[::-1].copy(), 0, pool, test, CONFIG),
    "the seed of the training": lambda pool, test: (IDS, 1, pool, test, CONFIG),
    "the seed of the run": lambda pool, test: (IDS, 0, pool, test, CONFIG.model_copy(update={"seed": 1})),
    "the least number of steps": lambda pool, test: (IDS, 0, pool, test, CONFIG.model_copy(update={"min_steps": 9})),
    "the epochs": lambda pool, test: (IDS, 0, pool, test, trained(epochs=2)),
    "the parts of the images": lambda pool, test: (IDS, 0, pool, test, trained(random_crop=RandomCrop())),
    "the learning rate": lambda pool, test: (IDS, 0, pool, test, trained(lr=0.2)),
    "a label that is trained on": lambda pool, test: (IDS, 0, with_label(pool, 4, 2), test, CONFIG),
    "a label that is tested on": lambda pool, test: (IDS, 0, pool, with_label(test, 4, 2), CONFIG),
    "the images": lambda pool, test: (IDS, 0, with_key(pool, "smaller"), test, CONFIG),
    "the test images": lambda pool, test: (IDS, 0, pool, with_key(test, "smaller"), CONFIG),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_result_changes_its_key(pool: Images, test: Images, change: str) -> None:
    assert final._key(*CHANGES[change](pool, test)) != final._key(IDS, 0, pool, test, CONFIG)


def test_equal_content_has_one_key_wherever_it_lies(pool: Images, test: Images) -> None:
    elsewhere = [replace(these, index=replace(these.index, uri="s3://elsewhere")) for these in (pool, test)]
    assert final._key(IDS.copy(), 0, *elsewhere, CONFIG) == final._key(IDS, 0, pool, test, CONFIG)


def test_a_label_that_nothing_trains_on_changes_no_key(pool: Images, test: Images) -> None:
    unknown = with_label(pool, 5, -1)
    assert 5 not in IDS
    assert final._key(IDS, 0, unknown, test, CONFIG) == final._key(IDS, 0, pool, test, CONFIG)


def rank(ids: Any, seed: int, **_: Any) -> float:
    """In the place of a training: a number that tells which it was."""
    return len(ids) + seed / 10


def refuse(ids: Any, seed: int, **_: Any) -> float:
    if len(ids) == 3:
        raise UserError("this one diverged")
    return rank(ids, seed)


JOBS = [(np.arange(5), 0), (np.arange(3), 1), (np.arange(5), 2), (np.arange(2), 3)]


def run(pool: Images, test: Images, cache: Path, told: list[Any] | None = None, **resources: int) -> list[float]:
    progress = silent if told is None else lambda *now: told.append(now)
    return train_and_test(JOBS, pool, test, CONFIG, str(cache), resources=Resources(**resources), progress=progress)


def test_results_come_in_the_order_of_the_jobs(
    ray_local: None, pool: Images, test: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final, "_train", rank)
    told: list[Any] = []
    assert run(pool, test, tmp_path / "cache", told, num_workers=2) == [5.0, 3.1, 5.2, 2.3]
    assert told == [(done, 4, "trainings") for done in range(5)]


def test_an_interrupted_evaluation_trains_only_what_is_left(
    ray_local: None, pool: Images, test: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final, "_train", refuse)
    with pytest.raises(Exception, match="this one diverged"):
        run(pool, test, tmp_path / "cache", num_workers=1)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(final, "_train", lambda ids, seed, **_: 0.5)
    told: list[Any] = []
    assert run(pool, test, tmp_path / "cache", told, num_workers=1) == [5.0, 0.5, 0.5, 0.5]
    assert told[0] == (1, 4, "trainings")


def test_the_evaluation_of_the_reference_run_is_kept_training_by_training(done: dict[str, Artifact]) -> None:
    kept = sorted(path.read_text() for path in Path(done["evaluate"].uri).parent.glob("trainings/*.json"))
    rows = done["evaluate"].table().to_pylist()
    assert kept == sorted(f'{{"accuracy": {row["accuracy"]}}}' for row in rows)


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(seed, epoch) of all that is trained in this process from now on."""
    seen: list[tuple[int, int]] = []
    train_epoch = SupervisedTrainer.train_epoch

    def remember(trainer: SupervisedTrainer, epoch: int, *arguments: Any) -> dict[str, float]:
        seen.append((trainer.seed, epoch))
        return train_epoch(trainer, epoch, *arguments)

    monkeypatch.setattr(SupervisedTrainer, "train_epoch", remember)
    return seen


@pytest.mark.parametrize(
    ("num_ids", "least", "expected"),
    [(8, 1, 2), (8, 4, 2), (8, 5, 3), (8, 7, 4), (9, 7, 3), (3, 5, 5), (12, 1, 2)],
)
def test_a_small_subset_gets_as_many_epochs_as_its_steps_need(
    pool: Images, test: Images, epochs: list[tuple[int, int]], num_ids: int, least: int, expected: int
) -> None:
    """Batches of 4 and 2 epochs, or more: ceil(least / ceil(num_ids / 4))."""
    config = trained(epochs=2).model_copy(update={"min_steps": least})
    accuracy = final._train(np.arange(num_ids), 0, pool, test, config, RESOURCES)
    assert [epoch for _, epoch in epochs] == list(range(expected))
    assert 0 <= accuracy <= 1


def test_no_two_trainings_share_weights_or_views_and_each_is_repeatable(
    pool: Images, test: Images, epochs: list[tuple[int, int]]
) -> None:
    for seed_of_run, seed in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)]:
        config = CONFIG.model_copy(update={"seed": seed_of_run})
        final._train(IDS, seed, pool, test, config, RESOURCES)
    seeds = [seed for seed, _ in epochs]
    assert len(set(seeds)) == 4 and seeds[-1] == seeds[0]


def test_images_from_the_cache_and_from_the_shards_train_the_same_model(
    pool: Images, test: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[bytes] = []
    accuracy = final._accuracy
    monkeypatch.setattr(
        final, "_accuracy", lambda predict, *rest: weights.append(predict.__self__.state()) or accuracy(predict, *rest)
    )
    for way in ("cache", "stream"):
        final._train(IDS, 0, pool, test, trained(epochs=3), RESOURCES.model_copy(update={"images": way}))
    assert weights[0] == weights[1]


def test_random_crops_are_of_the_pool_alone_and_others_in_every_epoch_and_training(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image i is of grey 10 i, but for a white left half: how much of it is seen tells which part it is."""
    picture = [np.full((16, 16, 3), 10 * i, dtype=np.uint8) for i in range(12)]
    for one in picture:
        one[:, :8] = 255
    shard = write_shard(tmp_path / "train.tar", [(f"s{i:03d}", {"png": encoded(one)}) for i, one in enumerate(picture)])
    pool = Images(run_index(tmp_path / "run", str(shard), num_classes=3), np.arange(12, dtype=np.int64) % 3)
    seen: list[dict[int, float]] = []
    train_epoch, accuracy = SupervisedTrainer.train_epoch, final._accuracy

    def remember(trainer: SupervisedTrainer, epoch: int, batches: Any) -> dict[str, float]:
        batches = list(batches)
        pairs = (pair for b in batches for pair in zip(b.sample_ids, b.images.float().mean((1, 2, 3)), strict=True))
        seen.append({int(n): float(mean) for n, mean in pairs})
        return train_epoch(trainer, epoch, batches)

    def look(predict: Any, *rest: Any) -> float:
        def whole(images: np.ndarray) -> torch.Tensor:
            assert np.allclose(images.mean((1, 2, 3)), [(255 + 10 * i) / 2 for i in range(12)], atol=1)
            return predict(images)

        return accuracy(whole, *rest)

    monkeypatch.setattr(SupervisedTrainer, "train_epoch", remember)
    monkeypatch.setattr(final, "_accuracy", look)
    for seed in (0, 1):
        final._train(IDS, seed, pool, pool, trained(epochs=2, random_crop=RandomCrop()), RESOURCES)
    assert [sorted(epoch) for epoch in seen] == [IDS.tolist()] * 4
    assert len({tuple(epoch[n] for n in IDS) for epoch in seen}) == 4


def test_a_training_that_diverges_is_one_sentence(pool: Images, test: Images) -> None:
    with pytest.raises(UserError, match=r"^a training of evaluate diverged: lower evaluate\.training\.lr 1e\+30$"):
        final._train(np.arange(12), 0, pool, test, trained(lr=1e30, epochs=2), RESOURCES)


@pytest.mark.parametrize("rows", [1, 3, 10, 1024])
def test_accuracy_is_a_count_of_the_test_images_however_they_are_cut(
    test: Images, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final, "ROWS_AT_A_TIME", rows)

    def guess(pixels: np.ndarray) -> torch.Tensor:
        """Right for the images 0..6."""
        grey = torch.from_numpy(pixels[:, 0, 0, 0].astype(np.int64))
        return torch.nn.functional.one_hot((grey + (grey > 6)) % 3, 3).float()

    assert final._accuracy(guess, test, RESOURCES) == 0.7
