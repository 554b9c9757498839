"""Dynamics: each record is what the formulas say, each epoch holds every id once, damage is found."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import dynamics
from pipeline.dynamics import DynamicsStore, DynamicsWriter
from pipeline.epochs import EpochLog
from pipeline.errors import CorruptArtifactError, UserError


def random_epoch(n: int, classes: int = 5, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.permutation(n), rng.normal(0, 3, (n, classes)).astype(np.float32), rng.integers(0, classes, n)


def by_hand(logits: Any, label: int) -> dict[str, float]:
    """One record in float64, word for word as the definitions."""
    p = np.exp(np.float64(logits) - np.max(np.float64(logits)))
    p = p / p.sum()
    return {
        "p_label": p[label],
        "p_other": max(p[c] for c in range(len(p)) if c != label),
        "el2n": np.sqrt(max(0, (p**2).sum() - 2 * p[label] + 1)),
        "entropy": -sum(x * np.log(x) for x in p if x > 0),
        "correct": np.argmax(logits) == label,
    }


@pytest.mark.parametrize("kind", ["numpy", "float64", "float16", "bfloat16", "torch"])
def test_a_record_is_what_the_definitions_say(tmp_path: Path, kind: str) -> None:
    ids, logits, labels = random_epoch(200)
    logits[7] = [80, 0, 0, 0, 0]  # saturated: el2n by the definition's own sum would cancel
    given: Any = logits
    if kind in ("float64", "float16"):
        given = logits.astype(kind)
    elif kind in ("bfloat16", "torch"):
        given = torch.tensor(logits, requires_grad=True).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    writer = DynamicsWriter(str(tmp_path), 200)
    writer.observe(ids if kind == "numpy" else torch.tensor(ids), given, labels)
    writer.commit_epoch(0)
    read = DynamicsStore(str(tmp_path)).read(0, 0, 200)
    exact = given.detach().float().numpy() if isinstance(given, torch.Tensor) else given
    for i, z, y in zip(ids, exact, labels, strict=True):
        for name, value in by_hand(z, y).items():
            assert getattr(read, name)[i] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert read.present.all()
    assert {getattr(read, name).dtype for name in dynamics.STATISTICS} == {np.dtype(np.float32)}


def test_masked_classes_and_ties_have_records(tmp_path: Path) -> None:
    logits = np.array([[0, 0, -np.inf], [0, 0, -np.inf]], dtype=np.float32)
    writer = DynamicsWriter(str(tmp_path), 2)
    writer.observe(np.arange(2), logits, np.array([0, 1]))
    writer.commit_epoch(0)
    read = DynamicsStore(str(tmp_path)).read(0, 0, 2)
    assert read.correct.tolist() == [True, False]  # the argmax of a tie is the first
    assert read.entropy.tolist() == pytest.approx([np.log(2)] * 2)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_batches_order_ranks_and_record_batches_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, 60))
    ids, logits, labels = random_epoch(n, seed=n)
    world = data.draw(st.integers(1, 4))
    order = data.draw(st.permutations(range(n)))
    owner = np.array(data.draw(st.lists(st.integers(0, world - 1), min_size=n, max_size=n)))
    uri = str(tmp_path_factory.mktemp("store"))
    writers = [DynamicsWriter(uri, n, rank, world) for rank in range(world)]
    size = data.draw(st.integers(1, 9))
    for start in range(0, n, size):
        rows = np.array(order[start : start + size])
        for rank, writer in enumerate(writers):
            mine = rows[owner[rows] == rank]
            writer.observe(ids[mine], logits[mine], labels[mine])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "BATCH_ROWS", data.draw(st.integers(1, 20)))
        writers[0].commit_epoch(0, [writer.flush(0) for writer in writers])
    plain = DynamicsWriter(f"{uri}/plain", n)
    plain.observe(ids, logits, labels)
    plain.commit_epoch(0)
    low = data.draw(st.integers(0, n))
    high = data.draw(st.integers(low, n))
    got, expected = DynamicsStore(uri).read(0, low, high), DynamicsStore(f"{uri}/plain").read(0, 0, n).slice(low, high)
    for name in (*dynamics.STATISTICS, "correct", "present"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-6)


SOME_IDS = st.lists(st.integers(0, 9), min_size=1, max_size=30)
ALL_IDS = st.tuples(SOME_IDS, st.permutations(range(10))).map(lambda lists: lists[0] + lists[1])


@given(SOME_IDS | ALL_IDS)
@settings(max_examples=30, deadline=None)
def test_of_duplicates_the_first_counts_and_of_gaps_the_number_is_told(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int]
) -> None:
    uri = str(tmp_path_factory.mktemp("store"))
    writer = DynamicsWriter(uri, 10)
    for time, i in enumerate(ids):
        writer.observe(np.array([i]), np.array([[time / 10, 0.0]]), np.array([0]))
    if len(set(ids)) < 10:
        with pytest.raises(UserError, match=f"of 10 samples {10 - len(set(ids))} are missing and 0 are in"):
            writer.commit_epoch(0)
        assert EpochLog(uri).latest() is None
        return
    commit = writer.commit_epoch(0)
    assert commit.facts["duplicates"] == len(ids) - 10
    first = [ids.index(i) for i in range(10)]
    expected = 1 / (1 + np.exp(-np.array(first) / 10))
    np.testing.assert_allclose(DynamicsStore(uri).read(0, 0, 10).p_label, expected, rtol=1e-5)


def test_an_id_in_the_files_of_two_ranks_is_no_epoch(tmp_path: Path) -> None:
    ids, logits, labels = random_epoch(8)
    writers = [DynamicsWriter(str(tmp_path), 8, rank, 2) for rank in range(2)]
    writers[0].observe(ids[:5], logits[:5], labels[:5])
    writers[1].observe(ids[4:], logits[4:], labels[4:])  # one is a sampler's padding
    parts = [writer.flush(0) for writer in writers]
    with pytest.raises(UserError, match="of 8 samples 0 are missing and 1 are in the files of several ranks"):
        writers[0].commit_epoch(0, parts)
    with pytest.raises(UserError, match="of 8 samples 3 are missing and 0 are"):
        writers[0].commit_epoch(0, parts[:1])
    writers[1].observe(ids[4:7], logits[4:7], labels[4:7])  # as many records as there are samples
    with pytest.raises(UserError, match="of 8 samples 1 are missing and 1 are in"):
        writers[0].commit_epoch(0, [parts[0], writers[1].flush(0)])
    with pytest.raises(UserError, match="2 ranks needs parts="):
        writers[0].commit_epoch(0)


def test_an_epoch_counts_with_its_checkpoint_and_training_continues(tmp_path: Path) -> None:
    ids, logits, labels = random_epoch(6)
    writer = DynamicsWriter(str(tmp_path), 6)
    writer.observe(ids, logits, labels)
    writer.flush(0)  # killed here: the file is there and nobody reads it
    writer = DynamicsWriter(str(tmp_path), 6)
    assert writer.log.latest() is None
    for epoch in range(2):
        writer.observe(ids, logits * (epoch + 1), labels)
        writer.commit_epoch(epoch, checkpoint=b"weights", facts={"metrics": {"loss": 1.0}})
    last = DynamicsWriter(str(tmp_path), 6).log.latest()
    assert last is not None and last.epoch == 1
    assert last.facts == {"metrics": {"loss": 1.0}, "num_samples": 6, "duplicates": 0}
    assert writer.log.read_checkpoint(last) == b"weights"
    store = DynamicsStore(str(tmp_path))
    assert (store.num_samples, list(store.epochs), store.coverage) == (6, [0, 1], 1.0)
    assert len(list(tmp_path.glob("*.arrow"))) == 3


def test_what_was_observed_is_taken_at_once(tmp_path: Path) -> None:
    """A loader may use the same buffers for its next batch."""
    writer = DynamicsWriter(str(tmp_path), 4)
    ids, logits, labels = torch.arange(2), torch.randn(2, 3), torch.zeros(2, dtype=torch.int64)
    writer.observe(ids, logits, labels)
    ids += 2
    logits.zero_()
    writer.observe(ids, logits, labels)
    writer.commit_epoch(0)
    assert (DynamicsStore(str(tmp_path)).read(0, 0, 4).p_label != 1 / 3)[:2].all()


@pytest.mark.parametrize(
    ("ids", "logits", "labels", "message"),
    [
        ([0, 4], [[0.0, 1.0]] * 2, [0, 1], r"sample_ids 0\.\.4 but num_samples=4"),
        ([-1], [[0.0, 1.0]], [0], r"sample_ids -1\.\.-1"),
        ([0, 1], [[0.0, np.nan], [0.0, 1.0]], [0, 1], "1 records with logits that are not finite"),
        ([0, 1], [[0.0, 1.0]] * 2, [2, -100], "2 records .* a label that is no class"),
        ([0], [[0.0]], [0], r"C of 2 or more .* not \[1\], \[1, 1\] and \[1\]"),
        ([0, 1], [[0.0, 1.0]], [0], r"not \[2\], \[1, 2\] and \[1\]"),
    ],
)
def test_what_cannot_be_recorded_is_said(
    tmp_path: Path, ids: list[int], logits: Any, labels: list[int], message: str
) -> None:
    writer = DynamicsWriter(str(tmp_path), 4)
    with pytest.raises(UserError, match=message):
        writer.observe(np.array(ids), np.array(logits, dtype=np.float32), np.array(labels))
        writer.commit_epoch(0)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    ids, logits, labels = random_epoch(50)
    writer = DynamicsWriter(str(tmp_path), 50)
    writer.observe(ids, logits, labels)
    commit = writer.commit_epoch(0)
    file = tmp_path / commit.files[0].name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes({"flip": data, "truncate": data[:-100], "empty": b""}[damage])
    with pytest.raises(CorruptArtifactError, match=file.name):
        DynamicsStore(str(tmp_path)).read(0, 10, 20)


def test_a_store_that_is_none_and_one_of_two_pools_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no committed epoch"):
        DynamicsStore(str(tmp_path / "nothing"))
    for epoch, n in enumerate((4, 6)):
        writer = DynamicsWriter(str(tmp_path), n)
        writer.observe(*random_epoch(n))
        writer.commit_epoch(epoch)
    with pytest.raises(UserError, match=r"pools of \[4, 6\] samples"):
        DynamicsStore(str(tmp_path))


def test_an_object_store_serves_as_well_as_a_disk() -> None:
    writer = DynamicsWriter("memory://dynamics-test/store", 30)
    ids, logits, labels = random_epoch(30)
    writer.observe(ids, logits, labels)
    writer.commit_epoch(0, checkpoint=b"weights")
    store = DynamicsStore("memory://dynamics-test/store")
    assert store.read(0, 3, 9).present.all()
    names = store.read(0, 0, 30).correct.nonzero()[0].tolist()
    assert sorted(names) == sorted(int(i) for i in ids[logits.argmax(1) == labels])


def test_files_are_sorted_arrow_that_other_tools_read(tmp_path: Path) -> None:
    import pyarrow as pa

    writer = DynamicsWriter(str(tmp_path), 20, rank=0)
    writer.observe(*random_epoch(20))
    part = writer.flush(0).part
    assert part.name.startswith("epoch-00000-rank-0-") and part.rows == 20
    table = pa.ipc.open_file((tmp_path / part.name).read_bytes()).read_all()
    assert table.column_names == ["sample_id", "p_label", "p_other", "el2n", "entropy", "correct"]
    assert table["sample_id"].to_pylist() == list(range(20))
    assert json.loads(table.schema.metadata[b"first_ids"]) == [0]


def test_reading_needs_neither_torch_nor_ray() -> None:
    code = "import sys, pipeline.reduce, pipeline.selectors; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
