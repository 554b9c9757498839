"""A second semi-supervised training: the labelled rows are joined by the first one's most confident pseudo-labels.

Self-training, as in arXiv 1911.04252 (Noisy Student), whose students too begin anew and learn from noised views. What
joins is taught as true labels are, so wrong pseudo-labels among it are learned by heart: the threshold decides.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pipeline.config import Config
from pipeline.intervals import wilson
from pipeline.stage import Artifact
from pipeline.verdict import of_rounds

Ids = NDArray[np.int64]
Bools = NDArray[np.bool_]


class SecondRound(Config):
    """`ssl.second_round` of a recipe: which pseudo-labels of the first model join the labels.

    Confidence is not calibrated: that would take the held-out labels, which are to judge the second round too; the
    report says how many of the held-out ones that are so confident are right. Easy classes have more confident rows
    than hard ones, often many times as many, and the labelled rows become as unequal: `ssl.class_balanced` draws them
    evenly over the classes all the same.
    """

    confident: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="the least confidence of a pseudo-label that joins, as the first model has it",
    )


def is_confident(confidence: NDArray[np.float32], confident: float) -> Bools:
    """Which confidences, float32[n], reach the threshold, itself rounded to float32: bool[n]."""
    return confidence >= np.float32(confident)


def joining(first_round: Artifact, split: Artifact, confident: float) -> tuple[Ids, Ids]:
    """sample_ids, ascending, and pseudo-labels of the rows that join the labelled ones: int64[j] each.

    first_round: its stage `pseudo_label`. Held-out rows are as the unlabelled ones are, so that they can speak for
    them: they join with their pseudo-labels, and their labels stay unseen.
    """
    roles = split.table()
    train = roles.filter(pc.equal(roles["role"], "train"))["sample_id"].to_numpy()
    ids, labels = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for table in first_round.tables(columns=["sample_id", "pseudo_label", "confidence"]):
        rows, guess = table["sample_id"].to_numpy(), table["pseudo_label"].to_numpy()
        join = is_confident(table["confidence"].to_numpy(), confident) & ~np.isin(rows, train)
        ids.append(rows[join])
        labels.append(guess[join])
    found = np.concatenate(ids)
    order = np.argsort(found)
    return found[order], np.concatenate(labels)[order]


def compare(confident: float, confidence: NDArray[np.float32], wrong: tuple[Bools, Bools]) -> dict[str, Any]:
    """What the held-out rows say of the two rounds, as JSON values.

    confident: the threshold; confidence: float32[h], h > 0, of the first round; wrong: bool[h], of each round. rounds:
    of each `correct` of `total` and the Wilson interval; confident: the same of the rows that reached the threshold in
    the first round; mended, broken: rows that the second round alone, and that the first alone, has right; verdict: of
    these two.
    """
    before, after = wrong
    sure = is_confident(confidence, confident)
    return _compared(
        [(int((~column).sum()), len(column)) for column in wrong],
        (int((sure & ~before).sum()), int(sure.sum())),
        int((before & ~after).sum()),
        int((~before & after).sum()),
    )


def together(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `compare` would say of all rows of those that it was asked about one after the other."""

    def added(shares: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
        return sum(share["correct"] for share in shares), sum(share["total"] for share in shares)

    return _compared(
        [added(round_) for round_ in zip(*(part["rounds"] for part in parts), strict=True)],
        added([part["confident"] for part in parts]),
        sum(part["mended"] for part in parts),
        sum(part["broken"] for part in parts),
    )


def described(ssl: Artifact, held_out: Mapping[str, Any] | None) -> dict[str, Any]:
    """A second round: its training, and how the held-out rows compare it with the first."""
    joined = ssl.metrics["joined"]
    confident = ssl.manifest["config"]["confident"]
    return {"confident": confident, "joined": sum(joined), "joined_by_class": joined, "held_out": held_out}


def _compared(
    rounds: Sequence[tuple[int, int]], confident: tuple[int, int], mended: int, broken: int
) -> dict[str, Any]:
    return {
        "rounds": [_share(*counts) for counts in rounds],
        "confident": _share(*confident),
        "mended": mended,
        "broken": broken,
        "verdict": of_rounds(mended, broken),
    }


def _share(correct: int, total: int) -> dict[str, Any]:
    return {"correct": correct, "total": total, "interval": list(wilson(correct, total)) if total else None}
