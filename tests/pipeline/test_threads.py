"""Threads over many items: in order, a few ahead, and no further when nobody takes the results."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.threads import in_threads


@given(st.lists(st.integers()), st.integers(1, 5))
def test_results_come_in_the_order_of_the_items(items: list[int], threads: int) -> None:
    assert list(in_threads(lambda item: item + 1, items, threads)) == [item + 1 for item in items]


def test_it_runs_but_a_few_items_ahead() -> None:
    started: list[int] = []
    found = in_threads(started.append, range(1000), threads=2)
    for _ in range(10):
        next(found)
    assert len(started) <= 10 + 2 * 2
    found.close()


def test_an_error_is_raised_in_its_turn_and_ends_the_rest() -> None:
    done = threading.Semaphore(0)

    def work(item: int) -> int:
        done.release()
        return 1 // (3 - item)

    found = in_threads(work, range(1000), threads=2)
    assert [next(found) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert sum(done.acquire(blocking=False) for _ in range(1000)) < 20
