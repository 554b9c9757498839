"""A folder of files that many processes fill and use: bounded, never half written, never in anybody's way."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import disk_cache
from pipeline.disk_cache import DiskCache
from pipeline.errors import UserError


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path, 100)


Make = Callable[[Callable[[int, bytes], None]], object]


def content(data: bytes) -> tuple[int, Make]:
    """What `fill` is told of a file."""
    return len(data), lambda put: put(0, data)


def never(put: Callable[[int, bytes], None]) -> None:
    raise AssertionError("made though it is there")


def names(cache: DiskCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if path.suffix != ".lock"}


def test_a_file_is_made_once_and_found(cache: DiskCache) -> None:
    assert cache.find("one") is None
    assert cache.fill("one", *content(b"content"))
    found = cache.find("one")
    assert found is not None and found.read_bytes() == b"content"
    assert cache.fill("one", 0, never)


def test_what_was_not_used_longest_goes(cache: DiskCache) -> None:
    for age, name in enumerate(["a", "b", "c"]):
        cache.fill(name, *content(bytes(30)))
        os.utime(cache.folder / name, (1000 + age, 1000 + age))
    assert cache.find("a") is not None  # which makes it the last one used
    cache.fill("d", *content(bytes(30)))
    assert names(cache) == {"a", "c", "d"}
    cache.fill("large", *content(bytes(70)))
    assert names(cache) == {"d", "large"}


def test_a_file_larger_than_the_cache_is_alone_in_it(cache: DiskCache) -> None:
    cache.fill("a", *content(bytes(30)))
    cache.fill("huge", *content(bytes(1000)))
    assert names(cache) == {"huge"}
    cache.fill("b", *content(bytes(30)))
    assert names(cache) == {"b"}


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 100)), max_size=25))
def test_it_never_holds_more_than_it_may(wanted: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = DiskCache(Path(folder), 100)
        for name, size in wanted:
            assert cache.fill(name, *content(bytes(size)))
            assert cache.find(name) is not None
            assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 100


def test_a_file_that_is_mapped_outlives_its_eviction(cache: DiskCache) -> None:
    cache.fill("a", *content(b"still here" * 5))
    mapped = pa.memory_map(str(cache.find("a"))).read_buffer()
    cache.fill("b", *content(bytes(90)))
    assert cache.find("a") is None
    assert mapped.to_pybytes() == b"still here" * 5


def test_what_a_maker_raises_leaves_nothing_and_the_next_one_makes_it(cache: DiskCache) -> None:
    def fail(put: Callable[[int, bytes], None]) -> None:
        put(0, b"half of it")
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        cache.fill("a", 9, fail)
    assert names(cache) == set()
    assert cache.fill("a", *content(b"yes"))


@pytest.mark.parametrize("error", [ValueError("a mistake of ours"), FileNotFoundError("another file")])
def test_what_a_maker_raises_is_not_blamed_on_the_cache(cache: DiskCache, error: Exception) -> None:
    def fail(put: Callable[[int, bytes], None]) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        cache.fill("a", 9, fail)


def test_what_is_put_here_and_there_is_the_file(cache: DiskCache) -> None:
    def make(put: Callable[[int, bytes], None]) -> None:
        put(4, b"there")
        put(0, b"here")

    cache.fill("a", 9, make)
    found = cache.find("a")
    assert found is not None and found.read_bytes() == b"herethere"


def test_room_is_made_before_a_file_is_written(small_disk: Path) -> None:
    """Where no more is free on the disk than the cache may have."""
    free = disk_cache.shutil.disk_usage(small_disk).free
    cache = DiskCache.at(str(small_disk), int(0.9 * free))
    for name in "abcd":
        cache.fill(name, *content(bytes(int(0.4 * free))))
    assert names(cache) == {"c", "d"}


def test_a_file_that_became_larger_than_was_said_takes_the_room_of_others(cache: DiskCache) -> None:
    cache.fill("a", *content(bytes(60)))
    cache.fill("b", 10, content(bytes(70))[1])
    assert names(cache) == {"b"}


HOLDER = """
import sys
from pathlib import Path
from pipeline.disk_cache import DiskCache
def make(put):
    put(0, b"begun")
    print("making", flush=True)
    put(0, sys.stdin.readline().encode())
cache = DiskCache(Path(sys.argv[1]), 100)
while not cache.fill(sys.argv[2], 7, make):
    pass
print(cache.find(sys.argv[2]).read_bytes().decode().strip())
"""


@contextmanager
def filled_elsewhere(cache: DiskCache, name: str) -> Iterator[subprocess.Popen[str]]:
    """Another process in the midst of making a file; it ends when it gets a line, which is the content."""
    command = [sys.executable, "-c", HOLDER, str(cache.folder), name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "making\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_while_another_process_makes_a_file_nobody_waits(cache: DiskCache) -> None:
    with filled_elsewhere(cache, "name") as other:
        assert cache.fill("name", 0, never) is False
        assert cache.find("name") is None
        assert cache.fill("other", *content(b"meanwhile"))
        out, _ = other.communicate("theirs\n", timeout=30)
        assert out == "theirs\n"
    assert cache.fill("name", 0, never)


def test_a_process_that_is_killed_in_the_midst_of_it_is_in_nobodys_way(cache: DiskCache) -> None:
    with filled_elsewhere(cache, "name") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        deadline = time.monotonic() + 10
        while not cache.fill("name", *content(b"ours")):
            assert time.monotonic() < deadline
    found = cache.find("name")
    assert found is not None and found.read_bytes() == b"ours"
    assert names(cache) == {"name"}  # what it had written is gone


def test_what_an_unfinished_write_left_counts_and_goes(cache: DiskCache) -> None:
    left = cache.folder / ".name.0123.tmp"
    left.write_bytes(bytes(60))
    os.utime(left, (1000, 1000))
    cache.fill("a", *content(bytes(50)))
    assert names(cache) == {"a"}


def test_what_another_process_is_writing_stays(cache: DiskCache) -> None:
    being_written = cache.folder / ".name.0123.tmp"
    being_written.write_bytes(bytes(200))
    cache.fill("a", *content(bytes(50)))
    cache.fill("b", *content(bytes(50)))
    assert names(cache) == {being_written.name, "a", "b"}


def test_files_that_vanish_meanwhile_are_no_trouble(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when two processes make room at once."""
    for name in ("a", "b"):
        cache.fill(name, *content(bytes(50)))
    sizes = disk_cache._sizes

    def outdated(folder: Path) -> dict[Path, int]:
        found = sizes(folder)
        (folder / "a").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(disk_cache, "_sizes", outdated)
    assert cache.fill("c", *content(bytes(50)))
    assert "c" in names(cache)


@pytest.mark.parametrize("what", ["folder", "contents", "folder that is there again"])
def test_what_is_deleted_while_it_is_made_is_made_again(tmp_path: Path, what: str) -> None:
    cache = DiskCache.at(str(tmp_path), 100)

    def vanish(put: Callable[[int, bytes], None]) -> None:
        put(0, b"half of it")
        for path in cache.folder.iterdir():
            path.unlink()
        if what != "contents":
            cache.folder.rmdir()
        if what == "folder that is there again":
            cache.folder.mkdir(mode=0o700)

    assert cache.fill("name", 9, vanish) is False
    assert cache.find("name") is None
    assert cache.fill("name", *content(b"whole"))
    found = cache.find("name")
    assert found is not None and found.read_bytes() == b"whole"
    shutil.rmtree(cache.folder)
    assert cache.find("name") is None and cache.fill("name", *content(b"whole"))
    assert cache.folder.stat().st_mode & 0o077 == 0


def test_by_default_it_is_this_users_own_folder_and_half_of_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(disk_cache.shutil, "disk_usage", lambda _: disk_cache.shutil._ntuple_diskusage(0, 0, 900))
    cache = DiskCache.at(None, None)
    assert cache.folder == tmp_path / f"semiprune-cache-{os.getuid()}"
    assert cache.folder.stat().st_mode & 0o077 == 0
    assert cache.max_bytes == 450
    (cache.folder / "a").write_bytes(bytes(100))  # what it holds is not lost to it
    assert DiskCache.at(None, None).max_bytes == 500
    assert DiskCache.at(None, 7).max_bytes == 7


def test_in_a_place_that_is_named_it_touches_nothing_but_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_bytes(bytes(1000))
    cache = DiskCache.at(str(tmp_path), 100)
    assert cache.folder.parent == tmp_path
    for name in ("a", "b"):
        cache.fill(name, *content(bytes(80)))
    assert names(cache) == {"b"}
    assert (tmp_path / "train-000000.tar").stat().st_size == 1000
    assert DiskCache.at(str(tmp_path / "new/er"), 100).folder.parent == tmp_path / "new/er"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_way_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError,
        match=r"^no cache at '.*file.*': .*; name a folder in resources\.cache_dir$",
    ):
        DiskCache.at(str(tmp_path / place), None)


def test_a_folder_of_someone_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    (tmp_path / f"semiprune-cache-{owner + 1}").mkdir()
    monkeypatch.setattr(disk_cache.os, "getuid", lambda: owner + 1)
    with pytest.raises(UserError, match=r"^'.*' belongs to another user: name another place in resources.cache_dir$"):
        DiskCache.at(str(tmp_path), None)


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(small_disk: Path) -> None:
    cache = DiskCache.at(str(small_disk), 10**9)
    cache.fill("a", *content(b"there"))
    with suppress(OSError):
        (small_disk / "filling").write_bytes(bytes(1 << 20))
    with pytest.raises(UserError, match=r"^no space left to write '.*bb': free some, then run the same command again$"):
        cache.fill("bb", *content(bytes(5000)))
    assert names(cache) == {"a"}
