"""Moderate: neither typical nor odd; the examples whose distance to their class's centre is closest to the median."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import geometry
from pipeline.pool import Rows
from pipeline.ranks import ties
from pipeline.selectors import Listed
from pipeline.selectors.class_balanced import labels


class Moderate(Listed):
    """Distance to the median of the own class, dimension by dimension; those closest to the median distance are kept.

    embedding: column of vectors; label: column of whole numbers. As the authors have it, the median distance is one of
    all examples, so classes need not keep their shares; their code takes the ranks about the median, ours the distance
    to it, as the paper says. A larger budget adds to a smaller one's. Memory N * d * 16 bytes, seconds for a million.
    """

    source: ClassVar = (
        "ICLR 2023, openreview 7D5EECbOaf9, Moderate Coreset: A Universal Method of Data Selection for "
        "Real-world Data-efficient Deep Learning"
    )

    @dataclass(frozen=True)
    class Options(Listed.Options):
        """Which columns."""

        embedding: str = "embedding"
        label: str = "train_label"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.columns = (options.embedding, options.label)

    def choose(self, rows: Rows, budget: int, seed: int) -> NDArray[np.int64]:
        """By how far the distance is from the median distance."""
        points = geometry.vectors(rows, self.options.embedding)
        own = labels(rows, self.options.label)
        by_class = np.argsort(own, kind="stable")
        starts = np.unique(own[by_class], return_index=True)[1]
        distance = np.empty(len(points))
        for members in np.split(by_class, starts[1:]):
            centre = np.median(points[members].astype(np.float64), axis=0)
            distance[members] = np.sqrt(np.square(points[members] - centre).sum(axis=1))
        off = np.abs(distance - np.median(distance))
        return np.lexsort((ties(seed, rows.sample_ids), off))[:budget]
