"""What is advised at which numbers."""

import pytest

from pipeline.intervals import wilson
from pipeline.verdict import RIGHT_ENOUGH, TOO_FEW_RIGHT, verdict


@pytest.mark.parametrize(
    ("correct", "total", "level"),
    [
        (0, 0, "not measured"),
        (950, 1000, "trust"),
        (20, 20, "trust"),
        (583, 800, "label more"),
        (18, 20, "label more"),
        (5, 5, "label more"),
        (9, 20, "label more"),
        (400, 1000, "do not use"),
    ],
)
def test_levels(correct: int, total: int, level: str) -> None:
    found = verdict(correct, total)
    assert found["level"] == level and (found["right_enough"], found["too_few_right"]) == (0.8, 0.5)
    if total:
        low, high = wilson(correct, total)
        assert (level == "trust") == (low >= RIGHT_ENOUGH) and (level == "do not use") == (high < TOO_FEW_RIGHT)
        assert f"{correct:,} of {total:,}" in found["why"] and f"{low:.0%} to {high:.0%}" in found["why"]


def test_too_few_labels_to_know_are_told_from_too_few_right() -> None:
    assert "too few labels to say" in verdict(18, 20)["why"]
    assert verdict(583, 800)["why"].endswith("less than the 80% that trust asks for")


def test_the_way_labels_were_drawn_is_a_caveat() -> None:
    assert verdict(950, 1000)["caveat"] is None
    assert "equal classes" in verdict(950, 1000, "per_class")["caveat"]
    assert verdict(950, 1000, "per_class")["level"] == "trust"
    typical = verdict(950, 1000, "typiclust")
    assert typical["level"] == "not measured" and "easy ones" in typical["caveat"]
    assert verdict(0, 0, "typiclust")["caveat"] is None
