"""Neighbours, exactly: against all pairs, in any blocks, with copies and far outliers."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipeline import geometry
from pipeline.errors import UserError
from pipeline.geometry import Nearest, neighbours, unit
from pipeline.pool import Rows

POINTS = st.tuples(st.integers(1, 25), st.integers(1, 4)).flatmap(
    lambda shape: arrays(
        np.float32,
        shape,
        elements=st.one_of(
            st.sampled_from([0, 1, 1.0000001, -3, 1e-30, 1e15, 3e-12]), st.floats(-(2.0**60), 2.0**60, width=32)
        ),
    )
)


def plain(points: NDArray[np.float32], k: int) -> tuple[list[list[int]], list[list[float]]]:
    """By measuring all pairs and sorting."""
    index, distance = [], []
    for i, point in enumerate(points.astype(np.float64)):
        others = [
            (float(np.square(point - other).sum()), j) for j, other in enumerate(points.astype(np.float64)) if j != i
        ]
        nearest = sorted(others)[:k]
        index.append([j for _, j in nearest])
        distance.append([float(np.sqrt(square)) for square, _ in nearest])
    return index, distance


@given(POINTS, st.integers(1, 30), st.sampled_from([1, 10, 50, 1 << 24]))
@settings(max_examples=200)
def test_neighbours_are_those_of_all_pairs(points: NDArray[np.float32], k: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "BLOCK", block)
        index, distance = neighbours(points, k)
    expected_index, expected_distance = plain(points, k)
    assert index.tolist() == expected_index
    assert distance.tolist() == expected_distance


@pytest.mark.parametrize("offset", [0, 1e4])
def test_neighbours_of_many_points_are_exact_also_far_from_the_origin(offset: float) -> None:
    rng = np.random.default_rng(0)
    points = (rng.standard_normal((400, 60)) + offset).astype(np.float32)
    points[200:210] = points[:10]  # copies
    points[399] *= 1e6  # an outlier that leaves the matrix product few digits for the others
    index, distance = neighbours(points, 7)
    expected_index, expected_distance = plain(points, 7)
    assert index.tolist() == expected_index
    np.testing.assert_array_equal(distance, expected_distance)
    assert (index != np.arange(400)[:, None]).all()
    assert index[:10, 0].tolist() == list(range(200, 210)) and (distance[:10, 0] == 0).all()


def plain_nearest(points: NDArray[np.float32], k: int) -> list[list[int]]:
    """By the cosine of all pairs, and sorting."""
    found = []
    for i, point in enumerate(points):
        others = [(-float((point.astype(np.float64) * other).sum()), j) for j, other in enumerate(points) if j != i]
        found.append([j for _, j in sorted(others)[:k]])
    return found


DIRECTIONS = st.tuples(st.integers(2, 25), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([0, 1, 1.0000001, -3, 1e-30, 1e15, 0.5]))
)


@given(DIRECTIONS, st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), st.randoms())
@settings(max_examples=200)
def test_the_most_similar_are_those_of_all_pairs_in_any_blocks(
    vectors: NDArray[np.float32], k: int, queries: int, block: int, random: Random
) -> None:
    points = unit(vectors)
    n, k = len(points), min(k, len(points) - 1)
    starts = list(range(0, n, block))
    random.shuffle(starts)
    found = []
    for first in range(0, n, queries):
        nearest = Nearest(points[first : first + queries], first, k)
        for start in starts:
            nearest.look_at(points[start : start + block], start)
        found += nearest.ids().tolist()
    assert found == plain_nearest(points, k)


def test_the_most_similar_of_many_in_clouds_and_with_copies() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5, 40))[rng.integers(0, 5, 600)] + 0.1 * rng.standard_normal((600, 40))
    vectors[300:320] = vectors[:20]
    points = unit(vectors)
    nearest = Nearest(points[:100], 0, 9)
    for start in (400, 0, 200):
        nearest.look_at(points[start : start + 200], start)
    found = nearest.ids()
    assert found.tolist() == plain_nearest(points, 9)[:100]
    assert found[:20, 0].tolist() == list(range(300, 320)) and (found != np.arange(100)[:, None]).all()


def test_a_direction_has_length_one_whatever_its_length_was() -> None:
    vectors = np.array([[3, 4], [3e30, 4e30], [3e-30, 4e-30], [0, 0]], dtype=np.float32)
    np.testing.assert_allclose(unit(vectors), [[0.6, 0.8]] * 3 + [[0, 0]], rtol=1e-6)
    assert unit(vectors[:1].astype(np.float16)).dtype == np.float32 and vectors[0, 0] == 3


def test_a_column_of_numbers_is_no_column_of_vectors() -> None:
    rows = Rows(np.arange(2), {"aum": np.ones(2), "empty": np.ones((2, 0)), "far": np.array([[1e300], [1.0]])})
    for column in ("aum", "empty"):
        with pytest.raises(
            UserError, match=f"column '{column}' holds no vectors: name a column with a list of numbers"
        ):
            geometry.vectors(rows, column)
    with pytest.raises(UserError, match="column 'far' is infinite in 1 of 2 rows"):
        geometry.vectors(rows, "far")
