"""Which rows each worker sees at each step: a pure function, so any worker can be asked for any step.

The order depends on (seed, purpose, epoch, index) alone; the world size only deals the rows of a global batch out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import count, groupby, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.epoch_order import LANES, SMALL_BYTES, WINDOW, Ids, Order, cut_chunks, epoch_order, even_bounds
from pipeline.samples import Samples


class Planned(NamedTuple):
    """One rank's rows of a step, and what has to be read for them.

    number: of the step, from 0 over all epochs; epoch: that of the first row; ids: int64 [n]; valid: bool [n], False
    for padding; num_valid_global: valid rows of the step over all ranks; pieces: which piece holds each row, by a
    number of its own; first: the sample_ids of the pieces that this rank has not needed before, each a run of one
    shard; last: pieces that it does not need again.
    """

    number: int
    epoch: int
    ids: Ids
    valid: NDArray[np.bool_]
    num_valid_global: int
    pieces: list[int]
    first: dict[int, Ids]
    last: list[int]


@dataclass(frozen=True)
class Plan:
    """The steps of a training, of which `rank` gets every `world_size`-th row.

    ids: what is trained on, distinct; all samples where None; batch_size: rows of a global batch; purpose: orders of
    different purposes have nothing to do with each other.
    """

    samples: Samples
    seed: int
    purpose: str
    batch_size: int
    rank: int = 0
    world_size: int = 1
    ids: Ids | None = None

    @property
    def num_steps(self) -> int:
        """Steps of one epoch: as few as keep every global batch within `batch_size`."""
        return -(-len(self._sorted) // self.batch_size)

    def epochs(self, first: int = 0) -> Iterator[Planned]:
        """The steps of epoch `first`, then those of the next one, without end; `num_steps` in each.

        Over all ranks every id is valid exactly once in an epoch. Its batches are of equal size, give or take one row:
        a small last one would weigh its rows more, and be too small for batch norm. Where a batch has fewer rows than
        there are ranks, a rank without one gets a padding row, valid = False, so that every rank takes part in every
        step.
        """
        bounds = even_bounds(len(self._sorted), self.num_steps).tolist()
        mine = []
        for begin, end in pairwise(bounds):
            rows = np.arange(begin + (self.rank - begin) % self.world_size, end, self.world_size)
            mine.append(rows if len(rows) else np.array([begin]))
        rows, steps = np.concatenate(mine), np.repeat(np.arange(len(mine)), [len(part) for part in mine])
        valid = rows % self.world_size == self.rank
        sizes = np.diff(bounds).tolist()
        for epoch in count(first):
            for part in self._cut(epoch, self._order(epoch), rows, steps + epoch * len(mine), valid):
                yield part._replace(num_valid_global=sizes[part.number - epoch * len(mine)])

    def endless(self, first_step: int = 0) -> Iterator[Planned]:
        """The steps from `first_step` on, of `batch_size` rows each: they cross from one epoch into the next.

        batch_size must not be below world_size.
        """
        total = len(self._sorted)
        first_epoch, done = divmod(first_step * self.batch_size, total)

        def parts() -> Iterator[Planned]:
            for epoch in count(first_epoch):
                before = epoch * total  # rows of the epochs before
                start = done if epoch == first_epoch else 0
                rows = np.arange(start + (self.rank - before - start) % self.world_size, total, self.world_size)
                steps = (before + rows) // self.batch_size
                yield from self._cut(epoch, self._order(epoch), rows, steps, np.ones(len(rows), dtype=bool))

        for _, parts_of_step in groupby(parts(), key=lambda part: part.number):
            yield reduce(_joined, parts_of_step)._replace(num_valid_global=self.batch_size)

    @cached_property
    def _sorted(self) -> Ids:
        return np.arange(len(self.samples)) if self.ids is None else np.sort(self.ids)

    @property
    def _rows(self) -> slice | Ids:
        """Where the ids are among the samples: as a slice, which copies nothing, if they are all of them."""
        return slice(None) if self.ids is None else self._sorted

    @cached_property
    def _bounds(self) -> Ids:
        rows, samples = self._rows, self.samples
        return cut_chunks(samples.shard[rows], samples.offset[rows], samples.length[rows])

    def _order(self, epoch: int) -> Order:
        small = self.samples.length[self._rows].sum() <= SMALL_BYTES
        return epoch_order(self.seed, self.purpose, epoch, self._sorted, self._bounds, window=None if small else WINDOW)

    def _cut(self, epoch: int, order: Order, rows: Ids, steps: Ids, valid: NDArray[np.bool_]) -> Iterator[Planned]:
        """This rank's rows of an epoch as steps, num_valid_global apart; steps: the number of each row's, ascending."""
        pieces, places = order.pieces[rows], np.arange(len(rows))
        first, last = np.full(len(order.bounds), -1), np.full(len(order.bounds), -1)
        first[pieces[::-1]], last[pieces] = places[::-1], places  # of an index that repeats, the last value stays
        opening, closing = first[pieces] == places, last[pieces] == places
        numbers = pieces + epoch * (len(self._bounds) + LANES)  # an epoch has no more pieces than that
        edges = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(rows)]
        for begin, end in pairwise(edges) if len(rows) else ():
            here = slice(begin, end)
            opened = numbers[here][opening[here]].tolist()
            spans = order.bounds[pieces[here][opening[here]]].tolist()
            yield Planned(
                number=int(steps[begin]),
                epoch=epoch,
                ids=order.ids[rows[here]],
                valid=valid[here],
                num_valid_global=0,
                pieces=numbers[here].tolist(),
                first={piece: self._sorted[low:high] for piece, (low, high) in zip(opened, spans, strict=True)},
                last=numbers[here][closing[here]].tolist(),
            )


def in_order(samples: Samples, ids: Ids, batch_size: int) -> Iterator[Planned]:
    """Steps of `batch_size` rows, the last one perhaps of fewer, with the distinct `ids` in the order given."""
    plan = Plan(samples, 0, "", batch_size, ids=ids)
    chunks = np.repeat(np.arange(len(plan._bounds) - 1), np.diff(plan._bounds))
    spans = np.stack([plan._bounds[:-1], plan._bounds[1:]], axis=1)
    order = Order(ids, chunks[np.searchsorted(plan._sorted, ids)], spans)
    rows = np.arange(len(ids))
    for step in plan._cut(0, order, rows, rows // batch_size, np.ones(len(ids), dtype=bool)):
        yield step._replace(num_valid_global=len(step.ids))


def _joined(one: Planned, other: Planned) -> Planned:
    """Two parts of a step, of one epoch and a later one."""
    return one._replace(
        ids=np.concatenate([one.ids, other.ids]),
        valid=np.concatenate([one.valid, other.valid]),
        pieces=one.pieces + other.pieces,
        first=one.first | other.first,
        last=one.last + other.last,
    )
