import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from pipeline import epoch_order, epoch_plan, images, storage, stream
from pipeline.batches import Step
from pipeline.decoder import Views
from pipeline.disk_cache import DiskCache
from pipeline.epoch_plan import Plan, Planned, in_order
from pipeline.errors import DataError, StorageError
from pipeline.pixels import Pixels
from pipeline.random_crop import RandomCrop
from pipeline.samples import Samples
from pipeline.shards import Shard
from pipeline.stream import Stream
from tests.object_store import Fault, Proxy, Request
from tests.pipeline import in_decoder
from tests.pipeline.in_decoder import Arriving, decoders
from tests.pipeline.making import image, open_samples, run_index, write_shard

SIZE, NUM_SHARDS, PER_SHARD = 16, 4, 90
N = NUM_SHARDS * PER_SHARD
CROP = RandomCrop()


def data(number: int) -> bytes:
    form = "PNG" if number % 5 == 0 else "JPEG"
    return image(number, (20 + number % 13, 24), form)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Samples:
    """An index of shards with members before and behind the image, and some names that take headers of their own."""
    folder = tmp_path_factory.mktemp("stream")
    for shard in range(NUM_SHARDS):
        numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        content = [
            (
                name(n),
                {"cls": b"1", "png" if n % 5 == 0 else "jpg": data(n), "json": b"{}"}
                | ({"x" * 110: b""} if n == 9 else {}),
            )
            for n in numbers
        ]
        write_shard(folder / f"train-{shard}.tar", content)
    index = run_index(folder / "run", f"{folder}/train-{{0..{NUM_SHARDS - 1}}}.tar", image_size=SIZE)
    found = open_samples(index)
    assert len(found) == N
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> DiskCache:
    return DiskCache(tmp_path_factory.mktemp("cache"), 10**9)


def name(number: int) -> str:
    return {7: "straße/007", 8: "deep/" * 30 + "008"}.get(number, f"s{number:03d}")


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return np.stack([images.decode(data(n), SIZE, 10**6) for n in range(N)])


class Requests:
    """The ranges that decoders ask for: uri, start, length."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def recorded(self, views: Views | None = None) -> Arriving:
        """For a stream, instead of its views."""
        return Arriving(partial(in_decoder.record, self._notes), views)

    def taken(self) -> list[tuple[str, int, int]]:
        """Since the last call."""
        lines = self._notes.read_text().splitlines()
        self._notes.unlink()
        return [(uri, int(start), int(length)) for uri, start, length in map(str.split, lines)]


@pytest.fixture
def requests(tmp_path: Path) -> Requests:
    return Requests(tmp_path / "requests")


def assert_no_decoder() -> None:
    """A process that has let go of its end of a connection is a moment from its own."""
    until = time.monotonic() + 10
    while decoders():
        assert time.monotonic() < until, decoders()
        time.sleep(0.01)


def assert_epoch(ranks: list[list[Step]], expected: np.ndarray) -> None:
    """Every id is there exactly once, with its pixels."""
    valid = np.concatenate([step.valid for steps in ranks for step in steps])
    ids = np.concatenate([step.ids for steps in ranks for step in steps])
    pixels = np.concatenate([step.images for steps in ranks for step in steps])
    assert np.array_equal(np.sort(ids[valid]), np.arange(len(expected)))
    assert np.array_equal(pixels, expected[ids])
    for together in zip(*ranks, strict=True):
        assert {step.num_valid_global for step in together} == {sum(int(step.valid.sum()) for step in together)}


def moved(samples: Samples, place: Callable[[Shard], str]) -> Samples:
    return replace(samples, shards=[replace(shard, uri=place(shard)) for shard in samples.shards])


def planned(
    samples: Samples, batch_size: int, rank: int = 0, world_size: int = 1, epoch: int = 0, seed: int = 0
) -> Iterator[Planned]:
    """One epoch."""
    plan = Plan(samples, seed, "test", batch_size, rank, world_size)
    return itertools.islice(plan.epochs(epoch), plan.num_steps)


def of_a_large_dataset(monkeypatch: pytest.MonkeyPatch, max_rows: int = 5, lanes: int = 4, window: int = 100) -> None:
    """A lane has many chunks, and an epoch many windows."""
    monkeypatch.setattr(epoch_plan, "SMALL_BYTES", 0)
    monkeypatch.setattr(epoch_plan, "WINDOW", window)
    monkeypatch.setattr(epoch_plan, "LANES", lanes)
    monkeypatch.setattr(epoch_order, "LANES", lanes)
    monkeypatch.setattr(epoch_plan, "cut_chunks", partial(epoch_order.cut_chunks, max_rows=max_rows))


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_every_sample_comes_once_an_epoch_with_the_pixels_of_the_decoder(
    samples: Samples, expected: np.ndarray, world_size: int
) -> None:
    for epoch in range(2):
        ranks = [
            list(Stream(samples).steps(planned(samples, 50, rank, world_size, epoch))) for rank in range(world_size)
        ]
        assert_epoch(ranks, expected)


def test_a_batch_smaller_than_the_group_has_padding(samples: Samples, expected: np.ndarray) -> None:
    ranks = [list(Stream(samples).steps(planned(samples, 2, rank, 3))) for rank in range(3)]
    assert_epoch(ranks, expected)
    assert {len(step.ids) for steps in ranks for step in steps} == {1}
    assert sum(int((~step.valid).sum()) for steps in ranks for step in steps) == N // 2


LABELLED = np.random.default_rng(0).choice(N, 40, replace=False)
PLANS: dict[str, Callable[[Samples], Iterator[Planned]]] = {
    "an epoch": lambda samples: planned(samples, 32, seed=3),
    "a rank of several": lambda samples: planned(samples, 32, rank=1, world_size=3),
    "padding": lambda samples: planned(samples, 2, rank=2, world_size=3),
    "epochs": lambda samples: itertools.islice(Plan(samples, 0, "test", 50).epochs(4), 20),
    "labelled rows over and over": lambda samples: itertools.islice(
        Plan(samples, 0, "test", 32, 1, 2, LABELLED).endless(7), 12
    ),
    "all rows over and over": lambda samples: itertools.islice(Plan(samples, 0, "test", 64).endless(3), 12),
    "in order": lambda samples: in_order(samples, np.arange(100, 300), 64),
    "in an order of their own": lambda samples: in_order(samples, LABELLED, 7),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("large", [False, True])
def test_a_plan_gives_the_same_steps_from_the_cache_and_from_the_shards(
    samples: Samples,
    cache: DiskCache,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    large: bool,
) -> None:
    if large:
        of_a_large_dataset(monkeypatch)
    ways = [Stream(samples, processes=2), Stream(samples), Pixels(samples, cache)]
    streamed, alone, cached = (list(way.steps(PLANS[name](samples))) for way in ways)
    assert len(streamed) == len(cached) > 0
    for one, other, third in zip(streamed, cached, alone, strict=True):
        for step in (other, third):
            assert all(np.array_equal(ours, theirs) for ours, theirs in zip(one, step, strict=True))
            assert step.images.flags.writeable and step.images.dtype == np.uint8


def test_steps_do_not_depend_on_processes_or_on_where_the_epoch_was_taken_up(
    samples: Samples, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_a_large_dataset(monkeypatch)
    views = requests.recorded(partial(CROP.views, 3, "test"))
    plan = Plan(samples, 3, "test", 32)
    whole = list(Stream(samples, 3, views).steps(itertools.islice(plan.epochs(), 3 * plan.num_steps)))
    of_whole = len(requests.taken())
    tail = list(Stream(samples, 1, views).steps(itertools.islice(plan.epochs(2), plan.num_steps)))
    assert len(whole) == 3 * len(tail)
    for one, other in zip(whole[-len(tail) :], tail, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.images, other.images)
    assert len(requests.taken()) == of_whole / 3

    whole = list(Stream(samples, 3, requests.recorded()).steps(itertools.islice(plan.endless(), 12)))
    of_whole = len(requests.taken())
    tail = list(Stream(samples, 1, requests.recorded()).steps(itertools.islice(plan.endless(9), 3)))
    for one, other in zip(whole[9:], tail, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.images, other.images)
    # Nothing is read that only the steps before need.
    assert len(requests.taken()) < of_whole * 0.6


def test_of_what_is_large_every_range_is_read_once_an_epoch(
    samples: Samples, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_a_large_dataset(monkeypatch)
    for rank in range(2):
        list(Stream(samples, 2, requests.recorded()).steps(planned(samples, 32, rank, 2)))
    asked = requests.taken()
    assert len(asked) == len(set(asked))
    assert sum(length for _, _, length in asked) == samples.length.sum()


def test_of_what_is_small_every_worker_reads_all_in_few_requests(samples: Samples, requests: Requests) -> None:
    for rank in range(2):
        list(Stream(samples, 2, requests.recorded()).steps(planned(samples, 32, rank, 2)))
    asked = requests.taken()
    assert len(asked) == 2 * NUM_SHARDS
    assert sum(length for _, _, length in asked) == 2 * samples.length.sum()


def test_random_crops_belong_to_the_sample_and_the_epoch(samples: Samples) -> None:
    views = []
    cropped = Stream(samples, views=partial(CROP.views, 0, "test"))
    for world_size in (1, 3):
        ranks = [cropped.steps(planned(samples, 40, rank, world_size, epoch=4)) for rank in range(world_size)]
        seen: dict[int, np.ndarray] = {}
        for step in itertools.chain.from_iterable(ranks):
            seen |= dict(zip(step.ids.tolist(), step.images, strict=True))
        views.append(np.stack([seen[n] for n in range(N)]))
    assert np.array_equal(views[0], views[1])
    pixels = np.empty((SIZE, SIZE, 3), np.uint8)
    for n, (crop, flip) in enumerate(CROP.views(0, "test", 4, np.arange(N))):
        images.decode_crop(data(n), 10**6, pixels, crop, flip)
        assert np.array_equal(views[0][n], pixels)
    for seed, epoch in ((0, 5), (1, 4)):
        stream_of_others = Stream(samples, views=partial(CROP.views, seed, "test"))
        steps = stream_of_others.steps(planned(samples, 40, epoch=epoch))
        pairs = (pair for step in steps for pair in zip(step.ids, step.images, strict=True))
        same = [np.array_equal(image, views[0][n]) for n, image in pairs]
        assert len(same) == N and np.mean(same) < 0.2


@pytest.mark.slow
def test_two_hundred_faults_of_a_store_lose_nothing(
    samples: Samples,
    expected: np.ndarray,
    s3_root: str,
    faulty: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(stream, "PAUSES", (0.01,) * 12)
    for shard in samples.shards:
        storage.write(f"{s3_root}/{Path(shard.uri).name}", Path(shard.uri).read_bytes())
    remote = moved(samples, lambda shard: f"{s3_root}/{Path(shard.uri).name}")
    rng, faults = np.random.default_rng(0), 0

    def plan(request: Request) -> Fault | None:
        nonlocal faults
        if request.method != "GET" or rng.random() > 0.3:
            return None
        faults += 1
        cut = int(rng.integers(0, 3000))
        return [
            Fault(status=500, code="InternalError"),
            Fault(status=503, code="SlowDown"),
            Fault(cut=cut),
            Fault(cut=cut, reset=True),
            Fault(cut=cut, shortened=True),
            Fault(lost=True),
            Fault(delay=0.05),
        ][rng.integers(7)]

    faulty.plan = plan
    of_a_large_dataset(monkeypatch, max_rows=256, lanes=96, window=2048)
    epoch = 0
    while faults < 200:
        assert epoch < 10
        streams = [Stream(remote, 2, Arriving(in_decoder.impatient)) for _ in range(2)]
        ranks = [list(one.steps(planned(remote, 64, rank, 2, epoch))) for rank, one in enumerate(streams)]
        assert_epoch(ranks, expected)
        epoch += 1


def test_a_store_that_stays_ill_is_an_error_and_leaves_no_process(
    samples: Samples, s3_root: str, faulty: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PAUSES", (0.01, 0.01))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    faulty.plan = lambda request: Fault(status=503, code="SlowDown")
    remote = moved(samples, lambda shard: f"{s3_root}/{Path(shard.uri).name}")
    with pytest.raises(StorageError, match=r"train-\d\.tar"):
        list(Stream(remote, views=Arriving(in_decoder.impatient)).steps(planned(remote, 64)))
    assert_no_decoder()


@pytest.mark.parametrize("damage", ["gone", "shorter", "another sample", "another length"])
def test_a_shard_that_is_not_the_indexed_one_is_an_error_by_name(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(stream, "PAUSES", (0.01,))
    content = bytearray(Path(samples.shards[2].uri).read_bytes())
    header = int(samples.image_offset[2 * PER_SHARD + 40]) - 512
    if damage == "shorter":
        del content[-(len(content) // 3) :]
    elif damage == "another sample":
        content[header : header + 4] = b"t999"
    elif damage == "another length":
        content[header + 130] ^= 1
    path = tmp_path / "other.tar"
    if damage != "gone":
        path.write_bytes(content)
    other = moved(samples, lambda shard: str(path) if shard.shard == 2 else shard.uri)
    with pytest.raises(DataError, match=r"the shard '.*other\.tar' (has changed|is gone)"):
        list(Stream(other).steps(planned(other, 64)))
    assert_no_decoder()


def test_an_image_that_cannot_be_decoded_any_more_is_an_error_by_name(samples: Samples, tmp_path: Path) -> None:
    content = bytearray(Path(samples.shards[1].uri).read_bytes())
    start = int(samples.image_offset[PER_SHARD + 33])
    content[start : start + 100] = bytes(100)
    (tmp_path / "other.tar").write_bytes(content)
    other = moved(samples, lambda shard: str(tmp_path / "other.tar") if shard.shard == 1 else shard.uri)
    with pytest.raises(DataError, match=r"the image 's123' in '.*other\.tar' could be decoded at indexing"):
        list(Stream(other).steps(planned(other, 64)))


def test_what_is_read_ahead_is_bounded_and_an_abandoned_epoch_ends_its_processes(
    samples: Samples, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_ROWS_READ_AHEAD", 1)
    monkeypatch.setattr(stream, "_DECODED_BYTES", 1)
    of_a_large_dataset(monkeypatch, max_rows=1, window=1)
    steps = Stream(samples, 2, requests.recorded()).steps(Plan(samples, 0, "test", 8).epochs())
    next(steps)
    time.sleep(0.3)
    # Two batches decoded, two more read, and one of each when the first was handed out.
    assert 0 < len(requests.taken()) <= 6 * 8
    steps.close()
    assert_no_decoder()


@pytest.mark.slow
def test_memory_stays_flat_over_twenty_epochs(samples: Samples) -> None:
    large = replace(samples, size=128)
    seen = []
    plan = Plan(large, 0, "test", 64)
    with closing(Stream(large, processes=2).steps(plan.epochs())) as steps:
        for _ in range(20):
            assert sum(len(step.ids) for step in itertools.islice(steps, plan.num_steps)) == N
            processes = [psutil.Process(), *decoders()]  # what they share counts once
            seen.append(sum(process.memory_full_info().pss for process in processes) / 1e6)
    assert_no_decoder()
    of_all_epochs = 16 * N * 128 * 128 * 3 / 1e6
    assert of_all_epochs > 250
    assert max(seen[4:]) - max(seen[:4]) < 40
