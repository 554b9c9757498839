"""What grows with the pool, up to 10^9 samples: `python -m benchmarks.scale FOLDER PART --samples N`.

Each PART is one thing that the product does, in a process of its own, and prints its time and its largest memory:

* hashes: the index's search for keys that two shards share, in the process that plans;
* worker: where all images are, as a machine maps it from its disk, and the order of an epoch, as one of many training
  workers has it when it gets its first batch. Of the index 100 parts of 10,000 samples are made, and come again;
* blocks: what a task holds of a file of dynamics that it has open;
* files: what a task that scores 2^21 samples holds of the files of 4 epochs, and what all of these files would take;
* ranks: the memory of a task whose blocks are those of 8 and of 512 ranks, three scores of 12 epochs of 2^23 samples;
* reduce: three scores of 60 epochs, partition by partition of 2^21 samples in two processes. A partition's records are
  written once (2 GB) and reduced again for each partition, since 10^9 x 60 fill no disk here; the scores of all are
  written, and dropped at the end unless `--keep`;
* select: the stage itself on a table of such scores. Of more partitions than `reduce` left there, those come again,
  under ids of their own: equal scores are the rule then, and a hash of the ids decides among them.
"""

import argparse
import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.rehearsal import memory
from benchmarks.synthetic import make, statistics
from pipeline import counter, select
from pipeline.cluster import connected
from pipeline.disk_cache import DiskCache
from pipeline.dynamics import BLOCK_ROWS, DynamicsPart, DynamicsWriter, _digest, _table
from pipeline.dynamics_store import DynamicsStore
from pipeline.epoch_file import EpochFile, Footer, encode
from pipeline.epoch_plan import Plan
from pipeline.index_shard import SCHEMA
from pipeline.reduce import Reduction
from pipeline.resources import Resources
from pipeline.run import environment
from pipeline.samples import Samples
from pipeline.scores import requests
from pipeline.shared_keys import SharedKeys
from pipeline.stage import Artifact, Output, write_part, write_table_part
from pipeline.units import duration, size

PER_SHARD, EPOCHS, PARTITION = 10_000, 60, 1 << 21
SCORES = ("aum", "forgetting", "dual")


def hashes(folder: Path, num_samples: int) -> str:
    """One key in 10^6 is in two shards."""
    keys, start = SharedKeys(), time.perf_counter()
    for low in range(0, num_samples, PER_SHARD):
        ids = np.arange(low, min(low + PER_SHARD, num_samples))
        ids[ids % 1_000_000 == 999_999] -= 999_999
        keys.add(low // PER_SHARD, counter.hash64(0, "key", 0, ids).tobytes())
    made = time.perf_counter()
    found = keys.earlier()
    return (
        f"{len(found):,} shards share a key; found in {duration(time.perf_counter() - made)}, when the hashes were "
        f"made and written, {duration(made - start)}"
    )


def write_index_part(low: int, folder: Path, num_samples: int) -> dict[str, Any]:
    ids = np.arange(low, min(low + PER_SHARD, num_samples))
    rng = np.random.default_rng(low)
    image = rng.integers(20_000, 200_000, len(ids))
    length = 1536 + -(-image // 512) * 512
    offset = np.cumsum(length) - length
    columns = {
        "key": pa.array([f"{number:09d}" for number in ids.tolist()]),
        "shard": np.full(len(ids), low // PER_SHARD),
        "row": ids - low,
        "label": rng.integers(0, 1000, len(ids)),
        "offset": offset,
        "length": length,
        "image_offset": offset + 512,
        "image_size": image,
    }
    return vars(write_table_part(str(folder), f"part-{low // PER_SHARD:05d}", pa.table(columns, SCHEMA)))


def index_of(folder: Path, num_samples: int) -> Artifact:
    """What the stage leaves, but for what its shards are; made where there is none."""
    place = folder / f"index-{num_samples}"
    if not (place / "parts.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        starts = range(0, num_samples, PER_SHARD)
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
            write = partial(write_index_part, folder=place, num_samples=num_samples)
            parts = list(pool.map(write, starts[:100]))
        parts = [parts[number % len(parts)] for number in range(len(starts))]
        columns: dict[str, Any] = {name: [] for name in ("shard", "uri", "size", "sha256", "mtime_or_etag")}
        for number in range(len(parts)):
            row = (number, f"s3://bucket/train-{number:06d}.tar", 0, "0" * 64, "0" * 32)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
        rows = [part["rows"] for part in parts]
        columns |= {"num_rows": rows, "first_id": (np.cumsum(rows) - rows).tolist()}
        parts.append(vars(write_table_part(str(place), "shards", pa.table(columns))))
        (place / "parts.json").write_text(json.dumps(parts))
    data = {"shards": ["s3://bucket/train-*.tar"], "num_classes": 1000, "image_size": 224}
    config = {"data": data, "labels_sha256": None, "names_sha256": None}
    return Artifact(str(place), {"config": config, "parts": json.loads((place / "parts.json").read_text())})


def worker(folder: Path, num_samples: int, workers: int) -> str:
    index, cache = index_of(folder, num_samples), DiskCache(folder, 1 << 50)
    before, start = own_memory(), time.perf_counter()
    Samples.open(index, cache)
    filled = time.perf_counter()
    samples = Samples.open(index, cache)
    opened = time.perf_counter()
    held = own_memory() - before
    steps = Plan(samples, 0, "scale", 256 * workers, 0, workers).epochs()
    assert len(next(steps).ids) in (255, 256)
    file = next(folder.glob("*.samples")).stat().st_size
    return (
        f"the machine's file has {size(file)} and was made in {duration(filled - start)}, opened again in "
        f"{duration(opened - filled)} and {size(held)}; one of {workers} workers got its first "
        f"batch after another {duration(time.perf_counter() - opened)} and {size(own_memory() - before - held)}"
    )


def own_memory() -> int:
    """Bytes of this process that are not of a mapped file."""
    info = psutil.Process().memory_info()
    return int(info.rss - info.shared)


def open_files(uri: str, num_bytes: int, footer: Footer, times: int) -> tuple[float, int]:
    """One process: seconds, and how much larger it is while all are open."""
    opened = [EpochFile(uri, num_bytes, footer, "epoch 5")]
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    opened += [EpochFile(uri, num_bytes, footer, "epoch 5") for _ in range(times)]
    return time.perf_counter() - start, psutil.Process().memory_info().rss - before


def blocks(folder: Path, num_samples: int) -> str:
    data, footer = encode(_table(np.arange(num_samples), statistics(num_samples, 5)), BLOCK_ROWS)
    uri = str(folder / "blocks.parquet")
    Path(uri).write_bytes(data)
    times, count = 200, -(-num_samples // BLOCK_ROWS)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        took, grown = pool.submit(open_files, uri, len(data), footer, times).result()
    Path(uri).unlink()
    return (
        f"{len(data) / num_samples:.1f} bytes a record; a block has {(len(data) - footer.start) / count:.0f} bytes in "
        f"the footer, takes {grown / count / times:.0f} in memory, and {1e6 * took / count / times:.0f} us to open"
    )


def files(folder: Path, num_samples: int) -> str:
    uri = str(folder / "files")
    make(uri, num_samples, 4, ranks=1)
    store, before = DynamicsStore(uri), own_memory()
    some = [file for epoch in store.epochs for file in store.files(epoch, 0, PARTITION)]
    held = own_memory() - before
    every = [file for epoch in store.epochs for file in store.files(epoch)]
    all_held = own_memory() - before
    shutil.rmtree(uri)
    return f"a task has {len(some)} of {len(every)} files open, which take {size(held)} of {size(all_held)}"


def reduce_wide(store: str, num_samples: int) -> int:
    before = peak()
    options = {"dual": {"T": 12, "J": 10}}
    Reduction.of(DynamicsStore(store), requests(SCORES, options)).range(0, num_samples)
    return peak() - before


def ranks(folder: Path, num_samples: int) -> str:
    store, said = str(folder / "wide"), []
    num_samples = 1 << 23
    for number in (8, 512):
        writer, span = DynamicsWriter(store, num_samples), BLOCK_ROWS * number
        for epoch in range(12):
            columns = statistics(num_samples, epoch)
            ids = np.arange(num_samples)
            data, footer = encode(_table(ids, columns), span)
            part = write_part(store, f"epoch-{epoch:05d}-rank-0", ".parquet", data, num_samples)
            widths = dict.fromkeys(columns, 1)
            writer.commit_epoch(epoch, [DynamicsPart((part,), (footer,), widths, span, _digest(ids), 0, 100)])
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            taken = pool.submit(reduce_wide, store, num_samples).result()
        said.append(f"blocks of {number} ranks: {size(taken)}")
        shutil.rmtree(store)
    return "; ".join(said)


def reduce_partition(number: int, store: str, folder: Path) -> tuple[dict[str, Any], int]:
    """One task: the part of the scores, and this process's largest memory so far."""
    reduction = Reduction.of(DynamicsStore(store), requests(SCORES, {}))
    scores = reduction.range(0, PARTITION)
    ids = pa.array(np.arange(PARTITION) + number * PARTITION)
    table = scores.set_column(0, "sample_id", ids)
    part = write_table_part(str(folder), f"part-{number:05d}", table)
    return vars(part), peak()


def reduce(folder: Path, num_samples: int, keep: bool) -> str:
    store = folder / "dynamics"
    start = time.perf_counter()
    make(str(store), PARTITION, EPOCHS, ranks=8)
    made = time.perf_counter() - start
    shutil.rmtree(folder / "scores", ignore_errors=True)
    start = time.perf_counter()
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        task = partial(reduce_partition, store=str(store), folder=folder / "scores")
        parts, peaks = zip(*pool.map(task, range(-(-num_samples // PARTITION))), strict=True)
    took = time.perf_counter() - start
    shutil.rmtree(store)
    written = sum(part["bytes"] for part in parts)
    records = len(parts) * PARTITION * EPOCHS
    if keep:
        (folder / "scores" / "parts.json").write_text(json.dumps(parts))
    else:
        shutil.rmtree(folder / "scores")
    return (
        f"{len(parts)} partitions, {records:,} records in {duration(took)}, {1e9 * took / records:.1f} ns a record; a "
        f"task takes {size(max(peaks))}; {size(written)} of scores; one partition's records took {duration(made)}"
    )


def scores_of(folder: Path, num_samples: int) -> Artifact:
    """A score table of so many samples, from the partitions that `reduce --keep` left."""
    parts = json.loads((folder / "scores" / "parts.json").read_text())
    there = len(parts)
    for number in range(there, -(-num_samples // PARTITION)):
        like = pq.read_table(folder / "scores" / parts[number % there]["name"])
        stop = min((number + 1) * PARTITION, num_samples)
        ids = pa.array(np.arange(number * PARTITION, stop))
        table = like.slice(0, len(ids)).set_column(0, "sample_id", ids)
        parts.append(vars(write_table_part(str(folder / "scores"), f"part-{number:05d}", table)))
    harder = {"aum": "low", "forgetting": "high", "dual": "high", "dual_mean": "low"}
    return Artifact(str(folder / "scores"), {"parts": parts, "metrics": {"harder": harder}})


def table_of(folder: Path, **columns: Any) -> Artifact:
    """A small artifact of one part."""
    parts = [vars(write_table_part(str(folder), "part", pa.table(columns)))]
    return Artifact(str(folder), {"parts": parts, "metrics": {}})


def select_stage(folder: Path, num_samples: int) -> str:
    score = scores_of(folder, num_samples)
    num_samples = sum(part.rows for part in score.parts())  # whole partitions, where `reduce` left them
    written = sum(part.bytes for part in score.parts())
    none = pa.array([], pa.int64())
    labelled = np.arange(0, num_samples, max(1, num_samples // 100_000))
    inputs = {
        "score": score,
        "split": table_of(folder / "split", sample_id=labelled),
        "trust": table_of(folder / "trust", sample_id=none, wrong=pa.array([], pa.bool_())),
    }
    said = [f"{num_samples:,} samples, {size(written)} of scores"]
    resources = Resources(tasks=len(os.sched_getaffinity(0)))
    with connected(resources):
        for selector, options in (("double_end", {"mislabel_fraction": 0.1}), ("dual_beta", {})):
            config = select.SelectConfig(name="c", selector=selector, keep_fraction=0.1, seed=0, options=options)
            out = Output(str(folder / "select"))
            start = time.perf_counter()
            with memory() as seen:
                metrics = select.run({**inputs}, config, out, resources=resources, progress=lambda *_: None)
            took = time.perf_counter() - start
            kept = sum(part.rows for part in out.parts)
            assert kept == metrics["budget"] == num_samples // 10
            said.append(
                f"{selector} keeps exactly {kept:,} in {duration(took)}, no process above "
                f"{size(max(seen.values()))}, {size(sum(part.bytes for part in out.parts))} of ids"
            )
            shutil.rmtree(out.uri)
    return "; ".join(said)


def peak() -> int:
    """The largest memory that this process has had, in bytes; not that of another that it came from, as ru_maxrss."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


PARTS = {
    "hashes": hashes,
    "worker": worker,
    "blocks": blocks,
    "files": files,
    "ranks": ranks,
    "reduce": reduce,
    "select": select_stage,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--keep", action="store_true", help="leave the scores of `reduce` for `select`")
    parser.add_argument("--workers", type=int, default=64, help="how many train, for `worker`")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    facts, cores = environment(), len(os.sched_getaffinity(0))
    libraries = ", ".join(f"{name} {facts['libraries'][name]}" for name in ("numpy", "pyarrow", "ray"))
    before = peak()
    started = time.perf_counter()
    options = {"reduce": {"keep": given.keep}, "worker": {"workers": given.workers}}.get(given.part, {})
    said = PARTS[given.part](folder, given.samples, **options)
    took = time.perf_counter() - started
    print(
        f"{given.part}, {given.samples:,} samples: {said}; {duration(took)} in all; this process had {size(peak())}, "
        f"{size(before)} before it began; {cores} cores, Python {facts['python']}, {libraries}, {facts['commit']}"
    )


if __name__ == "__main__":
    main()
