"""Arrays in memory that processes share: none is used again while somebody has it, none is lost."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.slots import Mapped, Slots

shapes = st.tuples(st.integers(0, 5), st.integers(1, 70), st.integers(1, 70))


@given(st.lists(st.tuples(shapes, st.booleans()), max_size=20))
def test_what_is_filled_on_one_side_is_there_on_the_other_and_stays_while_it_is_kept(
    wanted: list[tuple[tuple[int, int, int], bool]],
) -> None:
    slots = Slots()
    mapped = Mapped(os.dup(slots.descriptor))
    kept = []
    for number, (shape, keep) in enumerate(wanted):
        slot, array = slots.new(shape)
        assert array.shape == shape and array.dtype == np.uint8 and array.flags.writeable
        mapped.array(slot, shape)[...] = number
        if keep:
            kept.append((array, number))
        del array
        for other, its_number in kept:
            assert (other == its_number).all()
    slots.close()
    assert all((array == number).all() for array, number in kept)


def test_memory_is_used_again_when_the_last_view_of_an_array_is_gone() -> None:
    slots = Slots()
    size = os.fstat(slots.descriptor).st_size
    assert size == 0
    first, array = slots.new((4, 100, 100, 3))
    row = memoryview(array[2:].reshape(-1, 3)[:5].T)
    del array
    gc.collect()
    second, array = slots.new((4, 100, 100, 3))
    assert second != first
    del row, array
    gc.collect()
    size = os.fstat(slots.descriptor).st_size
    assert {slots.new((n, 100, 100, 3))[0] for n in (4, 1, 4, 3)} <= {first, second}
    assert os.fstat(slots.descriptor).st_size == size
    larger, _ = slots.new((9, 100, 100, 3))
    assert larger not in (first, second)


def test_there_is_nothing_to_clean_up() -> None:
    before = sorted(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else []
    slots = Slots()
    slots.new((1000,))
    assert os.fstat(slots.descriptor).st_nlink == 0
    after = sorted(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else []
    assert not [path for path in after if path not in before and "semiprune" in path.name]


def test_an_array_that_cannot_be_is_an_error() -> None:
    slots = Slots()
    with pytest.raises((OSError, OverflowError)):
        slots.new((1 << 62,))
