"""The order of an epoch: near-global shuffles that read the shards in runs.

The samples are cut into chunks, runs of a shard that one read brings. Where all of them are small together, an epoch
is one permutation of everything. Else it permutes the chunks and deals their rows out to `LANES` lanes, the same for
any number of workers; a lane shuffles its rows within windows, and row `p` of the epoch is the next one of lane
`p % LANES`. So any moment mixes LANES places of the dataset, and a worker, whose rows are those of every
`world_size`-th lane, reads its own part of the data alone where world_size divides LANES; where it does not, workers
read chunks that others read too. Every function here is pure.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import counter

Ids = NDArray[np.int64]

LANES = 96
"""A part of the order, as all numbers here: another one gives another order."""

MAX_BYTES, MAX_ROWS = 2 << 20, 256
"""Of a chunk, in the shard; a sample that is larger is a chunk alone."""

WINDOW = 2048
"""Rows, over all workers, that are shuffled together, each from one of many places of the dataset."""

TOGETHER = 1 << 18
"""Rows that are shuffled at a time, of whole lanes: what that takes is then small beside the order of a large pool."""

SMALL_BYTES = 256 << 20
"""Encoded samples that a worker may hold at once, whole: so many are shuffled together."""


@dataclass(frozen=True)
class Order:
    """The rows of one epoch.

    ids: int64 [N], every sample_id once; pieces: int64 [N], which piece holds it; bounds: int64 [P, 2], first and end
    of the pieces, as places among the sample_ids in ascending order: a piece is a run of one chunk.
    """

    ids: Ids
    pieces: Ids
    bounds: Ids


def cut_chunks(shard: Ids, offset: Ids, length: Ids, max_bytes: int = MAX_BYTES, max_rows: int = MAX_ROWS) -> Ids:
    """Bounds of the chunks, int64 [chunks + 1]: chunk c holds the samples bounds[c] to bounds[c + 1] - 1.

    shard, offset, length: [N], as the index has them, by ascending sample_id; samples of a shard are in the order of
    their bytes, and what lies between two of them counts as part of the chunk.
    """
    edges = np.flatnonzero(shard[1:] != shard[:-1]) + 1
    bounds = []
    for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), len(shard)], strict=True):
        ends = offset[begin:end] + length[begin:end]
        row = begin
        while row < end:
            bounds.append(row)
            fitting = begin + int(np.searchsorted(ends, offset[row] + max_bytes, side="right"))
            row = max(row + 1, min(fitting, row + max_rows, end))
    return np.array([*bounds, len(shard)], dtype=np.int64)


def epoch_order(seed: int, purpose: str, epoch: int, ids: Ids, bounds: Ids, window: int | None) -> Order:
    """The order of one epoch, the same for any number of workers.

    ids: int64 [N], ascending; bounds: of their chunks; window: rows, over all lanes, that are shuffled together, at
    least one for each lane; None for all in one permutation.
    """
    if window is None:
        order = np.argsort(counter.hash64(seed, purpose, epoch, ids), kind="stable")
        pieces = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        return Order(ids[order], pieces[order], np.stack([bounds[:-1], bounds[1:]], axis=1))
    chunks = counter.permutation(seed, purpose + " chunks", epoch, np.arange(len(bounds) - 1))
    sizes = np.diff(bounds)[chunks]
    starts = np.cumsum(sizes) - sizes
    total = len(ids)
    lane_starts = even_bounds(total, LANES)
    cuts = np.union1d(starts, lane_starts[lane_starts < total])
    lengths = np.diff(np.append(cuts, total))
    chunk = np.searchsorted(starts, cuts, side="right") - 1  # of each piece
    firsts = bounds[chunks[chunk]] + cuts - starts[chunk]

    # Lanes begin their windows at different rows, so that new chunks are wanted one after the other, not all at once.
    height = max(1, window // LANES)
    ordered, pieces = np.empty(total, np.int64), np.empty(total, np.int64)
    step = max(1, TOGETHER * LANES // max(total, 1))
    for lanes in (np.arange(low, min(low + step, LANES)) for low in range(0, LANES, step)):
        begin, end = lane_starts[lanes[0]], lane_starts[lanes[-1] + 1]
        low, high = np.searchsorted(cuts, (begin, end))
        piece = np.repeat(np.arange(low, high), lengths[low:high])
        samples = np.arange(begin, end) + (firsts - cuts)[piece]
        lane = np.repeat(lanes, np.diff(lane_starts)[lanes])
        row = np.arange(begin, end) - lane_starts[lane]  # in its lane
        group = (row + lane * height // LANES) // height
        shuffled = np.lexsort((counter.hash64(seed, purpose, epoch, ids[samples]), group, lane))
        place = row * LANES + lane
        ordered[place], pieces[place] = ids[samples[shuffled]], piece[shuffled]
    return Order(ordered, pieces, np.stack([firsts, firsts + lengths], axis=1))


def even_bounds(total: int, parts: int) -> Ids:
    """Bounds, int64 [parts + 1], of parts of equal size, give or take one; the larger ones come first."""
    size, larger = divmod(total, parts)
    number = np.arange(parts + 1, dtype=np.int64)
    return number * size + np.minimum(number, larger)
