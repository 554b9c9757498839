"""Options of selectors that held-out labels choose: m of double_end, c_d of dual_beta."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from numpy.typing import NDArray

from pipeline import mislabel, shift
from pipeline.pool import Pool
from pipeline.selectors import AUTO, Selector, exact
from pipeline.selectors.double_end import DoubleEnd
from pipeline.selectors.dual_beta import DualBeta, beta_parameters, log_weights
from pipeline.trust import HeldOut

OPTIONS: Mapping[type[Selector], str] = {DoubleEnd: "mislabel_fraction", DualBeta: "c_d"}
"""By selector the option that can be chosen."""


def undecided(selector: Selector) -> str | None:
    """The name of the option that is to be chosen, None if none is."""
    option = OPTIONS.get(type(selector))
    return option if option and getattr(selector.options, option) == AUTO else None


def choose(
    selector: Selector, pool: Pool, budget: int, held: HeldOut, harder: Mapping[str, str], seed: int
) -> dict[str, Any] | None:
    """What held-out labels say of the option that they can choose, for so many samples of the pool.

    harder: the hard end of every score column. As JSON values: option; column, along whose order it is chosen; auto,
    whether they choose it; used, a number, or None if it is to be chosen and nothing can; evidence, as of `mislabel` or
    `shift`, None where no held-out row has the score. None of selectors without such an option.
    """
    option = OPTIONS.get(type(selector))
    if option is None:
        return None
    value = getattr(selector.options, option)
    used = None if value == AUTO else float(value)
    keep = Fraction(budget, pool.num_samples)
    found: dict[str, Any] | None = None
    column = selector.columns[-1]
    if isinstance(selector, DoubleEnd) and len(held.wrong) and column in harder:
        share = held.harder_share(column)
        share = share if selector.harder == harder[column] else 1 - share
        found = mislabel.evidence(share, held.wrong, keep, seed, None if used is None else exact(used))
    elif isinstance(selector, DualBeta) and len(held.wrong):
        anchor = selector.anchor(pool)
        dual, mean = (held.scores(name) for name in selector.columns)

        def log_weights_at(c_d: float) -> NDArray[Any]:
            return log_weights(dual, mean, *beta_parameters(anchor, float(keep), c_d))

        found = shift.evidence(held.harder_share(column), held.wrong, log_weights_at, float(keep), seed, used)
    chosen = found["value"] if found else None
    return {
        "option": option,
        "column": column,
        "auto": used is None,
        "used": chosen if used is None else used,
        "evidence": found,
    }
