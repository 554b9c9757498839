"""D2: difficult and diverse; every choice makes its neighbours less wanted."""

import heapq
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import geometry
from pipeline.pool import Rows
from pipeline.ranks import ties
from pipeline.scores import Harder
from pipeline.selectors import Listed, harder_end


class D2(Listed):
    """Greedy by x_i = s_i + sum of exp(-d) s_j over the k nearest j; a choice i takes exp(-gamma d) x_i off theirs.

    score: column, s its value, or how far it is from the largest where low is hard; embedding: column of vectors, d
    their Euclidean distance; harder: as in top_k; neighbours, gamma: of the authors' CIFAR-10 example, who tune both by
    dataset and rate. A larger budget adds to a smaller one's. Neighbours are the own k nearest, as in the authors' code
    for large sets. Time and memory as geometry.neighbours: 50,000 x 128 in half a minute.
    """

    source: ClassVar = "arXiv 2310.07931, D2 Pruning: Message Passing for Balancing Diversity and Difficulty"

    @dataclass(frozen=True)
    class Options(Listed.Options):
        """Which columns, how many neighbours, how fast the reverse message fades."""

        score: str = "aum"
        embedding: str = "embedding"
        neighbours: int = 5
        gamma: float = 0.1
        harder: Harder | None = None

        def __post_init__(self) -> None:
            if self.neighbours < 1:
                raise ValueError(f"neighbours={self.neighbours} is none: set it to 1 or more")
            if self.gamma < 0:
                raise ValueError(f"gamma={self.gamma} would make messages grow with distance: set it to 0 or more")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.columns = (options.score, options.embedding)
        self._harder = harder_end(options.score, options.harder)

    def choose(self, rows: Rows, budget: int, seed: int) -> NDArray[np.int64]:
        """The largest x again and again."""
        points = geometry.vectors(rows, self.options.embedding)
        index, distance = geometry.neighbours(points, self.options.neighbours)
        score = rows[self.options.score].astype(np.float64)
        score = score.max() - score if self._harder == "low" else score
        wanted = (score + (np.exp(-distance) * score[index]).sum(axis=1)).tolist()
        tie = ties(seed, rows.sample_ids).tolist()
        back = np.exp(-self.options.gamma * distance)
        heap = [(-x, tie[i], i) for i, x in enumerate(wanted)]
        heapq.heapify(heap)
        left = [True] * len(rows)
        chosen: list[int] = []
        while len(chosen) < budget:
            x, _, i = heapq.heappop(heap)
            if not left[i] or -x != wanted[i]:
                continue  # an entry from before a message
            chosen.append(i)
            left[i] = False
            for j, message in zip(index[i].tolist(), (back[i] * wanted[i]).tolist(), strict=True):
                if left[j]:
                    wanted[j] -= message
                    heapq.heappush(heap, (-wanted[j], tie[j], j))
        return np.array(chosen)
