"""Stage `ssl`: a semi-supervised model from the labelled training rows and all images."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.semi_supervised import SemiSupervisedConfig
from pipeline import ingest
from pipeline.batches import as_batches
from pipeline.class_balance import BalancedPlan
from pipeline.config import Config
from pipeline.epoch_order import Ids
from pipeline.epoch_plan import Plan
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Progress
from pipeline.training import Worker, train

if TYPE_CHECKING:
    import torch

    from models.batch import Batch
    from models.semi_supervised import SemiSupervisedTrainer


class SslConfig(Config):
    """The algorithm and its training; num_classes as the data has it."""

    seed: int
    num_classes: int
    training: SemiSupervisedConfig


def run(
    inputs: Mapping[str, Artifact], config: SslConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Train; parts: `model` (EMA weights) and `history` (one row per commit: step, losses, mask_rate).

    inputs: index, split; `start`, an earlier training of the same settings, if this one begins with its EMA weights.
    """
    training = config.training
    log = EpochLog(f"{out.uri}/training")
    train(
        _loop,
        {
            "index": inputs["index"],
            "split": inputs["split"],
            "config": config,
            "uri": log.uri,
            "resources": resources,
            "start": inputs.get("start"),
        },
        out.uri,
        resources,
        progress,
        total=training.steps,
        unit="steps",
    )
    commits = log.commits()
    out.write_table(pa.Table.from_pylist([commit.facts["metrics"] for commit in commits]), "history")
    num_samples = inputs["index"].metrics["num_samples"]
    _, labels = _labelled(inputs["split"])
    out.write("model", ".pt", _weights(config, num_samples, labels, log.read_checkpoint(commits[-1])))
    return {
        "steps": training.steps,
        "algorithm": training.algorithm,
        "world_sizes": sorted({commit.facts["world_size"] for commit in commits}),
    }


def _weights(config: SslConfig, num_samples: int, labels: Ids, checkpoint: bytes) -> bytes:
    """The EMA weights inside a training checkpoint."""
    import torch

    trainer = _trainer(config, num_samples, labels, torch.device("cpu"))
    trainer.restore(checkpoint)
    return trainer.weights()


def _trainer(config: SslConfig, num_samples: int, labels: Ids, device: "torch.device") -> "SemiSupervisedTrainer":
    from models.semi_supervised import SemiSupervisedTrainer

    counts = np.bincount(labels, minlength=config.num_classes)
    return SemiSupervisedTrainer(config.training, config.num_classes, config.seed, device, num_samples, counts)


def _labelled(split: Artifact) -> tuple[Ids, Ids]:
    """sample_ids and labels of the rows whose labels are learned."""
    roles = split.table()
    train = roles.filter(pc.equal(roles["role"], "train"))
    return train["sample_id"].to_numpy(), train["label"].to_numpy()


def _loop(
    worker: Worker,
    index: Artifact,
    split: Artifact,
    config: SslConfig,
    uri: str,
    resources: Resources,
    start: Artifact | None = None,
) -> None:
    """What every worker runs: from the last commit to the last step."""
    from models.training import load

    training = config.training
    images = ingest.open_images(index, resources)
    samples = images.samples
    known, known_labels = _labelled(split)
    labels = np.full(len(samples), -1, dtype=np.int64)
    labels[known] = known_labels

    log = EpochLog(uri)
    trainer = _trainer(config, len(samples), known_labels, worker.device)
    last = worker.agree(log.latest() if worker.rank == 0 else None)
    if last is not None:
        trainer.restore(log.read_checkpoint(last))
    elif start is not None:
        weights = load(start.read(start.parts("model")[0]), worker.device)
        for network in (trainer.model, trainer.ema.module):
            network.load_state_dict(weights)
    step = last.facts["step"] if last else 0

    def batches(plan: Plan | BalancedPlan) -> Iterator["Batch"]:
        return as_batches(opened.enter_context(closing(images.steps(plan.endless(step)))), labels)

    def pairs() -> Iterator[tuple["Batch", "Batch"]]:
        seed, place, size = config.seed, (worker.rank, worker.world_size), training.batch_size
        if training.class_balanced:
            labelled = batches(BalancedPlan(known, known_labels, seed, "ssl-labelled", size, *place))
        else:
            labelled = batches(Plan(samples, seed, "ssl-labelled", size, *place, known))
        if not trainer.algorithm.reads_unlabelled:
            return ((batch, batch.none()) for batch in labelled)
        everything = Plan(samples, seed, "ssl-unlabelled", size * training.unlabelled_ratio, *place)
        return zip(labelled, batches(everything), strict=True)

    worker.tick(step)
    with ExitStack() as opened:
        watched = worker.meter.watch(pairs(), lambda pair: sum(len(batch.sample_ids) for batch in pair))
        while step < training.steps:
            until = min(training.steps, step + training.checkpoint_every)
            metrics = trainer.train_steps(range(step, until), watched, worker.tick)
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
