"""The cluster stage's loop alone in this process, and the clusters of the pool that come of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.temi import TemiPredictor
from pipeline import cluster_labels, clustering, neighbours
from pipeline.cluster_labels import ClusterLabelConfig
from pipeline.clustering import ClusterConfig, ClusterSettings
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from pipeline.metrics import Meter
from pipeline.neighbours import NeighboursConfig
from pipeline.stage import Artifact
from pipeline.training import Worker
from tests.pipeline.making import run_stage
from tests.pipeline.test_neighbours import encoded

N, C = 90, 3
SETTINGS = ClusterSettings(
    neighbours=5,
    heads=3,
    hidden=8,
    bottleneck=4,
    epochs=7,
    warmup_epochs=1,
    batch_size=32,
    lr=1e-2,
    teacher_decay=0.9,
    checkpoint_every=3,
    precision="fp32",
)
CONFIG = ClusterConfig(seed=0, num_clusters=C, training=SETTINGS)


class KilledError(Exception):
    """Stands for a worker that dies."""


@pytest.fixture(scope="module")
def pool() -> np.ndarray:
    """Three clouds; sample i is of cloud i % 3."""
    rng = np.random.default_rng(0)
    return (6 * np.eye(C, 4)[np.arange(N) % C] + rng.standard_normal((N, 4))).astype(np.float32)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, pool: np.ndarray, ray_local: Any) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("cluster")
    encode = encoded(folder / "encode", pool, 40)
    near = run_stage(folder, "neighbours", neighbours.run, NeighboursConfig(k=5), {"encode": encode})
    return {"encode": encode, "neighbours": near}


Learn = Callable[..., bytes]


@pytest.fixture
def learn(inputs: dict[str, Artifact], lone_worker: Worker) -> Learn:
    def run(folder: Path, tick: Callable[[int], None] = lambda done: None, **changes: Any) -> bytes:
        config = CONFIG.model_copy(update={"training": SETTINGS.model_copy(update=changes)})
        clustering._loop(replace(lone_worker, tick=tick), **inputs, config=config, uri=str(folder))
        log = EpochLog(str(folder))
        return log.read_checkpoint(log.commits()[-1])

    return run


def test_it_commits_at_every_interval_and_at_the_end(learn: Learn, tmp_path: Path) -> None:
    learn(tmp_path / "log")
    commits = EpochLog(str(tmp_path / "log")).commits()
    assert [commit.facts["epoch"] for commit in commits] == [2, 5, 6]
    assert all(len(commit.facts["losses"]) == 3 for commit in commits)


@pytest.mark.parametrize("moment", [3, 11, 18])
def test_a_training_that_died_at_any_step_ends_in_the_same_bytes(learn: Learn, tmp_path: Path, moment: int) -> None:
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
    assert learn(tmp_path / "died") == expected  # and nothing is trained after the end


def test_one_that_diverges_is_one_sentence(learn: Learn, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cluster diverged in epoch \d: lower cluster.lr 1e\+38$"):
        learn(tmp_path / "log", lr=1e38)


def test_every_sample_is_first_once_an_epoch_with_the_same_neighbour_for_any_number_of_workers() -> None:
    vectors = np.arange(N, dtype=np.float32)[:, None]
    near = (np.arange(N)[:, None] + 1 + np.arange(5)) % N
    drawn = []
    for epoch, world in ((0, 1), (0, 3), (1, 1)):
        ranks = [list(clustering._pairs(vectors, near, epoch, 4, 0, _worker(rank, world))) for rank in range(world)]
        for step in zip(*ranks, strict=True):
            assert {pair.num_global for pair in step} == {sum(len(pair.first) for pair in step)}
        pairs = [pair for rank in ranks for pair in rank]
        first, second = (np.concatenate([pair[n][:, 0].numpy() for pair in pairs]).astype(int) for n in (0, 1))
        assert sorted(first) == list(range(N)) and (near[first] == second[:, None]).any(axis=1).all()
        drawn.append(dict(zip(first.tolist(), second.tolist(), strict=True)))
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({(drawn[0][i] - i) % N for i in range(N)}) == 5  # every place among the neighbours is drawn


def _worker(rank: int, world: int) -> Worker:
    import torch

    return Worker(rank, world, torch.device("cpu"), lambda done: None, Meter("run/cluster/key"))


def test_the_moments_are_those_of_all(pool: np.ndarray) -> None:
    mean, std = clustering._moments(np.hstack([pool, np.full((N, 1), 3, np.float32)]))
    np.testing.assert_allclose(mean, [*pool.astype(np.float64).mean(axis=0), 3], rtol=1e-6)
    np.testing.assert_allclose(std, [*pool.astype(np.float64).std(axis=0), 1], rtol=1e-6)


def test_a_whole_stage_finds_the_clouds_and_gives_them_to_the_proxy(
    inputs: dict[str, Artifact], pool: np.ndarray, learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray is left out here, where it would import torch for seconds; tests of whole runs have it."""
    monkeypatch.setattr(cluster_labels, "map_items", lambda items, task, **_: [task(item) for item in items])
    monkeypatch.setattr(clustering, "train", lambda loop, arguments, *_, **__: learn(Path(arguments["uri"]), epochs=20))
    config = CONFIG.model_copy(update={"training": SETTINGS.model_copy(update={"epochs": 20})})
    cluster = run_stage(tmp_path, "cluster", clustering.run, config, inputs)
    losses = cluster.table("heads")["loss"].to_pylist()
    head = int(np.argmin(losses))
    assert cluster.metrics == {"epochs": 20, "head": head, "loss": losses[head], "world_sizes": [1]}
    history = cluster.table("history")
    assert history["epoch"].to_pylist() == [2, 5, 8, 11, 14, 17, 19]
    assert history["best_loss"].to_pylist()[-1] == min(losses)
    assert history["loss"].to_pylist()[-1] == pytest.approx(np.mean(losses))

    sources = {"encode": inputs["encode"], "cluster": cluster}
    labels = run_stage(tmp_path, "pseudo_label", cluster_labels.run, ClusterLabelConfig(), sources)
    table, metrics = labels.table(), labels.metrics
    assert table.column_names == ["sample_id", "pseudo_label", "confidence", "margin", "train_label"]
    assert table["sample_id"].to_pylist() == list(range(N))
    assert table["train_label"].equals(table["pseudo_label"])
    found = table["pseudo_label"].to_numpy()
    assert len(set(zip(found, np.arange(N) % C, strict=True))) == C
    assert np.bincount(found).tolist() == [N // 3] * 3
    assert metrics["mean_confidence"] == pytest.approx(table["confidence"].to_numpy().mean())
    (model,) = cluster.parts("model")
    probabilities = TemiPredictor(SETTINGS, cluster.read(model), _worker(0, 1).device).predict(pool).numpy()
    ordered = np.sort(probabilities, axis=1)
    np.testing.assert_allclose(table["confidence"], ordered[:, -1], rtol=1e-5)
    np.testing.assert_allclose(table["margin"], ordered[:, -1] - ordered[:, -2], rtol=1e-4, atol=1e-6)
