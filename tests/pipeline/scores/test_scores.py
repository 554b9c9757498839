"""Every score, found by walking the registry: shape, range, direction, independence of rows; and each by hand."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.registry import ChoiceError
from pipeline.scores import SCORES, EpochStatistics, compute_scores, directions

EPOCHS = 40


def records(
    logits: NDArray[Any], labels: NDArray[Any], present: NDArray[np.bool_] | None = None
) -> list[EpochStatistics]:
    """Statistics of every epoch from logits [E, n, C]; what is not present holds rubbish."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    present = np.ones(p.shape[:2], dtype=bool) if present is None else present
    n = np.arange(p.shape[1])
    p_label = p[:, n, labels]
    others = p.copy()
    others[:, n, labels] = -np.inf
    el2n = np.sqrt(np.maximum(0, (p**2).sum(-1) - 2 * p_label + 1))
    entropy = -(p * np.log(p)).sum(-1)
    columns = [np.where(present, x, -7).astype(np.float32) for x in (p_label, others.max(-1), el2n, entropy)]
    correct = np.where(present, p.argmax(-1) == labels, True)
    return [EpochStatistics(*(x[e] for x in (*columns, correct, present))) for e in range(len(p))]


def score(name: str, epochs: list[EpochStatistics], **options: Any) -> dict[str, NDArray[np.float32]]:
    kernel = SCORES.get(name)(len(epochs[0]), SCORES.options(name, options))
    for epoch, statistics in enumerate(epochs):
        kernel.update(statistics, epoch)
    return kernel.result()


def learning(n: int, seed: int = 0, classes: int = 4) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Logits [E, n, C], labels and difficulty 0..1 of examples that are learned later the harder, the last never."""
    rng = np.random.default_rng(seed)
    difficulty = np.linspace(0, 1, n)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(0, 1, (EPOCHS, n, classes))
    progress = np.clip(np.arange(EPOCHS)[:, None] / EPOCHS - difficulty, 0, 1)
    logits[:, np.arange(n), labels] += 8 * progress - 2 * difficulty
    logits[:, -1, labels[-1]] = -10
    return logits, labels, difficulty


def aum(p: Any, other: Any, el2n: Any, correct: Any) -> dict[str, float]:
    return {"aum": sum(a - b for a, b in zip(p, other, strict=True)) if len(p) else np.nan}


def forgetting(p: Any, other: Any, el2n: Any, correct: Any) -> dict[str, float]:
    events = sum(before and not now for before, now in pairwise(correct))
    return {"forgetting": np.nan if not len(correct) else events if any(correct) else len(correct)}


def el2n(p: Any, other: Any, el2n: Any, correct: Any) -> dict[str, float]:
    return {"el2n": sum(el2n) if len(el2n) else np.nan}


def dual(p: Any, other: Any, el2n: Any, correct: Any) -> dict[str, float]:
    windows = [p[k : k + 10] for k in range(len(p) - 9)]
    values = [10 * np.std(w, ddof=1) * (1 - np.mean(w)) for w in windows]
    return {"dual": np.mean(values) if values else np.nan, "dual_mean": np.mean(p) if len(p) else np.nan}


BY_HAND: dict[str, tuple[Callable[..., dict[str, float]], int]] = {
    "aum": (aum, EPOCHS),
    "forgetting": (forgetting, EPOCHS),
    "el2n": (el2n, 20),
    "dual": (dual, 30),
}
"""Plain re-implementations for one example's own records, and how many leading epochs they take."""


@pytest.mark.parametrize("name", SCORES.names())
def test_shape_type_and_columns(name: str) -> None:
    logits, labels, _ = learning(9)
    result = score(name, records(logits, labels))
    assert list(result) == list(SCORES.get(name).harder)
    for column in result.values():
        assert column.shape == (9,) and column.dtype == np.float32 and np.isfinite(column).all()
    assert SCORES.get(name).source and SCORES.get(name).__doc__


@pytest.mark.parametrize("name", SCORES.names())
def test_the_harder_end_holds_the_harder_examples(name: str) -> None:
    logits, labels, difficulty = learning(300)
    for column, values in score(name, records(logits, labels)).items():
        early, late = values[difficulty < 0.2].mean(), values[(difficulty > 0.4) & (difficulty < 0.8)].mean()
        assert (late > early) == (directions()[column] == "high"), column


@pytest.mark.parametrize("name", SCORES.names())
@given(seed=st.integers(0, 2**32 - 1), missing=st.sampled_from([0.0, 0.1, 0.7, 0.97]))
@settings(max_examples=15, deadline=None)
def test_each_example_is_scored_by_its_own_records_as_by_hand(name: str, seed: int, missing: float) -> None:
    logits, labels, _ = learning(12, seed)
    present = np.random.default_rng(seed).random(logits.shape[:2]) >= missing
    epochs = records(logits * 3, labels, present)
    result = score(name, epochs)
    by_hand, first = BY_HAND[name]
    for i in range(12):
        own = [e for e in epochs[:first] if e.present[i]]
        columns = (np.array([float(getattr(e, x)[i]) for e in own]) for x in ("p_label", "p_other", "el2n"))
        expected = by_hand(*columns, [bool(e.correct[i]) for e in own])
        for column, value in expected.items():
            assert result[column][i] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", SCORES.names())
def test_rows_do_not_know_of_each_other(name: str) -> None:
    logits, labels, _ = learning(50)
    whole = score(name, records(logits, labels))
    order = np.random.default_rng(1).permutation(50)
    shuffled = score(name, records(logits[:, order], labels[order]))
    parts = [score(name, [e.slice(low, low + 7) for e in records(logits, labels)]) for low in range(0, 50, 7)]
    for column, values in whole.items():
        assert shuffled[column].tobytes() == values[order].tobytes()
        assert np.concatenate([part[column] for part in parts]).tobytes() == values.tobytes()


@pytest.mark.parametrize("name", SCORES.names())
def test_nothing_recorded_is_not_a_score(name: str) -> None:
    logits, labels, _ = learning(5)
    present = np.ones(logits.shape[:2], dtype=bool)
    present[:, 3] = False
    for column in score(name, records(logits, labels, present)).values():
        assert np.isnan(column).tolist() == [False, False, False, True, False]


def test_never_learned_is_the_maximum_or_compatible() -> None:
    logits, labels, _ = learning(30)
    epochs = records(logits, labels)
    most = score("forgetting", epochs)["forgetting"]
    zero = score("forgetting", epochs, never_learned="zero")["forgetting"]
    never = ~np.any([e.correct for e in epochs], axis=0)
    assert never[-1] and (most[never] == EPOCHS).all() and (zero[never] == 0).all()
    assert (most[~never] == zero[~never]).all() and most[~never].max() < EPOCHS


def test_dual_keeps_its_digits_where_probabilities_saturate() -> None:
    p = (1 - np.random.default_rng(0).random((30, 4)) * 2.0**-18).astype(np.float32)
    flat = np.zeros(4, dtype=np.float32)
    epochs = [EpochStatistics(row, flat, flat, flat, flat == 0, flat == 0) for row in p]
    result = score("dual", epochs)
    for i in range(4):
        expected = dual(p[:, i].astype(np.float64), None, None, None)
        assert result["dual"][i] == pytest.approx(expected["dual"], rel=1e-5)


def test_options_narrow_what_is_taken() -> None:
    logits, labels, _ = learning(6)
    epochs = records(logits, labels)
    np.testing.assert_allclose(score("el2n", epochs, num_epochs=1)["el2n"], epochs[0].el2n)
    assert (score("dual", epochs, T=12, J=3)["dual"] == score("dual", epochs[:12], T=12, J=3)["dual"]).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("loss", {}, "there is no score 'loss': choose from aum, dual, el2n, forgetting"),
        ("aum", {"T": 1}, "score 'aum' has no option 'T': it has none"),
        ("dual", {"t": 1}, "score 'dual' has no option 't': choose from T, J"),
        ("dual", {"T": "30"}, "score 'dual': T='30' cannot be used: input should be a valid integer"),
        ("dual", {"T": 5}, "score 'dual': J=10 must be 2 or more and at most T=5"),
        ("dual", {"J": 1}, "J=1 must be 2 or more"),
        ("el2n", {"num_epochs": 0}, "num_epochs=0 leaves nothing"),
        ("el2n", {"num_epochs": True}, "num_epochs=True cannot be used"),
        ("forgetting", {"never_learned": "min"}, "never_learned='min' cannot be used: .*'max' or 'zero'"),
    ],
)
def test_a_wrong_name_or_option_is_one_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ChoiceError, match=message):
        SCORES.options(name, options)


def test_options_of_a_score_that_is_not_computed_are_refused() -> None:
    with pytest.raises(UserError, match="options for score 'dual', which is not computed: choose from aum"):
        compute_scores("nowhere", ["aum"], dual={"T": 30})


def test_no_score_is_refused() -> None:
    with pytest.raises(ChoiceError, match="no score is asked for: choose from aum, dual, el2n, forgetting"):
        compute_scores("nowhere", [])


@pytest.mark.parametrize("name", SCORES.names())
def test_the_epochs_that_a_score_needs_are_those_of_its_option(name: str) -> None:
    score, options = SCORES.get(name), SCORES.options(name, {})
    assert score.num_epochs(options) == (getattr(options, score.epochs_option) if score.epochs_option else None)


def test_numpy_numbers_are_numbers() -> None:
    assert SCORES.options("dual", {"T": np.int64(20), "J": np.int32(5)}) == SCORES.options("dual", {"T": 20, "J": 5})
