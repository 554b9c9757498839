"""Prototypicality: how far an example is from the nearest centre of all embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import kmeans
from pipeline.scores import OneEpoch, Records


class Prototypicality(OneEpoch):
    """Euclidean distance of the embedding to the nearest k-means centroid: 0 and above, high (far) is hard.

    The centroids are those of one epoch's sample of at most about 262,144 examples; NaN without a record in that epoch.
    k: clusters, None for the number of classes; seed: of the first centroids; epoch: which, from 0; None, the last
    recorded.
    """

    reads: ClassVar = ("embedding",)
    harder: ClassVar = {"prototypicality": "high"}
    source: ClassVar = "arXiv 2206.14486, Beyond neural scaling laws: beating power law scaling via data pruning"

    @dataclass(frozen=True)
    class Options(OneEpoch.Options):
        """Clusters and their seed."""

        k: int | None = None
        seed: int = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.k is not None and self.k < 1:
                raise ValueError(f"k={self.k} leaves no cluster: set it to 1 or more, or leave it out")

    def __init__(self, n: int, *arguments: Any) -> None:
        super().__init__(n, *arguments)
        self._centroids = arguments[1]
        self._distance = np.zeros(n)

    @classmethod
    def prepare(cls, options: Any, sample: Mapping[str, NDArray[Any]], num_classes: int) -> NDArray[np.float64]:
        """The centroids, f64[k, d]; as many as there are distinct points if those are fewer."""
        return kmeans.fit(sample["embedding"], options.k or num_classes, options.seed)

    def add(self, records: Records) -> None:
        """The epoch's distance."""
        self._distance[records.rows] = kmeans.nearest(records["embedding"], self._centroids)[1]

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Column prototypicality."""
        return {"prototypicality": self._distance}
