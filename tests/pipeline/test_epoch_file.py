"""Files of an epoch: what was written comes back, or an error that names file, epoch and run; never other numbers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import dynamics, epoch_file, storage
from pipeline.dynamics import DynamicsWriter
from pipeline.dynamics_store import DynamicsStore
from pipeline.epoch_file import EpochFile, encode
from pipeline.errors import CorruptArtifactError
from pipeline.stage import Part

N, EPOCHS, RANKS, CLASSES = 150, 2, 2, 4
COLUMNS = [*dynamics.STATISTICS, "correct", "probs"]


def record(uri: str, seed: int) -> DynamicsStore:
    """Two epochs of two ranks, with several blocks a file."""
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "BLOCK_ROWS", 32)
        for epoch in range(EPOCHS):
            writers = [DynamicsWriter(uri, N, rank, RANKS, probs=True) for rank in range(RANKS)]
            for writer, ids in zip(writers, np.array_split(rng.permutation(N), RANKS), strict=True):
                writer.observe(ids, rng.normal(0, 2, (len(ids), CLASSES)).astype(np.float32), ids % CLASSES)
            log = DynamicsWriter(uri, N, 0, RANKS)
            log.commit_epoch(epoch, [writer.flush(epoch) for writer in writers])
    return DynamicsStore(uri)


def read_all(uri: str) -> list[dict[str, NDArray[Any]]]:
    store = DynamicsStore(uri)
    return [store.read(epoch, 0, N, COLUMNS) for epoch in store.epochs]


def parts(uri: str) -> list[tuple[int, Part]]:
    return [(commit.epoch, part) for commit in DynamicsStore(uri).commits for part in commit.files]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "dynamics"
    record(str(folder), seed=0)
    return folder


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, recorded: Path, tmp_path: Path) -> str:
    """The same store on a disk and elsewhere."""
    return copy(recorded, str(tmp_path / "dynamics") if request.param == "local" else f"memory://{tmp_path.name}")


def copy(recorded: Path, place: str) -> str:
    for path in recorded.iterdir():
        storage.write(f"{place}/{path.name}", path.read_bytes())
    return place


def assert_named(uri: str, epoch: int, part: Part) -> None:
    """Reading all ids raises our error, and it says which file of which epoch of which run."""
    with pytest.raises(CorruptArtifactError) as caught:
        read_all(uri)
    for word in (uri, part.name, f"epoch {epoch}", "delete the folder"):
        assert word in str(caught.value), caught.value


def test_all_bytes_of_a_file_are_in_one_checksum(recorded: Path) -> None:
    store = DynamicsStore(str(recorded))
    for epoch in store.epochs:
        for file, footer in zip(store.files(epoch), store.commits[epoch].facts["footers"], strict=True):
            assert file._ends[0] == 0 and file._ends[-1] == footer["start"]
            assert len(file._ends) == len(file._crc32) + 1 == len(file.first) + 1 > 3


def test_a_flipped_bit_in_any_region_of_a_file_is_found(uri: str) -> None:
    """Magic, every block from its first byte to its last, footer, its length, the magic at the end."""
    epoch, part = parts(uri)[1]
    place = f"{uri}/{part.name}"
    whole = storage.read(place)
    ends = DynamicsStore(uri).files(epoch)[1]._ends
    edges = {end + step for end in ends for step in (-1, 0)} | set(range(len(whole) - 9, len(whole)))
    for offset in sorted({*range(0, len(whole), 11), *range(5), *edges} - {-1}):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << offset % 8
        _overwrite(place, damaged)
        assert_named(uri, epoch, part)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_are_overwritten_or_missing_anywhere_are_found(uri: str, data: st.DataObject) -> None:
    epoch, part = data.draw(st.sampled_from(parts(uri)))
    place = f"{uri}/{part.name}"
    whole = storage.read(place)
    start = data.draw(st.integers(0, len(whole) - 1))
    damage = data.draw(st.binary(min_size=1, max_size=200))[: len(whole) - start]
    damaged = data.draw(
        st.sampled_from(
            [
                whole[:start] + damage + whole[start + len(damage) :],
                whole[:start],
                whole[:start] + whole[start + len(damage) :],
                whole[:start] + bytes(len(damage)) + whole[start + len(damage) :],
            ]
        )
    )
    if damaged == whole:
        return
    try:
        _overwrite(place, damaged)
        assert_named(uri, epoch, part)
    finally:
        _overwrite(place, whole)


def test_an_emptied_and_a_removed_file_are_named(uri: str) -> None:
    for epoch, part in parts(uri):
        place = f"{uri}/{part.name}"
        whole = storage.read(place)
        _overwrite(place, b"")
        assert_named(uri, epoch, part)
        storage.delete(place)
        assert_named(uri, epoch, part)
        _overwrite(place, whole)


def test_files_that_changed_places_are_found(uri: str) -> None:
    """Of another epoch, of another rank, and of a run with other numbers."""
    record(f"{uri}-stale", seed=1)
    (first, own), (_, rank), (_, later), _ = parts(uri)
    stale = parts(f"{uri}-stale")[0][1]
    whole = storage.read(f"{uri}/{own.name}")
    for other in (f"{uri}/{rank.name}", f"{uri}/{later.name}", f"{uri}-stale/{stale.name}"):
        _overwrite(f"{uri}/{own.name}", storage.read(other))
        assert_named(uri, first, own)
    _overwrite(f"{uri}/{own.name}", whole)
    read_all(uri)


def test_bytes_behind_the_end_do_no_harm(uri: str) -> None:
    """On a disk they are damage; a store is asked for the recorded bytes alone."""
    expected = read_all(uri)
    epoch, part = parts(uri)[0]
    _overwrite(f"{uri}/{part.name}", storage.read(f"{uri}/{part.name}") + b"PAR1")
    if storage.is_local(uri):
        assert_named(uri, epoch, part)
    else:
        assert_equal(read_all(uri), expected)


def test_a_folder_in_the_place_of_a_file_is_damage(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "dynamics")
    epoch, part = parts(str(tmp_path / "dynamics"))[0]
    (tmp_path / "dynamics" / part.name).unlink()
    (tmp_path / "dynamics" / part.name).mkdir()
    assert_named(str(tmp_path / "dynamics"), epoch, part)


def test_damage_in_a_block_leaves_the_others_readable(uri: str) -> None:
    expected = read_all(uri)
    _, part = parts(uri)[0]
    file = DynamicsStore(uri).files(0)[0]
    damaged = bytearray(storage.read(f"{uri}/{part.name}"))
    damaged[file._ends[1] + 3] ^= 1
    _overwrite(f"{uri}/{part.name}", damaged)
    store = DynamicsStore(uri)
    for low in range(0, N, store.span):
        high = min(low + store.span, N)
        if low == store.span:
            with pytest.raises(CorruptArtifactError):
                store.read(0, low, high, COLUMNS)
        else:
            read = store.read(0, low, high, COLUMNS)
            assert_equal([read], [{name: column[low:high] for name, column in expected[0].items()}])


def test_a_rank_without_records_writes_no_file(tmp_path: Path) -> None:
    writers = [DynamicsWriter(str(tmp_path), 3, rank, 2) for rank in range(2)]
    writers[0].observe(np.arange(3), np.eye(3, dtype=np.float32), np.arange(3))
    commit = writers[0].commit_epoch(0, [writer.flush(0) for writer in writers])
    assert [file.rows for file in commit.files] == [3]
    assert DynamicsStore(str(tmp_path)).read(0, 0, 3, ["correct"])["correct"].all()


@given(
    st.sets(st.integers(0, 500), min_size=1),
    st.sampled_from([1, 2, 8, 64, 512, 1024]),
    st.sampled_from([1, 1000, 1 << 20]),
    st.data(),
)
@settings(max_examples=60)
def test_blocks_are_the_multiples_of_the_span_and_any_cut_comes_back(
    tmp_path_factory: pytest.TempPathFactory, some: set[int], span: int, read_bytes: int, data: st.DataObject
) -> None:
    ids = np.array(sorted(some), dtype=np.int64)
    values = np.sqrt(ids + 1, dtype=np.float32)
    content, footer = encode(pa.table({"sample_id": ids, "p_label": values}), span)
    place = str(tmp_path_factory.mktemp("file") / "part.parquet")
    storage.write(place, content)
    file = EpochFile(place, len(content), footer, "epoch 0")
    assert (file.first // span == file.last // span).all()
    assert len(np.unique(ids // span)) == len(file.first)
    low = data.draw(st.integers(0, 510))
    high = data.draw(st.integers(low, 510))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_file, "READ_BYTES", read_bytes)
        blocks: list[Any] = list(file.blocks(["p_label"], low, high))
    assert all(len(found) == len(columns["p_label"]) for found, columns in blocks)
    expected = (ids >= low) & (ids < high)
    assert [i for found, _ in blocks for i in found] == ids[expected].tolist()
    assert [v for _, columns in blocks for v in columns["p_label"]] == values[expected].tolist()


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_reader_of_some_ids_reads_only_their_blocks_in_one_piece(
    recorded: Path, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DynamicsStore(copy(recorded, "memory://blocks"))
    read, asked = storage.read_range, []
    monkeypatch.setattr(storage, "read_range", lambda *a: asked.append(a[2]) or read(*a))
    store.read(0, store.span, min((1 + blocks) * store.span, N), ["p_label"])
    footers = [part.bytes - footer["start"] for part, footer in zip(*_first(store), strict=True)]
    wanted = [file._ends[1 + blocks] - file._ends[1] for file in store.files(0)]
    assert sorted(asked) == sorted([*footers, *wanted])


def _first(store: DynamicsStore) -> tuple[tuple[Part, ...], Any]:
    return store.commits[0].files, store.commits[0].facts["footers"]


def _overwrite(place: str, data: bytes | bytearray) -> None:
    """Without the care of `storage.write`, as damage comes."""
    if storage.is_local(place):
        Path(place).write_bytes(data)
    else:
        storage.write(place, bytes(data))


def assert_equal(read: list[dict[str, NDArray[Any]]], expected: list[dict[str, NDArray[Any]]]) -> None:
    for one, other in zip(read, expected, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_what_was_read_stays_when_more_is_read(recorded: Path) -> None:
    """The memory for what is decoded next is used again; nothing that was handed out lies in it."""
    store = DynamicsStore(str(recorded))
    (file, *_) = store.files(0)
    read = [values for _, values in file.blocks(COLUMNS)]
    before = [{name: column.copy() for name, column in values.items()} for values in read]
    for epoch in store.epochs:
        store.read(epoch, 0, N, COLUMNS)
    for values, expected in zip(read, before, strict=True):
        for name, column in values.items():
            np.testing.assert_array_equal(column, expected[name])
