import shutil
from pathlib import Path

import pytest

from pipeline import plan, probe
from pipeline.cost import RECORD_BYTES, SPEEDS, Cost, Data, estimate, look_at, seconds
from pipeline.dynamics import BLOCK_ROWS, FILE_BLOCKS
from pipeline.errors import UserError
from pipeline.recipe import Recipe, load_recipe
from pipeline.resources import Elastic
from pipeline.score import cut
from pipeline.stage import Artifact
from pipeline.tar import END
from tests.running import tiny_recipe

POOL = Data(num_samples=1000, num_bytes=10**8, num_shards=4, exact=True)
ALIKE = dict.fromkeys(SPEEDS, 100.0)


@pytest.fixture
def recipe(digits: Path, tmp_path: Path) -> Recipe:
    return load_recipe(str(tiny_recipe(digits, tmp_path / "run")))


def changed(recipe: Recipe, **resources: object) -> Recipe:
    return recipe.model_copy(update={"resources": recipe.resources.model_copy(update=resources)})


def estimated(recipe: Recipe, pool: Data = POOL, **speeds: float) -> dict[str, Cost]:
    return estimate(recipe, plan.build(recipe), pool, ALIKE | speeds)


def test_a_pool_that_is_not_indexed_is_estimated_from_its_first_shard(recipe: Recipe, reference_run: Path) -> None:
    stages = plan.build(recipe)
    guess = look_at(recipe, stages)
    known = look_at(recipe.model_copy(update={"root": str(reference_run)}), stages)
    assert (known.num_samples, known.num_shards, known.exact, guess.exact) == (1437, 6, True, False)
    assert guess.num_samples == pytest.approx(known.num_samples, rel=0.02)
    assert guess.num_bytes == known.num_bytes


def test_an_empty_shard_tells_nothing_of_the_others(recipe: Recipe, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    (tmp_path / "b.tar").write_bytes(END)
    stages = plan.build(recipe)

    def looked_at(*names: str) -> Data:
        data = recipe.data.model_copy(update={"shards": tuple(str(tmp_path / name) for name in names)})
        return look_at(recipe.model_copy(update={"data": data}), stages)

    shutil.copy(digits / "train-000000.tar", tmp_path / "c.tar")
    assert looked_at("a.tar", "b.tar", "c.tar").num_samples == looked_at("c.tar").num_samples == 240
    with pytest.raises(UserError, match=r"none of the 2 shards has a sample, .* '.*a.tar': correct data"):
        looked_at("a.tar", "b.tar")


def test_images_that_are_cached_are_decoded_once_and_streamed_ones_every_time(recipe: Recipe) -> None:
    cached, streamed = (estimated(changed(recipe, images=way)) for way in ("cache", "stream"))
    assert (cached["images"].decoded, cached["proxy"].decoded, cached["proxy"].read) == (1000, 0, 0)
    assert "images" not in streamed
    assert (streamed["proxy"].decoded, streamed["proxy"].read) == (8 * 1000, 8 * 10**8)
    assert streamed["ssl"].decoded == 60 * 32 * 3
    for costs in (cached, streamed):
        assert costs["proxy"].worker_seconds == 8 * 1000 / 100
        assert costs["proxy"].written == RECORD_BYTES * 8 * 1000


def test_the_files_of_a_large_pool_are_counted(recipe: Recipe) -> None:
    """A rank ends a file after FILE_BLOCKS blocks, and a range asks for the footers of those that have its ids."""
    n, workers = 10**8, 2
    pool, span = Data(n, 10**12, 10**4, exact=True), 2 * BLOCK_ROWS
    costs = estimated(changed(recipe, images="cache", num_workers=workers, tasks=5), pool)
    files = [range(low, min(low + FILE_BLOCKS * span, n)) for low in range(0, n, FILE_BLOCKS * span)]
    assert len(files) == 48
    ranges, blocks = cut(n, span, 5), len(range(0, n, span))
    asked = sum(file.start < high and low < file.stop for low, high in ranges for file in files)
    asked += sum(low == file.start for low, _ in ranges[1:] for file in files)  # the estimate knows of no luck
    assert costs["proxy"].requests == 8 * (workers * len(files) + 2)
    assert costs["score"].requests == 8 * workers * (asked + blocks)


def test_the_supervised_baseline_reads_no_unlabelled_image(recipe: Recipe) -> None:
    assert recipe.ssl is not None
    alone = recipe.model_copy(update={"ssl": recipe.ssl.model_copy(update={"algorithm": "supervised"})})
    assert estimated(alone)["ssl"].worker_seconds == 60 * 32 / 100


def test_the_evaluation_trains_on_every_subset_of_the_comparison(recipe: Recipe, done: dict[str, Artifact]) -> None:
    rows = done["evaluate"].metrics["rows"]
    seen = sum(row["num_samples"] * row["seeds"] for row in rows) * 2  # epochs
    pool = Data(1437, 10**6, 6, exact=True)
    assert estimated(recipe, pool)["evaluate"].worker_seconds == pytest.approx(seen / 100)
    assert recipe.evaluate is not None
    longer = recipe.evaluate.model_copy(update={"min_steps": 1000})
    batch = recipe.evaluate.training.batch_size
    found = estimated(recipe.model_copy(update={"evaluate": longer}), pool)
    assert found["evaluate"].worker_seconds == len(rows) * 1000 * batch / 100


def test_workers_share_the_trainings_and_cores_the_rest(recipe: Recipe) -> None:
    streamed = changed(recipe, images="stream", num_workers=2)
    ssl = estimated(streamed, decode=10.0)["ssl"]
    assert seconds(ssl, streamed, cores=64) == ssl.worker_seconds / 2
    assert seconds(ssl, streamed, cores=1) == ssl.core_seconds == 10 * ssl.worker_seconds
    elastic = changed(recipe, images="stream", num_workers=Elastic(min=2, max=9))
    assert seconds(ssl, elastic, cores=64) == ssl.worker_seconds / 2, "no more than two are sure"


def test_the_probe_measures_what_it_is_asked_for(recipe: Recipe) -> None:
    told: list[int] = []
    found = probe.measure(recipe, list(SPEEDS), told.append, duration=0.0)
    assert list(found) == list(SPEEDS)
    assert min(found.values()) > 0
    assert told == [0, 1, 2, 3, 4, 5]
