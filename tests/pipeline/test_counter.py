"""Counter-based randomness: pinned, stateless, uniform, independent."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline import counter

IDS = np.arange(100_000)


def test_bits_are_pinned_for_ever() -> None:
    """They decide coresets: a change of these words is a change of every result."""
    words = counter.hash64(seed=0, purpose="test", epoch=0, sample_ids=np.array([0, 1, 2**40]))
    assert words.tolist() == [15740163946134096225, 3399514783301473713, 4597360094826617766]


def test_every_word_of_the_counter_matters() -> None:
    draws = [
        counter.hash64(0, "a", 0, IDS),
        counter.hash64(1, "a", 0, IDS),
        counter.hash64(-1, "a", 0, IDS),
        counter.hash64(0, "b", 0, IDS),
        counter.hash64(0, "a", 1, IDS),
        counter.hash64(0, "a", 0, IDS, draw=1),
    ]
    assert len(np.unique(np.concatenate(draws))) == 6 * len(IDS)
    uniforms = np.stack([bits / 2.0**64 for bits in draws])
    correlation = np.corrcoef(uniforms) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(IDS))


def test_uniform_is_open_and_uniform() -> None:
    u = counter.uniform(3, "test", 0, IDS)
    assert u.min() > 0 and u.max() < 1
    deviation = np.abs(np.sort(u) - (np.arange(len(u)) + 0.5) / len(u)).max()  # Kolmogorov-Smirnov
    assert deviation < 1.63 / np.sqrt(len(u))


def test_neighbouring_ids_are_not_correlated() -> None:
    u = counter.uniform(0, "test", 0, IDS)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(len(u))


@given(st.lists(st.integers(0, 2**62), unique=True, max_size=50), st.randoms(use_true_random=False))
def test_an_id_has_its_draw_whatever_it_stands_beside(ids: list[int], random: Random) -> None:
    shuffled = random.sample(ids, len(ids))
    alone = [int(counter.hash64(5, "test", 2, np.array([i]))[0]) for i in shuffled]
    assert counter.hash64(5, "test", 2, np.array(shuffled, dtype=np.int64)).tolist() == alone
    order = counter.permutation(5, "test", 2, np.array(ids, dtype=np.int64))
    assert sorted(order.tolist()) == sorted(ids)
    assert order.tolist() == counter.permutation(5, "test", 2, np.array(shuffled, dtype=np.int64)).tolist()


def test_permutations_of_epochs_differ() -> None:
    first, second = (counter.permutation(0, "test", epoch, IDS) for epoch in range(2))
    assert (first == second).mean() < 1e-3
