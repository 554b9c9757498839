"""ZCore: zero-shot; examples that cover random subspaces of the embedding, less what their neighbours cover too."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import counter, geometry
from pipeline.errors import UserError
from pipeline.pool import Rows
from pipeline.ranks import ties
from pipeline.selectors import Listed


class Zcore(Listed):
    """Per draw: a random point of a random subspace; its nearest example gains 1, the neighbours of that one lose 1.

    The point is triangular between each dimension's ends about its median; distances are sums of absolute differences;
    the neighbours share the loss by 1 / distance^exponent, or equally those at distance 0, where the authors' code
    takes it all from one of them. Scores start uniform in (0, 1). embedding: column of vectors; draws, dimensions (of a
    subspace), neighbours, exponent: the authors'. A larger budget adds to a smaller one's. Time grows with draws * N,
    three minutes for 50,000; memory N * d * 8 bytes.
    """

    source: ClassVar = "arXiv 2411.15349, Zero-Shot Coreset Selection via Iterative Subspace Sampling"

    @dataclass(frozen=True)
    class Options(Listed.Options):
        """Which column, how many draws, and how neighbours share the loss."""

        embedding: str = "embedding"
        draws: int = 1_000_000
        dimensions: int = 2
        neighbours: int = 1000
        exponent: float = 4.0

        def __post_init__(self) -> None:
            for name in ("draws", "dimensions", "neighbours"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name}={getattr(self, name)} is none: set it to 1 or more")
            if self.exponent < 0:
                raise ValueError(f"exponent={self.exponent} would spare the nearest: set it to 0 or more")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.columns = (options.embedding,)

    def choose(self, rows: Rows, budget: int, seed: int) -> NDArray[np.int64]:
        """Largest score first."""
        points = geometry.vectors(rows, self.options.embedding)
        if self.options.dimensions > points.shape[1]:
            raise UserError(f"dimensions={self.options.dimensions} is more than the {points.shape[1]} of the vectors")
        shuffled = np.argsort(ties(seed, rows.sample_ids))  # of equally near examples, the first
        columns = np.ascontiguousarray(points[shuffled].T)
        score = counter.uniform(seed, "select-zcore-start", 0, rows.sample_ids[shuffled])
        few = min(self.options.neighbours, len(rows) - 1)
        for where, target in draw(columns, self.options.draws, self.options.dimensions, seed):
            nearest = int(_distances(columns, where, target).argmin())
            score[nearest] += 1
            if few:
                away = _distances(columns, where, columns[where, nearest])
                away[nearest] = np.inf
                found = np.flatnonzero(away <= np.partition(away, few - 1)[few - 1])
                found = found[np.argsort(away[found], kind="stable")[:few]]
                score[found] -= _losses(away[found], self.options.exponent)
        return shuffled[np.argsort(-score, kind="stable")[:budget]]


def draw(
    columns: NDArray[np.float32], draws: int, dimensions: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Subspaces of f32[d, n] points and a point in each: distinct dimensions int64[m], coordinates f32[m]."""
    low, middle, high = columns.min(axis=1), np.median(columns, axis=1), columns.max(axis=1)
    for start in range(0, draws, BLOCK):
        numbers = np.arange(start, min(start + BLOCK, draws))
        chances = [counter.uniform(seed, "select-zcore", 0, numbers, k) for k in range(2 * dimensions)]
        where = np.empty((len(numbers), 0), dtype=np.int64)
        for k in range(dimensions):
            another = (chances[k] * (len(columns) - k)).astype(np.int64)
            for before in np.sort(where, axis=1).T:  # those that are not drawn yet, counted past those that are
                another += another >= before
            where = np.column_stack([where, another])
        a, b, c = (values[where].astype(np.float64) for values in (low, middle, high))
        target = triangular(a, b, c, np.column_stack(chances[dimensions:]))
        yield from zip(where, target.astype(np.float32), strict=True)


def triangular(
    low: NDArray[np.float64], middle: NDArray[np.float64], high: NDArray[np.float64], chance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The quantiles of triangular densities from low over their peak at middle to high."""
    left = chance * (high - low) < middle - low
    up = low + np.sqrt(chance * (high - low) * (middle - low))
    return np.where(left, up, high - np.sqrt((1 - chance) * (high - low) * (high - middle)))


def _distances(
    columns: NDArray[np.float32], where: NDArray[np.int64], target: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Sums of absolute differences, f32[n]."""
    total: NDArray[np.float32] = np.abs(columns[where[0]] - target[0])
    for dimension, value in zip(where[1:], target[1:], strict=True):
        total += np.abs(columns[dimension] - value)
    return total


def _losses(away: NDArray[np.float32], exponent: float) -> NDArray[np.float64]:
    """Shares of 1 by 1 / distance^exponent; those at distance 0 take all."""
    smallest = float(away.min())
    weights = (smallest / away.astype(np.float64)) ** exponent if smallest else (away == 0).astype(np.float64)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


BLOCK = 1 << 12
"""Draws whose random numbers are made at a time."""
