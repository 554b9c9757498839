"""How many records each example has had, and the mean and spread of its last J values, while the values go by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = slice | NDArray[np.int64]
"""Which of n examples: all of them or a run as a slice, others as ascending positions."""


class Counts:
    """How many records each of n examples has had: one number for all of them until somebody misses one."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._counts: NDArray[np.int32] | int = 0

    def add(self, rows: Rows) -> None:
        """One more for the examples at `rows`."""
        if isinstance(rows, slice) and rows == slice(None):
            self._counts += 1
            return
        if isinstance(self._counts, int):
            self._counts = np.full(self._n, self._counts, dtype=np.int32)
        self._counts[rows] += 1

    def __getitem__(self, rows: Rows) -> NDArray[np.int32] | int:
        """Of the m examples at `rows`: [m], or the one number."""
        return self._counts if isinstance(self._counts, int) else self._counts[rows]


@dataclass(frozen=True)
class Window:
    """The last J values of m examples: f64[m] each; both 0 for an example that has fewer than J.

    norm: L2 norm of the values' deviations from their mean; sqrt(J - ddof) times their standard deviation.
    """

    mean: NDArray[np.float64]
    norm: NDArray[np.float64]


class Windows:
    """The last J values of n examples, each with its own history: a value that is missing is left out, not taken for 0.

    Mean and squares slide in float64: from the second window on they cost a few operations a value whatever J is. What
    rounding leaves behind is about 1e-16 of the largest square, where S2 - S1^2/J would cancel.
    """

    def __init__(self, n: int, J: int) -> None:
        self.J = J
        self._ring = np.zeros((J, n), dtype=np.float32)
        self._counts = Counts(n)
        self._mean = np.zeros(n)
        self._squares = np.zeros(n)

    def push(self, values: NDArray[np.float64], rows: Rows) -> Window:
        """Take in a value, which a float32 holds, of each of the m examples at `rows`.

        Returns the windows that end with it, valid until the next value.
        """
        counts = self._counts[rows]
        if isinstance(counts, int):
            window = self._push_equals(values, rows, counts)
        else:
            window = Window(np.zeros(len(values)), np.zeros(len(values)))
            places = np.arange(self._ring.shape[1])[rows]
            for count in np.unique(counts).tolist():  # an example's arithmetic is the same whoever is beside it
                here = np.flatnonzero(counts == count)
                part = self._push_equals(values[here], places[here], count)
                window.mean[here], window.norm[here] = part.mean, part.norm
        self._counts.add(rows)
        return window

    def _push_equals(self, values: NDArray[np.float64], rows: Rows, count: int) -> Window:
        """The same where all have `count` values so far."""
        J = self.J
        old = self._ring[count % J, rows].astype(np.float64)
        self._ring[count % J, rows] = values
        if count < J - 1:
            return Window(np.zeros(len(values)), np.zeros(len(values)))
        if count == J - 1:
            mean, squares = self._start(rows)
        else:
            mean, squares = self._mean[rows], self._squares[rows]  # views of a slice, copies of others
            _slide(values, old, mean, squares, J)
        self._mean[rows], self._squares[rows] = mean, squares
        norm = np.abs(squares)  # what rounding leaves of a 0 can be below it
        return Window(mean, np.sqrt(norm, out=norm))

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
    """Bring mean and squares up to date in place; also overwrites `old`.

    With M the mean after, squares change by (new - old) * ((new - M) + (old - mean)).
    """
    change = new - old
    old += new
    old -= mean
    mean += change * (1 / J)
    old -= mean
    change *= old
    squares += change
