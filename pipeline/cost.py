"""What a run will take, before it runs: from the recipe, the size of the data, and speeds measured or given.

Counts of images, records and requests follow from the recipe; times are those counts over speeds. Where the run has
stages that are done, their seconds stand beside, so that the next estimate can be better.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline import ingest, shards, storage, tar
from pipeline.epoch_order import MAX_BYTES
from pipeline.recipe import Recipe
from pipeline.selectors import budget
from pipeline.stage import Stage

RECORD_BYTES, RECORD_SECONDS = 13, 10e-9
"""A record of training dynamics on disk, and a core's time for it in the reducer, as benchmarks/reduce.py has them."""

INDEX_BYTES = 50
"""A sample's row of the index on disk, at most."""

SPEEDS = {
    "decode": "images/s that one core decodes",
    "ssl": "images/s that one worker trains on in the semi-supervised training, both views of one counted as one",
    "proxy": "images/s that one worker trains on, proxy",
    "final": "images/s that one worker trains on, evaluation",
    "predict": "images/s that one worker looks at",
}
"""All speeds, by name."""


@dataclass(frozen=True)
class Data:
    """The pool. num_samples; num_bytes: of the shards; num_shards; exact: whether it is indexed, or estimated."""

    num_samples: int
    num_bytes: int
    num_shards: int
    exact: bool


@dataclass(frozen=True)
class Cost:
    """Of one stage, all workers together.

    decoded: images; worker_seconds: of trainings, each with the cores and GPUs that the recipe gives a worker;
    core_seconds: of all else; read, written: bytes from and to storage; requests: to it.
    """

    decoded: int = 0
    worker_seconds: float = 0.0
    core_seconds: float = 0.0
    read: int = 0
    written: int = 0
    requests: int = 0


def look_at(recipe: Recipe, stages: list[Stage]) -> Data:
    """The pool: of a finished index exactly; else by listing the shards and reading the first of them."""
    done = next(stage for stage in stages if stage.name == "index").load(recipe.root)
    if done is not None:
        metrics = done.metrics
        return Data(metrics["num_samples"], metrics["bytes"], metrics["num_shards"], exact=True)
    found = shards.find(recipe.data.shards)
    first = found[0]
    samples = tar.scan(storage.read_range(first.uri, 0, first.size))
    total = sum(source.size for source in found)
    return Data(max(round(len(samples) * total / first.size), 1), total, len(found), exact=False)


def estimate(recipe: Recipe, data: Data, speeds: Mapping[str, float]) -> dict[str, Cost]:
    """What each stage takes, by its name; stages that take seconds for any pool are left out.

    speeds: of every name in SPEEDS. Where images are cached, the cache is filled once, on one machine: every further
    machine that trains fills its own.
    """
    n, rows = data.num_samples, recipe.data.image_size**2 * 3
    cached = recipe.resources.images == "cache" or (
        recipe.resources.images == "auto" and n * rows <= ingest.open_cache(recipe.resources).max_bytes
    )

    def images(count: float, cropped: bool = False) -> Cost:
        """From the cache for nothing; else read and decoded again."""
        if cached and not cropped:
            return Cost()
        read = int(count / n * data.num_bytes)
        return Cost(int(count), core_seconds=count / speeds["decode"], read=read, requests=-(-read // MAX_BYTES))

    def trained(count: float, speed: str, cropped: bool = False) -> Cost:
        return replace(images(count, cropped), worker_seconds=count / speeds[speed])

    once = Cost(n, core_seconds=n / speeds["decode"], read=data.num_bytes, requests=3 * data.num_shards)
    found = {"index": replace(once, written=INDEX_BYTES * n)}
    if cached:
        found["images"] = once
    if recipe.ssl is not None:
        ratio = 0 if recipe.ssl.algorithm == "supervised" else recipe.ssl.unlabelled_ratio
        found["ssl"] = trained(recipe.ssl.steps * recipe.ssl.batch_size * (1 + ratio), "ssl")
        found["pseudo_label"] = trained(n, "predict")
    records = n * recipe.proxy.epochs
    proxy = trained(records, "proxy", recipe.proxy.random_crop is not None)
    files = recipe.proxy.epochs * (recipe.resources.num_workers + 2)  # a file a worker, the commit, the checkpoint
    found["proxy"] = replace(proxy, written=RECORD_BYTES * records, requests=proxy.requests + files)
    found["score"] = Cost(core_seconds=records * RECORD_SECONDS, read=RECORD_BYTES * records, requests=files)
    if recipe.export.shards:
        kept = int(sum(config.keep_fraction for config in recipe.select) * data.num_bytes)
        found["export"] = Cost(read=kept, written=kept, requests=2 * data.num_shards * len(recipe.select))
    if recipe.evaluate is not None:
        found["evaluate"] = trained(_finals(recipe, n), "final", recipe.evaluate.training.random_crop is not None)
    return found


def _finals(recipe: Recipe, num_samples: int) -> int:
    """Images that the trainings of the evaluation see, over all subsets, seeds and epochs."""
    assert recipe.evaluate is not None
    settings, training = recipe.evaluate, recipe.evaluate.training
    shares = [config.keep_fraction for config in recipe.select]
    shares += [1.0] * ("full" in settings.baselines) + [*set(shares)] * ("random" in settings.baselines)
    sizes = [budget(share, num_samples) for share in shares]
    least = settings.min_steps * training.batch_size
    return settings.seeds * sum(max(training.epochs * size, least) for size in sizes)


def seconds(cost: Cost, recipe: Recipe, cores: int) -> float:
    """Of the clock: trainings on all workers at a time, other work on `cores` cores; decoding beside a training."""
    workers = recipe.resources.num_workers
    return max(cost.worker_seconds / workers, cost.core_seconds / cores)
