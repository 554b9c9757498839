"""Selectors of a coreset; a file in this package is a selector of that name.

>>> from pipeline.selectors import select
>>> ids = select(table, "double_end", keep_fraction=0.3, mislabel_fraction=0.2)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.pool import Pool, Rows, TablePool
from pipeline.ranks import Cut, Rule, cut
from pipeline.registry import ChoiceError, Component, Registry
from pipeline.scores import Harder, direction

if TYPE_CHECKING:
    import pyarrow as pa


AUTO = "auto"
"""The value of an option that a run chooses from its held-out labels (pipeline/auto.py)."""


class Selector(Component, ABC):
    """Chooses exactly `budget` examples, in order of preference.

    columns: what it reads of the pool. The order is total, equals go by a
    hash of (seed, id), and so does all randomness: row order and partitions of a table make no difference.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self, keep: Fraction) -> None:
        """Raise ChoiceError if the options cannot go with this keep fraction; no data is needed."""

    @abstractmethod
    def rule(self, pool: Pool, budget: int, seed: int) -> Rule:
        """What is kept, `budget` examples in all; 1 <= budget <= N."""


class Ranked(Selector):
    """Keeps a run of ranks of one order; it also serves class by class, as the selector class_balanced does."""

    @abstractmethod
    def order(self, pool: Pool, budget: int, seed: int) -> Any:
        """Function of Rows to numbers [n], what is smaller is preferred."""

    def interval(self, size: int, budget: int) -> tuple[int, int]:
        """The ranks [low, low + budget) that are kept of `size` examples; 0 <= low <= size - budget."""
        return 0, budget

    def rule(self, pool: Pool, budget: int, seed: int) -> Rule:
        """Of all examples."""
        return Rule(self.order(pool, budget, seed), [self.interval(pool.num_samples, budget)])


class Listed(Selector):
    """Looks at all examples together, in one process: methods of geometry, for pools that fit into memory."""

    @abstractmethod
    def choose(self, rows: Rows, budget: int, seed: int) -> NDArray[np.int64]:
        """Distinct positions in `rows`, int64[budget], in order of preference."""

    def rule(self, pool: Pool, budget: int, seed: int) -> Rule:
        """The list as an order."""
        rows = pool.gather(self.columns)
        chosen = rows.sample_ids[self.choose(rows, budget, seed)]
        assert len(np.unique(chosen)) == len(chosen) == budget, "a selector keeps its exact budget"
        return Rule(_Listing(np.sort(chosen), np.argsort(chosen)), [(0, budget)])


@dataclass(frozen=True)
class _Listing:
    """The place of every listed id in the list, and after them all others. ids: ascending; places: of each."""

    ids: NDArray[np.int64]
    places: NDArray[np.int64]

    def __call__(self, rows: Rows) -> NDArray[np.int64]:
        found = np.searchsorted(self.ids, rows.sample_ids).clip(max=len(self.ids) - 1)
        return np.where(self.ids[found] == rows.sample_ids, self.places[found], len(self.ids))


SELECTORS = Registry("selector", Selector, __name__, __path__)  # type: ignore[type-abstract]


def build(name: str, keep_fraction: float, options: Mapping[str, Any]) -> Selector:
    """The selector, with everything checked that can be without data; ChoiceError naming value and choices."""
    selector = SELECTORS.get(name)(SELECTORS.options(name, options))
    if not 0 < keep_fraction <= 1:
        raise ChoiceError(f"keep_fraction={keep_fraction} is no share of the pool: set it above 0 and to at most 1")
    selector.check(exact(keep_fraction))
    return selector


def cuts(selector: Selector, pool: Pool, budgets: Sequence[int], seed: int) -> list[Cut]:
    """What to keep of a pool for each of these budgets, all in the same passes over it."""
    rules = [selector.rule(pool, size, seed) for size in budgets]
    for rule, size in zip(rules, budgets, strict=True):
        assert sum(high - low for low, high in rule.intervals) == size, "a selector keeps its exact budget"
    return cut(pool, rules, seed)


def preferred(pool: Pool, found: Cut) -> NDArray[np.int64]:
    """The kept sample_ids, in order of preference: the ranks of all strata side by side, each from its first kept."""
    parts = list(pool.map(lambda rows: _kept(rows, found)))
    ids, stratum, images, ties = (np.concatenate(column) for column in zip(*parts, strict=True))
    assert len(ids) == sum(high - low for low, high in found.rule.intervals), "a selector keeps its exact budget"
    order = np.lexsort((ties, images, stratum))
    sizes = np.bincount(stratum, minlength=len(found.rule.intervals))
    place = np.arange(len(ids)) - np.repeat(sizes.cumsum() - sizes, sizes)
    share = (place + 0.5) / np.repeat(sizes, sizes)
    ordered: NDArray[np.int64] = ids[order][np.lexsort((stratum[order], share))]
    return ordered


def _kept(rows: Rows, found: Cut) -> tuple[NDArray[Any], ...]:
    places, stratum, images, ties = found.kept(rows)
    return rows.sample_ids[places], np.broadcast_to(stratum, places.shape), images, ties


def budget(keep_fraction: float, num_samples: int) -> int:
    """floor(keep_fraction * num_samples), as on paper; UserError if that is 0. It is known before any data is."""
    size = math.floor(exact(keep_fraction) * num_samples)
    if size == 0:
        raise UserError(
            f"keep_fraction={keep_fraction} of {num_samples} samples is a budget of 0: "
            f"raise it to at least 1/{num_samples}"
        )
    return size


def select(
    table: "pa.Table", name: str, /, *, keep_fraction: float, seed: int = 0, **options: Any
) -> NDArray[np.int64]:
    """The ids of the coreset, int64[floor(keep_fraction * N)] ascending; the table's row order makes no difference.

    table: sample_id and numeric columns, as of compute_scores; name: selector, a file of this package; options: its
    settings. UserError if a selector, an option, a column or the budget does not fit.
    """
    return select_many(table, name, keep_fractions=[keep_fraction], seed=seed, **options)[0]


def select_many(
    table: "pa.Table", name: str, /, *, keep_fractions: Sequence[float], seed: int = 0, **options: Any
) -> list[NDArray[np.int64]]:
    """`select` for several keep fractions at once: fewer passes than one after the other, the same coresets."""
    selectors = [build(name, keep, options) for keep in keep_fractions]
    if not selectors:
        raise ChoiceError("no keep fraction is asked for: name one or more")
    pool = TablePool(table, selectors[0].columns)
    budgets = [budget(keep, pool.num_samples) for keep in keep_fractions]
    found = cuts(selectors[0], pool, budgets, index(seed))
    return [np.sort(preferred(pool, each)) for each in found]


def exact(fraction: float) -> Fraction:
    """The decimal that was written: 0.1 is 1/10, so that shares of whole numbers round as on paper."""
    return Fraction(str(fraction))


def decided(option: str, value: float | str) -> float:
    """The number; ChoiceError if the option is still to be chosen."""
    if isinstance(value, str):
        raise ChoiceError(
            f"{option}={value!r} is chosen from held-out labels, which a table of scores has not: give a number, or "
            "select in a recipe with `semiprune run`"
        )
    return value


def harder_end(column: str, given: Harder | None) -> Harder:
    """Which end of a column is hard: as given, else as its score says; ChoiceError if neither does."""
    end = given or direction(column)
    if end is None:
        raise ChoiceError(f"column {column!r} is not of a known score: say which end is harder, harder='high' or 'low'")
    return end


@dataclass(frozen=True)
class ByColumn:
    """Order of a column from one of its ends."""

    column: str
    first: Harder

    def __call__(self, rows: Rows) -> NDArray[Any]:
        """[n], what is smaller comes first."""
        values = rows[self.column]
        if values.ndim != 1:
            raise UserError(f"column {self.column!r} holds vectors: name a column with one number for every sample")
        if values.dtype.kind != "f":
            values = values.astype(np.float64)
        return -values if self.first == "high" else values
