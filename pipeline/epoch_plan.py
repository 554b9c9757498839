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

    number: of the step, from 0 over all epochs; epoch: that of the first row; ids: int64 [n]; visits: int64 [n], how
    often the plan had each row's sample before; valid: bool [n], False for padding; num_valid_global: valid rows of the
    step over all ranks; pieces: which piece holds each row, by a number of its own; first: the sample_ids of the pieces
    that this rank has not needed before, each a run of one shard; last: pieces that it does not need again.
    """

    number: int
    epoch: int
    ids: Ids
    visits: Ids
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
        return -(-self._total // self.batch_size)

    def epochs(self, first: int = 0) -> Iterator[Planned]:
        """The steps of epoch `first`, then those of the next one, without end; `num_steps` in each.

        Over all ranks every id is valid exactly once in an epoch. Its batches are of equal size, give or take one row:
        a small last one would weigh its rows more, and be too small for batch norm. Where a batch has fewer rows than
        there are ranks, a rank without one gets a padding row, valid = False, so that every rank takes part in every
        step.
        """
        bounds = even_bounds(self._total, self.num_steps)
        rows = np.arange(self.rank, self._total, self.world_size)
        without = np.diff(np.searchsorted(rows, bounds)) == 0
        rows = np.sort(np.concatenate([rows, bounds[:-1][without]]))
        steps = np.searchsorted(bounds, rows, side="right") - 1
        valid = rows % self.world_size == self.rank
        sizes = np.diff(bounds)
        for epoch in count(first):
            begun = epoch * self.num_steps
            for part in self._cut(epoch, self._order(epoch, rows), steps + begun, valid):
                yield part._replace(num_valid_global=int(sizes[part.number - begun]))

    def endless(self, first_step: int = 0) -> Iterator[Planned]:
        """The steps from `first_step` on, of `batch_size` rows each: they cross from one epoch into the next.

        batch_size must not be below world_size.
        """
        total = self._total
        first_epoch, done = divmod(first_step * self.batch_size, total)

        def parts() -> Iterator[Planned]:
            for epoch in count(first_epoch):
                before = epoch * total  # rows of the epochs before
                start = done if epoch == first_epoch else 0
                rows = np.arange(start + (self.rank - before - start) % self.world_size, total, self.world_size)
                steps = (before + rows) // self.batch_size
                yield from self._cut(epoch, self._order(epoch, rows), steps, np.ones(len(rows), dtype=bool))

        for _, parts_of_step in groupby(parts(), key=lambda part: part.number):
            yield reduce(_joined, parts_of_step)._replace(num_valid_global=self.batch_size)

    @property
    def _total(self) -> int:
        return len(self.samples if self.ids is None else self.ids)

    @cached_property
    def _sorted(self) -> Ids | None:
        """None where all are trained on: their sample_ids are their places."""
        return None if self.ids is None else np.sort(self.ids)

    @cached_property
    def _bounds(self) -> Ids:
        return cut_chunks(self.samples.starts, self.samples.offset, self.samples.length, self._sorted)

    @cached_property
    def _window(self) -> int | None:
        length = self.samples.length
        return None if (length if self.ids is None else length[self.ids]).sum() <= SMALL_BYTES else WINDOW

    def _order(self, epoch: int, rows: Ids) -> Order:
        return epoch_order(self.seed, self.purpose, epoch, self._sorted, self._bounds, self._window, rows)

    def _cut(self, epoch: int, order: Order, steps: Ids, valid: NDArray[np.bool_]) -> Iterator[Planned]:
        """This rank's rows of an epoch as steps, num_valid_global apart; steps: the number of each row's, ascending."""
        pieces, places = order.pieces, np.arange(len(order.pieces))
        first, last = np.full(len(order.bounds), -1), np.full(len(order.bounds), -1)
        first[pieces[::-1]], last[pieces] = places[::-1], places  # of an index that repeats, the last value stays
        opening, closing = first[pieces] == places, last[pieces] == places
        numbers = pieces + epoch * (len(self._bounds) + LANES)  # an epoch has no more pieces than that
        edges = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(pieces)]
        for begin, end in pairwise(edges) if len(pieces) else ():
            here = slice(begin, end)
            opened = numbers[here][opening[here]].tolist()
            spans = order.bounds[pieces[here][opening[here]]].tolist()
            yield Planned(
                number=int(steps[begin]),
                epoch=epoch,
                ids=order.ids[here],
                visits=np.full(end - begin, epoch),
                valid=valid[here],
                num_valid_global=0,
                pieces=numbers[here].tolist(),
                first={piece: self._between(low, high) for piece, (low, high) in zip(opened, spans, strict=True)},
                last=numbers[here][closing[here]].tolist(),
            )

    def _between(self, low: int, high: int) -> Ids:
        return np.arange(low, high) if self._sorted is None else self._sorted[low:high]


def in_order(samples: Samples, ids: Ids, batch_size: int) -> Iterator[Planned]:
    """Steps of `batch_size` rows, the last one perhaps of fewer, with the distinct `ids` in the order given."""
    plan = Plan(samples, 0, "", batch_size, ids=ids)
    spans = np.stack([plan._bounds[:-1], plan._bounds[1:]], axis=1)
    assert plan._sorted is not None
    chunks = np.searchsorted(plan._bounds, np.searchsorted(plan._sorted, ids), side="right") - 1
    steps = np.arange(len(ids)) // batch_size
    for step in plan._cut(0, Order(ids, chunks, spans), steps, np.ones(len(ids), dtype=bool)):
        yield step._replace(num_valid_global=len(step.ids))


def _joined(one: Planned, other: Planned) -> Planned:
    """Two parts of a step, of one epoch and a later one."""
    return one._replace(
        ids=np.concatenate([one.ids, other.ids]),
        visits=np.concatenate([one.visits, other.visits]),
        valid=np.concatenate([one.valid, other.valid]),
        pieces=one.pieces + other.pieces,
        first=one.first | other.first,
        last=one.last + other.last,
    )
