"""Stage `ssl`: a semi-supervised model from the labelled training rows and all images."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

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
from pipeline.second_round import SecondRound, joining
from pipeline.stage import Artifact, Output, Progress
from pipeline.training import Worker, train

if TYPE_CHECKING:
    import torch

    from models.batch import Batch
    from models.semi_supervised import SemiSupervisedTrainer


class SslSettings(SemiSupervisedConfig):
    """The `ssl` section of a recipe."""

    second_round: SecondRound | None = Field(
        default=None,
        exclude_if=lambda settings: settings is None,
        description="a second training, which also learns pseudo-labels of the first; null: none",
    )


class SslConfig(Config):
    """The algorithm and its training; num_classes as the data has it.

    confident: of a second round, how confident the pseudo-labels are that join the labels.
    """

    seed: int
    num_classes: int
    training: SemiSupervisedConfig
    confident: Annotated[float | None, Field(exclude_if=lambda threshold: threshold is None)] = None


def run(
    inputs: Mapping[str, Artifact], config: SslConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Train; parts: `model` (EMA weights) and `history` (one row per commit: step, losses, mask_rate).

    inputs: index, split; `start`, an earlier training of the same settings, if this one begins with its EMA weights;
    `first_round`, in a second one the pseudo-labels of the first. Its metrics say how many joined, by class. UserError
    if none is confident enough.
    """
    training, split, first_round = config.training, inputs["split"], inputs.get("first_round")
    _, labels = _labelled(split, first_round, config)
    log = EpochLog(f"{out.uri}/training")
    train(
        _loop,
        {
            "index": inputs["index"],
            "split": split,
            "config": config,
            "uri": log.uri,
            "resources": resources,
            "start": inputs.get("start"),
            "first_round": first_round,
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
    out.write("model", ".pt", _weights(config, num_samples, labels, log.read_checkpoint(commits[-1])))
    metrics = {
        "steps": training.steps,
        "algorithm": training.algorithm,
        "world_sizes": sorted({commit.facts["world_size"] for commit in commits}),
    }
    if first_round is not None:
        joined = labels[split.metrics["num_train"] :]
        metrics["joined"] = np.bincount(joined, minlength=config.num_classes).tolist()
    return metrics


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


def _labelled(split: Artifact, first_round: Artifact | None, config: SslConfig) -> tuple[Ids, Ids]:
    """sample_ids and labels of the rows whose labels are learned: those of the split, then those that join them."""
    roles = split.table()
    train = roles.filter(pc.equal(roles["role"], "train"))
    ids, labels = train["sample_id"].to_numpy(), train["label"].to_numpy()
    if first_round is None:
        return ids, labels
    assert config.confident is not None
    joining_ids, pseudo_labels = joining(first_round, split, config.confident)
    if not len(joining_ids):
        raise UserError(
            f"ssl.second_round.confident={config.confident:g}, but the first round is so sure of no pseudo-label: "
            "lower it, or leave second_round out"
        )
    return np.concatenate([ids, joining_ids]), np.concatenate([labels, pseudo_labels])


def _loop(
    worker: Worker,
    index: Artifact,
    split: Artifact,
    config: SslConfig,
    uri: str,
    resources: Resources,
    start: Artifact | None = None,
    first_round: Artifact | None = None,
) -> None:
    """What every worker runs: from the last commit to the last step."""
    from models.training import load

    training = config.training
    images = ingest.open_images(index, resources)
    samples = images.samples
    known, known_labels = _labelled(split, first_round, config)
    labels = np.full(len(samples), -1, dtype=np.int32)
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
