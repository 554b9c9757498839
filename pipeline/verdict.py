"""Trust the pseudo-labels, label more, or leave it: the one place where thresholds are."""

from typing import Any

from pipeline.intervals import wilson

RIGHT_ENOUGH = 0.8
"""Trust asks that surely so many pseudo-labels are right: the lower end of the 95% interval is at least this.

A convention, not a law, from two measurements on CIFAR-10: with 57% right, no cut of double_end beat a random coreset
on average (10,000 images, 10% and 30% kept); with 73% right, as the README has it, coresets won at one budget and lost
or tied at another.
"""
TOO_FEW_RIGHT = 0.5
"""Below it even at the upper end of the interval, most images are scored against a label that is wrong."""


CAVEATS = {
    "uniform": None,
    "per_class": "the held-out labels were drawn evenly over the classes: they speak for a pool with equal classes",
    "typiclust": "the held-out labels are of typical images, which are the easy ones: of the others more will be wrong",
}
"""What the draw of the labels does to all that is said by them; a uniform one is a random sample of the pool."""


def verdict(correct: int, total: int, draw: str = "uniform") -> dict[str, Any]:
    """What to do, of `correct` of `total` held-out pseudo-labels whose images were drawn in that way.

    level: "trust", "label more", "do not use", or "not measured" where total is 0, and where much is right of typical
    images; why: a sentence with the numbers; caveat: a sentence, or None.
    """
    level, why = _judge(correct, total)
    if draw == "typiclust" and level == "trust":
        level = "not measured"
    return {
        "level": level,
        "why": why,
        "caveat": CAVEATS[draw] if total else None,
        "right_enough": RIGHT_ENOUGH,
        "too_few_right": TOO_FEW_RIGHT,
    }


def _judge(correct: int, total: int) -> tuple[str, str]:
    if not total:
        return "not measured", "no held-out label checks the pseudo-labels, so how many are right is not known"
    low, high = wilson(correct, total)
    measured = f"{correct:,} of {total:,} held-out pseudo-labels are right, so {low:.0%} to {high:.0%} of all (95%)"
    if low >= RIGHT_ENOUGH:
        return "trust", f"{measured}, at least the {RIGHT_ENOUGH:.0%} that trust asks for"
    if high < TOO_FEW_RIGHT:
        return "do not use", f"{measured}: most images are scored against a wrong label, a random choice is safer"
    if high < RIGHT_ENOUGH:
        return "label more", f"{measured}, less than the {RIGHT_ENOUGH:.0%} that trust asks for"
    return "label more", f"{measured}: too few labels to say whether it is the {RIGHT_ENOUGH:.0%} that trust asks for"
