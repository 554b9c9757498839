"""Final models: trained from scratch on a subset with true labels, and tested; one task each, on one worker.

A result is kept under the hash of everything that determines it, so an interrupted evaluation continues and a changed
selection trains only what is new.
"""

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import counter, ingest, storage
from pipeline.batches import as_batches
from pipeline.config import Config
from pipeline.epoch_plan import Plan, in_order
from pipeline.errors import UserError
from pipeline.predictor import ROWS_AT_A_TIME
from pipeline.random_crop import CroppedTraining
from pipeline.resources import Resources
from pipeline.stage import Artifact, Progress

VERSION = 3
"""Raised when the code changes what a training yields."""

Ids = NDArray[np.int64]


class FinalConfig(Config):
    """How to train. min_steps: a subset too small for them in `training.epochs` epochs gets more epochs."""

    seed: int
    num_classes: int
    min_steps: int
    training: CroppedTraining


@dataclass(frozen=True)
class Images:
    """The images of an index, and their labels, int64 [N] by sample_id."""

    index: Artifact
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
        while waiting and len(running) < resources.max_workers:
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
        "indexes": [pool.index.manifest["key"], test.index.manifest["key"]],
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
    batch_size = min(config.training.batch_size, len(ids))
    # A seed of its own per (run, training): equal numbers in different runs must not share weights or views.
    own_seed = int(counter.hash64(config.seed, "final", 0, np.array([seed]))[0] >> np.uint64(2))
    images = ingest.open_images(pool.index, resources, config.training.views(own_seed, "final"))
    plan = Plan(images.samples, own_seed, "final", batch_size, ids=ids)
    steps = plan.num_steps
    epochs = max(config.training.epochs, -(-config.min_steps // steps))
    training = config.training.model_copy(update={"epochs": epochs})
    trainer = SupervisedTrainer(training, config.num_classes, steps, own_seed, device)
    with closing(images.steps(plan.epochs())) as opened:
        batches = as_batches(opened, pool.labels)
        for epoch in range(epochs):
            if not math.isfinite(trainer.train_epoch(epoch, islice(batches, steps))["loss"]):
                raise UserError(f"a training of evaluate diverged: lower evaluate.training.lr {training.lr:g}")
    return _accuracy(trainer.predict, test, resources)


def _accuracy(predict: Any, test: Images, resources: Resources) -> float:
    images = ingest.open_images(test.index, resources)
    right = 0
    for step in images.steps(in_order(images.samples, np.arange(len(test.labels)), ROWS_AT_A_TIME)):
        right += int((predict(step.images).argmax(dim=1).numpy() == test.labels[step.ids]).sum())
    return right / len(test.labels)
