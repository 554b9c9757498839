"""The reducer against DuckDB and Polars on the same files, and against the floor: reading and decoding them at all.

    python -m benchmarks.reduce [--samples N --epochs E --ranks R --keep FOLDER]     every line in turns, medians
    python -m benchmarks.reduce --linear                                             time per record as N and E grow

Ours runs as the product does: a task per range of whole blocks, which opens the store anew and leaves its scores in a
file, in processes that are warm; the files are then one table.
"""

import argparse
import importlib.metadata
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather

from benchmarks import engines
from benchmarks.synthetic import make
from pipeline.dynamics_store import DynamicsStore
from pipeline.reduce import Reduction, lacking, reduce_store
from pipeline.score import cut
from pipeline.scores import SCORES, Request, requests
from pipeline.storage import join

Formulation = Callable[[DynamicsStore], pa.Table]

CORES = os.cpu_count() or 1
FEW = requests(["aum", "forgetting", "dual"], {"dual": {"T": engines.T, "J": engines.J}})


def every(store: DynamicsStore) -> list[Request]:
    """Every score that the store allows, and DUAL once more."""
    names = [name for name in SCORES.names() if lacking(store, Request.of(name, {})) is None]
    variant = {"dual@60": {"T": 60}} if len(store.epochs) >= 60 else {}
    return requests([*names, *variant], variant)


def scores(ids: tuple[int, int], reduction: Reduction, folder: str) -> str:
    """The file with the scores of a range."""
    name = f"{folder}/{ids[0]}-{len(reduction.requests)}.arrow"
    feather.write_feather(reduction.range(*ids), name, compression="uncompressed")
    return name


def gathered(files: Iterable[str]) -> pa.Table:
    return pa.concat_tables([feather.read_table(file, memory_map=True) for file in files])


def by_tasks(pool: ProcessPoolExecutor, reduction: Reduction, folder: str) -> pa.Table:
    return gathered(pool.map(partial(scores, reduction=reduction, folder=folder), ranges(reduction.store)))


def floor(ids: tuple[int, int], store: DynamicsStore, takes: Mapping[int, Sequence[str]]) -> int:
    """The columns that the scores take, read, verified and decoded to numpy as the ranks wrote them."""
    blocks = (block for epoch in takes for file in store.files(epoch) for block in file.blocks(takes[epoch], *ids))
    return sum(len(found) for found, _ in blocks)


def plain_decode(name: str) -> int:
    """A whole file by pyarrow.parquet alone: no checksum, ids and all columns, to numpy."""
    table = pq.read_table(name, use_threads=False)
    return sum(len(table[column].to_numpy()) for column in table.column_names)


def plain_read(name: str) -> int:
    with Path(name).open("rb", buffering=0) as file:
        room = bytearray(1 << 20)
        return sum(iter(lambda: file.readinto(room), 0))


def ranges(store: DynamicsStore) -> list[tuple[int, int]]:
    """Of the tasks; each opens the store's files."""
    return cut(store.num_samples, store.span, CORES)


def nap(_: int) -> None:
    """Long enough for each process of a pool to take one, with all imports that tasks need."""
    time.sleep(1)


@contextmanager
def processes(count: int = CORES) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        list(pool.map(nap, range(count)))
        yield pool


def in_turns(jobs: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each job, repeated one after the other; once before that, to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeat + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def same(ours: pa.Table, theirs: pa.Table) -> bool:
    """Ids and forgetting exactly, the others to 1e-4."""
    for name in ours.column_names:
        x, y = (np.asarray(table[name], dtype=np.float64) for table in (ours, theirs))
        tolerance = 0.0 if name in ("sample_id", "forgetting") else 1e-4
        if len(x) != len(y) or not np.allclose(x, y, rtol=tolerance, atol=tolerance / 100):
            return False
    return True


def fastest(store: DynamicsStore, ours: pa.Table, engine: str, only: str | None) -> Formulation | None:
    """The formulation that is fastest at its second try, each in a process of its own; its scores must be ours."""
    tried = {}
    for formulation in engines.FORMULATIONS[engine]:
        if only and formulation.__name__ not in only.split(","):
            continue
        with processes(1) as pool:
            try:
                seconds, gigabytes = pool.submit(second_try, formulation, store, ours).result()
            except engines.OutOfMemory:
                print(f"  {formulation.__name__:16}  more than {engines.MEMORY}", flush=True)
                continue
        tried[formulation] = seconds
        print(f"  {formulation.__name__:16}{seconds:8.2f} s  same scores{gigabytes:6.1f} GB", flush=True)
    return min(tried, key=lambda formulation: tried[formulation], default=None)


def second_try(formulation: Formulation, store: DynamicsStore, ours: pa.Table) -> tuple[float, float]:
    """Seconds, and GB of memory at most."""
    assert same(ours, formulation(store)), f"{formulation.__name__} disagrees with ours"
    start = time.perf_counter()
    formulation(store)
    return time.perf_counter() - start, _status("VmHWM") / 1000


def compare(store: DynamicsStore, repeat: int, only: str | None) -> None:
    names = [join(store.uri, part.name) for commit in store.commits for part in commit.files]
    records = store.num_samples * len(store.epochs)
    size = sum(part.bytes for commit in store.commits for part in commit.files)
    few, many = Reduction.of(store, FEW), Reduction.of(store, every(store))
    print(f"{size / records:.2f} bytes a record, blocks of {store.span:,} ids")
    print(f"all scores: {', '.join(request.name for request in many.requests)}\n")
    ours = reduce_store(store.uri, FEW)
    print("formulations:")
    fast = {engine: fastest(store, ours, engine, only) for engine in engines.FORMULATIONS}
    chosen = {engine: formulation for engine, formulation in fast.items() if formulation}
    with processes() as pool, tempfile.TemporaryDirectory() as folder:
        parts = ranges(store)

        def tasks(function: Callable[..., object], *arguments: object, **settings: object) -> Callable[[], object]:
            return lambda: list(pool.map(partial(function, **settings), *arguments))

        jobs: dict[str, Callable[[], object]] = {
            "files read, no more": tasks(plain_read, names),
            "plain pyarrow.parquet": tasks(plain_decode, names),
            "floor, 3 scores": tasks(floor, parts, store=store, takes=few.takes),
            "ours, 3 scores": lambda: by_tasks(pool, few, folder),
            "floor, all scores": tasks(floor, parts, store=store, takes=many.takes),
            "ours, all scores": lambda: by_tasks(pool, many, folder),
            "compute_scores, 3": lambda: reduce_store(store.uri, FEW),
            "ours, 3, one core": lambda: [few.range(*ids) for ids in parts],
            **{formulation.__name__: partial(formulation, store) for formulation in chosen.values()},
        }
        seconds = in_turns(jobs, repeat)
    print(f"\n{'median of ' + str(repeat):24}{'s':>8}{'min':>8}{'max':>8}{'ns/record':>11}")
    for name, taken in seconds.items():
        per_record = median(taken) / records * 1e9
        print(f"{name:24}{median(taken):8.2f}{min(taken):8.2f}{max(taken):8.2f}{per_record:11.2f}")
    middle = {name: median(taken) for name, taken in seconds.items()}
    print(f"\n3 scores {middle['ours, 3 scores'] / middle['floor, 3 scores']:.2f} x their floor")
    print(f"all scores {middle['ours, all scores'] / middle['floor, all scores']:.2f} x their floor")
    for engine, formulation in chosen.items():
        print(f"{middle[formulation.__name__] / middle['ours, 3 scores']:.1f} x faster than {engine}")


def linear(folder: Path) -> None:
    """One line a store: as long as the page cache holds it, time per record stays."""
    print(f"{'samples':>12}{'epochs':>8}{'ranks':>7}{'GB':>7}{'s':>8}{'ns/record':>11}{'all, s':>9}{'ns/record':>11}")
    for n, epochs, ranks in [(1_280_000, 30, 4), (1_280_000, 200, 4), (5_000_000, 30, 4), (20_000_000, 30, 4)]:
        with tempfile.TemporaryDirectory(dir=folder) as uri:
            store = make(uri, n, epochs, ranks)
            size = sum(part.bytes for commit in store.commits for part in commit.files)
            with processes() as pool, tempfile.TemporaryDirectory() as results:
                jobs = {
                    str(len(asked)): partial(by_tasks, pool, Reduction.of(store, asked), results)
                    for asked in (FEW, every(store))
                }
                taken = [median(seconds) for seconds in in_turns(jobs, 3).values()]
            figures = "".join(f"{x:{w}.2f}{x / n / epochs * 1e9:11.2f}" for x, w in zip(taken, (8, 9), strict=True))
            print(f"{n:12,}{epochs:8}{ranks:7}{size / 1e9:7.1f}{figures}", flush=True)


def memory(store: DynamicsStore, asked: Sequence[Request]) -> str:
    """Of one process that does all blocks, one after the other."""
    with processes(1) as pool:
        before, peak, resident = pool.submit(_watched, Reduction.of(store, asked)).result()
    return f"{peak:.0f} MB at most, {before:.0f} MB before it began; {resident:.0f} MB resident at most"


def _watched(reduction: Reduction) -> tuple[float, float, float]:
    before, seen, done = _status("RssAnon"), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(_status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for ids in ranges(reduction.store):
        reduction.range(*ids)
    done.set()
    watcher.join()
    return before, max(seen), _status("VmHWM")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_280_000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--keep", help="folder of the synthetic store; one that is there is used again")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", help="formulations to try, with commas; else all")
    parser.add_argument("--linear", action="store_true")
    options = parser.parse_args()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "pyarrow", "duckdb", "polars")]
    print(f"{CORES} cores, load {os.getloadavg()[0]:.1f}; {', '.join(versions)}")
    with tempfile.TemporaryDirectory() as folder:
        if options.linear:
            linear(Path(options.keep or folder))
            return
        store = make(options.keep or folder, options.samples, options.epochs, options.ranks)
        print(f"{store.num_samples:,} samples x {len(store.epochs)} epochs, {options.ranks} ranks; ", end="")
        compare(store, options.repeat, options.only)
        for what, asked in (("3 scores", FEW), ("all scores", every(store))):
            print(f"memory, {what}: {memory(store, asked)}")


if __name__ == "__main__":
    main()
