"""Final models: trained from scratch on a subset with true labels, and tested; one task each, on one worker.

A result is kept under the hash of everything that determines it, so an interrupted evaluation continues and a changed
selection trains only what is new.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.supervised import SupervisedConfig
from pipeline import counter, epoch_plan, storage
from pipeline.batches import make_batch
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.pixels import Pixels
from pipeline.resources import Resources
from pipeline.stage import Artifact, Progress

VERSION = 1
"""Raised when the code changes what a training yields."""

Ids = NDArray[np.int64]


class FinalConfig(Config):
    """How to train. min_steps: a subset too small for them in `training.epochs` epochs gets more epochs."""

    seed: int
    num_classes: int
    min_steps: int
    training: SupervisedConfig


@dataclass(frozen=True)
class Images:
    """Decoded images and their labels, int64 [N] by sample_id."""

    pixels: Artifact
    labels: NDArray[np.int64]


def train_and_test(
    jobs: Sequence[tuple[Ids, int]],
    pool: Images,
    test: Images,
    config: FinalConfig,
    cache: str,
    *,
    resources: Resources,
    progress: Progress,
) -> list[float]:
    """The fraction of test images that each job's model gets right; a job: (sample_ids to train on, seed).

    cache: folder of the results, which any number of runs may share.
    """
    import ray

    places = [storage.join(cache, f"{_key(ids, seed, pool, test, config)}.json") for ids, seed in jobs]
    waiting = [position for position, place in enumerate(places) if not storage.exists(place)]
    done = len(jobs) - len(waiting)
    progress(done, len(jobs), "trainings")
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker, max_retries=3)(_train)
    start = partial(task.remote, pool=ray.put(pool), test=ray.put(test), config=config, resources=resources)
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < resources.num_workers:
            position = waiting.pop(0)
            running[start(*jobs[position])] = position
        (finished,), _ = ray.wait(list(running), num_returns=1)
        storage.write(places[running.pop(finished)], json.dumps({"accuracy": ray.get(finished)}).encode())
        done += 1
        progress(done, len(jobs), "trainings")
    return [json.loads(storage.read(place))["accuracy"] for place in places]


def _key(ids: Ids, seed: int, pool: Images, test: Images, config: FinalConfig) -> str:
    content = {
        "version": VERSION,
        "ids": storage.sha256(ids.tobytes()),
        "labels": storage.sha256(pool.labels[ids].tobytes()),
        "test_labels": storage.sha256(test.labels.tobytes()),
        "pixels": [pool.pixels.manifest["key"], test.pixels.manifest["key"]],
        "config": config.model_dump(mode="json"),
        "seed": seed,
    }
    return storage.sha256(json.dumps(content, sort_keys=True).encode())[:16]


def _train(ids: Ids, seed: int, pool: Images, test: Images, config: FinalConfig, resources: Resources) -> float:
    """One task."""
    import torch

    from models.supervised import SupervisedTrainer

    torch.set_num_threads(resources.cpus_per_worker)
    device = torch.device("cuda" if resources.gpus_per_worker > 0 else "cpu")
    images = Pixels.open(pool.pixels)
    batch_size = min(config.training.batch_size, len(ids))
    steps = epoch_plan.num_steps(len(ids), batch_size)
    epochs = max(config.training.epochs, -(-config.min_steps // steps))
    training = config.training.model_copy(update={"epochs": epochs})
    # A seed of its own per (run, training): equal numbers in different runs must not share weights or views.
    own_seed = int(counter.hash64(config.seed, "final", 0, np.array([seed]))[0] >> np.uint64(2))
    trainer = SupervisedTrainer(training, config.num_classes, steps, own_seed, device)
    for epoch in range(epochs):
        plan = epoch_plan.epoch_batches(own_seed, "final", epoch, ids, batch_size, rank=0, world_size=1)
        batches = (make_batch(images, pool.labels, mine, size, valid) for mine, valid, size in plan)
        if not math.isfinite(trainer.train_epoch(epoch, batches)["loss"]):
            raise UserError(f"a training of evaluate diverged: lower evaluate.training.lr {training.lr:g}")
    return _accuracy(trainer.predict, test)


def _accuracy(predict: Any, test: Images, rows: int = 1024) -> float:
    images = Pixels.open(test.pixels)
    right = 0
    for start in range(0, len(images), rows):
        ids = np.arange(start, min(start + rows, len(images)), dtype=np.int64)
        right += int((predict(images.take(ids)).argmax(dim=1).numpy() == test.labels[ids]).sum())
    return right / len(images)
