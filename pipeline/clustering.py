"""Stage `cluster`: heads that cluster the pool by its embeddings; no label is looked at (ELFS, 2406.04273)."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from models.temi import TemiConfig
from pipeline import counter
from pipeline.config import Config
from pipeline.embeddings import Vectors, read_all
from pipeline.epoch_order import Ids, even_bounds
from pipeline.epochs import Commit, EpochLog
from pipeline.errors import UserError
from pipeline.neighbours import load_neighbours
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Progress
from pipeline.training import Worker, train

if TYPE_CHECKING:
    from models.temi import Pairs, TemiTrainer


class ClusterSettings(TemiConfig):
    """The `cluster` section of a recipe. A checkpoint holds every head four times."""

    neighbours: int = Field(default=50, ge=1, description="from which the partner of a sample is drawn")
    checkpoint_every: int = Field(default=5, ge=1, description="epochs between checkpoints")


class ClusterConfig(Config):
    """The heads' training; as many clusters as the data has classes."""

    seed: int
    num_clusters: int
    training: ClusterSettings


def run(
    inputs: Mapping[str, Artifact], config: ClusterConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Train; parts: `history` (per commit: epoch, mean loss of the heads, that of the best), `heads` (head, loss), each
    head's mean training loss over the last epoch, and `model`, the head of the least.

    A worker holds all embeddings, N * d numbers, and N * k neighbours. inputs: encode, neighbours.
    """
    training, num_samples = config.training, inputs["encode"].metrics["num_samples"]
    log = EpochLog(f"{out.uri}/training")
    train(
        _loop,
        {"encode": inputs["encode"], "neighbours": inputs["neighbours"], "config": config, "uri": log.uri},
        out.uri,
        resources,
        progress,
        total=training.epochs * num_samples,
        unit="pairs",
    )
    commits = log.commits()
    losses = commits[-1].facts["losses"]
    best = int(np.argmin(losses))
    out.write_table(pa.Table.from_pylist([_described(commit) for commit in commits]), "history")
    out.write_table(pa.table({"head": np.arange(len(losses)), "loss": losses}), "heads")
    out.write("model", ".pt", _weights(config, inputs["encode"], log.read_checkpoint(commits[-1]), best))
    return {
        "epochs": training.epochs,
        "head": best,
        "loss": losses[best],
        "world_sizes": sorted({commit.facts["world_size"] for commit in commits}),
    }


def _described(commit: Commit) -> dict[str, Any]:
    losses = commit.facts["losses"]
    return {"epoch": commit.facts["epoch"], "loss": sum(losses) / len(losses), "best_loss": min(losses)}


def _weights(config: ClusterConfig, encode: Artifact, checkpoint: bytes, head: int) -> bytes:
    """One head inside a training checkpoint."""
    import torch

    width = encode.metrics["width"]
    zeros = np.zeros(width, dtype=np.float32)
    trainer = _trainer(config, (zeros, zeros), 1, torch.device("cpu"))
    trainer.restore(checkpoint)
    return trainer.weights(head)


def _trainer(
    config: ClusterConfig, moments: tuple[NDArray[np.float32], NDArray[np.float32]], steps: int, device: Any
) -> "TemiTrainer":
    from models.temi import TemiTrainer

    return TemiTrainer(config.training, config.num_clusters, *moments, steps, config.seed, device)


def _loop(worker: Worker, encode: Artifact, neighbours: Artifact, config: ClusterConfig, uri: str) -> None:
    """What every worker runs: from the last commit to the last epoch."""
    training = config.training
    vectors, near = read_all(encode), load_neighbours(neighbours)
    num_samples = len(vectors)
    steps = -(-num_samples // training.batch_size)
    trainer = _trainer(config, _moments(vectors), steps, worker.device)
    log = EpochLog(uri)
    last = worker.agree(log.latest() if worker.rank == 0 else None)
    if last is not None:
        trainer.restore(log.read_checkpoint(last))
    first = last.facts["epoch"] + 1 if last else 0
    worker.tick(first * num_samples)
    for epoch in range(first, training.epochs):
        tell = partial(worker.tick_steps, epoch * num_samples, num_samples / steps)
        losses = trainer.train_epoch(epoch, _pairs(vectors, near, epoch, steps, config.seed, worker), tell)
        if not all(map(math.isfinite, losses)):
            raise UserError(f"cluster diverged in epoch {epoch}: lower cluster.lr {training.lr:g}")
        done = epoch + 1
        if worker.rank == 0 and (done % training.checkpoint_every == 0 or done == training.epochs):
            log.commit(
                -(-done // training.checkpoint_every) - 1,
                files=[],
                checkpoint=trainer.state(),
                facts={"epoch": epoch, "world_size": worker.world_size, "losses": losses},
            )


def _moments(vectors: Vectors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of every number of an embedding, 1 where all are equal."""
    n, width = vectors.shape
    blocks = [slice(start, start + (1 << 14)) for start in range(0, n, 1 << 14)]  # in float64, not all at once
    mean, variance = np.zeros(width), np.zeros(width)
    for block in blocks:
        mean += vectors[block].sum(axis=0, dtype=np.float64) / n
    for block in blocks:
        variance += np.square(vectors[block] - mean).sum(axis=0) / n
    std = np.sqrt(variance)
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def _pairs(
    vectors: Vectors, near: NDArray[np.int32], epoch: int, steps: int, seed: int, worker: Worker
) -> Iterator["Pairs"]:
    """This rank's pairs of an epoch: every sample once as the first, with one of its neighbours drawn by its id."""
    import torch

    from models.temi import Pairs

    ids = counter.permutation(seed, "cluster", epoch, np.arange(len(vectors)))
    for begin, end in pairwise(even_bounds(len(ids), steps).tolist()):
        mine = ids[begin + worker.rank : end : worker.world_size]
        partner = near[mine, _draw(seed, epoch, mine, near.shape[1])]
        yield Pairs(torch.from_numpy(vectors[mine]), torch.from_numpy(vectors[partner]), end - begin)


def _draw(seed: int, epoch: int, ids: Ids, k: int) -> Ids:
    places: Ids = np.floor(counter.uniform(seed, "cluster-neighbour", epoch, ids) * k).astype(np.int64)
    return places
