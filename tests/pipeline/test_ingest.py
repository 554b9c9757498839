"""Whether images are cached or streamed, and how a cache is filled; that both give the same is in test_stream."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline import images, ingest
from pipeline.disk_cache import DiskCache
from pipeline.epoch_plan import in_order
from pipeline.errors import DataError, UserError
from pipeline.pixels import Pixels
from pipeline.random_crop import RandomCrop
from pipeline.resources import Resources
from pipeline.stage import Artifact
from pipeline.stream import Stream
from pipeline.units import size
from tests.pipeline.making import image, run_index, silent, write_dataset

N = 12
NEEDED = N * 8 * 8 * 3
EXPECTED = np.stack([images.decode(image(n), 8, 10**6) for n in range(N)])


@pytest.fixture(scope="module")
def index(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("ingest")
    return run_index(folder / "run", write_dataset(folder / "data", num_shards=3))


Use = Callable[..., Resources]


@pytest.fixture
def use(tmp_path: Path) -> Use:
    """Resources with a cache of the test's own."""
    return lambda **settings: Resources(**{"cache_dir": str(tmp_path), "cache_gb": 1.0, **settings})


def folder(resources: Resources) -> Path:
    assert resources.cache_dir is not None
    return Path(resources.cache_dir) / f"semiprune-cache-{os.getuid()}"


@pytest.mark.parametrize(
    ("cache_bytes", "way"), [(NEEDED - 1, "stream"), (NEEDED, "cache"), (10**9, "cache"), (0, "stream")]
)
def test_what_fits_is_cached_unless_it_is_said(index: Artifact, use: Use, cache_bytes: int, way: str) -> None:
    resources = use(cache_gb=cache_bytes / 1e9)
    choice = ingest.choose(index, resources)
    assert (choice.way, choice.needed) == (way, NEEDED)
    assert choice.why == f"2.3 kB decoded, {size(cache_bytes)} allowed in {str(folder(resources))!r}"
    assert isinstance(ingest.open_images(index, resources), Pixels if way == "cache" else Stream)
    assert ingest.choose(index, use(images="stream")).way == "stream"
    assert ingest.choose(index, use(images="cache")).way == "cache"


def test_a_cache_that_is_too_small_and_must_be_is_one_sentence(index: Artifact, use: Use) -> None:
    with pytest.raises(
        UserError,
        match=r"^resources\.images is 'cache', but the images do not fit \(2\.3 kB decoded, 1 kB allowed in '.*'\): "
        r"raise resources\.cache_gb, name a larger disk in resources\.cache_dir, or set resources\.images to stream$",
    ):
        ingest.choose(index, use(images="cache", cache_gb=1e-6))


def test_where_images_are_streamed_none_is_missing(index: Artifact, use: Use) -> None:
    resources = use(images="stream")
    choice = ingest.choose(index, resources)
    assert choice.why == "as resources.images says"
    assert ingest.missing(index, resources) == []


def test_parts_of_images_are_streamed(index: Artifact, use: Use) -> None:
    opened = ingest.open_images(index, use(), partial(RandomCrop().views, 0, "test"))
    assert isinstance(opened, Stream)
    (step,) = opened.steps(in_order(opened.samples, np.arange(N), N))
    assert not np.array_equal(step.images, EXPECTED)


@pytest.mark.parametrize("way", ["cache", "stream"])
def test_images_are_decoded_by_all_cores_of_a_worker(index: Artifact, use: Use, way: str) -> None:
    opened = ingest.open_images(index, use(images=way, cpus_per_worker=3))
    assert (opened.processes if isinstance(opened, Stream) else opened.threads) == 3
    (step,) = opened.steps(in_order(opened.samples, np.arange(N), N))
    assert np.array_equal(step.images, EXPECTED)


def test_what_is_missing_is_decoded_by_tasks_and_then_there(index: Artifact, use: Use) -> None:
    resources = use()
    missing = ingest.missing(index, resources)
    assert len(missing) == 3
    missing[1].fill(DiskCache(folder(resources), 10**9))
    missing = ingest.missing(index, resources)
    assert len(missing) == 2
    told: list[tuple[int, int, str]] = []
    ingest.fill(missing, resources, lambda *now: told.append(now))
    assert told == [(done, 2, "shards") for done in range(3)]
    assert ingest.missing(index, resources) == []
    assert len(list(folder(resources).glob("*.arrow"))) == 3
    opened = ingest.open_images(index, resources)
    (step,) = opened.steps(in_order(opened.samples, np.arange(N), N))
    assert np.array_equal(step.images, EXPECTED)


def test_a_shard_that_changed_is_told_while_the_cache_is_filled(ray_local: None, tmp_path: Path, use: Use) -> None:
    index = run_index(tmp_path / "run", write_dataset(tmp_path / "data", num_shards=2))
    path = tmp_path / "data/train-000001.tar"
    path.write_bytes(path.read_bytes().replace(b"s004", b"t004"))
    with pytest.raises(DataError, match=r"train-000001\.tar' has changed since indexing"):
        ingest.fill(ingest.missing(index, use()), use(), silent)


@pytest.mark.parametrize("way", ["auto", "cache", "stream"])
def test_a_place_where_there_can_be_no_cache_is_one_sentence(
    index: Artifact, use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(ingest, "_OPENED", {})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"no cache at '.*file.*': .*; name a folder in resources\.cache_dir$"):
        ingest.open_images(index, use(images=way, cache_dir=str(tmp_path / "file")))
