import numpy as np
import pytest

from pipeline.report.selections import NUM_BINS, Scored, bin_edges, histogram


def scored(values: list[float], kept: list[int], harder: str = "low") -> Scored:
    mask = np.zeros(len(values), dtype=bool)
    mask[kept] = True
    return Scored(np.array(values, dtype=np.float32), harder, mask)


@pytest.mark.parametrize(("harder", "beyond"), [("low", [0, 1]), ("high", [5, 4])])
def test_beyond_the_hard_cut_is_hardest_first(harder: str, beyond: list[int]) -> None:
    assert scored([0, 1, 2, 3, 4, 5], [2, 3], harder).beyond_the_hard_cut().tolist() == beyond


def test_ties_split_by_a_cut_leave_it_sharp_and_are_not_beyond_it() -> None:
    tied = scored([7, 7, 7, 3], [1], "high")
    assert tied.is_sharp()
    assert tied.beyond_the_hard_cut().tolist() == []


def test_a_sampled_coreset_has_no_cuts() -> None:
    sampled = scored([0, 1, 2, 3], [0, 2])
    cuts = {"column": "aum", "low": 0.0, "high": 2.0}
    assert histogram(sampled, cuts)["cuts"] is None
    assert sampled.beyond_the_hard_cut().tolist() == []
    assert histogram(scored([0, 1, 2, 3], [0, 1]), cuts)["cuts"] == [0.0, 2.0]


@pytest.mark.parametrize("harder", ["low", "high"])
def test_along_the_score_runs_from_the_hardest_to_the_easiest(harder: str) -> None:
    values = np.random.default_rng(0).permutation(101).astype(float)
    ids, harder_share = scored(values.tolist(), [0], harder).along_the_score(5)
    assert sorted(values[ids].tolist(), reverse=harder == "high") == values[ids].tolist() == (
        [100, 75, 50, 25, 0] if harder == "high" else [0, 25, 50, 75, 100]
    )  # fmt: skip
    assert harder_share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert len(scored([1, 2, 3], [0]).along_the_score(12)[0]) == 3


@pytest.mark.parametrize(
    "values", [[0.0], [5.0, 5.0], [0, 3, 3, 7], [-1.5, 2.25], [-200.0, 1e6], [0.1, 0.3], [3e38, -3e38]]
)
def test_every_value_falls_into_a_bin(values: list[float]) -> None:
    result = histogram(scored(values, [0]), None)
    assert (sum(result["pool"]), sum(result["kept"])) == (len(values), 1)
    assert len(result["edges"]) == len(result["pool"]) + 1 <= NUM_BINS + 2


def test_counts_get_a_bin_each() -> None:
    assert bin_edges(np.array([0, 2, 3.0])).tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
