"""A store for reading: what it is refused for, its columns, and its sample."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import dynamics
from pipeline.dynamics import DynamicsWriter
from pipeline.dynamics_store import DynamicsStore
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from tests.pipeline.test_dynamics import PLAIN, flush, random_epoch, record


def test_a_store_that_is_none_and_one_of_two_pools_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no committed epoch"):
        DynamicsStore(str(tmp_path / "nothing"))
    for epoch, n in enumerate((4, 6)):
        writer = DynamicsWriter(str(tmp_path), n)
        writer.observe(*random_epoch(n))
        writer.commit_epoch(epoch)
    with pytest.raises(UserError, match=r"pools of \[4, 6\] samples"):
        DynamicsStore(str(tmp_path))


def test_a_column_that_only_some_epochs_have_is_not_the_store_s(tmp_path: Path) -> None:
    ids, logits, labels = random_epoch(9)
    for epoch, embedding in enumerate((None, logits[:, :2], logits[:, :3])):
        writer = DynamicsWriter(str(tmp_path), 9, probs=epoch > 0)
        writer.observe(ids, logits, labels, embedding)
        writer.commit_epoch(epoch)
    assert DynamicsStore(str(tmp_path)).columns == dict.fromkeys(PLAIN, 1)


@settings(max_examples=30)
@given(
    n=st.integers(1, 700),
    ranks=st.integers(1, 3),
    block_rows=st.sampled_from([8, 32]),
    file_blocks=st.integers(1, 5),
    data=st.data(),
)
def test_a_reader_of_some_ids_opens_the_files_that_have_them(
    n: int, ranks: int, block_rows: int, file_blocks: int, data: st.DataObject
) -> None:
    ids, logits, labels = random_epoch(n, seed=n)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        writers = [DynamicsWriter(folder, n, rank, ranks) for rank in range(ranks)]
        record(writers, ids, logits, labels)
        patch.setattr(dynamics, "BLOCK_ROWS", block_rows)
        patch.setattr(dynamics, "FILE_BLOCKS", file_blocks)
        writers[0].commit_epoch(0, flush(writers, 0))
        low = data.draw(st.integers(0, n - 1))
        high = data.draw(st.integers(low + 1, n))
        store = DynamicsStore(folder)
        some = store.read(0, low, high, PLAIN)
        span = store.span * file_blocks
        theirs = [np.concatenate([np.asarray(ids) for ids, _ in file.blocks([])]) for file in store._files.values()]
        assert len(theirs) <= ranks * len(set(range(low // span, (high - 1) // span + 1)))
        for held in theirs:  # all ranks cut at the same ids
            assert held[0] // span == held[-1] // span
            assert held[0] < high and held[-1] >= low
        whole = DynamicsStore(folder)
        for name, column in whole.read(0, 0, n, PLAIN).items():
            np.testing.assert_array_equal(some[name], column[low:high])
        assert len(whole.files(0)) == sum(part.rows > 0 for part in whole.commits[0].files)


def test_the_sample_of_a_store_is_a_hash_s_and_in_order(tmp_path: Path) -> None:
    n = 3000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "BLOCK_ROWS", 256)
        writers = [DynamicsWriter(str(tmp_path), n, rank, 2) for rank in range(2)]
        record(writers, *random_epoch(n))
        writers[0].commit_epoch(0, flush(writers, 0))
    store = DynamicsStore(str(tmp_path))
    everything = store.read(0, 0, n, ["p_label", "correct"])
    whole = store.sample(0, ["p_label", "correct"])
    for name, column in everything.items():
        np.testing.assert_array_equal(whole[name], column)
    some = store.sample(0, ["p_label"], size=300)["p_label"]
    assert 200 < len(some) < 400
    places = np.flatnonzero(np.isin(everything["p_label"], some))
    assert len(places) == len(some) and (everything["p_label"][places] == some).all()
    again = store.sample(0, ["p_label"], size=600)["p_label"]
    assert set(some.tolist()) < set(again.tolist())  # a larger sample has the smaller one


def test_a_commit_log_without_dynamics_is_no_store(tmp_path: Path) -> None:
    EpochLog(str(tmp_path)).commit(0, [], b"a training's")
    with pytest.raises(UserError, match="holds commits without training dynamics: name the folder of a DynamicsWriter"):
        DynamicsStore(str(tmp_path))


def test_reading_needs_neither_torch_nor_ray() -> None:
    code = "import sys, pipeline.reduce, pipeline.selectors; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
