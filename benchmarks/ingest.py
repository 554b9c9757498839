"""Images/s from shards to the training loop's batch: `python -m benchmarks.ingest --sample imagenet-sample.tar`.

JPEGs of ImageNet's size, a random part of each resized to 224x224, by several ways that take turns on the same cores,
all with the same decoder (`pipeline.images`):

* the limit: a pool of processes that scans, decodes and keeps the pixels: nothing comes back, nothing is in order;
* ours: `pipeline.stream`, processes that decode into memory of the one that has the batches, shuffled, every sample
  exactly once an epoch;
* ours, object store: the same from `rclone serve s3` on loopback, whose own work is done by the same cores;
* webdataset + DataLoader: as many worker processes as cores, whole batches through shared memory, shards in order;
* read_webdataset: Ray Data, `map_batches` to decode, `iter_batches`.

A turn is `--epochs` epochs through one stream, as in a training. Each has one turn to warm up; starting processes is
not counted there, but ours starts decoders in every turn. "share" is of the limit. Then batches of 32x32 images from
the cache.
"""

import argparse
import importlib.metadata
import io
import logging
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
import webdataset  # type: ignore[import-untyped]
from PIL import Image

from benchmarks.dataset import indexed, png, write_shards
from pipeline import images, tar
from pipeline.batches import as_batches
from pipeline.disk_cache import DiskCache
from pipeline.epoch_plan import Plan
from pipeline.pixels import Pixels
from pipeline.random_crop import RandomCrop
from pipeline.samples import Samples
from pipeline.stream import Stream

SIZE, BATCH, PER_SHARD, MAX_PIXELS = 224, 256, 250, 10**8
CROP = RandomCrop()


def photographs(sample: Path | None) -> list[bytes]:
    """The JPEGs of a tar; without one, noise with the spectrum of photographs, 500x375 and about 110 kB each."""
    if sample:
        with tarfile.open(sample) as archive:
            return [archive.extractfile(member).read() for member in archive if member.name.endswith(".jpg")]  # type: ignore[union-attr]
    made = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.fftfreq(500)) + 1 / 500
        grey = np.fft.ifft2(np.fft.fft2(rng.normal(size=(375, 500))) / frequency).real
        pixels = 128 + 50 * grey[..., None] / grey.std() + rng.normal(size=3) * 20 + rng.normal(size=(375, 500, 1)) * 6
        sink = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=88)
        made.append(sink.getvalue())
    return made


def decode(contents: list[Any], ids: list[int]) -> np.ndarray:
    """uint8 [n, SIZE, SIZE, 3]: the same parts of the same images whoever asks."""
    out = np.empty((len(contents), SIZE, SIZE, 3), np.uint8)
    views = CROP.views(0, "benchmark", 0, np.array(ids))
    for row, content, (crop, flip) in zip(out, contents, views, strict=True):
        images.decode_crop(content, MAX_PIXELS, row, crop, flip)
    return out


def limit(path: str) -> int:
    whole = Path(path).read_bytes()
    content, found = memoryview(whole), tar.scan(whole)
    spans = [one.members[0] for one in found]
    return len(decode([content[one.offset : one.offset + one.size] for one in spans], [int(one.key) for one in found]))


def one_thread(_: object = None) -> None:
    torch.set_num_threads(1)


def decode_sample(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    number = int(sample["__key__"])
    return torch.from_numpy(decode([sample["jpg"]], [number])[0]), number


def loader(paths: list[str], cores: int) -> torch.utils.data.DataLoader[Any]:
    dataset = webdataset.WebDataset(paths, shardshuffle=False).map(decode_sample).batched(BATCH)
    return torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=cores, persistent_workers=True, multiprocessing_context="spawn"
    )


def decode_block(block: dict[str, Any]) -> dict[str, Any]:
    one_thread()
    ids = [int(key) for key in block["__key__"]]
    return {"image": decode(list(block["jpg"]), ids), "id": np.array(ids)}


def read_webdataset(paths: list[str]) -> Iterator[np.ndarray]:
    import ray.data

    dataset = ray.data.read_webdataset(paths, decoder=None, suffixes=["jpg"])
    for batch in dataset.map_batches(decode_block, batch_size=64).iter_batches(batch_size=BATCH, prefetch_batches=2):
        yield batch["id"]


@dataclass
class Speed:
    """Of each turn of a job: images/s, and images per CPU second of all processes, which other work disturbs less."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def cpu_seconds() -> float:
    """Of all processes, and of those that have ended and were waited for."""
    me = psutil.Process()
    return float(sum(sum(process.cpu_times()[:4]) for process in [me, *me.children(recursive=True)]))


def rounds(jobs: dict[str, Callable[[int], int]], count: int, repeat: int) -> dict[str, Speed]:
    """Every job in turns; each must have seen every sample exactly once an epoch."""
    speeds = {name: Speed() for name in jobs}
    for turn in range(repeat + 1):
        for name, job in jobs.items():
            used, start = cpu_seconds(), time.perf_counter()
            seen = job(turn)
            seconds, used = time.perf_counter() - start, cpu_seconds() - used
            assert seen == count, f"{name}: {seen} of {count} samples"
            if turn:
                speeds[name].wall.append(seen / seconds)
                speeds[name].cpu.append(seen / used)
    return speeds


def table(speeds: dict[str, Speed], base: str) -> None:
    print(f"\n{'images/s':26}{'median':>11}{'min':>11}{'max':>11}{'share':>7}{'per CPU s':>11}{'share':>7}")
    for name, speed in speeds.items():
        wall, cpu = median(speed.wall), median(speed.cpu)
        print(
            f"{name:26}{wall:11,.0f}{min(speed.wall):11,.0f}{max(speed.wall):11,.0f}"
            f"{wall / median(speeds[base].wall):7.2f}{cpu:11,.0f}{cpu / median(speeds[base].cpu):7.2f}"
        )


def large(folder: Path, sample: Path | None, count: int, epochs: int, repeat: int, cores: int) -> None:
    import ray

    from tests.object_store import reached, serve

    spawn = multiprocessing.get_context("spawn")
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    made = photographs(sample)
    paths = write_shards(folder / "bucket", [made[n * 7 % len(made)] for n in range(count)], "jpg", PER_SHARD)
    samples = Samples.open(indexed(str(folder / "run"), paths, SIZE), DiskCache.at(str(folder / "cache"), None))
    size = sum(shard.size for shard in samples.shards)
    print(f"{count:,} JPEGs of {size / count / 1e3:.0f} kB, {SIZE}x{SIZE}, batches of {BATCH}", flush=True)
    remote = replace(
        samples, shards=[replace(shard, uri=f"s3://bucket/{Path(shard.uri).name}") for shard in samples.shards]
    )

    def ours(where: Samples) -> Callable[[int], int]:
        stream = Stream(where, cores, partial(CROP.views, 0, "benchmark"))
        plan = Plan(where, 0, "benchmark", BATCH)
        steps = epochs * plan.num_steps
        return lambda turn: seen(step.ids for step in stream.steps(islice(plan.epochs(turn * epochs), steps)))

    def seen(ids: Iterable[np.ndarray]) -> int:
        every = np.concatenate(list(ids)).reshape(epochs, -1)
        return sum(len(np.unique(epoch)) for epoch in every)

    with ProcessPoolExecutor(cores, spawn, one_thread) as pool, serve(folder) as endpoint, reached(endpoint):
        batches = loader(paths, cores)
        jobs: dict[str, Callable[[int], int]] = {
            "the limit": lambda _: sum(pool.map(limit, paths * epochs)),
            "ours": ours(samples),
            "ours, object store": ours(remote),
            "webdataset + DataLoader": lambda _: seen(np.asarray(ids) for _ in range(epochs) for _, ids in batches),
            "read_webdataset": lambda _: seen(ids for _ in range(epochs) for ids in read_webdataset(paths)),
        }
        table(rounds(jobs, epochs * count, repeat), "the limit")
    ray.shutdown()


def small(folder: Path, repeat: int, count: int = 50_000, batch: int = 128) -> None:
    """Batches from the cache, as a proxy on small images takes them."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    noise = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    paths = write_shards(folder, [png(one) for one in noise], "png", 10_000)
    disk = DiskCache.at(str(folder / "cache"), None)
    samples = Samples.open(indexed(str(folder), paths, 32), disk)
    ray.shutdown()
    cache, labels = Pixels(samples, disk), np.zeros(count, np.int64)
    plan = Plan(samples, 0, "benchmark", batch)

    def epoch(turn: int) -> int:
        steps = islice(plan.epochs(turn), plan.num_steps)
        return sum(len(one.images) for one in as_batches(cache.steps(steps), labels))

    name = f"cache, 32x32, by {batch}"
    table(rounds({name: epoch}, count, repeat), name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, help="a tar with JPEGs; else synthetic ones")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=2, help="of a turn")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
    one_thread()
    names = ("ray", "torch", "webdataset", "simplejpeg", "pillow", "s3fs", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"{options.cores} cores, load {os.getloadavg()[0]:.1f}; {versions}")
    with tempfile.TemporaryDirectory() as folder:
        large(Path(folder), options.sample, options.images, options.epochs, options.repeat, options.cores)
    with tempfile.TemporaryDirectory() as folder:
        small(Path(folder), options.repeat)


if __name__ == "__main__":
    main()
