"""Times and sizes as people say them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.units import counted, duration, size

UNITS = {"s": 1, "min": 60, "h": 3600}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_as_the_docstring_has_it_on_both_sides_of_every_border(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 10**6))
def test_what_is_said_is_near_the_truth_and_no_unit_overflows(seconds: float) -> None:
    parts = re.findall(r"([\d.]+) (s|min|h)", duration(seconds))
    said = sum(float(number) * UNITS[unit] for number, unit in parts)
    assert abs(said - seconds) <= {"s": 0.5, "min": 60}[parts[-1][1]] + 0.5
    assert all(float(number) < 60 for number, unit in parts if unit != "h")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (1440, "1.44 kB"),
        (999_499, "999 kB"),
        (999_501, "1 MB"),
        (154e9, "154 GB"),
        (2.5e12, "2.5 TB"),
    ],
)
def test_sizes_on_both_sides_of_every_border(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 row groups"), (1, "1 row group"), (2, "2 row groups"), (2000, "2,000 row groups")]
)
def test_one_is_not_many(number: int, text: str) -> None:
    assert counted(number, "row groups") == text
