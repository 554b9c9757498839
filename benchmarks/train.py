"""Proxy training as the product does it against a bare PyTorch loop: `python -m benchmarks.train`, some minutes.

Product: the loop of the stage `proxy` on a Ray Train worker, with its ingest from the cache, its views, the dynamics of
every batch and a commit with a checkpoint per epoch. Bare: a process without Ray and without any code of pipeline/, on
uint8 tensors in memory, with the same network, optimiser, precision, batch size, kind of views and threads. They take
turns, an epoch each, and nothing else runs meanwhile. Images are random: no cost depends on them. Ray's start is no
part of an epoch and told apart; so is the ingest alone, in one thread. With several workers the bare loop is one
process a worker with DistributedDataParallel.
"""

import argparse
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import distributed, nn
from torch.nn import functional

from benchmarks.dataset import indexed, png, write_shards
from models import precision, training
from models.augment import Draw, WeakConfig, normalise, weak
from models.backbones import ModelConfig
from pipeline import proxy
from pipeline.batches import as_batches
from pipeline.cluster import connected
from pipeline.epoch_plan import Plan
from pipeline.ingest import open_images
from pipeline.proxy import ProxyConfig, ProxySettings
from pipeline.resources import Resources
from pipeline.run import environment
from pipeline.stage import Artifact, Output
from pipeline.training import Worker, train

NUM_CLASSES, SIZE, BATCH, PARTS = 10, 32, 128, 8
MODELS = {"resnet9:16": 1.0, "wrn_16_2:32": 0.25, "resnet9:64": 0.125}
"""Networks, name:width, and the share of --images in an epoch of theirs: the lighter, the more, to take alike long."""


@dataclass(frozen=True)
class Trial:
    """What both sides train: images of an epoch; epochs counted, after the first; threads of each of the workers."""

    model: str
    images: int
    epochs: int
    threads: int
    workers: int
    folder: str

    def settings(self) -> ProxySettings:
        name, width = self.model.split(":")
        model = ModelConfig(name=name, width=int(width))
        # One more than are timed: an epoch is timed from its first step to the first of the next.
        return ProxySettings(model=model, batch_size=BATCH, epochs=self.epochs + 2)

    def steps(self) -> int:
        return -(-self.images // BATCH)


class Turns:
    """Lets two processes take turns, each by leaving a file for the other; seconds of its own turns are kept."""

    def __init__(self, folder: str, me: str, other: str) -> None:
        self.folder, self.me, self.other = Path(folder), me, other
        self.seconds: list[float] = []

    def wait(self, turn: int) -> None:
        while not (self.folder / f"{self.other}-{turn}").exists():
            time.sleep(0.001)
        self.began = time.perf_counter()

    def hand_over(self, turn: int) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        (self.folder / f"{self.me}-{turn}").touch()

    def finish(self) -> None:
        """The first turn warmed up."""
        (self.folder / f"{self.me}.txt").write_text(" ".join(map(str, self.seconds[1:])))


def synthetic(images: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (images, SIZE, SIZE, 3), dtype=np.uint8),
        rng.integers(0, NUM_CLASSES, images, dtype=np.int64),
    )


def write_inputs(folder: str, images: int) -> tuple[Artifact, Artifact]:
    """Finished stages `index` and `pseudo_label`; Ray must be there."""
    pixels, labels = synthetic(images)
    paths = write_shards(Path(folder) / "data", [png(one) for one in pixels], "png", -(-images // PARTS))
    out = Output(f"{folder}/pseudo_label")
    out.write_table(pa.table({"sample_id": np.arange(images), "train_label": labels}))
    pseudo_label = Artifact(out.uri, {"parts": [vars(part) for part in out.parts], "metrics": {}})
    return indexed(folder, paths, SIZE), pseudo_label


def product(worker: Worker, trial: Trial, index: Artifact, pseudo_label: Artifact, resources: Resources) -> None:
    """Runs in every Ray Train worker: the stage's own loop, which pauses after the first step of an epoch."""
    if worker.rank == 0:
        (Path(trial.folder) / "loop-began").write_text(str(time.time()))
    turns, rows = Turns(trial.folder, "product", "bare"), trial.images / trial.steps()
    told = 0

    def tick(done: int) -> None:
        nonlocal told
        worker.tick(done)
        epoch = done // trial.images
        if worker.rank != 0 or done != epoch * trial.images + round(rows) or epoch == told - 1:
            return
        told = epoch + 1
        if epoch:
            turns.hand_over(epoch - 1)
        if epoch <= trial.epochs:
            turns.wait(epoch)

    config = ProxyConfig(seed=0, num_classes=NUM_CLASSES, training=trial.settings())
    proxy._loop(replace(worker, tick=tick), index, pseudo_label, config, f"{trial.folder}/dynamics", resources)
    if worker.rank == 0:
        turns.finish()
        (Path(trial.folder) / "loop-ended").write_text(str(time.time()))


def bare(rank: int, trial: Trial) -> None:
    """A process of the other side: what people write who have their images in memory."""
    torch.set_num_threads(trial.threads)
    if trial.workers > 1:
        distributed.init_process_group("gloo", f"file://{trial.folder}/group", rank=rank, world_size=trial.workers)
    pixels, labels = map(torch.from_numpy, synthetic(trial.images))
    settings, device = trial.settings(), torch.device("cpu")
    backbone = training.seeded_model(settings.model, NUM_CLASSES, 0, device)
    model = nn.parallel.DistributedDataParallel(backbone) if trial.workers > 1 else backbone
    optimizer = training.optimiser(backbone, settings)
    turns, steps, step = Turns(trial.folder, "bare", "product"), trial.steps(), 0
    pad = round(settings.augment.crop_padding * SIZE)
    padded = torch.from_numpy(np.pad(pixels.numpy(), [(0, 0), (pad, pad), (pad, pad), (0, 0)], mode="reflect"))
    place = torch.arange(SIZE)
    for epoch in range(trial.epochs + 1):
        if rank == 0 and epoch:
            turns.wait(epoch - 1)
        elif rank == 0:
            turns.began = time.perf_counter()
        for rows in torch.randperm(trial.images, generator=torch.Generator().manual_seed(epoch)).tensor_split(steps):
            rows = rows[rank :: trial.workers]
            shift = torch.randint(2 * pad + 1, (2, len(rows), 1))
            columns = torch.where(torch.rand(len(rows), 1) < 0.5, place, place.flip(0)) + shift[1]
            views = padded[rows[:, None, None], (place + shift[0])[:, :, None], columns[:, None, :]]
            with precision.autocast("auto", device):
                logits = model(normalise(views))
            loss = functional.cross_entropy(logits, labels[rows])
            training.set_lr(optimizer, 0.5 * settings.lr * (1 + math.cos(math.pi * step / (settings.epochs * steps))))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        if rank == 0:
            turns.hand_over(epoch)
    if rank == 0:
        turns.finish()


@contextmanager
def bare_side(trial: Trial) -> Iterator[None]:
    """The processes of the bare loop; their environment is the user's, without what Ray may set."""
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=bare, args=(rank, trial), daemon=True) for rank in range(trial.workers)]
    for process in running:
        process.start()
    try:
        yield
        for process in running:
            process.join(60)
    finally:
        for process in running:
            process.kill()


def measure(trial: Trial) -> tuple[float, float]:
    """Print the rates of both; returns the seconds before and after the loop in Ray Train."""
    resources = Resources(
        num_workers=trial.workers, cpus_per_worker=trial.threads, images="cache", cache_dir=f"{trial.folder}/cache"
    )
    index, pseudo_label = write_inputs(trial.folder, trial.images)
    arguments = {"trial": trial, "index": index, "pseudo_label": pseudo_label, "resources": resources}
    began = time.time()
    with bare_side(trial):
        train(product, arguments, f"{trial.folder}/stage", resources, lambda *_: None, trial.images, "images")
        ended = time.time()
    seconds = {
        side: [float(turn) for turn in (Path(trial.folder) / f"{side}.txt").read_text().split()]
        for side in ("bare", "product")
    }
    rates = {side: [trial.images / turn for turn in turns] for side, turns in seconds.items()}
    ratios = [b / p for p, b in zip(seconds["product"], seconds["bare"], strict=True)]
    for side in ("bare", "product"):
        print(f"{trial.model:<12} {side:<8} {_spread(rates[side])}")
    print(f"{trial.model:<12} {'ratio':<8} {_spread(ratios, '9.3f')}   {trial.images:,} images an epoch", flush=True)
    notes = [float((Path(trial.folder) / name).read_text()) for name in ("loop-began", "loop-ended")]
    return notes[0] - began, ended - notes[1]


def measure_ingest(images: int, folder: str) -> None:
    """Print what one thread takes from the cache, as batches, and as views that a network could take."""
    torch.set_num_threads(1)
    cache = open_images(write_inputs(folder, images)[0], Resources(images="cache", cache_dir=f"{folder}/cache"))
    plan, labels = Plan(cache.samples, 0, "benchmark", BATCH), synthetic(images)[1]
    planned = list(islice(plan.epochs(), plan.num_steps))

    def views() -> None:
        for batch in as_batches(cache.steps(planned), labels):
            weak(batch.images, WeakConfig(), Draw(0, "benchmark", 0, batch.sample_ids))

    ways: dict[str, Callable[[], object]] = {
        "plan": lambda: list(islice(plan.epochs(), plan.num_steps)),
        "batches": lambda: list(as_batches(cache.steps(planned), labels)),
        "weak views": views,
    }
    for name, way in ways.items():
        way()
        found = []
        for _ in range(5):
            began = time.perf_counter()
            way()
            found.append(images / (time.perf_counter() - began))
        print(f"{'ingest':<12} {name:<10} {_spread(found)}   1 thread; goal 30,000")


def _spread(values: list[float], form: str = "9,.0f") -> str:
    return f"{statistics.median(values):{form}}  ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Measure the ingest, then every network asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=12288, help="of an epoch of the lightest network")
    parser.add_argument("--epochs", type=int, default=5, help="counted epochs of each side")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of each worker")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="name:width")
    options = parser.parse_args()
    facts = environment()
    versions = ", ".join(f"{name} {facts['libraries'][name]}" for name in ("ray", "torch", "numpy"))
    print(f"{facts['cores']} cores, {versions}, commit {facts['commit']}")
    print(
        f"{options.workers} workers of {options.threads} threads, {SIZE}x{SIZE}, batch {BATCH}, "
        f"{precision.resolve('auto', torch.device('cpu'))}; images/s: median (min to max) of {options.epochs} epochs"
    )
    with tempfile.TemporaryDirectory() as folder:
        # Ray lowers the priority of its workers, and whatever else runs here would then slow down one side alone.
        os.environ.setdefault("RAY_worker_niceness", "0")
        began, starts = time.time(), []
        with connected(Resources(num_workers=options.workers, cpus_per_worker=options.threads)):
            init = time.time() - began
            measure_ingest(options.images, f"{folder}/ingest")
            for place, model in enumerate(options.models):
                images = max(BATCH * 8, int(options.images * MODELS.get(model, 0.125)))
                trial = Trial(model, images, options.epochs, options.threads, options.workers, f"{folder}/{place}")
                starts.append(measure(trial))
    print(f"ray.init {init:.1f} s; a start of Ray Train, each of these: ", end="")
    print(", ".join(f"{before:.1f} s before the loop and {after:.1f} s after" for before, after in starts))


if __name__ == "__main__":
    main()
