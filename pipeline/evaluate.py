"""Stage `evaluate`: is the coreset worth more than a random one? Trains from scratch on each and tests.

Every training is one task on one worker. Its result is kept under the hash of everything that determines it, so an
interrupted evaluation continues and a changed selection trains only what is new.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from models.supervised import SupervisedConfig
from pipeline import counter, epoch_plan, storage
from pipeline.batches import make_batch
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.index import load_index
from pipeline.labels import read_label_table
from pipeline.pixels import Pixels
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Progress

Ids = NDArray[np.int64]


class EvaluateSettings(Config):
    """The `evaluate` section of a recipe.

    test_shards: labelled shards that nothing else reads; labels: table key,label of annotated images, for pools whose
    shards carry no labels; seeds: trainings per subset; baselines: what the coresets are compared with; training: from
    scratch, the same for every subset; min_steps: small subsets train for more epochs, at least this many steps.
    """

    test_shards: str | tuple[str, ...]
    labels: str | None = None
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    baselines: tuple[Literal["random", "full"], ...] = ("random", "full")
    min_steps: Annotated[int, Field(ge=1)] = 1
    training: SupervisedConfig


class EvaluateConfig(Config):
    """The settings with what the rest of the recipe decides."""

    seed: int
    num_classes: int
    settings: EvaluateSettings


@dataclass(frozen=True)
class Subset:
    """What one training trains on. name: "random", "full" or a selection's; draw: which random draw, else 0."""

    name: str
    keep_fraction: float
    ids: Ids


def run(
    inputs: Mapping[str, Artifact], config: EvaluateConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Train and test; part: subset, keep_fraction, num_samples, seed, accuracy. Metrics: mean and spread per subset.

    inputs: index, pixels, test_index, test_pixels, and `select:<name>` for every selection. The spread is the sample
    standard deviation over seeds (ddof=1; 0 for one seed). Each random training draws its own random coreset.
    """
    labels = _labels(inputs["index"], config.settings.labels)
    test_labels = _labels(inputs["test_index"], None)
    if (test_labels < 0).any():
        raise UserError(
            f"evaluate.test_shards: {int((test_labels < 0).sum())} test images have no label: label all of them"
        )
    selections = {name.removeprefix("select:"): art for name, art in inputs.items() if name.startswith("select:")}
    cache = storage.join(out.uri.rsplit("/", 1)[0], "trainings")
    rows = _train_all(
        _subsets(selections, len(labels), config), labels, test_labels, inputs, config, cache, resources, progress
    )
    out.write_table(pa.Table.from_pylist(rows))
    return {"test_size": len(test_labels), "rows": _summary(rows)}


def _labels(index: Artifact, table: str | None) -> NDArray[np.int64]:
    """Label by sample_id, -1 where none is known; a label table overrides the shards."""
    rows = load_index(index, ["key", "label"])
    labels: NDArray[np.int64] = rows["label"].fill_null(-1).to_numpy().copy()
    if table is not None:
        known = read_label_table(table)
        for position, key in enumerate(rows["key"].to_pylist()):
            labels[position] = known.get(key, labels[position])
    return labels


def _subsets(selections: Mapping[str, Artifact], num_samples: int, config: EvaluateConfig) -> list[tuple[Subset, int]]:
    """Every (subset, training seed) of the comparison, in the order of the report."""
    everything = np.arange(num_samples, dtype=np.int64)
    seeds = range(config.settings.seeds)
    jobs = []
    if "full" in config.settings.baselines:
        jobs += [(Subset("full", 1.0, everything), seed) for seed in seeds]
    budgets = sorted(
        {(art.metrics["keep_fraction"], art.metrics["budget"]) for art in selections.values()}, reverse=True
    )
    for fraction, budget in budgets:
        if "random" in config.settings.baselines:
            for seed in seeds:
                order = counter.permutation(config.seed, "evaluate-random", seed, everything)
                jobs.append((Subset("random", fraction, np.sort(order[:budget])), seed))
        for name, artifact in selections.items():
            if artifact.metrics["keep_fraction"] == fraction:
                ids = artifact.table()["sample_id"].to_numpy()
                jobs += [(Subset(name, fraction, ids), seed) for seed in seeds]
    return jobs


def _train_all(
    jobs: list[tuple[Subset, int]],
    labels: NDArray[np.int64],
    test_labels: NDArray[np.int64],
    inputs: Mapping[str, Artifact],
    config: EvaluateConfig,
    cache: str,
    resources: Resources,
    progress: Progress,
) -> list[dict[str, Any]]:
    import ray

    for subset, _ in jobs:
        missing = int((labels[subset.ids] < 0).sum())
        if missing:
            raise UserError(
                f"evaluate: {missing} of {len(subset.ids)} images of {subset.name!r} have no label: annotate them and "
                "name the table in evaluate.labels, leave the subset out of evaluate.baselines, or remove `evaluate`"
            )
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_retries=3)(_train_one)
    places: dict[int, str] = {}
    waiting: list[int] = []
    for position, (subset, seed) in enumerate(jobs):
        content = json.dumps(
            {
                "version": 1,
                "ids": storage.sha256(subset.ids.tobytes()),
                "labels": storage.sha256(labels[subset.ids].tobytes()),
                "images": [inputs["pixels"].manifest["key"], inputs["test_pixels"].manifest["key"]],
                "training": config.settings.training.model_dump(mode="json"),
                "rest": [config.seed, config.num_classes, config.settings.min_steps, seed],
            },
            sort_keys=True,
        )
        places[position] = storage.join(cache, f"{storage.sha256(content.encode())[:16]}.json")
        if not storage.exists(places[position]):
            waiting.append(position)
    known = [ray.put(labels), ray.put(test_labels)]
    running: dict[Any, int] = {}
    done = len(jobs) - len(waiting)
    progress(done, len(jobs), "trainings")
    while waiting or running:
        while waiting and len(running) < resources.num_workers:
            position = waiting.pop(0)
            subset, seed = jobs[position]
            reference = task.remote(
                subset.ids, *known, inputs["pixels"], inputs["test_pixels"], config, seed, resources.cpus_per_worker
            )
            running[reference] = position
        (finished,), _ = ray.wait(list(running), num_returns=1)
        position = running.pop(finished)
        storage.write(places[position], json.dumps({"accuracy": ray.get(finished)}).encode())
        done += 1
        progress(done, len(jobs), "trainings")
    return [
        {
            "subset": subset.name,
            "keep_fraction": subset.keep_fraction,
            "num_samples": len(subset.ids),
            "seed": seed,
            "accuracy": json.loads(storage.read(places[position]))["accuracy"],
        }
        for position, (subset, seed) in enumerate(jobs)
    ]


def _train_one(
    ids: Ids,
    labels: NDArray[np.int64],
    test_labels: NDArray[np.int64],
    pixels: Artifact,
    test_pixels: Artifact,
    config: EvaluateConfig,
    seed: int,
    threads: int,
) -> float:
    """One task: train on `ids`, return the fraction of test images that the model gets right."""
    import torch

    from models.supervised import SupervisedTrainer

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = config.settings.training
    images = Pixels.open(pixels)
    batch_size = min(training.batch_size, len(ids))
    steps = epoch_plan.num_steps(len(ids), batch_size)
    epochs = max(training.epochs, -(-config.settings.min_steps // steps))
    # A number of its own per (run, training): equal seeds of different runs must not share weights or views.
    own_seed = int(counter.hash64(config.seed, "evaluate", 0, np.array([seed]))[0] >> 2)
    trainer = SupervisedTrainer(
        training.model_copy(update={"epochs": epochs}), config.num_classes, steps, own_seed, device
    )
    for epoch in range(epochs):
        trainer.train_epoch(
            epoch,
            (
                make_batch(images, labels, mine, size, valid)
                for mine, valid, size in epoch_plan.epoch_batches(own_seed, "evaluate", epoch, ids, batch_size, 0, 1)
            ),
        )
    tests = Pixels.open(test_pixels)
    right = 0
    for start in range(0, len(tests), 1024):
        part = np.arange(start, min(start + 1024, len(tests)), dtype=np.int64)
        predicted = trainer.predict(tests.take(part)).argmax(dim=1).numpy()
        right += int((predicted == test_labels[part]).sum())
    return right / len(tests)


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread per (subset, keep_fraction), in the order of `rows`."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["subset"], row["keep_fraction"]), []).append(row)
    summary = []
    for (subset, fraction), members in groups.items():
        accuracies = np.array([member["accuracy"] for member in members])
        summary.append(
            {
                "subset": subset,
                "keep_fraction": fraction,
                "num_samples": members[0]["num_samples"],
                "mean": float(accuracies.mean()),
                "std": float(accuracies.std(ddof=1)) if len(members) > 1 else 0.0,
                "seeds": len(members),
            }
        )
    return summary
