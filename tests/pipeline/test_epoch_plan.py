from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import counter, epoch_order, epoch_plan
from pipeline.epoch_plan import Plan, Planned, in_order
from pipeline.samples import Samples
from tests.pipeline.making import laid_out


@dataclass(frozen=True)
class Case:
    """A plan of one rank, and the limits under which it is made; window: None where all is small together."""

    plan: Plan
    window: int | None
    lanes: int
    max_rows: int

    @property
    def ids(self) -> list[int]:
        return list(range(len(self.plan.samples))) if self.plan.ids is None else sorted(self.plan.ids.tolist())

    @contextmanager
    def limits(self) -> Iterator[None]:
        """Those of a large dataset, made small."""
        with ExitStack() as stack:
            for module in (epoch_plan, epoch_order):
                stack.enter_context(mock.patch.object(module, "LANES", self.lanes))
            if self.window is not None:
                stack.enter_context(mock.patch.object(epoch_plan, "SMALL_BYTES", 0))
                stack.enter_context(mock.patch.object(epoch_plan, "WINDOW", self.window))
            cut = partial(epoch_order.cut_chunks, max_rows=self.max_rows)
            stack.enter_context(mock.patch.object(epoch_plan, "cut_chunks", cut))
            yield

    def ranks(self, world_size: int) -> list[Plan]:
        return [replace(self.plan, rank=rank, world_size=world_size) for rank in range(world_size)]

    def epochs(self, world_size: int, first: int = 0, epochs: int = 1) -> list[list[Planned]]:
        """The steps of some epochs, rank by rank."""
        with self.limits():
            return [list(islice(p.epochs(first), epochs * p.num_steps)) for p in self.ranks(world_size)]

    def endless(self, world_size: int, first: int, steps: int) -> list[list[Planned]]:
        with self.limits():
            return [list(islice(plan.endless(first), steps)) for plan in self.ranks(world_size)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any))
    samples = laid_out(rows, draw(st.integers(0, 3)))
    ids = None
    if draw(st.booleans()):  # in any order, as a coreset or the labelled rows may come
        chosen = draw(st.lists(st.integers(0, len(samples) - 1), min_size=1, unique=True))
        ids = np.array(chosen, dtype=np.int64)
    return Case(
        Plan(samples, draw(st.integers(0, 2)), "test", draw(st.integers(1, 50)), ids=ids),
        window=draw(st.none() | st.integers(1, 100)),
        lanes=draw(st.sampled_from([4, 96])),
        max_rows=draw(st.integers(1, 15)),
    )


def assert_pieces_cover(steps: list[Planned], samples: Samples, whole_epochs: bool) -> None:
    """Every row's piece was announced, once, and is given up, once, with its last use."""
    held: dict[int, list[int]] = {}
    uses = Counter(piece for step in steps for piece in set(step.pieces))
    seen: set[int] = set()
    for step in steps:
        for piece, ids in step.first.items():
            assert piece not in seen, "announced twice"
            assert ids.tolist() == sorted(set(ids.tolist())) and len(set(samples.shard_of(ids))) == 1
            held[piece] = ids.tolist()
            seen.add(piece)
        assert len(step.pieces) == len(step.ids)
        assert all(sample_id in held[piece] for piece, sample_id in zip(step.pieces, step.ids.tolist(), strict=True))
        uses.subtract(set(step.pieces))
        assert set(step.first) <= set(step.pieces) and set(step.last) <= set(step.pieces)
        for piece in step.last:
            assert uses[piece] == 0, "given up too early"
            del held[piece]
    if whole_epochs:
        assert not held, "never given up"


@given(case=cases(), world_size=st.integers(1, 7), first=st.integers(0, 3))
def test_every_id_is_valid_exactly_once_per_epoch(case: Case, world_size: int, first: int) -> None:
    ranks = case.epochs(world_size, first, epochs=2)
    num_steps = -(-len(case.ids) // case.plan.batch_size)
    assert {len(steps) for steps in ranks} == {2 * num_steps}
    for epoch in range(2):
        here = [steps[epoch * num_steps : (epoch + 1) * num_steps] for steps in ranks]
        valid = np.concatenate([step.ids[step.valid] for steps in here for step in steps])
        assert np.sort(valid).tolist() == case.ids
        assert {step.epoch for steps in here for step in steps} == {first + epoch}
    for number, together in enumerate(zip(*ranks, strict=True), start=first * num_steps):
        assert {step.number for step in together} == {number}
        assert {step.num_valid_global for step in together} == {sum(int(step.valid.sum()) for step in together)}
        sizes = [len(step.ids) for step in together]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    sizes = [step.num_valid_global for step in ranks[0]]
    assert max(sizes) <= case.plan.batch_size and max(sizes) - min(sizes) <= 1


@given(case=cases(), world_size=st.integers(1, 7), first=st.integers(0, 2))
def test_an_epoch_is_the_same_for_any_number_of_workers_and_wherever_it_was_taken_up(
    case: Case, world_size: int, first: int
) -> None:
    alone = case.epochs(1, epochs=first + 1)[0][first * case.plan.num_steps :]
    together = list(zip(*case.epochs(world_size, first), strict=True))
    for step, ranks in zip(alone, together, strict=True):
        assert sorted(np.concatenate([one.ids[one.valid] for one in ranks])) == sorted(step.ids)
        assert {one.number for one in ranks} == {step.number}


@given(case=cases(), world_size=st.integers(1, 7), first=st.integers(0, 30), steps=st.integers(1, 6))
def test_endless_steps_are_one_stream_for_any_number_of_workers_and_wherever_it_was_taken_up(
    case: Case, world_size: int, first: int, steps: int
) -> None:
    size = max(case.plan.batch_size, world_size)
    case = replace(case, plan=replace(case.plan, batch_size=size))
    ranks = case.endless(world_size, first, steps)
    for number, together in enumerate(zip(*ranks, strict=True), start=first):
        sizes = [len(step.ids) for step in together]
        assert {step.number for step in together} == {number}
        assert {step.num_valid_global for step in together} == {sum(sizes)} == {size}
        assert all(step.valid.all() for step in together)
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    # Row p of the stream is that of rank p % world_size.
    rows = [iter(np.concatenate([step.ids for step in steps_of_rank]).tolist()) for steps_of_rank in ranks]
    stream = [next(rows[place % world_size]) for place in range(first * size, (first + steps) * size)]
    alone = case.endless(1, 0, first + steps)[0][first:]
    assert stream == np.concatenate([step.ids for step in alone]).tolist()


@given(case=cases(), steps=st.integers(1, 20))
def test_endless_steps_go_through_one_epoch_after_the_other(case: Case, steps: int) -> None:
    stream = np.concatenate([step.ids for step in case.endless(1, 0, steps)[0]])
    epochs = np.split(stream, range(len(case.ids), len(stream), len(case.ids)))
    assert all(np.sort(epoch).tolist() == case.ids for epoch in epochs[:-1])
    expected = case.epochs(1, epochs=len(epochs))[0]
    assert stream.tolist() == np.concatenate([step.ids for step in expected])[: len(stream)].tolist()


@given(case=cases(), world_size=st.integers(1, 4), first=st.integers(0, 9), steps=st.integers(1, 12))
def test_every_visit_of_a_sample_has_its_number(case: Case, world_size: int, first: int, steps: int) -> None:
    case = replace(case, plan=replace(case.plan, batch_size=max(case.plan.batch_size, world_size)))
    alone = case.endless(1, 0, first + steps)[0]
    seen: Counter[int] = Counter()
    counted = []
    for step in alone:
        for sample_id, visit in zip(step.ids.tolist(), step.visits.tolist(), strict=True):
            assert visit == seen[sample_id]
            seen[sample_id] += 1
        counted.append(Counter(zip(step.ids.tolist(), step.visits.tolist(), strict=True)))
    ranks = case.endless(world_size, first, steps)
    for whole, together in zip(counted[first:], zip(*ranks, strict=True), strict=True):
        dealt = [pair for step in together for pair in zip(step.ids.tolist(), step.visits.tolist(), strict=True)]
        assert Counter(dealt) == whole


@given(case=cases(), world_size=st.integers(1, 5), first=st.integers(0, 20))
def test_a_piece_is_announced_before_it_is_needed_and_given_up_with_its_last_use(
    case: Case, world_size: int, first: int
) -> None:
    for steps in case.epochs(world_size, first % 3, epochs=2):
        assert_pieces_cover(steps, case.plan.samples, whole_epochs=True)
    case = replace(case, plan=replace(case.plan, batch_size=max(case.plan.batch_size, world_size)))
    # As many steps as end with an epoch.
    size, total = case.plan.batch_size, len(case.ids)
    whole = np.lcm(size, total) // size
    for steps in case.endless(world_size, first, 5):
        assert_pieces_cover(steps, case.plan.samples, whole_epochs=False)
    if whole <= 30:
        for steps in case.endless(world_size, int(first % whole), int(whole - first % whole)):
            assert_pieces_cover(steps, case.plan.samples, whole_epochs=True)


@given(case=cases(), batch_size=st.integers(1, 50), random=st.randoms(use_true_random=False))
def test_in_order_keeps_the_order_that_is_given(case: Case, batch_size: int, random: object) -> None:
    ids = np.array(case.ids)
    random.shuffle(ids)  # type: ignore[attr-defined]
    with case.limits():
        steps = list(in_order(case.plan.samples, ids, batch_size))
    assert np.concatenate([step.ids for step in steps]).tolist() == ids.tolist()
    assert [len(step.ids) for step in steps[:-1]] == [batch_size] * (len(steps) - 1)
    assert all(step.valid.all() and step.num_valid_global == len(step.ids) for step in steps)
    assert_pieces_cover(steps, case.plan.samples, whole_epochs=True)


def test_no_ids_are_no_steps() -> None:
    assert list(in_order(laid_out([5]), np.empty(0, np.int64), 3)) == []


@pytest.mark.parametrize("small", [True, False])
def test_small_datasets_are_permuted_whole_and_larger_ones_in_windows(small: bool) -> None:
    """By the bytes of what is trained on: a labelled few of a large pool are small."""
    samples = laid_out([4000] * 3, mean_bytes=1 << 18)
    assert samples.length.sum() > epoch_plan.SMALL_BYTES
    ids = np.arange(0, 12_000, 12 if small else 1)
    plan = Plan(samples, 5, "test", 100, ids=ids)
    first = np.concatenate([step.ids for step in islice(plan.epochs(), plan.num_steps)])
    window = None if small else epoch_plan.WINDOW
    expected = epoch_order.epoch_order(5, "test", 0, ids, plan._bounds, window, np.arange(len(ids))).ids
    assert first.tolist() == expected.tolist()
    assert small == np.array_equal(first, counter.permutation(5, "test", 0, ids))


def test_what_is_held_at_once_of_a_large_dataset_is_bounded() -> None:
    """By two pieces of every lane, over all workers."""
    samples = laid_out([3000] * 8)
    case = Case(Plan(samples, 0, "test", 64), window=2048, lanes=96, max_rows=20)
    most = 0
    for steps in case.epochs(4):
        held: set[int] = set()
        for step in steps:
            held |= set(step.first)
            most = max(most, len(held))
            held -= set(step.last)
    assert most <= 2.5 * 96 / 4


def test_the_order_of_the_ids_given_does_not_matter() -> None:
    samples, ids = laid_out([50, 60]), np.array([90, 3, 4, 70, 8, 11])
    one, other = (Plan(samples, 0, "test", 2, ids=those) for those in (ids, np.sort(ids)))
    for step, same in zip(islice(one.endless(), 9), islice(other.endless(), 9), strict=True):
        assert step.ids.tolist() == same.ids.tolist()
