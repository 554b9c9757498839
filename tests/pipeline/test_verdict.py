"""What is advised at which numbers."""

from typing import Any

import pytest

from pipeline.intervals import wilson
from pipeline.verdict import RIGHT_ENOUGH, TOO_FEW_RIGHT, of_classes, of_rounds, verdict


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
    assert "3 of the classes" in verdict(950, 1000, num_unjudged=3)["caveat"]
    typical = verdict(950, 1000, "typiclust")
    assert typical["level"] == "not measured" and "easy ones" in typical["caveat"]
    assert verdict(0, 0, "typiclust", num_annotated=5)["caveat"] is None


def test_labels_that_came_back_are_another_caveat() -> None:
    found = verdict(950, 1000, num_annotated=1200)
    assert found["caveat"].startswith("of the labels 1,200 came back for images that were chosen, not drawn at random")
    assert found["level"] == "trust"
    both = verdict(950, 1000, "per_class", num_annotated=1)["caveat"]
    assert "equal classes; of the labels 1 came back" in both


def of_class(label: int, correct: int, total: int) -> dict[str, Any]:
    return {"label": label, "correct": correct, "total": total, "interval": list(wilson(correct, total))}


def test_classes_that_are_mostly_wrong_are_named_though_most_of_all_are_right() -> None:
    right, unsure, wrong = of_class(0, 305, 319), of_class(1, 1, 4), of_class(2, 16, 49)
    assert of_classes([]) is of_classes([right, unsure]) is None
    said = of_classes([right, unsure, wrong])
    assert said is not None and said.startswith(
        "of 1 of 3 classes with held-out labels surely most pseudo-labels are wrong (2): label more"
    )
    named = of_classes([right, {"class": "horse", **wrong}])
    assert named is not None and "(horse)" in named
    many = of_classes([of_class(label, 0, 40) for label in range(1000)])
    assert many is not None and "of 1,000 of 1,000 classes with" in many and "(0, 1, 2, 3, 4 and 995 more)" in many


def test_the_first_round_stands_beside_the_second() -> None:
    said = verdict(583, 800, first_round=560)["why"]
    assert said.startswith("583 of 800 held-out pseudo-labels are right (560 after the first round), so 70% to 76%")


@pytest.mark.parametrize(
    ("mended", "broken", "level"),
    [(0, 0, "within chance"), (5, 0, "within chance"), (6, 0, "better"), (0, 6, "worse"), (14, 6, "within chance")],
)
def test_rounds_differ_where_chance_would_not_make_them(mended: int, broken: int, level: str) -> None:
    """Six fair coins all fall alike once in 32, two-sided; five once in 16."""
    assert of_rounds(mended, broken) == level
