"""What recording dynamics costs a training: `python -m benchmarks.recording --threads 4`; minutes, no Ray.

Two equal trainings take turns, epoch by epoch: one records every batch and commits every epoch, one does not. Told are
their medians, and the seconds spent inside observe, flush and commit, which is the cost itself where the device is the
CPU: there the difference of two epochs is mostly the noise of the machine. Images are random: neither cost depends on
them. Short epochs make the cost look higher than it is, for every epoch has one commit.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import precision
from models.augment import WeakConfig
from models.backbones import ModelConfig
from models.batch import Batch
from models.supervised import SupervisedConfig, SupervisedTrainer
from pipeline import counter
from pipeline.dynamics import DynamicsWriter
from pipeline.run import environment

NUM_CLASSES, SIZE, BATCH = 10, 32, 128


class Training:
    """One of the two; seconds: of each epoch."""

    def __init__(self, model: str, images: int, epochs: int, device: torch.device, folder: str | None) -> None:
        rng = np.random.default_rng(0)
        self.images = torch.from_numpy(rng.integers(0, 256, (images, SIZE, SIZE, 3), dtype=np.uint8))
        self.labels = torch.from_numpy(rng.integers(0, NUM_CLASSES, images))
        config = SupervisedConfig(model=ModelConfig(name=model), batch_size=BATCH, epochs=epochs, augment=WeakConfig())
        self.trainer = SupervisedTrainer(config, NUM_CLASSES, -(-images // BATCH), 0, device)
        self.writer = DynamicsWriter(folder, images) if folder else None
        self.device = device
        self.seconds: list[float] = []
        self.spent: dict[str, list[float]] = {"observe": [], "flush": [], "commit": []}

    def epoch(self, epoch: int) -> None:
        """Train one, and record it."""
        started = time.perf_counter()
        for spent in self.spent.values():
            spent.append(0.0)
        self.trainer.train_epoch(epoch, self._batches(epoch), observe=self._observe if self.writer else None)
        if self.writer:
            parts = [self._timed("flush", self.writer.flush, epoch)]
            self._timed("commit", self.writer.commit_epoch, epoch, parts)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(time.perf_counter() - started)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        ids = np.arange(len(self.images), dtype=np.int64)
        order = counter.permutation(0, "benchmark", epoch, ids)
        for mine in np.array_split(order, -(-len(ids) // BATCH)):
            valid = torch.ones(len(mine), dtype=torch.bool)
            yield Batch(mine, np.zeros(len(mine), np.int64), self.images[mine], self.labels[mine], valid, len(mine))

    def _observe(self, *batch: Any) -> None:
        assert self.writer is not None
        self._timed("observe", self.writer.observe, *batch)

    def _timed(self, name: str, function: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        self.spent[name][-1] += time.perf_counter() - started
        return result


def measure(model: str, images: int, epochs: int, device: torch.device, place: str | None) -> None:
    """Print the cost in trainings of one network."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        plain, recording = (Training(model, images, epochs + 1, device, where) for where in (None, folder))
        for epoch in range(epochs + 1):  # the first is not counted
            for training in (plain, recording) if epoch % 2 else (recording, plain):
                training.epoch(epoch)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    steps = -(-images // BATCH)
    base, whole = (statistics.median(training.seconds[1:]) for training in (plain, recording))
    differences = [b / a - 1 for a, b in zip(plain.seconds[1:], recording.seconds[1:], strict=True)]
    spent = {name: statistics.median(seconds[1:]) for name, seconds in recording.spent.items()}
    costs = [sum(epoch) for epoch in zip(*recording.spent.values(), strict=True)]
    inside = [cost / (seconds - cost) for cost, seconds in zip(costs[1:], recording.seconds[1:], strict=True)]
    print(f"\n{model}: {images:,} images an epoch, {epochs} pairs of epochs, {images / base:,.0f} images/s")
    print(f"  epoch without recording  {base:8.3f} s  ({_spread(plain.seconds[1:])})")
    print(f"  epoch with recording     {whole:8.3f} s  ({_spread(recording.seconds[1:])})")
    print(f"  difference, pair by pair {statistics.median(differences):+8.2%}    ({_percent(differences)})")
    print(
        f"  inside observe           {spent['observe'] * 1e3:8.1f} ms, {spent['observe'] / steps * 1e6:.0f} us a step"
    )
    print(f"  inside flush and commit  {(spent['flush'] + spent['commit']) * 1e3:8.1f} ms")
    print(f"  share of training time   {statistics.median(inside):8.2%}    ({_percent(inside)}); target: under 2%")
    print(f"  bytes a record           {size / images / (epochs + 1):8.2f}, manifests included")


def _spread(seconds: list[float]) -> str:
    return f"{min(seconds):.3f} to {max(seconds):.3f} s"


def _percent(shares: list[float]) -> str:
    return f"{min(shares):.2%} to {max(shares):.2%}"


def main() -> None:
    """Measure every network asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=6400, help="samples of an epoch")
    parser.add_argument("--epochs", type=int, default=5, help="counted epochs of each training")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=["resnet9", "wrn_16_2"])
    parser.add_argument("--folder", help="where the dynamics go; a temporary folder otherwise, deleted either way")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    facts = environment()
    versions = ", ".join(f"{name} {facts['libraries'][name]}" for name in ("torch", "pyarrow", "numpy"))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{arguments.threads} threads"
    print(f"{where}, {facts['cores']} cores, {versions}, commit {facts['commit']}")
    print(f"batch {BATCH}, {SIZE}x{SIZE}, {precision.resolve('auto', device)}")
    for model in arguments.models:
        measure(model, arguments.images, arguments.epochs, device, arguments.folder)


if __name__ == "__main__":
    main()
