"""What a run will take, before it runs: from the recipe, the size of the data, and speeds measured or given.

Counts of images, records and requests follow from the recipe; times are those counts over speeds. Where the run has
stages that are done, their seconds stand beside, so that the next estimate can be better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline import ingest, shards, storage, tar
from pipeline.dynamics import BLOCK_ROWS, FILE_BLOCKS
from pipeline.epoch_order import MAX_BYTES
from pipeline.errors import UserError
from pipeline.pseudo_label import PseudoLabelConfig
from pipeline.recipe import Recipe
from pipeline.report.costs import Estimate, Estimates
from pipeline.score import cut
from pipeline.selectors import budget
from pipeline.stage import Stage

RECORD_BYTES, RECORD_SECONDS = 13, 10e-9
"""A record of training dynamics on disk, and a core's time for it in the reducer, as benchmarks/reduce.py has them."""

INDEX_BYTES = 50
"""A sample's row of the index on disk, at most."""

INDEX_REQUESTS = 15
"""For a shard, as `benchmarks/rehearsal.py --store` counts them on a store with conditional writes."""

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

    images: that workers train on or look at; decoded: those that are; worker_seconds: of trainings, each with the cores
    and GPUs that the recipe gives a worker; core_seconds: of all else; read, written: bytes from and to storage;
    requests: to it.
    """

    images: int = 0
    decoded: int = 0
    worker_seconds: float = 0.0
    core_seconds: float = 0.0
    read: int = 0
    written: int = 0
    requests: int = 0


def look_at(recipe: Recipe, stages: list[Stage]) -> Data:
    """The pool: of a finished index exactly; else by listing the shards and reading the first that has samples.

    UserError if none has.
    """
    done = next(stage for stage in stages if stage.title == "index").load(recipe.root)
    if done is not None:
        metrics = done.metrics
        return Data(metrics["num_samples"], metrics["bytes"], metrics["num_shards"], exact=True)
    found = shards.find(recipe.data.shards)
    total = sum(source.size for source in found)
    for source in found:
        samples = tar.scan(storage.read_range(source.uri, 0, source.size)) if source.size else []
        if samples:
            return Data(max(round(len(samples) * total / source.size), 1), total, len(found), exact=False)
    raise UserError(
        f"none of the {len(found)} shards has a sample, the first of them {found[0].uri!r}: correct data.shards"
    )


def estimate(recipe: Recipe, stages: Sequence[Stage], data: Data, speeds: Mapping[str, float]) -> dict[str, Cost]:
    """What each stage of the plan takes, by its title; stages that take seconds for any pool are left out.

    speeds: of every name in SPEEDS. Where images are cached, the cache is filled once, on one machine: every further
    machine that trains fills its own.
    """
    rows = recipe.data.image_size**2 * 3
    cached = recipe.resources.images == "cache" or (
        recipe.resources.images == "auto" and data.num_samples * rows <= ingest.open_cache(recipe.resources).max_bytes
    )
    pool = _Pool(recipe, data, speeds, cached)
    found: dict[str, Cost] = {}
    for stage in stages:
        if (cost := pool.cost(stage)) is not None:
            found[stage.title] = cost
        if stage.title == "index" and cached:
            found["images"] = pool.once
    return found


@dataclass(frozen=True)
class _Pool:
    """What there is to do it with. cached: whether images are decoded once, all of them."""

    recipe: Recipe
    data: Data
    speeds: Mapping[str, float]
    cached: bool

    @property
    def once(self) -> Cost:
        """Reading and decoding every image."""
        n, num_shards = self.data.num_samples, self.data.num_shards
        return Cost(
            decoded=n, core_seconds=n / self.speeds["decode"], read=self.data.num_bytes, requests=2 * num_shards
        )

    def cost(self, stage: Stage) -> Cost | None:
        """Of a stage; None for those that take seconds."""
        recipe, n = self.recipe, self.data.num_samples
        config: Any = stage.config  # of which class, the stage's name tells
        if stage.title == "index":
            requests = INDEX_REQUESTS * self.data.num_shards
            return replace(self.once, written=INDEX_BYTES * n, requests=requests)
        if stage.name == "ssl":
            ratio = 0 if config.training.algorithm == "supervised" else config.training.unlabelled_ratio
            return self._trained(config.training.steps * config.training.batch_size * (1 + ratio), "ssl")
        if isinstance(config, PseudoLabelConfig):
            return self._trained(n * config.views, "predict")
        if stage.name == "embed":
            return self._trained(n, "predict")
        records = n * recipe.proxy.epochs
        if stage.name == "proxy":
            proxy = self._trained(records, "proxy", recipe.proxy.random_crop is not None)
            files = recipe.resources.max_workers * self._files_of_a_rank()
            own = recipe.proxy.epochs * (files + 2)  # commit and checkpoint
            return replace(proxy, written=RECORD_BYTES * records, requests=proxy.requests + own)
        if stage.name == "score":
            return Cost(
                core_seconds=records * RECORD_SECONDS, read=RECORD_BYTES * records, requests=self._score_requests()
            )
        if stage.name == "export" and recipe.export.shards:
            selection: Any = stage.inputs["select"].config
            kept = int(selection.keep_fraction * self.data.num_bytes)
            return Cost(read=kept, written=kept, requests=2 * self.data.num_shards)
        if stage.name == "evaluate":
            assert recipe.evaluate is not None
            return self._trained(_finals(recipe, n), "final", recipe.evaluate.training.random_crop is not None)
        return None

    def _images(self, count: int, cropped: bool) -> Cost:
        """From the cache for nothing; else read and decoded again."""
        if self.cached and not cropped:
            return Cost()
        read = int(count / self.data.num_samples * self.data.num_bytes)
        requests = -(-read // MAX_BYTES)
        return Cost(decoded=count, core_seconds=count / self.speeds["decode"], read=read, requests=requests)

    def _trained(self, count: int, speed: str, cropped: bool = False) -> Cost:
        return replace(self._images(count, cropped), images=count, worker_seconds=count / self.speeds[speed])

    def _score_requests(self) -> int:
        """Of a rank and epoch: a footer for every range of ids, one more where its next file begins, and each block."""
        resources, span = self.recipe.resources, self._span()
        ranges = len(cut(self.data.num_samples, span, resources.tasks or resources.max_workers))
        footers, blocks = ranges + self._files_of_a_rank() - 1, -(-self.data.num_samples // span)
        return self.recipe.proxy.epochs * resources.max_workers * (footers + blocks)

    def _span(self) -> int:
        """Ids of a block of dynamics."""
        return BLOCK_ROWS << (self.recipe.resources.max_workers - 1).bit_length()

    def _files_of_a_rank(self) -> int:
        return -(-self.data.num_samples // (self._span() * FILE_BLOCKS))


def keep(
    recipe: Recipe, stages: Sequence[Stage], costs: Mapping[str, Cost], speeds: Mapping[str, float], cores: int
) -> None:
    """Leave the estimate in the run directory, where the report finds it and compares; cores: as `seconds` takes."""
    keys = {stage.title: stage.key for stage in stages}
    found = {
        keys[title]: Estimate(
            seconds=seconds(cost, recipe, cores),
            images=cost.images,
            speed=cost.images / cost.worker_seconds if cost.worker_seconds else None,
            written=cost.written,
        )
        for title, cost in costs.items()
        if title in keys
    }
    Estimates(found, dict(speeds)).write(recipe.root)


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
    workers = recipe.resources.min_workers
    return max(cost.worker_seconds / workers, cost.core_seconds / cores)
