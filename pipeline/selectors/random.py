"""Random: the baseline that every selector has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import counter
from pipeline.pool import Pool, Rows
from pipeline.selectors import Ranked


class Random(Ranked):
    """The examples of smallest hash of (seed, id): uniform, and a larger budget adds to a smaller one's."""

    source: ClassVar = "uniform sampling without replacement"

    def order(self, pool: Pool, budget: int, seed: int) -> "Shuffled":
        """By the hash."""
        return Shuffled(seed)


@dataclass(frozen=True)
class Shuffled:
    """A random order of all ids. purpose: orders for different purposes have nothing to do with each other."""

    seed: int
    purpose: str = "select-random"

    def __call__(self, rows: Rows) -> NDArray[np.uint64]:
        """u64[n], what is smaller comes first."""
        return counter.hash64(self.seed, self.purpose, 0, rows.sample_ids)
