"""Where the images are, and whether they still are what was indexed."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import images, samples, storage
from pipeline.disk_cache import DiskCache
from pipeline.errors import DataError
from pipeline.index import load_index, load_shards
from pipeline.samples import Samples
from pipeline.stage import Artifact
from tests.pipeline.making import image, open_samples, run_index, write_shard

N = 12


def key(number: int) -> str:
    return {3: "straße/003", 4: "deep/" * 30 + "004"}.get(number, f"s{number:03d}")


@pytest.fixture(scope="module")
def index(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two shards with an empty one between them; members before and behind the images, and one in quarantine."""
    folder = tmp_path_factory.mktemp("samples")
    content = [(key(n), {"cls": b"1", "png": image(n), "json": b"{}"}) for n in range(N)]
    bad = ("bad", {"png": b"no image", "cls": b"1"})
    write_shard(folder / "0.tar", [*content[:2], bad, *content[2:7]])
    write_shard(folder / "1.tar", [])
    write_shard(folder / "2.tar", content[7:])
    return run_index(folder / "run", f"{folder}/{{0..2}}.tar", image_size=16, max_pixels=1000)


@pytest.fixture
def opened(index: Artifact) -> Samples:
    return open_samples(index)


def test_they_are_what_the_index_says(index: Artifact, opened: Samples) -> None:
    table = load_index(index)
    assert len(opened) == N and (opened.size, opened.max_pixels) == (16, 1000)
    for name in samples._COLUMNS:
        column = getattr(opened, name)
        assert column.dtype == np.int64 and column.tolist() == table[name].to_pylist()
    assert opened.shards == load_shards(index)
    assert opened.keys.to_pylist() == [key(n) for n in range(N)]


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache.at(str(tmp_path), 10**9)


def assert_same(one: Samples, other: Samples) -> None:
    for field in fields(Samples):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name))


def test_a_machine_reads_the_index_once_and_its_processes_map_what_it_said(
    index: Artifact, opened: Samples, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = Artifact.tables
    monkeypatch.setattr(Artifact, "tables", lambda *args, **options: reads.append(args) or read(*args, **options))
    for _ in range(3):
        found = Samples.open(index, cache)
        assert_same(found, opened)
        assert not found.offset.flags.owndata and not found.offset.flags.writeable
    assert [args for args in reads if len(args) == 1] == [(index,)]
    (file,) = cache.folder.glob("*.samples")
    file.unlink()  # evicted
    assert_same(found, opened)
    assert_same(Samples.open(index, cache), opened)


@pytest.mark.parametrize("size", [0, 8, 100, -1, 1])
def test_a_file_that_was_cut_short_or_added_to_is_made_again(
    index: Artifact, opened: Samples, cache: DiskCache, size: int
) -> None:
    """size: of what is left of it; the last byte gone, or one more, where it is -1 or 1."""
    Samples.open(index, cache)
    (file,) = cache.folder.glob("*.samples")
    whole = file.read_bytes()
    file.write_bytes({-1: whole[:-1], 1: whole + b"x"}.get(size, whole[:size]))
    assert_same(Samples.open(index, cache), opened)
    assert file.read_bytes() == whole


def test_processes_that_begin_together_write_it_once(
    index: Artifact, opened: Samples, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = samples._write
    monkeypatch.setattr(samples, "_write", lambda *args: written.append(args) or time.sleep(0.3) or write(*args))
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: Samples.open(index, cache), range(4)):
            assert_same(found, opened)
    assert len(written) == 1


def test_a_file_that_is_evicted_before_it_is_mapped_is_made_again(
    index: Artifact, opened: Samples, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    Samples.open(index, cache)
    (file,) = cache.folder.glob("*.samples")
    map_, lost = samples._map, []

    def map_late(path: Path, total: int) -> Any:
        if not lost:
            lost.append(file.unlink())
        return map_(path, total)

    monkeypatch.setattr(samples, "_map", map_late)
    assert_same(Samples.open(index, cache), opened)
    assert lost


def test_another_index_of_as_many_samples_has_a_file_of_its_own(
    index: Artifact, opened: Samples, cache: DiskCache, tmp_path: Path
) -> None:
    Samples.open(index, cache)
    write_shard(tmp_path / "0.tar", [(f"other{n}", {"png": image(n), "cls": b"1"}) for n in range(N)])
    other = Samples.open(run_index(tmp_path / "run", str(tmp_path / "0.tar")), cache)
    assert other.keys.to_pylist() == [f"other{n}" for n in range(N)]
    assert_same(Samples.open(index, cache), opened)


def test_no_samples_are_no_trouble(cache: DiskCache, index: Artifact) -> None:
    none = Artifact(index.uri, index.manifest | {"parts": [vars(part) for part in index.parts("shards")]})
    found = Samples.open(none, cache)
    assert len(found.offset) == len(found.keys) == 0


@pytest.mark.parametrize("ids", [[0], [0, 1, 2, 3, 4, 5, 6], [1, 2], [3, 6], [7, 9, 11]])
def test_a_run_of_a_shard_is_one_request_however_many_of_it_are_wanted(
    opened: Samples, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    read = storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda *where: asked.append(where) or read(*where))
    span = opened.span(np.array(ids))
    assert asked == []
    piece = pickle.loads(pickle.dumps(span)).read()  # noqa: S301 - as another process gets it
    first, last = ids[0], ids[-1]
    end = opened.offset[last] + opened.length[last]
    (shard,) = opened.shard_of(np.array([first]))
    assert asked == [(opened.shards[shard].uri, opened.offset[first], end - opened.offset[first])]
    assert {n: bytes(data) for n, data in piece.images.items()} == {n: image(n) for n in ids}


def moved(opened: Samples, path: Path) -> Samples:
    """With another file in the place of the first shard."""
    return replace(opened, shards=[replace(opened.shards[0], uri=str(path)), *opened.shards[1:]])


@pytest.mark.parametrize("damage", ["gone", "shorter", "another name", "another size", "no header"])
def test_a_shard_that_is_not_the_indexed_one_is_an_error_by_name(opened: Samples, tmp_path: Path, damage: str) -> None:
    content = bytearray(Path(opened.shards[0].uri).read_bytes())
    header = int(opened.image_offset[5]) - 512
    if damage == "shorter":
        del content[header + 300 :]
    elif damage == "another name":
        content[header : header + 4] = b"t005"
    elif damage == "another size":
        content[header + 130] ^= 1
    elif damage == "no header":
        content[header + 124 : header + 136] = b"ninety-ninex"
    path = tmp_path / "other.tar"
    if damage != "gone":
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"the shard '.*other\.tar' (has changed since indexing|is gone)"):
        moved(opened, path).span(np.array([0, 5, 6])).read()
    if damage in ("another name", "another size", "no header"):  # what is not asked for is not looked at
        assert moved(opened, path).span(np.array([0, 6])).read().images.keys() == {0, 6}


def test_an_image_that_cannot_be_decoded_any_more_is_named_with_its_shard(opened: Samples) -> None:
    error = opened.span(np.array([2, 3, 5])).read().undecodable(3, images.UndecodableImageError("no image"))
    assert isinstance(error, DataError)
    assert str(error).startswith(f"the image 'straße/003' in '{opened.shards[0].uri}' could be decoded at indexing")
    assert "(no image)" in str(error)
