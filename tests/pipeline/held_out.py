"""Held-out rows for tests of what is chosen by them."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Rows = list[tuple[int, bool]]
"""Places of rows in percent, and whether their pseudo-label is wrong."""

ROWS = st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=50)


def arrays(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """harder_share and wrong."""
    places, wrong = zip(*rows, strict=True)
    return np.array(places) / 100, np.array(wrong)
