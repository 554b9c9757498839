"""What a run may ask for."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config import Config
from pipeline.resources import Resources

LOWEST = {
    "num_workers": 1,
    "cpus_per_worker": 1,
    "gpus_per_worker": 0.0,
    "tasks": 1,
    "max_failures": 0,
    "cache_gb": 0.0,
}


@pytest.mark.parametrize(("name", "lowest"), LOWEST.items())
def test_each_has_a_lowest_value(name: str, lowest: float) -> None:
    assert getattr(Resources(**{name: lowest}), name) == lowest
    with pytest.raises(ValidationError, match=f"greater than or equal to {lowest:g}"):
        Resources(**{name: lowest - 1})


@pytest.mark.parametrize("name", ["num_workers", "cpus_per_worker", "tasks", "max_failures"])
@pytest.mark.parametrize("value", ["2", 2.0, True])
def test_counts_are_whole_numbers_and_nothing_that_looks_like_one(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match="valid integer"):
        Resources.model_validate({name: value})


def test_the_number_of_workers_may_be_a_range() -> None:
    elastic = Resources.model_validate_json('{"num_workers": {"min": 2, "max": 16}}')
    assert (elastic.min_workers, elastic.max_workers) == (2, 16)
    assert Resources.model_validate_json(elastic.model_dump_json()) == elastic
    assert (Resources(num_workers=4).min_workers, Resources(num_workers=4).max_workers) == (4, 4)


def test_a_worker_may_share_its_gpu_with_other_runs_and_not_with_its_group() -> None:
    assert Resources.model_validate_json('{"num_workers": 1, "gpus_per_worker": 0.5}').gpus_per_worker == 0.5
    assert Resources.model_validate_json('{"num_workers": 4, "gpus_per_worker": 1}').gpus_per_worker == 1
    refused = r"gpus_per_worker=0\.5 puts several of 4 workers on one GPU, .*: set gpus_per_worker to 0, 1 or more"
    for num_workers in ("4", '{"min": 1, "max": 4}'):
        with pytest.raises(ValidationError, match=refused):
            Resources.model_validate_json(f'{{"num_workers": {num_workers}, "gpus_per_worker": 0.5}}')


def test_unless_it_is_said_nothing_needs_a_gpu_and_every_core_may_read_shards() -> None:
    assert Resources().gpus_per_worker == 0
    assert Resources().tasks is None


def test_an_unknown_key_is_refused_and_a_known_one_cannot_change_later() -> None:
    with pytest.raises(ValidationError, match="num_wokers"):
        Resources.model_validate({"num_wokers": 2})
    with pytest.raises(ValidationError, match="frozen"):
        Resources().num_workers = 4  # type: ignore[misc]


@pytest.mark.parametrize("value", ["disk", "Cache", True])
def test_images_come_from_where_it_is_said(value: object) -> None:
    assert Resources().images == "auto"
    with pytest.raises(ValidationError, match="'auto', 'cache' or 'stream'"):
        Resources.model_validate({"images": value})


def test_the_cache_is_on_a_disk_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Resources(cache_dir="here").cache_dir == str(tmp_path / "here")  # workers run in other folders
    assert Resources(cache_dir=f"file://{tmp_path}").cache_dir == str(tmp_path)
    for place in ("s3://bucket/cache", "memory://cache"):
        with pytest.raises(ValidationError, match="mapped into memory: name a folder of every machine's own"):
            Resources(cache_dir=place)
    with pytest.raises(ValidationError, match="cache_dir"):
        Resources(cache_dir="")


@pytest.mark.parametrize("size", ["Infinity", "NaN", "-1"])
def test_the_size_of_the_cache_is_a_number(size: str) -> None:
    with pytest.raises(ValidationError, match="cache_gb"):
        Resources.model_validate_json(f'{{"cache_gb": {size}}}')


def test_they_are_no_settings_lest_they_enter_a_key() -> None:
    assert not issubclass(Resources, Config)


@pytest.mark.parametrize("gpus", ["1.5", "Infinity", "NaN"])
def test_gpus_that_ray_cannot_place_are_refused(gpus: str) -> None:
    with pytest.raises(ValidationError, match="gpus_per_worker"):
        Resources.model_validate_json(f'{{"gpus_per_worker": {gpus}}}')
