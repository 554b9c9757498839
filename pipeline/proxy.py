"""Stage `proxy`: a classifier from scratch on the pseudo-labelled pool, recording every example's dynamics."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from models.supervised import SupervisedConfig
from pipeline import epoch_plan
from pipeline.batches import make_batch
from pipeline.config import Config
from pipeline.dynamics import DynamicsWriter
from pipeline.epochs import EpochLog
from pipeline.pixels import Pixels
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Progress
from pipeline.training import Worker, train

if TYPE_CHECKING:
    from models.batch import Batch


class ProxySettings(SupervisedConfig):
    """The `proxy` section of a recipe. probs: whether the probabilities of all classes are recorded, as TDDS needs."""

    probs: bool = False


class ProxyConfig(Config):
    """The proxy's training; num_classes as the data has it."""

    seed: int
    num_classes: int
    training: ProxySettings


def run(
    inputs: Mapping[str, Artifact], config: ProxyConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Train; the dynamics are at `{uri}/dynamics`, one commit per epoch; parts: `history` (epoch, loss, accuracy, lr)
    and `model` (weights).

    inputs: pixels, pseudo_label.
    """
    log = EpochLog(f"{out.uri}/dynamics")
    train(
        _loop,
        {"pixels": inputs["pixels"], "pseudo_label": inputs["pseudo_label"], "config": config, "uri": log.uri},
        out.uri,
        resources,
        progress,
        total=config.training.epochs * inputs["pixels"].metrics["num_samples"],
        unit="images",
    )
    commits = log.commits()
    history = pa.Table.from_pylist([commit.facts["metrics"] for commit in commits])
    out.write_table(history, "history")
    out.write("model", ".pt", _weights(config, log.read_checkpoint(commits[-1])))
    return {
        "epochs": len(commits),
        "accuracy": commits[-1].facts["metrics"]["accuracy"],
        "world_sizes": sorted({commit.facts["world_size"] for commit in commits}),
    }


def _weights(config: ProxyConfig, checkpoint: bytes) -> bytes:
    """The weights inside a training checkpoint."""
    import torch

    from models.supervised import SupervisedTrainer

    trainer = SupervisedTrainer(config.training, config.num_classes, 1, config.seed, torch.device("cpu"))
    trainer.restore(checkpoint)
    return trainer.weights()


def _loop(worker: Worker, pixels: Artifact, pseudo_label: Artifact, config: ProxyConfig, uri: str) -> None:
    """What every worker runs: from the last committed epoch to the last."""
    from models.supervised import SupervisedTrainer

    training = config.training
    images = Pixels.open(pixels)
    ids = np.arange(len(images), dtype=np.int64)
    table = pseudo_label.table()
    labels = np.empty(len(images), dtype=np.int64)
    labels[table["sample_id"].to_numpy()] = table["train_label"].to_numpy()

    log = EpochLog(uri)
    steps = epoch_plan.num_steps(len(ids), training.batch_size)
    trainer = SupervisedTrainer(training, config.num_classes, steps, config.seed, worker.device)
    last = worker.agree(log.latest() if worker.rank == 0 else None)
    if last is not None:
        trainer.restore(log.read_checkpoint(last))
    writer = DynamicsWriter(uri, len(ids), worker.rank, worker.world_size, probs=training.probs)

    def batches(epoch: int) -> Iterator["Batch"]:
        for mine, valid, size in epoch_plan.epoch_batches(
            config.seed, "proxy", epoch, ids, training.batch_size, worker.rank, worker.world_size
        ):
            yield make_batch(images, labels, mine, size, valid)

    first = last.epoch + 1 if last else 0
    worker.tick(first * len(ids))
    for epoch in range(first, training.epochs):
        tell = partial(_tell, worker, epoch * len(ids), len(ids) / steps)
        metrics = trainer.train_epoch(epoch, batches(epoch), observe=writer.observe, on_step=tell)
        parts = worker.gather(writer.flush(epoch))
        if worker.rank == 0:
            writer.commit_epoch(
                epoch,
                parts=parts,
                checkpoint=trainer.state(),
                facts={"world_size": worker.world_size, "metrics": {"epoch": epoch, **metrics}},
            )


def _tell(worker: Worker, before: int, rows_per_step: float, steps: int) -> None:
    worker.tick(before + round(steps * rows_per_step))
