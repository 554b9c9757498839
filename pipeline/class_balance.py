"""Steps that have as many rows of every class: rows of rare classes come more often."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np

from pipeline import counter
from pipeline.epoch_order import Ids
from pipeline.epoch_plan import Planned


@dataclass(frozen=True)
class BalancedPlan:
    """An endless plan of `batch_size` rows a step, of which `rank` gets every `world_size`-th.

    Rows come in rounds, one of every class that `labels` has, in an order drawn for each round; those of a class come
    in epochs of their own, each a permutation. So the classes' counts differ by one at most over any number of steps
    from the first on. ids: int64 [n], distinct; labels: int64 [n]; purpose: as Plan has it.
    """

    ids: Ids
    labels: Ids
    seed: int
    purpose: str
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def endless(self, first_step: int = 0) -> Iterator[Planned]:
        """The steps from `first_step` on; a row is read for its step alone. batch_size must not be below world_size."""
        classes = [self.ids[self.labels == label] for label in np.unique(self.labels)]

        @lru_cache(maxsize=2)
        def turns(visit: int) -> Ids:
            return counter.permutation(self.seed, f"{self.purpose} classes", visit, np.arange(len(classes)))

        @lru_cache(maxsize=2 * len(classes))
        def order(number: int, epoch: int) -> Ids:
            return counter.permutation(self.seed, self.purpose, epoch, classes[number])

        def row(place: int) -> tuple[int, int]:
            """The id, and how often it came before."""
            visit, turn = divmod(place, len(classes))
            number = int(turns(visit)[turn])
            epoch, position = divmod(visit, len(classes[number]))
            return int(order(number, epoch)[position]), epoch

        for step in count(first_step):
            begin = step * self.batch_size
            places = range(begin + self.rank, begin + self.batch_size, self.world_size)
            ids, visits = np.array([row(place) for place in places], dtype=np.int64).T
            distinct, which = np.unique(ids, return_inverse=True)
            yield Planned(
                number=step,
                epoch=step,
                ids=ids,
                visits=visits,
                valid=np.ones(len(ids), dtype=bool),
                num_valid_global=self.batch_size,
                pieces=(begin + which).tolist(),
                first={begin + number: distinct[[number]] for number in range(len(distinct))},
                last=list(range(begin, begin + len(distinct))),
            )
