"""Which rows each worker sees at each step: a pure function, so any worker can be asked for any step.

The order depends on (seed, purpose, epoch, ids) alone; the world size only deals the rows of a global batch out.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline import counter

Ids = NDArray[np.int64]


def num_steps(num_rows: int, batch_size: int) -> int:
    """Steps of one epoch: as few as keep every global batch within `batch_size`."""
    return -(-num_rows // batch_size)


def epoch_batches(
    seed: int, purpose: str, epoch: int, ids: Ids, batch_size: int, rank: int, world_size: int
) -> Iterator[tuple[Ids, NDArray[np.bool_], int]]:
    """One epoch of this rank: (ids of its rows, valid, rows of the global batch) per step.

    Over all ranks every id is valid exactly once. The batches of an epoch are of equal size, give or take one row: a
    small last one would weigh its rows more, and be too small for batch norm. Where there are fewer rows than ranks, a
    rank without one gets a padding row, valid = False, so that every rank takes part in every step.
    """
    order = counter.permutation(seed, purpose, epoch, ids)
    for batch in np.array_split(order, num_steps(len(order), batch_size)):
        mine = batch[rank::world_size]
        valid = np.ones(len(mine), dtype=bool)
        if not len(mine):
            mine, valid = batch[:1], np.zeros(1, dtype=bool)
        yield mine, valid, len(batch)


def endless_batches(
    seed: int, purpose: str, first_step: int, ids: Ids, batch_size: int, rank: int, world_size: int
) -> Iterator[Ids]:
    """This rank's rows of the global batches `first_step`, `first_step + 1`, ..: permutations of `ids` without end.

    batch_size must be a multiple of world_size; batches cross from one permutation into the next.
    """
    epoch, offset = divmod(first_step * batch_size, len(ids))
    remaining = counter.permutation(seed, purpose, epoch, ids)[offset:]
    while True:
        while len(remaining) < batch_size:
            epoch += 1
            remaining = np.concatenate([remaining, counter.permutation(seed, purpose, epoch, ids)])
        yield remaining[:batch_size][rank::world_size]
        remaining = remaining[batch_size:]
