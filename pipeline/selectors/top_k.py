"""Top-k: one end of a score."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Harder
from pipeline.selectors import Pool, Selector, harder_end, hardest_first


class TopK(Selector):
    """The hardest examples of a score, or the easiest; a larger budget adds to a smaller one's.

    score: column; keep: "hardest" or "easiest"; harder: which end of the column is hard, "high" or "low", needed only
    for a column that is not of one of our scores.
    """

    source: ClassVar = "arXiv 2107.07075, Deep Learning on a Data Diet: Finding Important Examples Early in Training"

    @dataclass(frozen=True)
    class Options(Selector.Options):
        """Which column, which end."""

        score: str = "aum"
        keep: Literal["hardest", "easiest"] = "hardest"
        harder: Harder | None = None

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.columns = (options.score,)
        hard = harder_end(options.score, options.harder)
        easy: Harder = "low" if hard == "high" else "high"
        self._end = hard if options.keep == "hardest" else easy

    def __call__(self, pool: Pool, budget: int, seed: int) -> NDArray[np.int64]:
        """From the end that is kept inwards."""
        return hardest_first(pool.columns[self.options.score], self._end)[:budget]
