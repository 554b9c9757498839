"""Decoded images on local disk: the decoder's bytes, from a cache that may vanish or be damaged at any time."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import images, pixels
from pipeline.disk_cache import DiskCache
from pipeline.epoch_plan import Plan, in_order
from pipeline.errors import DataError
from pipeline.pixels import Pixels, ShardPixels
from pipeline.samples import Samples
from pipeline.stage import Artifact
from tests.pipeline.making import image, open_samples, run_index, write_dataset, write_shard


@pytest.fixture(scope="module")
def index(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Three shards of which the middle one is empty and the last misses an image."""
    folder = tmp_path_factory.mktemp("pixels")
    pattern = write_dataset(folder / "data", num_shards=3)
    write_shard(folder / "data/train-000001.tar", [])
    samples = [
        ("x1", {"jpg": image(50, (20, 30), "JPEG")}),
        ("bad", {"png": b"x"}),
        ("x2", {"webp": image(51, (9, 9), "WEBP")}),
    ]
    write_shard(folder / "data/train-000002.tar", samples)
    return run_index(folder / "run", pattern)


EXPECTED = np.stack(
    [
        images.decode(data, 8, 10**6)
        for data in (*map(image, range(4)), image(50, (20, 30), "JPEG"), image(51, (9, 9), "WEBP"))
    ]
)
ALL = np.arange(6)


@pytest.fixture
def samples(index: Artifact) -> Samples:
    return open_samples(index)


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache.at(str(tmp_path), 10**9)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every shard that is decoded from now on, by its file's name."""
    uris = []
    decode = ShardPixels._decode

    def remember(part: ShardPixels, threads: int) -> np.ndarray:
        uris.append(Path(part.shard.uri).name)
        return decode(part, threads)

    monkeypatch.setattr(ShardPixels, "_decode", remember)
    return uris


def files(cache: DiskCache) -> list[Path]:
    return sorted(cache.folder.glob("*.arrow"))


@pytest.mark.parametrize("threads", [1, 3])
def test_images_stand_in_the_order_of_their_ids(samples: Samples, cache: DiskCache, threads: int) -> None:
    np.testing.assert_array_equal(Pixels(samples, cache, threads).take(ALL), EXPECTED)


@pytest.mark.parametrize("ids", [[5, 0, 3, 4, 0, 5, 5], [4], [], [1, 2]])
def test_take_in_any_order(samples: Samples, cache: DiskCache, ids: list[int]) -> None:
    taken = Pixels(samples, cache).take(np.array(ids, np.int64))
    assert taken.dtype == np.uint8
    assert taken.flags.writeable
    np.testing.assert_array_equal(taken, EXPECTED[ids].reshape(-1, 8, 8, 3))


def test_what_is_done_to_a_step_does_not_reach_the_cache(samples: Samples, cache: DiskCache) -> None:
    opened = Pixels(samples, cache)
    for _ in range(2):
        for step in opened.steps(in_order(samples, ALL, 4)):
            np.testing.assert_array_equal(step.images, EXPECTED[step.ids])
            step.images[:] = 77


@pytest.mark.parametrize("ids", [[6], [-1]])
def test_ids_outside_are_refused(samples: Samples, cache: DiskCache, ids: list[int]) -> None:
    with pytest.raises(AssertionError, match="out of range"):
        Pixels(samples, cache).take(np.array(ids))


def test_a_shard_is_decoded_when_it_is_first_wanted_and_once(
    samples: Samples, cache: DiskCache, decoded: list[str]
) -> None:
    opened = Pixels(samples, cache)
    opened.take(np.array([1, 0]))
    assert decoded == ["train-000000.tar"] and len(files(cache)) == 1
    opened.take(ALL)
    opened.take(ALL)
    assert decoded == ["train-000000.tar", "train-000002.tar"]
    Pixels(samples, cache).take(ALL)
    assert len(decoded) == len(files(cache)) == 2


def test_files_are_mapped_and_not_copied(samples: Samples, cache: DiskCache) -> None:
    opened = Pixels(samples, cache)
    opened.take(np.array([0]))
    first, *others = opened._arrays
    assert others == [None, None]
    assert first is not None and not first.flags.writeable and not first.flags.owndata


def test_what_is_missing_are_the_shards_with_images_that_are_not_there(samples: Samples, cache: DiskCache) -> None:
    opened = Pixels(samples, cache)
    missing = opened.missing()
    assert [Path(part.shard.uri).name for part in missing] == ["train-000000.tar", "train-000002.tar"]
    assert not files(cache)  # to ask decodes nothing
    assert missing[1].fill(cache)
    assert [part.name for part in opened.missing()] == [missing[0].name]
    assert missing[0].fill(cache, threads=2)
    assert opened.missing() == []


def test_a_name_says_what_decides_the_bytes_and_not_where_they_came_from(
    samples: Samples, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, other = Pixels(samples, cache).missing()
    moved = replace(part, shard=replace(part.shard, uri="s3://elsewhere/7.tar", shard=7, first_id=70))
    assert moved.name == part.name
    others = [
        other,
        replace(part, shard=replace(part.shard, sha256="0" * 64)),
        replace(part, size=16),
        replace(part, max_pixels=5),
        replace(part, offsets=part.offsets[:-1], lengths=part.lengths[:-1]),
        replace(part, offsets=part.offsets + 512),
    ]
    names = {one.name for one in others}
    pixels._decoders.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "version", lambda name: "another")
        names.add(replace(part).name)
    pixels._decoders.cache_clear()
    assert part.name not in names and len(names) == 7


def test_a_shard_that_changed_is_an_error_by_name(ray_local: None, tmp_path: Path, cache: DiskCache) -> None:
    pattern = write_dataset(tmp_path / "data", num_shards=2)
    index = run_index(tmp_path / "run", pattern)
    path = tmp_path / "data/train-000001.tar"
    path.write_bytes(path.read_bytes().replace(b"s004", b"t004"))
    opened = Pixels(open_samples(index), cache)
    opened.take(np.arange(4))
    with pytest.raises(DataError, match=r"train-000001\.tar' has changed since indexing"):
        opened.take(np.array([5]))
    assert len(files(cache)) == 1


def test_an_image_that_decoded_only_at_indexing_is_named_with_its_shard(samples: Samples, cache: DiskCache) -> None:
    strict = Pixels(replace(samples, max_pixels=63), cache)
    with pytest.raises(DataError, match=r"train-000000\.tar' that could be decoded .* max_pixels=63\): use the same"):
        strict.take(ALL)
    assert not files(cache)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def without_its_footer(path: Path) -> None:
    """Where pyarrow raises OSError instead of ArrowInvalid."""
    content = bytearray(path.read_bytes())
    content[-100:-20] = bytes(80)
    path.write_bytes(content)


def of_another_shard(path: Path) -> None:
    path.write_bytes(pixels._to_arrow(EXPECTED[:3]))


def of_another_size(path: Path) -> None:
    path.write_bytes(pixels._to_arrow(np.zeros((4, 9, 9, 3), np.uint8)))


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [truncated, emptied, overwritten, without_its_footer, of_another_shard, of_another_size, removed],
    ids=lambda f: f.__name__,
)
def test_a_damaged_file_is_made_again(
    samples: Samples, cache: DiskCache, damage: Callable[[Path], None], decoded: list[str]
) -> None:
    Pixels(samples, cache).take(ALL)
    first = cache.folder / Pixels(samples, cache)._part(0).name
    good = first.read_bytes()
    damage(first)
    np.testing.assert_array_equal(Pixels(samples, cache).take(ALL), EXPECTED)
    assert first.read_bytes() == good
    assert len(decoded) == 3


def test_a_trouble_that_is_no_damage_removes_nothing(
    samples: Samples, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pixels(samples, cache).take(ALL)

    def no_memory(path: str) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(pixels.pa, "memory_map", no_memory)
    with pytest.raises(OSError, match="Cannot allocate"):
        Pixels(samples, cache).take(ALL)
    assert len(files(cache)) == 2


def test_the_cache_may_be_deleted_at_any_time(samples: Samples, cache: DiskCache) -> None:
    opened = Pixels(samples, cache)
    opened.take(np.array([0]))
    shutil.rmtree(cache.folder)
    np.testing.assert_array_equal(opened.take(np.array([5, 0])), EXPECTED[[5, 0]])
    np.testing.assert_array_equal(Pixels(samples, cache).take(ALL), EXPECTED)


@pytest.mark.parametrize("max_bytes", [0, 1500])
def test_a_cache_that_holds_no_two_shards_serves_all_of_them(samples: Samples, tmp_path: Path, max_bytes: int) -> None:
    """What is mapped survives its eviction."""
    small = DiskCache.at(str(tmp_path), max_bytes)
    opened = Pixels(samples, small)
    for _ in range(2):
        np.testing.assert_array_equal(opened.take(ALL), EXPECTED)
    assert len(files(small)) == 1


def test_threads_that_share_a_cache_decode_every_shard_once(
    samples: Samples, cache: DiskCache, decoded: list[str]
) -> None:
    with ThreadPoolExecutor(6) as pool:
        for taken in pool.map(lambda _: Pixels(samples, cache).take(ALL), range(12)):
            np.testing.assert_array_equal(taken, EXPECTED)
    assert sorted(decoded) == ["train-000000.tar", "train-000002.tar"]


TAKER = """
import json
import sys
import numpy as np
from pipeline.disk_cache import DiskCache
from pipeline.pixels import Pixels, ShardPixels
from pipeline.samples import Samples
from pipeline.stage import Artifact
uri, manifest, place, out = sys.argv[1:]
decode, count = ShardPixels._decode, []
ShardPixels._decode = lambda part, threads: count.append(1) or decode(part, threads)
cache = DiskCache.at(place, 10**9)
opened = Pixels(Samples.open(Artifact(uri, json.loads(manifest)), cache), cache)
print("ready", flush=True)
sys.stdin.readline()
np.save(out, opened.take(np.arange(len(opened.samples))))
print(len(count))
"""


def test_processes_of_a_machine_share_the_work(ray_local: None, tmp_path: Path) -> None:
    index = run_index(tmp_path / "run", write_dataset(tmp_path / "data", num_shards=8))
    command = [sys.executable, "-c", TAKER, index.uri, json.dumps(index.manifest), str(tmp_path / "cache")]
    takers = [
        subprocess.Popen(
            [*command, str(tmp_path / f"{n}.npy")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(2)
    ]
    for taker in takers:
        assert taker.stdout is not None and taker.stdout.readline() == "ready\n"
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    counts = [int(taker.communicate(timeout=60)[0]) for taker in takers]
    assert sum(counts) == 8, counts
    expected = np.stack([images.decode(image(n), 8, 10**6) for n in range(32)])
    for n in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"{n}.npy"), expected)


def test_steps_are_those_of_the_plan(samples: Samples, cache: DiskCache) -> None:
    plan = Plan(samples, 0, "test", 4, rank=1, world_size=2)
    steps = Pixels(samples, cache).steps(itertools.islice(plan.epochs(), 2 * plan.num_steps))
    for planned, step in zip(itertools.islice(plan.epochs(), 2 * plan.num_steps), steps, strict=True):
        assert step.ids.tolist() == planned.ids.tolist() and step.valid.tolist() == planned.valid.tolist()
        assert step.num_valid_global == planned.num_valid_global
        np.testing.assert_array_equal(step.images, EXPECTED[step.ids])
