"""Rows of every class alike: counted, dealt out to workers, begun anywhere."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import counter
from pipeline.class_balance import BalancedPlan

LONG_TAIL = np.repeat(np.arange(4), [40, 9, 3, 1])
IDS = 7 * np.arange(len(LONG_TAIL))[::-1]


def ids_of(steps: int, first: int = 0, **changes: int) -> list[list[int]]:
    plan = BalancedPlan(IDS, LONG_TAIL, **{"seed": 0, "purpose": "test", "batch_size": 6, **changes})
    return [planned.ids.tolist() for planned in islice(plan.endless(first), steps)]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 5))
def test_classes_are_as_frequent_as_each_other_and_so_are_the_rows_of_each(size: int, steps: int, seed: int) -> None:
    rows = np.concatenate(ids_of(steps, batch_size=size, seed=seed))
    label = dict(zip(IDS.tolist(), LONG_TAIL.tolist(), strict=True))
    counts = np.bincount([label[row] for row in rows.tolist()], minlength=4)
    assert counts.sum() == size * steps and np.ptp(counts) <= 1
    for number in range(4):
        own = IDS[number == LONG_TAIL]
        assert np.ptp([(rows == row).sum() for row in own]) <= 1


def test_a_plain_version_gives_the_same_steps() -> None:
    """Rounds of the classes, one row after the other."""
    rows, epochs = [], {number: [] for number in range(4)}
    for visit in range(30):
        for number in counter.permutation(0, "test classes", visit, np.arange(4)):
            own = IDS[number == LONG_TAIL]
            if not epochs[number]:
                epochs[number] = counter.permutation(0, "test", visit // len(own), own).tolist()
            rows.append(epochs[number].pop(0))
    assert ids_of(20) == [rows[start : start + 6] for start in range(0, 120, 6)]
    plan = BalancedPlan(IDS, LONG_TAIL, seed=0, purpose="test", batch_size=6)
    visits = np.concatenate([planned.visits for planned in islice(plan.endless(), 20)])
    assert visits.tolist() == [rows[:place].count(row) for place, row in enumerate(rows)]


@pytest.mark.parametrize("world_size", [2, 5])
def test_workers_have_the_same_step_between_them_and_any_step_can_be_asked_for(world_size: int) -> None:
    whole = ids_of(9)
    assert ids_of(4, first=5) == whole[5:]
    dealt = [ids_of(9, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, step in enumerate(whole):
        for rank in range(world_size):
            assert dealt[rank][number] == step[rank::world_size]
