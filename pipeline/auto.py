"""Options of selectors that held-out labels choose: m of double_end, c_d of dual_beta."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import mislabel, shift
from pipeline.pool import Pool
from pipeline.selectors import AUTO, Selector, exact
from pipeline.selectors.double_end import DoubleEnd
from pipeline.selectors.dual_beta import DualBeta, beta_parameters, log_weights
from pipeline.trust import HeldOut


def option_of(options: Mapping[str, Any]) -> str | None:
    """The name of the option that is to be chosen, None if none is."""
    return next((name for name, value in options.items() if value == AUTO), None)


def choose(
    selector: Selector, keep_fraction: float, held: HeldOut, harder: Mapping[str, str], pool: Pool, seed: int
) -> dict[str, Any] | None:
    """Which option of a selector held-out labels can choose, whether they do, what is used, and the evidence.

    harder: the hard end of every score column. As JSON values: option; column, along whose order it is chosen; auto;
    used, a number, or None if it is to be chosen and nothing can; evidence, as of `mislabel` or `shift`, None without
    held-out rows. None of other selectors.
    """
    found: dict[str, Any] | None = None
    keep = exact(keep_fraction)
    if isinstance(selector, DoubleEnd):
        option, column = "mislabel_fraction", selector.columns[0]
        used = _given(selector.options.mislabel_fraction)
        share = harder_share(selector, held, harder)
        if share is not None:
            found = mislabel.evidence(share, held.wrong, keep, seed, None if used is None else exact(used))
    elif isinstance(selector, DualBeta):
        option, column = "c_d", selector.columns[1]
        used = _given(selector.options.c_d)
        if len(held.wrong):
            anchor = selector.anchor(pool)
            dual, mean = (held.scores(name) for name in selector.columns)

            def log_weights_at(c_d: float) -> NDArray[np.float64]:
                return log_weights(dual, mean, *beta_parameters(anchor, keep_fraction, c_d))

            found = shift.evidence(held.harder_share(column), held.wrong, log_weights_at, keep, seed, used)
    else:
        return None
    auto = used is None
    if auto and found:
        used = found["value"]
    return {"option": option, "column": column, "auto": auto, "used": used, "evidence": found}


def _given(value: float | str) -> float | None:
    """The number, None if it is to be chosen."""
    return None if isinstance(value, str) else value


def harder_share(selector: DoubleEnd, held: HeldOut, harder: Mapping[str, str]) -> NDArray[np.float64] | None:
    """Of each held-out row the share of the pool that double_end takes for harder, None where it is not known."""
    (column,) = selector.columns
    if not len(held.wrong) or column not in harder:
        return None
    share = held.harder_share(column)
    return share if selector.harder == harder[column] else 1 - share


def kept_of_folds(
    selector: Selector, keep_fraction: float, held: HeldOut, harder: Mapping[str, str]
) -> tuple[int, int]:
    """How many are wrong, of how many held-out rows, where double_end cuts the pool of each fold; else none of none."""
    share = harder_share(selector, held, harder) if isinstance(selector, DoubleEnd) else None
    if share is None:
        return 0, 0
    cut = selector.options.mislabel_fraction
    kept = (share >= cut) & (share < cut + keep_fraction)
    return int(held.wrong[kept].sum()), int(kept.sum())
