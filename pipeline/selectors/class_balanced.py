"""Class-balanced: another selector class by class, each class with its share of the budget."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.pool import Pool, Rows
from pipeline.ranks import Rule
from pipeline.registry import ChoiceError
from pipeline.selectors import SELECTORS, Ranked, Selector


class ClassBalanced(Selector):
    """A selector by ranks in every class, classes as frequent in the coreset as in the pool.

    selector: random, top_k, double_end or another that keeps a run of ranks; options: its settings; label: column of
    whole numbers, any. Quotas by largest remainder, of equals the smaller label: sizes 60/30/10 at a half give
    30/15/5. A larger budget adds to a smaller one's where the selector does, but for single examples where a class's
    quota is rounded.
    """

    source: ClassVar = "quotas by largest remainder (Hamilton)"

    @dataclass(frozen=True)
    class Options(Selector.Options):
        """Which selector with which settings, and the column of the class."""

        selector: str = "random"
        options: dict[str, Any] = field(default_factory=dict)
        label: str = "train_label"

        def __post_init__(self) -> None:
            choices = [name for name in SELECTORS.names() if issubclass(SELECTORS.get(name), Ranked)]
            if self.selector not in choices:
                raise ChoiceError(f"selector={self.selector!r} cannot go by class: choose from {', '.join(choices)}")
            object.__setattr__(self, "options", asdict(SELECTORS.options(self.selector, self.options)))

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        kind: Any = SELECTORS.get(options.selector)
        self._inner: Ranked = kind(SELECTORS.options(options.selector, options.options))
        self.columns = tuple(dict.fromkeys((*self._inner.columns, options.label)))

    def check(self, keep: Fraction) -> None:
        """As the selector says."""
        self._inner.check(keep)

    def rule(self, pool: Pool, budget: int, seed: int) -> Rule:
        """Every class is a stratum."""
        label = self.options.label
        sizes = sum(pool.map(partial(count_classes, column=label)), Counter[int]())
        classes = sorted(sizes)
        shares = quotas(budget, [sizes[value] for value in classes])
        intervals = [self._inner.interval(sizes[value], quota) for value, quota in zip(classes, shares, strict=True)]
        return Rule(self._inner.order(pool, budget, seed), intervals, ByClass(label, np.array(classes)))


def labels(rows: Rows, column: str) -> NDArray[np.int64]:
    """A column of classes, int64[n]; UserError if it holds anything but whole numbers."""
    values = rows[column]
    if values.dtype.kind not in "iu" or values.ndim != 1:
        kind = "vectors" if values.ndim != 1 else f"type {values.dtype}"
        raise UserError(f"column {column!r} of {kind} cannot be a class: name a column of whole numbers as label")
    return values.astype(np.int64)


def count_classes(rows: Rows, column: str) -> Counter[int]:
    """How many of some rows each class has."""
    found, sizes = np.unique(labels(rows, column), return_counts=True)
    return Counter(dict(zip(found.tolist(), sizes.tolist(), strict=True)))


def quotas(budget: int, sizes: list[int]) -> list[int]:
    """Shares of a budget in proportion to sizes, in exact arithmetic: floors, then one more by largest remainder."""
    total = sum(sizes)
    shares = [budget * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda place: -(budget * sizes[place] % total))
    for place in by_remainder[: budget - sum(shares)]:
        shares[place] += 1
    return shares


@dataclass(frozen=True)
class ByClass:
    """The place of every row's class among all of them. classes: int64, ascending."""

    label: str
    classes: NDArray[np.int64]

    def __call__(self, rows: Rows) -> NDArray[np.int64]:
        """int64[n]."""
        return np.searchsorted(self.classes, labels(rows, self.label))
