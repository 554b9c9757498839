"""The probe's curve: on clusters of known difficulty, and where it has nothing to say."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.learning_curve import learning_curve


def blobs(n: int, distance: float, width: int = 30) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 4
    centres = distance * rng.standard_normal((4, width)) / np.sqrt(width)
    return (centres[labels] + rng.standard_normal((n, width))).astype(np.float32), labels


@pytest.mark.parametrize("width", [30, 600])
def test_a_probe_with_more_rows_is_wrong_less_often(width: int) -> None:
    found = learning_curve(*blobs(400, 3.0, width), 4, seed=0)
    assert found is not None
    errors = [point["error"] for point in found["points"]]
    assert [point["rows"] for point in found["points"]] == [80, 160, 320]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.6
    low, high = found["interval"]
    assert 0 < low <= found["left"] <= high < 1
    assert found == learning_curve(*blobs(400, 3.0, width), 4, seed=0)


def test_where_nothing_can_be_learned_no_error_is_taken_away() -> None:
    features, labels = blobs(400, 0.0)
    found = learning_curve(features, labels, 4, seed=0)
    assert found is not None and found["left"] > 0.9 and found["interval"][1] == 1


def test_two_points_of_a_power_law_are_its_exponent() -> None:
    features, labels = blobs(400, 3.0)
    found = learning_curve(features, labels, 4, seed=0)
    assert found is not None
    first, _, last = ((400 * point["error"] + 0.5) / 401 for point in found["points"])
    assert found["left"] == pytest.approx((last / first) ** 0.5)  # sizes double twice; the middle has no leverage


@pytest.mark.parametrize("n", [0, 1, 19])
def test_fewer_than_a_row_a_class_say_nothing(n: int) -> None:
    features, labels = blobs(400, 3.0)
    assert learning_curve(features[:n], labels[:n], 4, seed=0) is None


def test_a_column_that_is_constant_is_no_trouble() -> None:
    features, labels = blobs(100, 5.0)
    features[:, 0] = 3
    assert learning_curve(features, labels, 4, seed=0) is not None
