"""Top-k: one end of a score."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.pool import Pool
from pipeline.scores import Harder
from pipeline.selectors import ByColumn, Ranked, harder_end


class TopK(Ranked):
    """The hardest examples of a score, or the easiest; a larger budget adds to a smaller one's.

    score: column; keep: "hardest" or "easiest"; harder: which end of the column is hard, "high" or "low", needed only
    for a column that is not of one of our scores.
    """

    source: ClassVar = "arXiv 2107.07075, Deep Learning on a Data Diet: Finding Important Examples Early in Training"

    @dataclass(frozen=True)
    class Options(Ranked.Options):
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

    def order(self, pool: Pool, budget: int, seed: int) -> ByColumn:
        """From the end that is kept inwards."""
        return ByColumn(self.options.score, self._end)
