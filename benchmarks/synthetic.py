"""A plausible dynamics store, made fast: `python -m benchmarks.synthetic FOLDER --samples 1280000 --epochs 60`.

Examples are learned at times of their own, most early and some never; around that their margins are noisy, and
probabilities saturate. In each epoch the ids are dealt to the ranks at random, and the files come from
DynamicsWriter.flush itself, so readers find what a training of `ranks` workers leaves behind.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dynamics import DynamicsPart, DynamicsWriter
from pipeline.dynamics_store import DynamicsStore

NUM_CLASSES = 100


@lru_cache(maxsize=1)
def learned(n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Epoch in which an example is half learned, and the margin of logits that it ends up with: f32[n] each."""
    rng = np.random.default_rng(0)
    when = np.minimum(np.exp(1 + rng.standard_normal(n, dtype=np.float32)), np.float32(80))
    return when, 2 + 3 * rng.standard_normal(n, dtype=np.float32)


def statistics(n: int, epoch: int) -> dict[str, NDArray[Any]]:
    """The columns of a record for ids 0..n-1, [n] each."""
    rng = np.random.default_rng([1, epoch])
    when, margin = learned(n)
    rise = 1 / (1 + np.exp(when - epoch))
    logit = (margin + 4) * rise - 4 + rng.standard_normal(n, dtype=np.float32)
    p_label = 1 / (1 + np.exp(-logit))
    p_other = (1 - p_label) * (np.float32(0.2) + np.float32(0.6) * rng.random(n, dtype=np.float32))
    rest = np.maximum(1 - p_label - p_other, np.float32(1e-9))
    tail = rest / (NUM_CLASSES - 2)
    return {
        "p_label": p_label,
        "p_other": p_other,
        "el2n": np.sqrt((1 - p_label) ** 2 + p_other**2 + rest * tail),
        "entropy": -p_label * np.log(p_label) - p_other * np.log(p_other + np.float32(1e-30)) - rest * np.log(tail),
        "correct": p_label > p_other,
    }


def write_epoch(epoch: int, uri: str, n: int, ranks: int) -> list[DynamicsPart]:
    """The files of all ranks, not yet committed."""
    import torch

    columns = statistics(n, epoch)
    owner = np.random.default_rng([2, epoch]).permutation(np.arange(n, dtype=np.int32) % ranks)
    parts = []
    for rank in range(ranks):
        ids = np.flatnonzero(owner == rank)
        writer = DynamicsWriter(uri, n, rank, ranks)
        observed = {"sample_id": ids, **{name: column[ids] for name, column in columns.items()}}
        writer._observed = [{name: torch.from_numpy(column) for name, column in observed.items()}]
        writer._shape = (NUM_CLASSES, 0)
        parts.append(writer.flush(epoch))
    return parts


def make(uri: str, n: int, epochs: int, ranks: int) -> DynamicsStore:
    """The store; of one that is there already, the epochs that are missing."""
    writer = DynamicsWriter(uri, n, world_size=ranks)
    start = len(writer.log.commits())
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        written = pool.map(partial(write_epoch, uri=uri, n=n, ranks=ranks), range(start, epochs))
        for epoch, parts in zip(range(start, epochs), written, strict=True):
            writer.commit_epoch(epoch, parts)
    return DynamicsStore(uri)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--samples", type=int, default=1_280_000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=4)
    options = parser.parse_args()
    start = time.perf_counter()
    store = make(options.folder, options.samples, options.epochs, options.ranks)
    records = store.num_samples * len(store.epochs)
    size = sum(part.bytes for commit in store.commits for part in commit.files)
    print(f"{records:,} records, {size / records:.2f} bytes each, in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
