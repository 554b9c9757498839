"""A function over many items on Ray Data's tasks or actors, with errors and progress as if it ran here."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pipeline.errors import SemiPruneError
from pipeline.resources import Resources
from pipeline.stage import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Box:
    """Keeps Arrow from taking a Python value apart: items and results travel as they are."""

    content: Any


def map_items(
    items: Sequence[Item],
    function: Callable[[Item], Result],
    *,
    resources: Resources,
    progress: Progress,
    unit: str,
    cpus: int = 1,
    gpus: float = 0,
) -> list[Result]:
    """`[function(item) for item in items]`, by tasks, as `stream_items` says."""
    found = stream_items(items, function, resources=resources, progress=progress, unit=unit, cpus=cpus, gpus=gpus)
    results = dict(found)
    return [results[position] for position in range(len(items))]


def stream_items(
    items: Sequence[Item],
    function: Callable[[Item], Result],
    *,
    resources: Resources,
    progress: Progress,
    unit: str,
    cpus: int = 1,
    gpus: float = 0,
) -> Iterator[tuple[int, Result]]:
    """(position, function(item)) of every item as it is done, one Ray task per item, `resources.tasks` at a time.

    cpus, gpus: what each task takes. Where that is a part of a GPU, actors run them: Ray ends the process of a task
    that had one, and the next would start Python, CUDA and the model again for every item.

    Results come back through this process: keep them small, write the rest from the task. Ray may run a task twice, so
    what it writes needs a name of its own. A SemiPruneError raised by a task is raised here, as it is; `progress`
    hears of every finished item.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    total = len(items)
    progress(0, total, unit)
    if not items:
        return
    _silence()
    rows = [{"position": position, "value": _Box(item)} for position, item in enumerate(items)]
    source = ray.data.from_items(rows, override_num_blocks=total)
    most = min(total, resources.tasks or total)
    if gpus:
        first = max(1, min(most, int(ray.cluster_resources().get("GPU", 0) / gpus)))
        pool = ActorPoolStrategy(min_size=1, initial_size=first, max_size=most)
        dataset = source.map(_Actor, fn_constructor_args=(function,), compute=pool, num_cpus=cpus, num_gpus=gpus)
    else:
        tasks = TaskPoolStrategy(size=most)
        dataset = source.map(partial(_apply, function=function), compute=tasks, num_cpus=cpus)
    done = 0
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for position, box in zip(block["position"].to_pylist(), block["value"].to_pylist(), strict=True):
            if isinstance(box.content, SemiPruneError):
                raise box.content
            done += 1
            progress(done, total, unit)
            yield position, box.content


class _Actor:
    """A process that keeps its GPU, and what `function` has loaded, from item to item."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _apply(row, self._function)


def _apply(row: dict[str, Any], function: Callable[[Any], Any]) -> dict[str, Any]:
    """Inside the task. Deliberate errors are results: Ray would wrap them in its own and log a traceback."""
    try:
        value = function(row["value"].content)
    except SemiPruneError as error:
        value = error
    return {"position": row["position"], "value": _Box(value)}


def _silence() -> None:
    """Ray Data says what it does in its log file, not on the terminal."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
