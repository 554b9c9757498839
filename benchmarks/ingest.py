"""Images/s from shards to the training loop's batch: `python -m benchmarks.ingest --sample imagenet-sample.tar`.

JPEGs of ImageNet's size, a random part of each resized to 224x224, by several ways that take turns on the same cores,
all with the same decoder (`pipeline.images`):

* the limit: a pool of processes that scans, decodes and keeps the pixels: nothing comes back, nothing is in order;
* ours: `pipeline.stream`, threads of the one process that has the batches, shuffled, every sample exactly once;
* ours, object store: the same from `rclone serve s3` on loopback, whose own work is done by the same cores;
* webdataset + DataLoader: as many worker processes as cores, whole batches through shared memory, shards in order;
* read_webdataset: Ray Data, `map_batches` to decode, `iter_batches`.

Each is run once to warm up; starting processes is not counted. "share" is of the limit. Then batches of 32x32 images
from the cache.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import torch
import webdataset  # type: ignore[import-untyped]
from PIL import Image

from pipeline import epoch_plan, images, pixels, stage, tar
from pipeline.batches import make_batch
from pipeline.random_crop import RandomCrop
from pipeline.shards import Shard
from pipeline.stream import Samples, Stream

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


def write(folder: Path, contents: list[bytes], count: int) -> list[str]:
    """Shards with `count` samples, the given images again and again."""
    paths = []
    for start in range(0, count, PER_SHARD):
        path = folder / f"train-{start // PER_SHARD:06d}.tar"
        numbers = range(start, min(start + PER_SHARD, count))
        path.write_bytes(tar.pack((f"{n:06d}.jpg", contents[n * 7 % len(contents)]) for n in numbers) + tar.END)
        paths.append(str(path))
    return paths


def locate(paths: list[str]) -> Samples:
    """What the stage `index` finds out."""
    shards: list[Shard] = []
    rows: list[tuple[Any, ...]] = []
    for number, path in enumerate(paths):
        content = Path(path).read_bytes()
        found = tar.scan(content)
        shards.append(Shard(number, path, len(content), "", "", len(found), len(rows)))
        for one in found:
            rows.append((one.key, number, one.offset, one.length, one.members[0].offset, one.members[0].size))
    keys, *columns = zip(*rows, strict=True)
    names = ("shard", "offset", "length", "image_offset", "image_size")
    spans: dict[str, Any] = {name: np.array(column) for name, column in zip(names, columns, strict=True)}
    return Samples(shards=shards, keys=pa.array(keys), size=SIZE, max_pixels=MAX_PIXELS, **spans)


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
    me = psutil.Process()
    return float(sum(sum(process.cpu_times()[:2]) for process in [me, *me.children(recursive=True)]))


def rounds(jobs: dict[str, Callable[[int], int]], count: int, repeat: int) -> dict[str, Speed]:
    """Every job in turns; each must have seen every sample exactly once."""
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


def unique(ids: Iterator[np.ndarray]) -> int:
    return len(np.unique(np.concatenate(list(ids))))


def table(speeds: dict[str, Speed], base: str) -> None:
    print(f"\n{'images/s':26}{'median':>11}{'min':>11}{'max':>11}{'share':>7}{'per CPU s':>11}{'share':>7}")
    for name, speed in speeds.items():
        wall, cpu = median(speed.wall), median(speed.cpu)
        print(
            f"{name:26}{wall:11,.0f}{min(speed.wall):11,.0f}{max(speed.wall):11,.0f}"
            f"{wall / median(speeds[base].wall):7.2f}{cpu:11,.0f}{cpu / median(speeds[base].cpu):7.2f}"
        )


def large(folder: Path, sample: Path | None, count: int, repeat: int, cores: int) -> None:
    import ray

    from tests.object_store import reached, serve

    (folder / "bucket").mkdir()
    paths = write(folder / "bucket", photographs(sample), count)
    samples = locate(paths)
    size = sum(shard.size for shard in samples.shards)
    print(f"{count:,} JPEGs of {size / count / 1e3:.0f} kB, {SIZE}x{SIZE}, batches of {BATCH}", flush=True)
    remote = replace(
        samples, shards=[replace(shard, uri=f"s3://bucket/{Path(shard.uri).name}") for shard in samples.shards]
    )

    def ours(where: Samples) -> Callable[[int], int]:
        stream = Stream(where, 0, "benchmark", BATCH, crop=CROP, threads=cores)
        return lambda turn: unique(step.ids for step in stream.epoch(turn))

    spawn = multiprocessing.get_context("spawn")
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ProcessPoolExecutor(cores, spawn, one_thread) as pool, serve(folder) as endpoint, reached(endpoint):
        batches = loader(paths, cores)
        jobs: dict[str, Callable[[int], int]] = {
            "the limit": lambda _: sum(pool.map(limit, paths)),
            "ours": ours(samples),
            "ours, object store": ours(remote),
            "webdataset + DataLoader": lambda _: unique(np.asarray(ids) for _, ids in batches),
            "read_webdataset": lambda _: unique(read_webdataset(paths)),
        }
        table(rounds(jobs, count, repeat), "the limit")
    ray.shutdown()


def small(folder: Path, repeat: int, count: int = 50_000, batch: int = 128) -> None:
    """Batches from the cache, as a proxy on small images takes them."""
    rng = np.random.default_rng(0)
    parts = []
    for number in range(5):
        content = rng.integers(0, 256, (count // 5, 32, 32, 3), dtype=np.uint8)
        parts.append(stage.write_part(str(folder), f"part-{number}", ".arrow", pixels._to_arrow(content), len(content)))
    cache, labels, ids = pixels.Pixels(str(folder), parts, 32), rng.integers(0, 10, count), np.arange(count)

    def epoch(turn: int) -> int:
        plan = epoch_plan.epoch_batches(0, "benchmark", turn, ids, batch, 0, 1)
        return sum(len(make_batch(cache, labels, mine, size, valid).images) for mine, valid, size in plan)

    name = f"cache, 32x32, by {batch}"
    table(rounds({name: epoch}, count, repeat), name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, help="a tar with JPEGs; else synthetic ones")
    parser.add_argument("--images", type=int, default=10_000)
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
        large(Path(folder), options.sample, options.images, options.repeat, options.cores)
    with tempfile.TemporaryDirectory() as folder:
        small(Path(folder), options.repeat)


if __name__ == "__main__":
    main()
