"""Which rows each worker sees at each step when samples are read from the shards in every epoch.

The shards are cut into chunks, runs of samples that one read brings. An epoch permutes the chunks and deals their rows
out to `LANES` lanes, the same for any number of workers; a lane shuffles its rows within windows, and row `p` of the
epoch is the next one of lane `p % LANES`. So any moment mixes LANES places of the dataset, and a worker, whose rows are
those of every `world_size`-th lane, reads its own part of the data alone where world_size divides LANES; where it does
not, workers read chunks that others read too. Every function here is pure: any worker can be asked for any step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import counter
from pipeline.epoch_plan import num_steps

Ids = NDArray[np.int64]

LANES = 96
"""A part of the order: another number gives another one."""

MAX_BYTES, MAX_ROWS = 2 << 20, 256
"""Of a chunk, in the shard; a sample that is larger is a chunk alone."""


@dataclass(frozen=True)
class Order:
    """The rows of one epoch.

    ids: int64 [N], every sample_id once; pieces: int64 [N], which piece holds it; first, last: int64 [P], the
    sample_ids of the pieces, first <= id < last: a piece is what a lane has of a chunk, in one run of bytes.
    """

    ids: Ids
    pieces: Ids
    first: Ids
    last: Ids


def cut_chunks(shard: Ids, offset: Ids, length: Ids, max_bytes: int = MAX_BYTES, max_rows: int = MAX_ROWS) -> Ids:
    """Bounds of the chunks, int64 [chunks + 1]: chunk c holds the sample_ids bounds[c] to bounds[c + 1] - 1.

    shard, offset, length: [N] by sample_id, as the index has them; samples of a shard are in the order of their bytes.
    """
    edges = np.flatnonzero(np.diff(shard)) + 1
    bounds = []
    for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), len(shard)], strict=True):
        ends = offset[begin:end] + length[begin:end]
        row = begin
        while row < end:
            bounds.append(row)
            fitting = begin + int(np.searchsorted(ends, offset[row] + max_bytes, side="right"))
            row = max(row + 1, min(fitting, row + max_rows, end))
    return np.array([*bounds, len(shard)], dtype=np.int64)


def epoch_order(seed: int, purpose: str, epoch: int, bounds: Ids, window: int) -> Order:
    """The order of one epoch, the same for any number of workers.

    bounds: of the chunks; window: rows, over all lanes, that are shuffled together, at least one for each lane.
    """
    chunks = counter.permutation(seed, purpose + " chunks", epoch, np.arange(len(bounds) - 1))
    sizes = np.diff(bounds)[chunks]
    starts = np.cumsum(sizes) - sizes
    total = int(bounds[-1])
    ids = np.arange(total) + np.repeat(bounds[chunks] - starts, sizes)

    lane_starts = _starts(total, LANES)
    lane = np.repeat(np.arange(LANES), np.diff(lane_starts))
    row = np.arange(total) - lane_starts[lane]  # in its lane
    cuts = np.union1d(starts, lane_starts[lane_starts < total])
    piece = np.repeat(np.arange(len(cuts)), np.diff(np.append(cuts, total)))
    first = ids[cuts]

    # Lanes begin their windows at different rows, so that new chunks are wanted one after the other, not all at once.
    height = max(1, window // LANES)
    group = (row + lane * height // LANES) // height
    shuffled = np.lexsort((counter.hash64(seed, purpose, epoch, ids), group, lane))
    place = row * LANES + lane
    ordered, pieces = np.empty(total, np.int64), np.empty(total, np.int64)
    ordered[place], pieces[place] = ids[shuffled], piece[shuffled]
    return Order(ordered, pieces, first, first + np.diff(np.append(cuts, total)))


def steps(
    num_rows: int, batch_size: int, rank: int, world_size: int, first_step: int = 0
) -> Iterator[tuple[Ids, NDArray[np.bool_], int]]:
    """This rank's steps of an epoch from `first_step` on: (rows of the order, valid, rows of the global batch).

    Over all ranks every row is valid exactly once. Batches are of equal size, give or take one row. Where a batch has
    fewer rows than there are ranks, a rank without one gets a padding row, valid = False.
    """
    bounds = _starts(num_rows, num_steps(num_rows, batch_size))
    for begin, end in zip(bounds[first_step:-1].tolist(), bounds[first_step + 1 :].tolist(), strict=True):
        mine = np.arange(begin + (rank - begin) % world_size, end, world_size, dtype=np.int64)
        valid = np.ones(len(mine), dtype=bool)
        if not len(mine):
            mine, valid = np.array([begin], dtype=np.int64), np.zeros(1, dtype=bool)
        yield mine, valid, end - begin


def _starts(total: int, parts: int) -> Ids:
    """Bounds, int64 [parts + 1], of parts of equal size, give or take one; the larger ones come first."""
    size, larger = divmod(total, parts)
    number = np.arange(parts + 1, dtype=np.int64)
    return number * size + np.minimum(number, larger)
