"""k-means: a fixed point of Lloyd's, in any batches and whatever the matrix product rounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import kmeans


def blobs(k: int, seed: int, n: int = 400, d: int = 5) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Points around k centres that are 20 standard deviations apart, and the centres."""
    rng = np.random.default_rng(seed)
    centres = 20 * np.eye(max(k, d))[:k, :d] + 20 * (np.arange(k)[:, None] // d)
    return (centres[rng.integers(0, k, n)] + rng.normal(0, 1, (n, d))).astype(np.float32), centres


def by_hand(
    points: NDArray[np.float32], centroids: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    apart = np.square(points[:, None].astype(np.float64) - centroids).sum(-1)
    return apart.argmin(1), np.sqrt(apart.min(1))


@pytest.mark.parametrize("seed", range(5))
def test_blobs_are_found(seed: int) -> None:
    points, centres = blobs(5, seed)
    found = kmeans.fit(points, 5, seed)
    assert (np.linalg.norm(found[:, None] - centres, axis=-1).min(axis=0) < 1).all()


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12))
@settings(max_examples=25)
def test_a_centroid_is_the_mean_of_its_points(seed: int, k: int) -> None:
    points = np.random.default_rng(seed).normal(0, 1, (60, 2)).astype(np.float32)
    centroids = kmeans.fit(points, k, seed)  # so few points settle long before the last round
    own, _ = by_hand(points, centroids)
    assert len(centroids) == k
    for cluster in range(k):
        np.testing.assert_allclose(centroids[cluster], points[own == cluster].mean(axis=0, dtype=np.float64))


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-6, 1.0, 1e6]), offset=st.sampled_from([0.0, 1e4]))
@settings(max_examples=30)
def test_the_nearest_is_the_nearest_pair_by_pair(seed: int, scale: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    points = (rng.integers(-3, 4, (50, 3)) * scale + offset).astype(np.float32)  # on a grid: many ties
    centroids = points[rng.integers(0, 50, 8)].astype(np.float64) + rng.integers(0, 2, (8, 1)) * scale / 2
    own, distance = kmeans.nearest(points, centroids)
    expected_own, expected_distance = by_hand(points, centroids)
    assert (own == expected_own).all()
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-12)


def test_a_points_bits_do_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(0, 1, (300, 65)).astype(np.float32)
    centroids = kmeans.fit(points, 17, 0)
    own, distance = kmeans.nearest(points, centroids)
    alone = [kmeans.nearest(points[i : i + 1], centroids) for i in range(300)]
    assert np.concatenate([found[0] for found in alone]).tobytes() == own.tobytes()
    assert np.concatenate([found[1] for found in alone]).tobytes() == distance.tobytes()
    monkeypatch.setattr(kmeans, "BLOCK", 7)
    assert kmeans.fit(points, 17, 0).tobytes() == centroids.tobytes()


def test_a_point_on_its_centroid_is_at_zero() -> None:
    points = (1000 + np.random.default_rng(0).random((20, 40))).astype(np.float32)
    _, distance = kmeans.nearest(points, points.astype(np.float64))
    assert (distance == 0).all()


@pytest.mark.parametrize("distinct", [1, 3, 7])
def test_fewer_distinct_points_than_clusters_are_their_own_centroids(distinct: int) -> None:
    points = np.repeat(blobs(3, 0, distinct)[0], 9, axis=0)
    centroids = kmeans.fit(points, 8, 1)
    assert len(centroids) == distinct
    assert (kmeans.nearest(points, centroids)[1] == 0).all()


def test_the_seed_decides() -> None:
    points = np.random.default_rng(0).normal(0, 1, (200, 4)).astype(np.float32)
    assert kmeans.fit(points, 9, 1).tobytes() == kmeans.fit(points, 9, 1).tobytes()
    assert kmeans.fit(points, 9, 1).tobytes() != kmeans.fit(points, 9, 2).tobytes()
