"""k-means whose result is a pure function of points and seed, to the last bit, on any machine and in any batches."""

import numpy as np
from numpy.typing import NDArray

from pipeline import counter

ROUNDS = 25
"""Of Lloyd's, at most."""

BLOCK = 1 << 10
"""Points at a time."""

SEEDING = 16
"""Points a cluster, at least, from which the first centroids are drawn."""


def fit(points: NDArray[np.float32], k: int, seed: int) -> NDArray[np.float64]:
    """Centroids f64[k, d] of points f32[n, d], of which n >= 1; fewer of them where fewer points are distinct.

    k-means++ (Arthur and Vassilvitskii, 2007) and up to 25 rounds of Lloyd's; a cluster that loses all its points keeps
    its centroid.
    """
    centroids = points[_seeds(points, k, seed)].astype(np.float64)
    before = np.full(len(points), -1)
    for _ in range(ROUNDS):
        own, _ = nearest(points, centroids)
        if (own == before).all():
            break
        order = np.argsort(own, kind="stable")
        bounds = np.searchsorted(own, np.arange(len(centroids) + 1), sorter=order)
        for cluster in np.flatnonzero(np.diff(bounds)).tolist():
            members = order[bounds[cluster] : bounds[cluster + 1]]
            centroids[cluster] = points[members].astype(np.float64).mean(axis=0)
        before = own
    return centroids


def nearest(
    points: NDArray[np.float32], centroids: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The first of the nearest centroids of n points, and the Euclidean distance to it: int64[n], f64[n].

    A matrix product finds candidates; its rounding, which depends on the machine and on the rows beside, decides
    nothing: what lies within its error bound is measured again, pair by pair.
    """
    own = np.zeros(len(points), dtype=np.int64)
    distance = np.zeros(len(points))
    squares = np.square(centroids).sum(axis=1)
    for start in range(0, len(points), BLOCK):
        x = points[start : start + BLOCK].astype(np.float64)
        rough = squares - 2 * (x @ centroids.T)  # squared distances less |x|^2
        size = np.sqrt(squares.max()) + np.sqrt(np.square(x).sum(axis=1))
        slack = 2 * (x.shape[1] + 2) * np.finfo(np.float64).eps * size**2
        row, column = np.nonzero(rough <= (rough.min(axis=1) + slack)[:, None])
        exact = np.square(x[row] - centroids[column]).sum(axis=1)
        best = np.minimum.reduceat(exact, np.searchsorted(row, np.arange(len(x))))
        hits = np.flatnonzero(exact == best[row])
        first = hits[np.unique(row[hits], return_index=True)[1]]
        own[start : start + BLOCK] = column[first]
        distance[start : start + BLOCK] = np.sqrt(best)
    return own, distance


def _seeds(points: NDArray[np.float32], k: int, seed: int) -> NDArray[np.int64]:
    """Up to k points, each drawn with a chance proportional to its squared distance to those before it."""
    some = counter.permutation(seed, "kmeans-points", 0, np.arange(len(points)))[: max(SEEDING * k, 1 << 14)]
    chances = counter.uniform(seed, "kmeans-seeds", 0, np.arange(k))
    candidates = points[some]
    left = np.full(len(some), np.inf)
    chosen = [0]  # of an order that is random
    for chance in chances[1:]:
        apart = np.square(candidates - candidates[chosen[-1]]).sum(axis=1, dtype=np.float32)
        np.minimum(left, apart, out=left)
        total = np.cumsum(left)
        if total[-1] == 0:
            break
        chosen.append(int(np.searchsorted(total, chance * total[-1], side="right")))
    seeds: NDArray[np.int64] = some[chosen]
    return seeds
