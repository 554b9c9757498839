"""AUM on logits: how far, on average over all epochs, the label's logit was ahead of its strongest rival's."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.scores import Records, Score

LIMIT = float(-np.log(np.finfo(np.float32).tiny))
"""87.3: a probability that is this far behind another, in logits, is too small for a normal float32."""


class AumLogit(Score):
    """Mean over epochs of the label's logit - the largest other: -87.3..87.3, low is hard, NaN without a record.

    The original definition, where aum is on probabilities. A margin is log(p_label / p_other), the same number; where
    float32 probabilities underflow, beyond 87.3 either way, it is cut there.
    """

    reads: ClassVar = ("p_label", "p_other")
    harder: ClassVar = {"aum_logit": "low"}
    source: ClassVar = "arXiv 2001.10528, Identifying Mislabeled Data using the Area Under the Margin Ranking"

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._sum = np.zeros(n)

    def add(self, records: Records) -> None:
        """Add one epoch's margin."""
        with np.errstate(divide="ignore", over="ignore", under="ignore"):  # 0 and inf are cut below
            margin = records["p_label"] / records["p_other"]
            np.log(margin, out=margin)
        margin.clip(-LIMIT, LIMIT, out=margin)
        self._sum[records.rows] += margin

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Column aum_logit."""
        return {"aum_logit": self._sum / self.count[:]}
