"""Stage `proxy`: a classifier from scratch on the pseudo-labelled pool, recording every example's dynamics."""

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipeline import ingest, true_dynamics
from pipeline.batches import as_batches
from pipeline.config import Config
from pipeline.dynamics import DynamicsWriter
from pipeline.epoch_plan import Plan
from pipeline.epochs import EpochLog
from pipeline.pseudo_label import Holdout
from pipeline.random_crop import CroppedTraining
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Progress
from pipeline.training import Worker, train
from pipeline.true_dynamics import TrueDynamics


class ProxySettings(CroppedTraining):
    """The `proxy` section of a recipe."""

    probs: bool = Field(
        default=False, description="whether the probabilities of all classes are recorded, as tdds needs"
    )


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

    inputs: index, pseudo_label. If rows are held out, `{uri}/dynamics_true` has the same forward passes of these rows,
    seen with their true labels; its ids are their places among the held-out sample_ids.
    """
    log = EpochLog(f"{out.uri}/dynamics")
    train(
        _loop,
        {
            "index": inputs["index"],
            "pseudo_label": inputs["pseudo_label"],
            "config": config,
            "uri": log.uri,
            "resources": resources,
        },
        out.uri,
        resources,
        progress,
        total=config.training.epochs * inputs["index"].metrics["num_samples"],
        unit="images",
    )
    commits = log.commits()
    true_dynamics.publish(commits, log.uri)
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


def _loop(
    worker: Worker, index: Artifact, pseudo_label: Artifact, config: ProxyConfig, uri: str, resources: Resources
) -> None:
    """What every worker runs: from the last committed epoch to the last."""
    from models.supervised import SupervisedTrainer

    training = config.training
    images = ingest.open_images(index, resources, training.views(config.seed, "proxy"))
    num_samples = len(images.samples)
    labels = np.empty(num_samples, dtype=np.int32)
    for table in pseudo_label.tables(columns=["sample_id", "train_label"]):
        labels[table["sample_id"].to_numpy()] = table["train_label"].to_numpy()

    log = EpochLog(uri)
    plan = Plan(images.samples, config.seed, "proxy", training.batch_size, worker.rank, worker.world_size)
    steps = plan.num_steps
    trainer = SupervisedTrainer(training, config.num_classes, steps, config.seed, worker.device)
    last = worker.agree(log.latest() if worker.rank == 0 else None)
    if last is not None:
        trainer.restore(log.read_checkpoint(last))
    writer = DynamicsWriter(uri, num_samples, worker.rank, worker.world_size, probs=training.probs)
    held = TrueDynamics(uri, Holdout.load(pseudo_label), worker.rank, worker.world_size, probs=training.probs)

    def observe(ids: NDArray[np.int64], logits: Any, given: Any) -> None:
        writer.observe(ids, logits, given)
        held.observe(ids, logits)

    first = last.epoch + 1 if last else 0
    worker.tick(first * num_samples)
    with closing(images.steps(plan.epochs(first))) as opened:
        batches = worker.meter.watch(as_batches(opened, labels), lambda batch: len(batch.sample_ids))
        for epoch in range(first, training.epochs):
            tell = partial(worker.tick_steps, epoch * num_samples, num_samples / steps)
            metrics = trainer.train_epoch(epoch, islice(batches, steps), observe=observe, on_step=tell)
            parts, true_parts = zip(*worker.gather((writer.flush(epoch), held.flush(epoch))), strict=True)
            if worker.rank == 0:
                writer.commit_epoch(
                    epoch,
                    parts=parts,
                    checkpoint=trainer.state(),
                    facts={
                        "world_size": worker.world_size,
                        "metrics": {"epoch": epoch, **metrics},
                        **true_dynamics.facts(true_parts),
                    },
                )
                worker.meter.commit(epoch + 1, metrics["loss"])
