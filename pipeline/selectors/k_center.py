"""k-center greedy: always the example that is farthest from all chosen before."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import geometry
from pipeline.pool import Rows
from pipeline.ranks import ties
from pipeline.selectors import Listed


class KCenter(Listed):
    """Farthest first in Euclidean distance; the largest distance to the coreset is at most twice the least possible.

    embedding: column of vectors. The first is the example nearest to the mean: the authors start from the examples
    labelled already, which are not known here. A larger budget adds to a smaller one's. Time grows with k * N * d, ten
    seconds for 15,000 of 50,000 x 128; memory N * d * 20 bytes.
    """

    source: ClassVar = "arXiv 1708.00489, Active Learning for Convolutional Neural Networks: A Core-Set Approach"

    @dataclass(frozen=True)
    class Options(Listed.Options):
        """Which column."""

        embedding: str = "embedding"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.columns = (options.embedding,)

    def choose(self, rows: Rows, budget: int, seed: int) -> NDArray[np.int64]:
        """Farthest first; copies of chosen ones come last."""
        points = geometry.vectors(rows, self.options.embedding)
        tie = ties(seed, rows.sample_ids)
        rough = geometry.Rough(points)
        off = np.square(points - points.mean(axis=0, dtype=np.float64)).sum(axis=1)
        chosen = [np.lexsort((tie, off))[0]]
        away = np.full(len(points), np.inf)  # squared distance to the nearest chosen one, exactly
        while len(chosen) < budget:
            last = chosen[-1]
            closer = np.flatnonzero(rough.distance_below(last) < away / rough.scale**2)
            exact = geometry.squared_distance(points, closer, np.full(len(closer), last))
            away[closer] = np.minimum(away[closer], exact)
            away[last] = -1
            farthest = np.flatnonzero(away == away.max())
            if away[farthest[0]] == 0:
                return np.concatenate([chosen, farthest[np.argsort(tie[farthest])]])[:budget]
            chosen.append(farthest[np.argmin(tie[farthest])])
        return np.array(chosen)
