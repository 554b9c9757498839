"""Mean and spread of each example's last J values, while the values go by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = slice | NDArray[np.int64]
"""Which of n examples: all of them or a run as a slice, others as ascending positions."""


@dataclass(frozen=True)
class Window:
    """The last J values of m examples: f64[m] each; both 0 for an example that has fewer than J. std: with ddof=1."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


class Windows:
    """The last J values of n examples, each with its own history: a value that is missing is left out, not taken for 0.

    Mean and squares slide in float64: from the second window on they cost a few operations a value whatever J is. What
    rounding leaves behind is about 1e-16 of the largest square, where S2 - S1^2/J would cancel.
    """

    def __init__(self, n: int, J: int) -> None:
        self.J = J
        self._ring = np.zeros((J, n), dtype=np.float32)
        self._count = np.zeros(n, dtype=np.int32)
        self._mean = np.zeros(n)
        self._squares = np.zeros(n)

    def push(self, values: NDArray[np.float32], rows: Rows) -> Window:
        """Take in a value of each of the m examples at `rows`; the windows that end with it, valid until the next."""
        counts = self._count[rows]
        if len(counts) and counts.min() == counts.max():
            return self._push_equals(values, rows, int(counts[0]))
        window = Window(np.zeros(len(values)), np.zeros(len(values)))
        places, counts = np.arange(len(self._count))[rows], counts.copy()  # of a slice, a view that is about to change
        for count in np.unique(counts).tolist():  # an example's arithmetic is the same whoever is beside it
            here = np.flatnonzero(counts == count)
            part = self._push_equals(values[here], places[here], count)
            window.mean[here], window.std[here] = part.mean, part.std
        return window

    def _push_equals(self, values: NDArray[np.float32], rows: Rows, count: int) -> Window:
        """The same where all have `count` values so far."""
        J = self.J
        old = self._ring[count % J, rows].astype(np.float64)
        self._ring[count % J, rows] = values
        self._count[rows] += 1
        if count < J - 1:
            return Window(np.zeros(len(values)), np.zeros(len(values)))
        if count == J - 1:
            mean, squares = self._start(rows)
        else:
            mean, squares = self._mean[rows], self._squares[rows]  # views of a slice, copies of others
            _slide(values.astype(np.float64), old, mean, squares, J)
        self._mean[rows], self._squares[rows] = mean, squares
        std = np.abs(squares)  # what rounding leaves of a 0 can be below it
        std *= 1 / (J - 1)
        return Window(mean, np.sqrt(std, out=std))

    def _start(self, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and squares of the first J values, added one by one: a sum over an axis takes a lone row otherwise."""
        ring = self._ring[:, rows].astype(np.float64)
        mean = np.zeros(ring.shape[1])
        squares = np.zeros(ring.shape[1])
        for values in ring:
            mean += values
        mean *= 1 / self.J
        for values in ring:
            squares += (values - mean) ** 2
        return mean, squares


def _slide(
    new: NDArray[np.float64], old: NDArray[np.float64], mean: NDArray[np.float64], squares: NDArray[np.float64], J: int
) -> None:
    """Bring mean and squares up to date in place; also overwrites `new` and `old`.

    With M the mean after, squares change by (new - old) * ((new - M) + (old - mean)).
    """
    change = new - old
    old += new
    old -= mean
    np.multiply(change, 1 / J, out=new)
    mean += new
    old -= mean
    change *= old
    squares += change
