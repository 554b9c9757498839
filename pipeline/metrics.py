"""What Prometheus sees of a run: Ray's agent on every node serves these numbers, with `ray_` before their names.

`deploy/grafana.json` draws them. They are for eyes alone: nothing reads them back, and a run without a scraper loses
nothing.
"""

import string
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import quote

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

    from pipeline.stage import Progress

Item = TypeVar("Item")

TAGS = ("run", "stage")
"""run: the root of the run directory; stage: the stage's name, in what the driver tells its title."""

EVERY = 1.0
"""Seconds between two records of a loop: each costs as much as a small kernel."""


@dataclass(frozen=True)
class Metric:
    """kind: a counter only grows, over all workers; a gauge is the last value."""

    kind: Literal["counter", "gauge"]
    description: str


METRICS = {
    "semiprune_images": Metric("counter", "Images that a training has used, padding and both views of one among them."),
    "semiprune_steps": Metric("counter", "Training steps, of every worker."),
    "semiprune_step_seconds": Metric("counter", "Seconds that workers computed; over steps, the time of one."),
    "semiprune_wait_seconds": Metric("counter", "Seconds that workers waited for images."),
    "semiprune_loss": Metric("gauge", "Mean training loss since the last commit."),
    "semiprune_pseudo_label_rate": Metric("gauge", "Share of the unlabelled images that the loss took."),
    "semiprune_commits": Metric("gauge", "Commits of a training that are in the run directory."),
    "semiprune_progress": Metric("gauge", "Share of a stage that is done, 0 to 1."),
    "semiprune_stage_seconds": Metric("gauge", "Seconds that a finished stage took."),
    "semiprune_quarantined": Metric("gauge", "Samples and shards that a stage could not use."),
}
"""All there are, by name."""


def record(name: str, value: float, run: str, stage: str) -> None:
    """Add to a counter, or set a gauge; nothing where no Ray is connected."""
    import ray

    if not ray.is_initialized():
        return
    metric = _registered(name)
    tags = {name: _ascii(value) for name, value in (("run", run), ("stage", stage))}
    if METRICS[name].kind == "gauge":
        metric.set(value, tags)
    elif value:
        metric.inc(value, tags)


def _ascii(text: str) -> str:
    """Ray sends no other characters in a tag."""
    return quote(text, safe=string.printable)


@cache
def _registered(name: str) -> "Counter | Gauge":
    from ray.util.metrics import Counter, Gauge

    kind = Gauge if METRICS[name].kind == "gauge" else Counter
    return kind(name, METRICS[name].description, TAGS)


def watched(progress: "Progress", run: str, stage: str) -> "Progress":
    """The same, and Prometheus sees it too."""
    recorded = -EVERY

    def watching(done: int, total: int, unit: str) -> None:
        nonlocal recorded
        progress(done, total, unit)
        now = time.monotonic()
        if now - recorded > EVERY or done >= total:
            recorded = now
            record("semiprune_progress", done / max(total, 1), run, stage)

    return watching


class Meter:
    """Measures one training loop of one worker, of the stage whose folder is `uri`, {root}/{stage}/{key}."""

    def __init__(self, uri: str) -> None:
        self._run, self._stage, _ = uri.rsplit("/", 2)
        self._counts = dict.fromkeys(("images", "steps", "step_seconds", "wait_seconds"), 0.0)
        self._last: dict[str, float] = {}  # told again and again: Ray drops a gauge that was set once after 20 s
        self._recorded = time.perf_counter()

    def watch(self, batches: Iterator[Item], rows: Callable[[Item], int]) -> Iterator[Item]:
        """The same batches; rows: images of one. What passes until the next is asked for is the step."""
        asked = time.perf_counter()
        for batch in batches:
            came = time.perf_counter()
            self._counts["wait_seconds"] += came - asked
            yield batch
            asked = time.perf_counter()
            self._counts["step_seconds"] += asked - came
            self._counts["steps"] += 1
            self._counts["images"] += rows(batch)
            if asked - self._recorded > EVERY:
                self._flush()

    def commit(self, commits: int, loss: float, pseudo_label_rate: float | None = None) -> None:
        """Tell what is committed. commits: how many there are now; pseudo_label_rate: in semi-supervised training."""
        self._last = {"commits": commits, "loss": loss}
        if pseudo_label_rate is not None:
            self._last["pseudo_label_rate"] = pseudo_label_rate
        self._flush()

    def _flush(self) -> None:
        for name, value in (self._counts | self._last).items():
            record(f"semiprune_{name}", value, self._run, self._stage)
        self._counts = dict.fromkeys(self._counts, 0.0)
        self._recorded = time.perf_counter()
