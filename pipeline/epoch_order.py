"""The order of an epoch: near-global shuffles that read the shards in runs.

The samples are cut into chunks, runs of a shard that one read brings. Where all of them are small together, an epoch
is one permutation of everything. Else it permutes the chunks and deals their rows out to `LANES` lanes, the same for
any number of workers; a lane shuffles its rows within windows, and row `p` of the epoch is the next one of lane
`p % LANES`. So any moment mixes LANES places of the dataset, and a worker, whose rows are those of every
`world_size`-th lane, reads its own part of the data alone where world_size divides LANES; where it does not, workers
read chunks that others read too. Every function here is pure.
"""

from dataclasses import dataclass
from itertools import pairwise

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

SMALL_BYTES = 256 << 20
"""Encoded samples that a worker may hold at once, whole: so many are shuffled together."""


@dataclass(frozen=True)
class Order:
    """Rows of one epoch.

    ids: int64 [n], their sample_ids; pieces: int64 [n], which piece holds each; bounds: int64 [P, 2], first and end of
    all pieces, as places among the sample_ids of the epoch in ascending order: a piece is a run of one chunk.
    """

    ids: Ids
    pieces: Ids
    bounds: Ids


def cut_chunks(
    starts: Ids, offset: Ids, length: Ids, ids: Ids | None, max_bytes: int = MAX_BYTES, max_rows: int = MAX_ROWS
) -> Ids:
    """Bounds of the chunks, int64 [chunks + 1]: chunk c holds the ids at the places bounds[c] to bounds[c + 1] - 1.

    starts, offset, length: as Samples has them; ids: int64 [n], ascending; all samples where None. Samples of a shard
    are in the order of their bytes, and what lies between two of them counts as part of the chunk.
    """
    edges = (starts if ids is None else np.searchsorted(ids, starts)).tolist()
    bounds = []
    for begin, end in pairwise(edges):
        here = slice(begin, end) if ids is None else ids[begin:end]
        offsets = offset[here]
        ends = offsets + length[here]
        row = 0
        while row < end - begin:
            bounds.append(begin + row)
            fitting = int(np.searchsorted(ends, offsets[row] + max_bytes, side="right"))
            row = max(row + 1, min(fitting, row + max_rows))
    return np.array([*bounds, edges[-1]], dtype=np.int64)


def epoch_order(
    seed: int, purpose: str, epoch: int, ids: Ids | None, bounds: Ids, window: int | None, rows: Ids
) -> Order:
    """Some rows of the order of one epoch, which is the same for any number of workers.

    ids: int64 [N], ascending; 0..N-1 where None; bounds: of their chunks; window: rows, over all lanes, that are
    shuffled together, at least one for each lane; None for all in one permutation; rows: int64 [n], of 0..N-1,
    ascending. With a window, time and memory are those of the lanes that the rows are in.
    """
    total = int(bounds[-1])

    def at(places: Ids) -> Ids:
        return places if ids is None else ids[places]

    if window is None:
        order = np.argsort(counter.hash64(seed, purpose, epoch, at(np.arange(total))), kind="stable")[rows]
        pieces = np.searchsorted(bounds, order, side="right") - 1
        return Order(at(order), pieces, np.stack([bounds[:-1], bounds[1:]], axis=1))
    chunks = counter.permutation(seed, purpose + " chunks", epoch, np.arange(len(bounds) - 1))
    sizes = np.diff(bounds)[chunks]
    starts = np.cumsum(sizes) - sizes
    lane_starts = even_bounds(total, LANES)
    cuts = np.union1d(starts, lane_starts[lane_starts < total])
    lengths = np.diff(np.append(cuts, total))
    chunk = np.searchsorted(starts, cuts, side="right") - 1  # of each piece
    firsts = bounds[chunks[chunk]] + cuts - starts[chunk]

    # Lanes begin their windows at different rows, so that new chunks are wanted one after the other, not all at once.
    height = max(1, window // LANES)
    ordered, pieces = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    for lane in np.unique(rows % LANES).tolist():
        begin, end = lane_starts[lane : lane + 2].tolist()
        low, high = np.searchsorted(cuts, (begin, end))
        piece = np.repeat(np.arange(low, high), lengths[low:high])
        samples = at(np.arange(begin, end) + (firsts - cuts)[piece])
        group = (np.arange(end - begin) + lane * height // LANES) // height
        shuffled = np.lexsort((counter.hash64(seed, purpose, epoch, samples), group))
        here = np.arange(lane, total, LANES)  # what its rows are in the epoch
        place = np.searchsorted(rows, here)
        wanted = np.flatnonzero(np.take(rows, place, mode="clip") == here)
        ordered[place[wanted]], pieces[place[wanted]] = samples[shuffled[wanted]], piece[shuffled[wanted]]
    return Order(ordered, pieces, np.stack([firsts, firsts + lengths], axis=1))


def even_bounds(total: int, parts: int) -> Ids:
    """Bounds, int64 [parts + 1], of parts of equal size, give or take one; the larger ones come first."""
    size, larger = divmod(total, parts)
    number = np.arange(parts + 1, dtype=np.int64)
    return number * size + np.minimum(number, larger)
