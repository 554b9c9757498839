"""What may honestly be said about an accuracy: differences to random, the headline."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

MANY = 2
"""More coresets than this are counted in the headline instead of named."""
SENTENCES = {
    "better": ("beats random of the same size by {gap}", "beat random of the same size by {gap}"),
    "worse": ("is worse than random of the same size by {gap}", "are worse than random of the same size by {gap}"),
    "within spread": (
        "shows no difference to random beyond the spread",
        "show no difference to random beyond the spread",
    ),
}
"""What each verdict says of one coreset and of several."""


def compare(row: Mapping[str, Any], random: Mapping[str, Any] | None) -> dict[str, Any]:
    """One subset's accuracy against the random subset of the same size.

    Both have `mean`, `std` (fractions, over seeds) and `num_seeds`. The spread is `sqrt(std^2 + std_random^2)`; the
    verdict is "better" or "worse" only beyond it, else "within spread"; "one seed" where no spread is known; "no random
    subset" where there is none of this size. All numbers are fractions, None where unknown.
    """
    if random is None:
        return {"random_mean": None, "difference": None, "spread": None, "verdict": "no random subset"}
    known = {"random_mean": random["mean"], "difference": row["mean"] - random["mean"]}
    if min(row["num_seeds"], random["num_seeds"]) < 2:
        return {**known, "spread": None, "verdict": "one seed"}
    spread = math.hypot(row["std"], random["std"])
    beyond = abs(known["difference"]) > spread
    verdict = "within spread" if not beyond else "better" if known["difference"] > 0 else "worse"
    return {**known, "spread": spread, "verdict": verdict}


def _points(differences: Sequence[float]) -> str:
    low, high = (f"{100 * abs(d):.1f}" for d in (min(differences, key=abs), max(differences, key=abs)))
    return f"{high} points" if low == high else f"{low} to {high} points"


def _both_signs(difference: float) -> str:
    return f"{100 * difference:+.1f} points".replace("-", "\N{MINUS SIGN}")


def headline(coresets: Sequence[Mapping[str, Any]]) -> str:
    """One plain sentence about all coresets that were compared with random; bad news is said as plainly as good.

    coresets: `name`, `difference` and `verdict` of `compare`, one per evaluated coreset.
    """
    compared = [coreset for coreset in coresets if coreset["difference"] is not None]
    if not compared:
        return "The coresets were not compared with random ones: what they are worth has not been measured."
    if any(coreset["verdict"] == "one seed" for coreset in compared):
        leads = ", ".join(f"{coreset['name']} {_both_signs(coreset['difference'])}" for coreset in compared)
        if len(compared) > MANY:
            low, high = (_both_signs(end([coreset["difference"] for coreset in compared])) for end in (min, max))
            leads = f"{len(compared)} coresets from {low.removesuffix(' points')} to {high}"
        return f"One seed only, so no verdict: against random of the same size, {leads}."
    said = []
    for verdict, sentence in SENTENCES.items():
        group = [coreset for coreset in compared if coreset["verdict"] == verdict]
        if group:
            gap = _points([coreset["difference"] for coreset in group])
            said.append(f"{_subject(group, compared)} {sentence[len(group) > 1].format(gap=gap)}")
    return f"{'; '.join(said)}."


def _subject(group: Sequence[Mapping[str, Any]], everything: Sequence[Mapping[str, Any]]) -> str:
    if len(everything) <= MANY:
        return " and ".join(coreset["name"] for coreset in group)
    return (
        f"All {len(group)} coresets" if len(group) == len(everything) else f"{len(group)} of {len(everything)} coresets"
    )
