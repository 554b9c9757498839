"""Where trainings take their images: decoded once into a cache on local disk if they fit, else from the shards.

Both ways give the same bytes in the same order, so the choice is one of resources and changes no result.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from pipeline.decoder import Views
from pipeline.disk_cache import DiskCache
from pipeline.errors import UserError
from pipeline.index import load_config
from pipeline.parallel import map_items
from pipeline.pixels import Pixels, ShardPixels
from pipeline.resources import Resources
from pipeline.samples import Samples
from pipeline.stage import Artifact, Progress
from pipeline.stream import Stream
from pipeline.units import size


@dataclass(frozen=True)
class Choice:
    """way: taken; needed: bytes of the images when decoded; why: one clause for people."""

    way: Literal["cache", "stream"]
    needed: int
    why: str


def choose(index: Artifact, resources: Resources) -> Choice:
    """Whether the images of a finished stage `index` are cached; UserError if they must be and do not fit."""
    config = load_config(index).data
    needed = index.metrics["num_samples"] * config.image_size**2 * 3
    if resources.images == "stream":
        return Choice("stream", needed, "as resources.images says")
    cache = open_cache(resources)
    have = f"{size(needed)} decoded, {size(cache.max_bytes)} allowed in {str(cache.folder)!r}"
    if needed <= cache.max_bytes:
        return Choice("cache", needed, have)
    if resources.images == "cache":
        raise UserError(
            f"resources.images is 'cache', but the images do not fit ({have}): raise resources.cache_gb, name a larger "
            "disk in resources.cache_dir, or set resources.images to stream"
        )
    return Choice("stream", needed, have)


def open_images(index: Artifact, resources: Resources, views: Views | None = None) -> Pixels | Stream:
    """The images of a finished stage `index`, as `choose` says; views: as Stream has them, which then is chosen."""
    samples, cores = open_samples(index, resources), resources.cpus_per_worker
    if views is not None or choose(index, resources).way == "stream":
        return Stream(samples, cores, views)
    return Pixels(samples, open_cache(resources), cores)


def missing(index: Artifact, resources: Resources) -> list[ShardPixels]:
    """What is to be in this machine's cache and is not."""
    if choose(index, resources).way == "stream":
        return []
    return Pixels(open_samples(index, resources), open_cache(resources)).missing()


def fill(parts: list[ShardPixels], resources: Resources, progress: Progress) -> None:
    """Decode into the cache, by tasks; what other machines then lack, they decode when they first want it."""
    map_items(parts, partial(_fill, resources=resources), resources=resources, progress=progress, unit="shards")


_OPENED: dict[str, Samples] = {}


def open_samples(index: Artifact, resources: Resources) -> Samples:
    """Where the images of a finished stage `index` are; opened once in a process, which Ray uses for many tasks."""
    if index.uri not in _OPENED:
        _OPENED[index.uri] = Samples.open(index, open_cache(resources))
    return _OPENED[index.uri]


def _fill(part: ShardPixels, resources: Resources) -> None:
    """One task."""
    part.fill(open_cache(resources))


def open_cache(resources: Resources) -> DiskCache:
    """The cache of this machine, as the recipe bounds it."""
    most = resources.cache_gb
    return DiskCache.at(resources.cache_dir, None if most is None else int(most * 1e9))
