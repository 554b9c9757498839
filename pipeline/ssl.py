"""Stage `ssl`: a semi-supervised model from the labelled training rows and all images."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.semi_supervised import SemiSupervisedConfig
from pipeline import ingest
from pipeline.batches import as_batches
from pipeline.config import Config
from pipeline.epoch_plan import Plan
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Progress
from pipeline.training import Worker, train

if TYPE_CHECKING:
    from models.batch import Batch


class SslConfig(Config):
    """The algorithm and its training; num_classes as the data has it."""

    seed: int
    num_classes: int
    training: SemiSupervisedConfig


def run(
    inputs: Mapping[str, Artifact], config: SslConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Train; parts: `model` (EMA weights) and `history` (one row per commit: step, losses, mask_rate).

    inputs: index, split.
    """
    training = config.training
    log = EpochLog(f"{out.uri}/training")
    train(
        _loop,
        {"index": inputs["index"], "split": inputs["split"], "config": config, "uri": log.uri, "resources": resources},
        out.uri,
        resources,
        progress,
        total=training.steps,
        unit="steps",
    )
    commits = log.commits()
    out.write_table(pa.Table.from_pylist([commit.facts["metrics"] for commit in commits]), "history")
    num_samples = inputs["index"].metrics["num_samples"]
    out.write("model", ".pt", _weights(config, num_samples, log.read_checkpoint(commits[-1])))
    return {
        "steps": training.steps,
        "algorithm": training.algorithm,
        "world_sizes": sorted({commit.facts["world_size"] for commit in commits}),
    }


def _weights(config: SslConfig, num_samples: int, checkpoint: bytes) -> bytes:
    """The EMA weights inside a training checkpoint."""
    import torch

    from models.semi_supervised import SemiSupervisedTrainer

    trainer = SemiSupervisedTrainer(config.training, config.num_classes, config.seed, torch.device("cpu"), num_samples)
    trainer.restore(checkpoint)
    return trainer.weights()


def _loop(worker: Worker, index: Artifact, split: Artifact, config: SslConfig, uri: str, resources: Resources) -> None:
    """What every worker runs: from the last commit to the last step."""
    from models.semi_supervised import SemiSupervisedTrainer

    training, seed = config.training, config.seed
    images = ingest.open_images(index, resources)
    samples = images.samples
    roles = split.table()
    labelled = roles.filter(pc.equal(roles["role"], "train"))
    labels = np.full(len(samples), -1, dtype=np.int64)
    labels[labelled["sample_id"].to_numpy()] = labelled["label"].to_numpy()

    log = EpochLog(uri)
    trainer = SemiSupervisedTrainer(training, config.num_classes, seed, worker.device, len(samples))
    last = worker.agree(log.latest() if worker.rank == 0 else None)
    if last is not None:
        trainer.restore(log.read_checkpoint(last))
    step = last.facts["step"] if last else 0

    def batches(purpose: str, batch_size: int, ids: NDArray[np.int64] | None = None) -> Iterator["Batch"]:
        plan = Plan(samples, seed, purpose, batch_size, worker.rank, worker.world_size, ids)
        return as_batches(opened.enter_context(closing(images.steps(plan.endless(step)))), labels)

    worker.tick(step)
    with ExitStack() as opened:
        pairs = worker.meter.watch(
            zip(
                batches("ssl-labelled", training.batch_size, labelled["sample_id"].to_numpy()),
                batches("ssl-unlabelled", training.batch_size * training.unlabelled_ratio),
                strict=True,
            ),
            lambda pair: sum(len(batch.sample_ids) for batch in pair),
        )
        while step < training.steps:
            until = min(training.steps, step + training.checkpoint_every)
            metrics = trainer.train_steps(range(step, until), pairs, worker.tick)
            if not all(map(math.isfinite, metrics.values())):
                raise UserError(f"ssl diverged before step {until}: lower ssl.lr {training.lr:g}")
            step = until
            worker.tick(step)
            if worker.rank == 0:
                number = -(-step // training.checkpoint_every)
                log.commit(
                    number - 1,
                    files=[],
                    checkpoint=trainer.state(),
                    facts={"step": step, "world_size": worker.world_size, "metrics": {"step": step, **metrics}},
                )
                worker.meter.commit(number, metrics["loss_labelled"], metrics["mask_rate"])
