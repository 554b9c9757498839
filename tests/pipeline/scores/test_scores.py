"""Every score, found by walking the registry: shape, range, direction, independence of rows; and each by hand."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.epoch_file import STATISTICS, VECTORS
from pipeline.errors import UserError
from pipeline.registry import ChoiceError
from pipeline.scores import SCORES, Records, Request, compute_scores, direction, directions, requests
from pipeline.windows import Windows

EPOCHS = 40
NAMES = SCORES.names()
CHOICES = ", ".join(NAMES)
OPTIONS: dict[str, dict[str, Any]] = {"tdds": {"J": 4}}
"""Where the defaults leave nothing to see in so few records."""


@dataclass(frozen=True)
class History:
    """columns: [E, n, ...], rubbish where not present; present: bool[E, n]."""

    columns: dict[str, NDArray[Any]]
    present: NDArray[np.bool_]

    def of(self, rows: Any) -> "History":
        return History({name: column[:, rows] for name, column in self.columns.items()}, self.present[:, rows])

    @staticmethod
    def of_columns(**columns: Any) -> "History":
        found = {name: np.asarray(column) for name, column in columns.items()}
        return History(found, np.ones(next(iter(found.values())).shape[:2], dtype=bool))


def history(logits: NDArray[Any], labels: NDArray[Any], present: NDArray[np.bool_] | None = None) -> History:
    """Records of every epoch from logits [E, n, C], which are the embeddings too."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    present = np.ones(p.shape[:2], dtype=bool) if present is None else present
    n = np.arange(p.shape[1])
    others = p.copy()
    others[:, n, labels] = -np.inf
    error = p.copy()
    error[:, n, labels] -= 1
    columns = {
        "p_label": p[:, n, labels],
        "p_other": others.max(-1),
        "el2n": np.sqrt((error**2).sum(-1)),
        "entropy": -(p * np.log(p)).sum(-1),
        "probs": p,
        "embedding": logits,
    }
    columns = {name: column.astype(np.float32) for name, column in columns.items()}
    for column in columns.values():
        column[~present] = -7
    return History({**columns, "correct": np.where(present, p.argmax(-1) == labels, True)}, present)


def prepare(name: str, past: History, **options: Any) -> Any:
    """What kernels share, from the last epoch that the score takes."""
    request, recorded = Request.of(name, options), len(past.present)
    last = request.epochs(recorded)[-1]
    sample = {column: past.columns[column][last][past.present[last]] for column in request.score.reads}
    return request.score.prepare(request.options, sample, past.columns[request.score.reads[0]].shape[-1])


def score(name: str, past: History, prepared: Any = None, **options: Any) -> dict[str, NDArray[np.float32]]:
    """As the reducer does it; a kernel sees the columns that it says it reads, and the windows if it takes any."""
    request, (recorded, n) = Request.of(name, options), past.present.shape
    kernel = request.kernel(n, prepare(name, past, **options) if prepared is None else prepared)
    windows = Windows(n, request.options.J) if request.score.windowed else None
    for epoch in request.epochs(recorded):
        present = past.present[epoch]
        rows = slice(None) if present.all() else np.flatnonzero(present)
        columns = {column: past.columns[column][epoch][rows] for column in request.score.reads}
        found = {windows.J: windows.push(columns["p_label"].astype(np.float64), rows)} if windows else {}
        kernel.update(Records(epoch, rows, columns, found))
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


Own = Sequence[dict[str, Any]]
"""An example's own records."""


def p_label(own: Own) -> list[float]:
    return [float(record["p_label"]) for record in own]


def windows_of(values: Sequence[float], J: int) -> list[NDArray[np.float64]]:
    return [np.array(values[k : k + J], dtype=np.float64) for k in range(len(values) - J + 1)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else np.nan


def aum(own: Own, _: Any) -> dict[str, float]:
    return {"aum": sum(float(r["p_label"]) - float(r["p_other"]) for r in own)}


def aum_logit(own: Own, _: Any) -> dict[str, float]:
    margins = [np.log(float(r["p_label"])) - np.log(float(r["p_other"])) for r in own]
    return {"aum_logit": mean(margins)}


def confidence(own: Own, _: Any) -> dict[str, float]:
    return {"confidence": mean(p_label(own))}


def correctness(own: Own, _: Any) -> dict[str, float]:
    return {"correctness": sum(bool(r["correct"]) for r in own)}


def dual(own: Own, _: Any) -> dict[str, float]:
    values = [10 * float(np.std(w, ddof=1)) * (1 - float(np.mean(w))) for w in windows_of(p_label(own), 10)]
    return {"dual": mean(values), "dual_mean": mean(p_label(own))}


def dyn_unc(own: Own, _: Any) -> dict[str, float]:
    return {"dyn_unc": mean([10 * float(np.std(w, ddof=1)) for w in windows_of(p_label(own), 10)])}


def el2n(own: Own, _: Any) -> dict[str, float]:
    return {"el2n": sum(float(r["el2n"]) for r in own)}


def entropy(own: Own, _: Any) -> dict[str, float]:
    (record,) = own
    return {"entropy": -sum(p * np.log(p) for p in record["probs"].astype(np.float64))}


def forgetting(own: Own, _: Any) -> dict[str, float]:
    correct = [bool(record["correct"]) for record in own]
    events = sum(before and not now for before, now in pairwise(correct))
    return {"forgetting": events if any(correct) else len(correct)}


def grand(own: Own, _: Any) -> dict[str, float]:
    (record,) = own
    extended = np.append(record["embedding"].astype(np.float64), 1)  # a bias is a weight of an input of 1
    error = record["probs"].astype(np.float64)
    error[record["label"]] -= 1
    return {"grand": float(np.linalg.norm(np.outer(error, extended)))}


def prototypicality(own: Own, centroids: NDArray[np.float64]) -> dict[str, float]:
    (record,) = own
    return {"prototypicality": min(float(np.linalg.norm(record["embedding"] - c)) for c in centroids)}


def tdds(own: Own, _: Any) -> dict[str, float]:
    logs = [np.log(r["probs"].astype(np.float64) + 1e-8) for r in own]
    kl = [float(np.abs(own[e + 1]["probs"] * (logs[e + 1] - logs[e])).sum()) for e in range(len(own) - 1)]
    norms = [float(np.linalg.norm(w - w.mean())) for w in windows_of(kl, 3)]
    total = sum(norm * 0.9 * 0.1 ** (len(norms) - 1 - k) for k, norm in enumerate(norms))
    return {"tdds": total if norms else np.nan}


def variability(own: Own, _: Any) -> dict[str, float]:
    return {"variability": float(np.std(np.array(p_label(own), dtype=np.float64)))}


BY_HAND: dict[str, tuple[Callable[[Own, Any], dict[str, float]], range]] = {
    "aum": (aum, range(EPOCHS)),
    "aum_logit": (aum_logit, range(EPOCHS)),
    "confidence": (confidence, range(EPOCHS)),
    "correctness": (correctness, range(EPOCHS)),
    "dual": (dual, range(30)),
    "dyn_unc": (dyn_unc, range(EPOCHS)),
    "el2n": (el2n, range(20)),
    "entropy": (entropy, range(39, 40)),
    "forgetting": (forgetting, range(EPOCHS)),
    "grand": (grand, range(39, 40)),
    "prototypicality": (prototypicality, range(39, 40)),
    "tdds": (tdds, range(30)),
    "variability": (variability, range(EPOCHS)),
}
"""Plain re-implementations for one example's own records, and the epochs that they take."""

RANGES: dict[str, tuple[float, float]] = {
    "aum": (-EPOCHS, EPOCHS),
    "aum_logit": (-87.4, 87.4),
    "confidence": (0, 1),
    "correctness": (0, EPOCHS),
    "dual": (0, 5.3),
    "dual_mean": (0, 1),
    "dyn_unc": (0, 5.3),
    "el2n": (0, 20 * 2**0.5),
    "entropy": (0, np.log(4)),
    "forgetting": (0, EPOCHS),
    "grand": (0, np.inf),
    "prototypicality": (0, np.inf),
    "tdds": (0, np.inf),
    "variability": (0, 0.5),
}


@pytest.mark.parametrize("name", NAMES)
def test_shape_type_range_and_columns(name: str) -> None:
    logits, labels, _ = learning(9)
    result = score(name, history(logits * 5, labels))
    assert list(result) == list(SCORES.get(name).harder)
    for column, values in result.items():
        assert values.shape == (9,) and values.dtype == np.float32
        low, high = RANGES.get(column, (-np.inf, np.inf))
        assert (values >= low).all() and (values <= high * (1 + 1e-6)).all() and len(np.unique(values)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_documented(name: str) -> None:
    found = SCORES.get(name)
    first = (sys.modules[found.__module__].__doc__ or "").splitlines()[0]
    assert ": " in first and first.endswith(".") and len(first) < 110
    assert found.source.startswith("arXiv ") and ", " in found.source
    text = " ".join((found.__doc__ or "").split())
    assert all(f"{end} is hard" in text or f"{end} (far) is hard" in text for end in found.harder.values())
    assert found.reads and set(found.reads) <= {*STATISTICS, *VECTORS, "correct"}


@pytest.mark.parametrize("name", NAMES)
def test_the_harder_end_holds_the_harder_examples(name: str) -> None:
    logits, labels, difficulty = learning(300)
    easy, hard = difficulty < 0.2, (difficulty > 0.4) & (difficulty < 0.8)
    if name in ("dyn_unc", "variability"):  # what is hard fluctuates more
        logits *= 0.1 + difficulty[:, None]
    past = history(logits, labels)
    if name == "prototypicality":  # embeddings that scatter more around their class, the harder
        scatter = np.random.default_rng(0).normal(0, 0.1 + difficulty[:, None], (300, 4))
        past.columns["embedding"][:] = (8 * np.eye(4)[labels] + scatter).astype(np.float32)
    for column, values in score(name, past).items():
        assert (values[hard].mean() > values[easy].mean()) == (directions()[column] == "high"), column


def test_every_score_is_written_by_hand() -> None:
    """The one test that a new score fails until it is; all others it gets for nothing."""
    for name in NAMES:
        assert name in BY_HAND, f"write {name} for one example's records by hand, in BY_HAND, with the epochs it takes"
    for column in directions():
        assert column in RANGES, f"write between which values {column} is, in RANGES"
    assert (set(BY_HAND), set(RANGES)) == (set(NAMES), set(directions()))


@pytest.mark.parametrize("name", BY_HAND)
@given(seed=st.integers(0, 2**32 - 1), missing=st.sampled_from([0.0, 0.1, 0.7, 0.97]))
@settings(max_examples=15)
def test_each_example_is_scored_by_its_own_records_as_by_hand(name: str, seed: int, missing: float) -> None:
    logits, labels, _ = learning(12, seed)
    present = np.random.default_rng(seed).random(logits.shape[:2]) >= missing
    present[-1, 0] = True  # or there would be no centroid
    past = history(logits * 3, labels, present)
    by_hand, epochs = BY_HAND[name]
    options = OPTIONS.get(name, {})
    prepared = prepare(name, past, **options)
    result = score(name, past, prepared, **options)
    for i in range(12):
        own = [
            {"label": labels[i], **{column: values[e, i] for column, values in past.columns.items()}}
            for e in epochs
            if present[e, i]
        ]
        expected = by_hand(own, prepared) if own else dict.fromkeys(result, np.nan)
        assert list(expected) == list(result)
        for column, value in expected.items():
            # Logarithms of float32 probabilities are right to 1e-7 each, and so are their differences.
            assert result[column][i] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_an_example_has_the_same_bits_whoever_is_beside_it(name: str, missing: float) -> None:
    logits, labels, _ = learning(50)
    past = history(logits, labels, np.random.default_rng(2).random((EPOCHS, 50)) >= missing)
    prepared = prepare(name, past)
    whole = score(name, past, prepared)
    order = np.random.default_rng(1).permutation(50)
    shuffled = score(name, past.of(order), prepared)
    parts = [score(name, past.of(slice(low, low + 7)), prepared) for low in range(0, 50, 7)]
    alone = [score(name, past.of(slice(i, i + 1)), prepared) for i in range(50)]
    for column, values in whole.items():
        assert shuffled[column].tobytes() == values[order].tobytes()
        assert np.concatenate([part[column] for part in parts]).tobytes() == values.tobytes()
        assert np.concatenate([part[column] for part in alone]).tobytes() == values.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_rows_as_a_slice_and_as_positions_are_the_same_bits(name: str) -> None:
    logits, labels, _ = learning(20)
    past = history(logits, labels)
    one_more = past.of(np.append(np.arange(20), 0))
    one_more.present[::2, -1] = False  # every other epoch now lists its rows
    whole = score(name, past, prepare(name, past))
    for column, values in score(name, one_more, prepare(name, past)).items():
        assert values[:-1].tobytes() == whole[column].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_recorded_is_not_a_score(name: str) -> None:
    logits, labels, _ = learning(5)
    present = np.ones(logits.shape[:2], dtype=bool)
    present[:, 3] = False
    for column in score(name, history(logits, labels, present)).values():
        assert np.isnan(column).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize(("name", "J"), [("dual", 6), ("dyn_unc", 6), ("tdds", 6)])
def test_fewer_records_than_a_window_are_not_a_score(name: str, J: int) -> None:
    logits, labels, _ = learning(3)
    present = np.zeros(logits.shape[:2], dtype=bool)
    present[::4, 0], present[:20:4, 1], present[:24:4, 2] = True, True, True  # 8, 5 and 6 in the first 30 epochs
    result = score(name, history(logits, labels, present), J=J)
    assert np.isnan(result[name]).tolist() == [False, True, False]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_pushed_is_not_changed(name: str) -> None:
    logits, labels, _ = learning(6)
    past = history(logits, labels)
    before = {column: values.copy() for column, values in past.columns.items()}
    score(name, past)
    assert all((values == before[column]).all() for column, values in past.columns.items())


def test_scores_that_add_up_a_column_share_its_float64() -> None:
    column = np.array([0.1, 0.7], dtype=np.float32)
    records = Records(0, slice(None), {"p_label": column})
    assert records["p_label"] is column
    assert records.float64("p_label") is records.float64("p_label")
    assert records.float64("p_label").dtype == np.float64 and (records.float64("p_label") == column).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_score_takes_the_epochs_of_its_option(name: str) -> None:
    found, options = SCORES.get(name), SCORES.options(name, {})
    epochs = found.epochs(options, EPOCHS)
    assert set(epochs) <= set(range(EPOCHS)) and (name not in BY_HAND or epochs == BY_HAND[name][1])
    assert found.epochs_option is None or hasattr(options, found.epochs_option)


@pytest.mark.parametrize("name", NAMES)
def test_too_few_epochs_are_a_complaint(name: str) -> None:
    found = SCORES.get(name)
    option, known = found.epochs_option, {"epoch": {"epoch": 7}, "T": {"T": 8, "J": 4}}
    options = known.get(option, {option: 8}) if option else {}
    request = Request.of(name, options)
    assert request.lacking(8) is None
    value = next(iter(options.values()), None)
    expected = f"{name} needs 8 epochs ({option}={value}) but 7 are recorded" if option else None
    assert request.lacking(7) == expected


@pytest.mark.parametrize("name", ["entropy", "grand", "prototypicality"])
def test_one_epoch_can_be_named(name: str) -> None:
    logits, labels, _ = learning(8)
    past = history(logits, labels)
    first = History({column: values[:1] for column, values in past.columns.items()}, past.present[:1])
    assert score(name, past, epoch=0)[name].tobytes() == score(name, first)[name].tobytes()
    assert score(name, past, epoch=39)[name].tobytes() == score(name, past)[name].tobytes()
    assert (score(name, past, epoch=0)[name] != score(name, past)[name]).any()


def test_never_learned_is_the_maximum_or_compatible() -> None:
    logits, labels, _ = learning(30)
    past = history(logits, labels)
    most = score("forgetting", past)["forgetting"]
    zero = score("forgetting", past, never_learned="zero")["forgetting"]
    never = np.logical_not(past.columns["correct"].any(axis=0))
    assert never[-1] and (most[never] == EPOCHS).all() and (zero[never] == 0).all()
    assert (most[~never] == zero[~never]).all() and most[~never].max() < EPOCHS


@pytest.mark.parametrize("saturated", [0.0, 1.0])
@pytest.mark.parametrize("name", ["dual", "dyn_unc", "variability"])
def test_digits_are_kept_where_probabilities_saturate(name: str, saturated: float) -> None:
    p = np.abs(saturated - np.random.default_rng(0).random((EPOCHS, 4)) * 2.0**-18).astype(np.float32)
    result = score(name, History.of_columns(p_label=p))
    by_hand, epochs = BY_HAND[name]
    for i in range(4):
        expected = by_hand([{"p_label": p[e, i]} for e in epochs], None)
        assert result[name][i] == pytest.approx(expected[name], rel=1e-5)


def test_a_constant_probability_does_not_vary() -> None:
    p = np.tile(np.array([0.1, 1 / 3, 1], dtype=np.float32), (200, 1))
    assert score("variability", History.of_columns(p_label=p))["variability"].tolist() == [0, 0, 0]


def test_a_logit_margin_is_cut_where_float32_underflows() -> None:
    p = np.array([[1, 0, 1e-38, 1e-44, 1, 0.5]], dtype=np.float32)
    other = np.array([[0, 1, 1, 1, 1e-44, 0.25]], dtype=np.float32)
    margins = score("aum_logit", History.of_columns(p_label=p, p_other=other))["aum_logit"]
    expected = [87.3365, -87.3365, -87.3365, -87.3365, 87.3365, np.log(2)]
    np.testing.assert_allclose(margins, expected, rtol=1e-5)


def test_options_narrow_what_is_taken() -> None:
    logits, labels, _ = learning(6)
    past = history(logits, labels)
    short = replace(past, columns={k: v[:12] for k, v in past.columns.items()}, present=past.present[:12])
    np.testing.assert_allclose(score("el2n", past, num_epochs=1)["el2n"], past.columns["el2n"][0])
    for name in ("dual", "tdds"):
        assert (score(name, past, T=12, J=3)[name] == score(name, short, T=12, J=3)[name]).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("loss", {}, f"there is no score 'loss': choose from {CHOICES}"),
        ("aum", {"T": 1}, "score 'aum' has no option 'T': it has none"),
        ("dual", {"t": 1}, "score 'dual' has no option 't': choose from T, J, ddof"),
        ("dual", {"T": "30"}, "score 'dual': T='30' cannot be used: input should be a valid integer"),
        ("dual", {"T": 5}, "score 'dual': J=10 must be 2 or more and at most T=5"),
        ("dual", {"J": 1}, "J=1 must be 2 or more"),
        ("dyn_unc", {"J": 1}, "score 'dyn_unc': J=1 leaves nothing to deviate: set it to 2 or more"),
        ("el2n", {"num_epochs": 0}, "num_epochs=0 leaves nothing"),
        ("el2n", {"num_epochs": True}, "num_epochs=True cannot be used"),
        ("entropy", {"epoch": -1}, "score 'entropy': epoch=-1 does not exist: count from 0"),
        ("grand", {"epoch": -1}, "score 'grand': epoch=-1 does not exist: count from 0"),
        ("prototypicality", {"epoch": -2}, "score 'prototypicality': epoch=-2 does not exist: count from 0"),
        ("prototypicality", {"k": 0}, "k=0 leaves no cluster: set it to 1 or more"),
        ("tdds", {"J": 2}, "J=2 must be 3 or more"),
        ("tdds", {"T": 9}, "J=10 must be 3 or more and at most T=9"),
        ("tdds", {"decay": 0.0}, "decay=0.0 is no weight: set it above 0"),
        ("tdds", {"decay": 1.5}, "decay=1.5 is no weight"),
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
    with pytest.raises(ChoiceError, match=f"no score is asked for: choose from {CHOICES}"):
        compute_scores("nowhere", [])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["dual@"], "score 'dual@' has no name after the @: write dual@NAME, or dual alone"),
        (["loss@60"], "there is no score 'loss'"),
        (["dual@60", "aum", "dual@60"], "the score 'dual@60' is named twice"),
    ],
)
def test_a_wrong_variant_is_one_sentence(names: list[str], message: str) -> None:
    with pytest.raises(ChoiceError, match=message):
        requests(names, {})


def test_a_column_that_two_scores_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a file that was copied; under a name of its own each has a column of its own."""
    monkeypatch.setitem(SCORES._classes, "copied", SCORES.get("dual"))
    sentence = "the scores 'copied' and 'dual' both give the column 'dual': ask for one of them, or rename"
    with pytest.raises(ChoiceError, match=f"^{sentence}"):
        requests(["copied", "aum", "dual"], {})
    assert len(requests(["copied", "dual@60"], {})) == 2


def test_a_variant_has_settings_and_columns_of_its_own() -> None:
    plain, other = requests(["dual", "dual@60"], {"dual@60": {"T": 60}})
    assert (plain.options.T, other.options.T) == (30, 60) and plain.score is other.score
    assert other.harder == {"dual@60": "high", "dual_mean@60": "low"}
    assert direction("dual_mean@60") == "low" and direction("dual_mean") == "low" and direction("loss@60") is None


def test_no_two_scores_share_a_column() -> None:
    assert len(directions()) == sum(len(SCORES.get(name).harder) for name in NAMES)


def test_numpy_numbers_are_numbers() -> None:
    assert SCORES.options("dual", {"T": np.int64(20), "J": np.int32(5)}) == SCORES.options("dual", {"T": 20, "J": 5})


@pytest.mark.parametrize("name", ["dual", "dyn_unc"])
def test_the_other_standard_deviation_ranks_alike(name: str) -> None:
    logits, labels, _ = learning(50)
    sample, whole = (score(name, history(logits, labels), ddof=ddof)[name] for ddof in (1, 0))
    np.testing.assert_allclose(whole, sample * np.sqrt(9 / 10), rtol=1e-6)
