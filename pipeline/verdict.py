"""Trust the pseudo-labels, label more, or leave it: the one place where thresholds are."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.intervals import wilson

RIGHT_ENOUGH = 0.8
"""Trust asks that surely so many pseudo-labels are right: the lower end of the 95% interval is at least this.

A convention, not a law, from two measurements on CIFAR-10: with 57% right, no cut of double_end beat a random coreset
on average (10,000 images, 10% and 30% kept); with 75% right, of 50,000 images, coresets won at each of three budgets
(docs/measured.md).
"""
TOO_FEW_RIGHT = 0.5
"""Below it even at the upper end of the interval, most images are scored against a label that is wrong."""
CHANCE = 0.05
"""Two rounds differ where chance alone would make them differ so much less often than this."""


CAVEATS = {
    "uniform": None,
    "per_class": "the held-out labels were drawn evenly over the classes: they speak for a pool with equal classes",
    "typiclust": "the held-out labels are of typical images, which are the easy ones: of the others more will be wrong",
}
"""What the draw of the labels does to all that is said by them; a uniform one is a random sample of the pool."""
CAME_BACK = (
    "of the labels {:,} came back for images that were chosen, not drawn at random: the held-out ones speak for the "
    "pool as it was before, and not for what is left of it without a label"
)
"""The same of labels that annotators gave back: a coreset leaves other images behind than a random choice would."""
UNJUDGED = (
    "{:,} of the classes, often the rare ones, have one label, which trains the model: nothing checks their "
    "pseudo-labels, of which more may be wrong"
)
"""The same of classes with one label: no class is left without a row to train on."""


def verdict(
    correct: int,
    total: int,
    draw: str = "uniform",
    num_annotated: int = 0,
    first_round: int | None = None,
    num_unjudged: int = 0,
) -> dict[str, Any]:
    """What to do, of `correct` of `total` held-out pseudo-labels whose images were drawn in that way.

    num_annotated: labels of other images, that annotators gave back; first_round: how many were right before a second
    round, None where there is none; num_unjudged: classes whose only label is not among the held-out ones. level:
    "trust", "label more", "do not use", or "not measured" where total is 0, and where much is right of typical images;
    why: a sentence with the numbers; caveat: a sentence, or None.
    """
    level, why = _judge(correct, total, first_round)
    if draw == "typiclust" and level == "trust":
        level = "not measured"
    caveats = [
        CAVEATS[draw],
        CAME_BACK.format(num_annotated) if num_annotated else None,
        UNJUDGED.format(num_unjudged) if num_unjudged else None,
    ]
    return {
        "level": level,
        "why": why,
        "caveat": "; ".join(filter(None, caveats)) or None if total else None,
        "right_enough": RIGHT_ENOUGH,
        "too_few_right": TOO_FEW_RIGHT,
    }


def _judge(correct: int, total: int, first_round: int | None) -> tuple[str, str]:
    if not total:
        return "not measured", "no held-out label checks the pseudo-labels, so how many are right is not known"
    low, high = wilson(correct, total)
    before = "" if first_round is None else f" ({first_round:,} after the first round)"
    measured = (
        f"{correct:,} of {total:,} held-out pseudo-labels are right{before}, so {low:.0%} to {high:.0%} of all (95%)"
    )
    if low >= RIGHT_ENOUGH:
        return "trust", f"{measured}, at least the {RIGHT_ENOUGH:.0%} that trust asks for"
    if high < TOO_FEW_RIGHT:
        return "do not use", f"{measured}: most images are scored against a wrong label, a random choice is safer"
    if high < RIGHT_ENOUGH:
        return "label more", f"{measured}, less than the {RIGHT_ENOUGH:.0%} that trust asks for"
    return "label more", f"{measured}: too few labels to say whether it is the {RIGHT_ENOUGH:.0%} that trust asks for"


def of_classes(per_class: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence about classes of which surely fewer than TOO_FEW_RIGHT are right, however many are right of all.

    per_class: the metric of the stage `trust`, with the names of classes as `class` where they are known. None where
    there is no such class.
    """
    found = [row.get("class", row["label"]) for row in per_class if row["interval"][1] < TOO_FEW_RIGHT]
    if not found:
        return None
    named = ", ".join(map(str, found[:5])) + (f" and {len(found) - 5:,} more" if len(found) > 5 else "")
    return (
        f"of {len(found):,} of {len(per_class):,} classes with held-out labels surely most pseudo-labels are wrong "
        f"({named}): label more of them, or set ssl.logit_adjustment if they are rare"
    )


def of_rounds(mended: int, broken: int) -> str:
    """Whether the second round is "better" or "worse" than the first, or "within chance" of it.

    mended, broken: held-out rows that the second alone and that the first alone has right. The exact sign test of
    these, McNemar's, against CHANCE.
    """
    from scipy.stats import binomtest

    if not mended + broken or binomtest(mended, mended + broken).pvalue >= CHANCE:
        return "within chance"
    return "better" if mended > broken else "worse"
