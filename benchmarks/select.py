"""Selection from more scores than one process should hold: exact, in passes over partitions that are made on the fly.

    python benchmarks/select.py                     # 1e9 scores, and 5e7 compared with numpy.partition
    python benchmarks/select.py --samples 100000000 --selector dual_beta

Scores of a partition are drawn when they are looked at, so that nothing is read from a disk and nothing is kept; the
time of drawing them alone is printed beside. What is kept is counted and digested, partition by partition.
"""

import sys

sys.path[:] = [path for path in sys.path if not path.endswith("benchmarks")]  # this is not the library's `select`

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.pool import Pool, Rows
from pipeline.ranks import Cut, ties
from pipeline.selectors import budget, build, cuts
from pipeline.threads import in_threads

T = TypeVar("T")
PARTITION = 1 << 21
OPTIONS = {
    "random": {},
    "top_k": {},
    "double_end": {"mislabel_fraction": 0.2},
    "ccs": {"mislabel_fraction": 0.2},
    "dual_beta": {},
}


class Synthetic(Pool):
    """Scores that are a function of the partition's number: aum a normal, dual and dual_mean uniform."""

    def __init__(self, num_samples: int, columns: tuple[str, ...], threads: int) -> None:
        self.num_samples = num_samples
        self.passes = 0
        self._columns = columns
        self._threads = threads

    def rows(self, low: int) -> Rows:
        ids = np.arange(low, min(low + PARTITION, self.num_samples))
        rng = np.random.Generator(np.random.SFC64(low))
        draw = {"aum": rng.standard_normal, "dual": rng.random, "dual_mean": rng.random}
        return Rows(ids, {name: draw[name](len(ids), dtype=np.float32) for name in self._columns})

    def map(self, function: Callable[[Rows], T]) -> Iterator[T]:
        self.passes += 1
        return in_threads(lambda low: function(self.rows(low)), range(0, self.num_samples, PARTITION), self._threads)


def peak() -> float:
    """Most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def select_all(selector: str, num_samples: int, keeps: list[float], threads: int) -> None:
    built = build(selector, max(keeps), OPTIONS[selector])
    pool = Synthetic(num_samples, built.columns, threads)
    started = time.perf_counter()
    drawn = sum(pool.map(len))
    drawing = time.perf_counter() - started
    assert drawn == num_samples
    pool.passes = 0
    budgets = [budget(keep, num_samples) for keep in keeps]
    started = time.perf_counter()
    found = cuts(built, pool, budgets, seed=0)
    kept = sum(pool.map(lambda rows: np.array([len(cut.kept(rows)[0]) for cut in found])))
    took = time.perf_counter() - started
    assert kept.tolist() == budgets
    each = drawing * pool.passes
    shares = " and ".join(f"{keep:g}" for keep in keeps)
    print(
        f"{selector:12s} N={num_samples:.0e} keeps exactly {shares}: {pool.passes} passes, "
        f"{took:.1f} s, of which {each:.1f} s draw the scores; peak memory {peak():.2f} GiB",
        flush=True,
    )


def kept_ids(cut: Cut, rows: Rows) -> NDArray[np.int64]:
    return rows.sample_ids[cut.kept(rows)[0]]


def compare(num_samples: int, keep: float, repetitions: int, threads: int) -> None:
    """top_k against numpy.partition on the same values in memory; the same set but for the order of equals."""

    class Held(Synthetic):
        def __init__(self) -> None:
            super().__init__(num_samples, ("aum",), threads)
            self._held = {low: super(Held, self).rows(low) for low in range(0, num_samples, PARTITION)}

        def rows(self, low: int) -> Rows:
            return self._held[low]

    pool = Held()
    values = np.concatenate([pool.rows(low)["aum"] for low in range(0, num_samples, PARTITION)])
    size = budget(keep, num_samples)
    ours, theirs = [], []
    for _ in range(repetitions):
        started = time.perf_counter()
        found = cuts(build("top_k", keep, {}), pool, [size], seed=0)
        kept = np.sort(np.concatenate(list(pool.map(partial(kept_ids, found[0])))))
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        edge = np.partition(values, size - 1)[size - 1]
        below, equal = np.flatnonzero(values < edge), np.flatnonzero(values == edge)
        equal = equal[np.argsort(ties(0, equal))][: size - len(below)]
        expected = np.sort(np.concatenate([below, equal]))
        theirs.append(time.perf_counter() - started)
        assert np.array_equal(kept, expected), "the sets differ"
    print(
        f"top_k        N={num_samples:.0e} keeps {keep:g}: the same {size:,} ids as numpy.partition; "
        f"median {statistics.median(ours):.2f} s against {statistics.median(theirs):.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--selector", nargs="+", default=["top_k", "double_end"], choices=list(OPTIONS))
    parser.add_argument("--compared", type=int, default=5 * 10**7, help="samples of the comparison with numpy, 0: none")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    print(
        f"{given.threads} threads, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}"
    )
    for selector in given.selector:
        select_all(selector, given.samples, given.keep, given.threads)
    if given.compared:
        compare(given.compared, 0.3, given.repetitions, given.threads)


if __name__ == "__main__":
    main()
