"""Distances between points, the same to the last bit on any machine and in any blocks; neighbours by cosine, too.

A matrix product in float32 finds candidates; its rounding, which depends on the machine and on the rows beside, decides
nothing: what lies within its error bound is measured again, pair by pair, in float64.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.pool import Rows

BLOCK = 1 << 24
"""Rough distances held at a time, and coordinates of the pairs that are measured again."""


def vectors(rows: Rows, column: str) -> NDArray[np.float32]:
    """A column of vectors as f32[n, d]; UserError if it holds none, or an infinite one."""
    values = rows[column]
    if values.ndim != 2 or not values.shape[1]:
        raise UserError(f"column {column!r} holds no vectors: name a column with a list of numbers for every sample")
    with np.errstate(over="ignore"):
        points = values.astype(np.float32, copy=False)
    infinite = int((~np.isfinite(points)).any(axis=1).sum())
    if infinite:
        raise UserError(f"column {column!r} is infinite in {infinite} of {len(points)} rows: leave those samples out")
    return points


def neighbours(points: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest others of every point and their Euclidean distances, [n, k] each; nearest first, equals by index.

    Never the point itself, though a copy of it is another point; n - 1 of them where k is more. points: f32[n, d]. Time
    grows with n * n * d, about 25 s for 50,000 x 128 on two cores; memory with n * (d + k) and a block of 200 MB.
    """
    n = len(points)
    k = min(k, n - 1)
    index, distance = np.empty((n, k), dtype=np.int64), np.empty((n, k))
    if not k:
        return index, distance
    rough = Rough(points)
    size = max(1, BLOCK // n)
    for start in range(0, n, size):
        lower, slack = rough.below(slice(start, start + size))
        block = np.arange(len(lower))
        lower[block, start + block] = np.inf
        upper = np.partition(lower + rough.slack, k - 1, axis=1)[:, k - 1] + slack
        row, column = np.nonzero(lower <= upper[:, None])
        exact = squared_distance(points, start + row, column)
        order = np.lexsort((column, exact, row))
        first = order[np.searchsorted(row, block)[:, None] + np.arange(k)]
        index[start : start + size], distance[start : start + size] = column[first], np.sqrt(exact[first])
    return index, distance


def squared_distance(points: NDArray[np.float32], left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Squared Euclidean distances of pairs of points, f64[m]; left, right: int64[m]."""
    size = max(1, BLOCK // (8 * points.shape[1]))
    found = np.empty(len(left))
    for start in range(0, len(left), size):
        some = slice(start, start + size)
        found[some] = np.square(points[left[some]].astype(np.float64) - points[right[some]]).sum(axis=1)
    return found


class Rough:
    """Squared distances in units of `scale` squared, as a matrix product has them, and how wrong they may be.

    slack: f32[n], twice what a point adds to the error of any distance to it.
    """

    def __init__(self, points: NDArray[np.float32]) -> None:
        centred = points - points.mean(axis=0, dtype=np.float64)
        self.scale = float(np.abs(centred).max()) or 1.0
        centred /= self.scale
        self._points = centred.astype(np.float32)
        squares = np.square(centred).sum(axis=1)
        # d + 16 roundings: of the products and their sum (d + 2), of the points and of the squares, and some to spare
        error = (points.shape[1] + 16) * float(np.finfo(np.float32).eps) * squares + float(np.finfo(np.float32).tiny)
        self.slack = (2 * error).astype(np.float32)
        self._squares = (squares - error).astype(np.float32)
        self._doubled = np.ascontiguousarray(-2 * self._points.T)

    def below(self, some: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lower bounds of d(i, j)^2 - c(i), f32[m, n], and by how much c(i) may be off twice, f32[m].

        i: some of the points, j: all. Adding slack[j] and the second result makes upper bounds of the lower ones.
        """
        lower = self._points[some] @ self._doubled
        lower += self._squares
        return lower, self.slack[some]

    def distance_below(self, i: int) -> NDArray[np.float32]:
        """Lower bounds of the squared distances of point i to all, f32[n]."""
        lower: NDArray[np.float32] = self._points[i] @ self._doubled
        lower += self._squares
        lower += self._squares[i]
        return lower


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Vectors [n, d] at length 1, f32[n, d]; a vector of zeros stays one."""
    points = vectors.astype(np.float32)
    points /= np.maximum(np.abs(points).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)  # no square overflows
    length = np.sqrt(np.einsum("ij,ij->i", points, points, dtype=np.float64))
    points /= np.where(length > 0, length, 1)[:, None]
    return points


class Nearest:
    """The k samples most similar to each of m queries, among samples that are looked at block by block.

    queries: f32[m, d] of length 1, the samples `first` .. first + m - 1, none of which is its own neighbour. Similarity
    is the cosine in float64 of the float32 vectors, equals go by sample_id; neither blocks nor machine matter.
    """

    def __init__(self, queries: NDArray[np.float32], first: int, k: int) -> None:
        m, d = queries.shape
        self._queries, self._first, self._k = queries, first, k
        self._slack = np.float32((d + 16) * float(np.finfo(np.float32).eps))  # of a product of unit vectors, and more
        self._ids = np.full((m, k), np.iinfo(np.int64).max)
        self._similarity = np.full((m, k), -np.inf)
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
        self._num_waiting = 0

    def look_at(self, block: NDArray[np.float32], first: int) -> None:
        """Take in the samples `first` .. first + n - 1, f32[n, d] of length 1; every sample once."""
        rough = self._queries @ block.T
        low, high = max(self._first, first), min(self._first + len(rough), first + len(block))
        if low < high:
            same = np.arange(low, high)
            rough[same - self._first, same - first] = -2  # less than any other can have
        least = np.maximum(self._similarity[:, -1], -1.5).astype(np.float32) - 2 * self._slack
        candidates = rough >= least[:, None]
        if np.count_nonzero(candidates) > 2 * rough.shape[0] * self._k and rough.shape[1] > self._k:
            # The k best of this block alone leave fewer: two errors below the k-th of the rough ones is out.
            kth = np.partition(rough, rough.shape[1] - self._k, axis=1)[:, -self._k]
            candidates &= rough >= np.maximum(kth - 2 * self._slack, -1.5)[:, None]
        row, column = np.divmod(np.flatnonzero(candidates), rough.shape[1])
        self._waiting.append((row, first + column, self._measure(block, row, column)))
        self._num_waiting += len(row)
        if self._num_waiting > 4 * self._ids.size or np.isinf(self._similarity[:, -1]).any():
            self._settle()

    def ids(self) -> NDArray[np.int64]:
        """Of what was looked at, int64[m, k]: most similar first."""
        self._settle()
        assert np.isfinite(self._similarity).all(), "fewer than k others were looked at"
        return self._ids

    def _measure(
        self, block: NDArray[np.float32], row: NDArray[np.int64], column: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        size = max(1, BLOCK // (8 * block.shape[1]))
        found = np.empty(len(row))
        for start in range(0, len(row), size):
            some = slice(start, start + size)
            found[some] = (self._queries[row[some]].astype(np.float64) * block[column[some]]).sum(axis=1)
        return found

    def _settle(self) -> None:
        """Keep the k best of what waits and of what was best before."""
        if not self._waiting:
            return
        row, ids, similarity = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        self._waiting, self._num_waiting = [], 0
        best = np.repeat(np.arange(len(self._ids)), self._k)
        row = np.concatenate([best, row])
        ids = np.concatenate([self._ids.reshape(-1), ids])
        similarity = np.concatenate([self._similarity.reshape(-1), similarity])
        order = np.lexsort((ids, -similarity, row))
        first = np.searchsorted(row[order], np.arange(len(self._ids)))
        chosen = order[first[:, None] + np.arange(self._k)]
        self._ids, self._similarity = ids[chosen], similarity[chosen]
