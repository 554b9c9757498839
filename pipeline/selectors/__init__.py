"""Selectors of a coreset; a file in this package is a selector of that name.

>>> from pipeline.selectors import select
>>> ids = select(table, "double_end", keep_fraction=0.3, mislabel_fraction=0.2)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.registry import ChoiceError, Component, Registry
from pipeline.scores import Harder, directions

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Pool:
    """The n examples to choose from. sample_ids: int64[n], strictly ascending; columns: f64[n] each, without NaN."""

    sample_ids: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.sample_ids)

    @staticmethod
    def of(table: "pa.Table", columns: Sequence[str]) -> "Pool":
        """From a table with sample_id and these columns, rows in any order; UserError naming what it lacks."""
        for name in ("sample_id", *columns):
            if table.column_names.count(name) != 1:
                number = "more than one" if name in table.column_names else "no"
                raise UserError(f"the table has {number} column {name!r}: it has {', '.join(table.column_names)}")
            if name == "sample_id" and table[name].null_count:
                raise UserError(f"{table[name].null_count} rows have no sample_id: leave them out")
            if table[name].to_numpy().dtype.kind not in ("iu" if name == "sample_id" else "iuf"):
                raise UserError(f"column {name!r} is of type {table[name].type}: it must hold numbers")
        if not table.num_rows:
            raise UserError("the table has no rows: give every sample one")
        ids = table["sample_id"].to_numpy().astype(np.int64)
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        again = ids[1:][ids[1:] == ids[:-1]]
        if len(again):
            raise UserError(f"sample_id {again[0]} is in the table more than once: give every sample one row")
        values = {name: table[name].to_numpy()[order].astype(np.float64) for name in columns}
        for name, column in values.items():
            unknown = int(np.isnan(column).sum())
            if unknown:
                raise UserError(f"column {name!r} is NaN in {unknown} of {len(ids)} rows: leave those samples out")
        return Pool(ids, values)


class Selector(Component, ABC):
    """Chooses exactly `budget` examples, in order of preference.

    columns: what it reads of the pool, the column whose cuts a report draws first. The order is total, ties going to
    the smaller id, and randomness is a hash of (seed, id): row order and partitions of a table make no difference.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self, keep: Fraction) -> None:
        """Raise ChoiceError if the options cannot go with this keep fraction; no data is needed."""

    @abstractmethod
    def __call__(self, pool: Pool, budget: int, seed: int) -> NDArray[np.int64]:
        """Distinct rows of the pool, int64[budget], first the one to annotate first; 1 <= budget <= n."""


SELECTORS = Registry("selector", Selector, __name__, __path__)  # type: ignore[type-abstract]


def build(name: str, keep_fraction: float, options: Mapping[str, Any]) -> Selector:
    """The selector, with everything checked that can be without data; ChoiceError naming value and choices."""
    selector = SELECTORS.get(name)(SELECTORS.options(name, options))
    if not 0 < keep_fraction <= 1:
        raise ChoiceError(f"keep_fraction={keep_fraction} is no share of the pool: set it above 0 and to at most 1")
    selector.check(exact(keep_fraction))
    return selector


def choose(selector: Selector, pool: Pool, keep_fraction: float, seed: int) -> NDArray[np.int64]:
    """floor(keep_fraction * n) rows of the pool in order of preference; UserError if that is none."""
    size = budget(keep_fraction, len(pool))
    rows = selector(pool, size, seed)
    assert len(np.unique(rows)) == len(rows) == size, "a selector keeps its exact budget"
    return rows


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
    """The ids of the coreset, int64[floor(keep_fraction * n)] ascending; the table's row order makes no difference.

    table: sample_id and numeric columns, as of compute_scores; name: selector, a file of this package; options: its
    settings. UserError if a selector, an option, a column or the budget does not fit.
    """
    selector = build(name, keep_fraction, options)
    pool = Pool.of(table, selector.columns)
    return np.sort(pool.sample_ids[choose(selector, pool, keep_fraction, seed)])


def exact(fraction: float) -> Fraction:
    """The decimal that was written: 0.1 is 1/10, so that shares of whole numbers round as on paper."""
    return Fraction(str(fraction))


def harder_end(column: str, given: Harder | None) -> Harder:
    """Which end of a column is hard: as given, else as its score says; ChoiceError if neither does."""
    end = given or directions().get(column)
    if end is None:
        raise ChoiceError(f"column {column!r} is not of a known score: say which end is harder, harder='high' or 'low'")
    return end


def hardest_first(scores: NDArray[np.float64], harder: Harder) -> NDArray[np.int64]:
    """All rows, hardest first, equals in the order of their ids."""
    return np.argsort(-scores if harder == "high" else scores, kind="stable")
