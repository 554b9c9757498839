import math

import pytest

from pipeline.report.verdict import compare, headline


def row(mean: float, std: float = 0.01, num_seeds: int = 3) -> dict[str, float]:
    return {"mean": mean, "std": std, "num_seeds": num_seeds}


def coreset(name: str, mean: float, num_seeds: int = 3) -> dict[str, object]:
    return {"name": name, **compare(row(mean, num_seeds=num_seeds), row(0.9, num_seeds=num_seeds))}


@pytest.mark.parametrize(
    ("mean", "verdict"), [(0.93, "better"), (0.91, "within spread"), (0.89, "within spread"), (0.88, "worse")]
)
def test_only_a_difference_beyond_the_spread_is_one(mean: float, verdict: str) -> None:
    result = compare(row(mean), row(0.9))
    assert result["verdict"] == verdict
    assert result["difference"] == pytest.approx(mean - 0.9)
    assert result["spread"] == pytest.approx(math.hypot(0.01, 0.01))


def test_one_seed_and_no_random_subset_give_no_verdict() -> None:
    assert compare(row(0.99, 0.0, 1), row(0.9)) | {"difference": 0} == {
        "random_mean": 0.9, "difference": 0, "spread": None, "verdict": "one seed"
    }  # fmt: skip
    assert compare(row(0.99), None)["verdict"] == "no random subset"


@pytest.mark.parametrize(
    ("coresets", "sentence"),
    [
        ([coreset("a", 0.93)], "a beats random of the same size by 3.0 points."),
        ([coreset("a", 0.85)], "a is worse than random of the same size by 5.0 points."),
        (
            [coreset("a", 0.85), coreset("b", 0.87)],
            "a and b are worse than random of the same size by 3.0 to 5.0 points.",
        ),
        (
            [coreset("a{gap}", 0.93), coreset("b", 0.901)],
            "a{gap} beats random of the same size by 3.0 points; "
            "b shows no difference to random beyond the spread.",
        ),
        (
            [coreset("a", 0.93), coreset("b", 0.94), coreset("c", 0.87)],
            "2 of 3 coresets beat random of the same size by 3.0 to 4.0 points; "
            "1 of 3 coresets is worse than random of the same size by 3.0 points.",
        ),
        (
            [coreset(name, 0.9) for name in "abc"],
            "All 3 coresets show no difference to random beyond the spread.",
        ),
        (
            [coreset("a", 0.88, 1), coreset("b", 0.91, 1)],
            "One seed only, so no verdict: against random of the same size, a \N{MINUS SIGN}2.0 points, b +1.0 points.",
        ),
        (
            [coreset("a", 0.88, 1), coreset("b", 0.93, 1), coreset("c", 0.91, 1)],
            "One seed only, so no verdict: against random of the same size, 3 coresets from \N{MINUS SIGN}2.0 to +3.0 "
            "points.",
        ),
        ([], "The coresets were not compared with random ones: what they are worth has not been measured."),
    ],
)  # fmt: skip
def test_headline_says_plainly_what_was_found(coresets: list[dict[str, object]], sentence: str) -> None:
    assert headline(coresets) == sentence
