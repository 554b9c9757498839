"""The reducer: all scores of a range of ids in one pass over the epochs; ranges are independent of each other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dynamics import DynamicsStore
from pipeline.errors import UserError
from pipeline.scores import SCORES

CHUNK = 1 << 14
"""Ids that the scores take in at a time, so that their state stays in the cache while an epoch's columns pass by."""

RANGE = 1 << 22
"""Ids that one process holds the state of at a time."""


def check_epochs(store: DynamicsStore, scores: Mapping[str, Any]) -> int:
    """How many leading epochs have to be read; UserError if a score needs more than are recorded."""
    recorded = len(store.epochs)
    needs = []
    for name, options in scores.items():
        lacking = lacking_epochs(name, options, recorded)
        if lacking:
            raise UserError(f"{lacking} in {store.uri!r}: lower {SCORES.get(name).epochs_option}, or record more")
        needs.append(SCORES.get(name).num_epochs(options) or recorded)
    return max(needs)


def lacking_epochs(name: str, options: Any, recorded: int) -> str | None:
    """The complaint of a score that needs more epochs than are recorded; None if it does not."""
    score = SCORES.get(name)
    needed = score.num_epochs(options) or 0
    if needed <= recorded:
        return None
    return f"{name} needs {needed} epochs ({score.epochs_option}={needed}) but {recorded} are recorded"


def reduce_range(store: DynamicsStore, low: int, high: int, scores: Mapping[str, Any]) -> pa.Table:
    """Scores of ids low..high-1: sample_id ascending and a f32 column per score column.

    scores: Options by name. The values do not depend on how ids are cut into ranges. UserError as `check_epochs` says.
    """
    num_epochs = check_epochs(store, scores)
    cuts = [(start, min(start + CHUNK, high - low)) for start in range(0, max(high - low, 1), CHUNK)]
    chunks = [[SCORES.get(name)(stop - start, options) for name, options in scores.items()] for start, stop in cuts]
    for epoch in range(num_epochs):
        statistics = store.read(epoch, low, high)
        for (start, stop), kernels in zip(cuts, chunks, strict=True):
            part = statistics.slice(start, stop)
            for kernel in kernels:
                kernel.update(part, epoch)
    results = [{name: x for kernel in kernels for name, x in kernel.result().items()} for kernels in chunks]
    columns = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
    return pa.table({"sample_id": np.arange(low, high), **columns})


def reduce_store(uri: str, scores: Mapping[str, Any]) -> pa.Table:
    """Scores of all ids, range by range in this process."""
    store = DynamicsStore(uri)
    lows = range(0, store.num_samples, RANGE)
    return pa.concat_tables(
        [reduce_range(store, low, min(low + RANGE, store.num_samples), scores) for low in lows]
    ).combine_chunks()
