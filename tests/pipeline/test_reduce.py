"""The reducer on stores: the reference values of the methods' own code, and any cut of the ids."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import dynamics, reduce
from pipeline.dynamics import DynamicsStore, DynamicsWriter
from pipeline.errors import UserError
from pipeline.scores import SCORES, compute_scores

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "dynamics_reference.npz")
ALL = {name: SCORES.options(name, {}) for name in ("aum", "dual", "el2n", "forgetting")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference logits, written by two ranks in batches of another order every epoch."""
    uri = str(tmp_path_factory.mktemp("golden") / "dynamics")
    logits, labels = GOLDEN["logits_f16"], GOLDEN["labels"]
    rng = np.random.default_rng(0)
    writers = [DynamicsWriter(uri, len(labels), rank, 2) for rank in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "BATCH_ROWS", 50)
        for epoch, z in enumerate(logits):
            for number, batch in enumerate(np.array_split(rng.permutation(len(labels)), 11)):
                writers[number % 2].observe(batch, z[batch], labels[batch])
            writers[0].commit_epoch(epoch, [writer.flush(epoch) for writer in writers])
    return uri


def test_scores_are_those_of_the_methods_own_code(store: str) -> None:
    table = compute_scores(
        store,
        ["aum", "forgetting", "el2n", "dual"],
        forgetting={"never_learned": "zero"},
        dual={"T": 30, "J": 10},
        el2n={"num_epochs": 20},
    )
    assert table.column_names == ["sample_id", "aum", "forgetting", "el2n", "dual", "dual_mean"]
    assert table["sample_id"].to_pylist() == list(range(400))
    # Margins of both signs: where they cancel, what remains of a sum of 40 is compared at the size of its terms.
    np.testing.assert_allclose(table["aum"], GOLDEN["aum"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(table["forgetting"], GOLDEN["forgetting_never_learned_zero"])
    np.testing.assert_allclose(table["el2n"], GOLDEN["el2n_sum_first20"], rtol=1e-4)
    np.testing.assert_allclose(table["dual"], GOLDEN["dual_T30_J10"], rtol=1e-4)
    np.testing.assert_allclose(table["dual_mean"], GOLDEN["target_prob_mean_T30"], rtol=1e-4)


def test_records_are_those_of_the_methods_own_code(store: str) -> None:
    read = [DynamicsStore(store).read(epoch, 0, 400) for epoch in range(40)]
    np.testing.assert_array_equal(np.sum([epoch.correct for epoch in read], axis=0), GOLDEN["correctness"])
    mean = np.mean([epoch.p_label for epoch in read], axis=0)
    np.testing.assert_allclose(mean, GOLDEN["target_prob_mean"], rtol=1e-4)


@pytest.mark.parametrize(("ranges", "chunk"), [(1, 400), (1, 23), (2, 64), (7, 16), (40, 10)])
def test_any_cut_gives_the_same_bytes(store: str, ranges: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = compute_scores(store, list(ALL))
    monkeypatch.setattr(reduce, "CHUNK", chunk)
    monkeypatch.setattr(reduce, "RANGE", -(-400 // ranges))
    assert reduce.reduce_store(store, ALL).equals(expected)


def test_a_range_is_a_slice_of_the_whole(store: str) -> None:
    whole = compute_scores(store, list(ALL))
    assert reduce.reduce_range(DynamicsStore(store), 123, 321, ALL).equals(whole.slice(123, 198))
    assert reduce.reduce_range(DynamicsStore(store), 5, 5, ALL).equals(whole.slice(5, 0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dual", {"T": 41}, r"^dual needs 41 epochs \(T=41\) but 40 are recorded in '.*': lower T, or record more$"),
        ("el2n", {"num_epochs": 60}, r"^el2n needs 60 epochs \(num_epochs=60\) but 40 .*: lower num_epochs, or"),
    ],
)
def test_too_few_epochs_are_an_error_before_anything_is_read(
    store: str, name: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DynamicsStore, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match=message):
        compute_scores(store, ["aum", name], **{name: options})


def test_only_the_epochs_that_scores_take_are_read(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, epochs = DynamicsStore.read, []
    monkeypatch.setattr(
        DynamicsStore, "read", lambda self, epoch, *ids: epochs.append(epoch) or read(self, epoch, *ids)
    )
    compute_scores(store, ["el2n", "dual"], dual={"T": 15}, el2n={"num_epochs": 8})
    assert epochs == list(range(15))
