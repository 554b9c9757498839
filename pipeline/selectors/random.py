"""Random: the baseline that every selector has to beat."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import counter
from pipeline.selectors import Pool, Selector


class Random(Selector):
    """The examples of smallest hash of (seed, id): uniform, and a larger budget adds to a smaller one's."""

    source: ClassVar = "uniform sampling without replacement"

    def __call__(self, pool: Pool, budget: int, seed: int) -> NDArray[np.int64]:
        """In order of the hash."""
        return np.argsort(counter.hash64(seed, "select-random", 0, pool.sample_ids), kind="stable")[:budget]
