"""`semiprune plan --cost`: what each stage will take, as a table."""

import os
from collections.abc import Iterable, Sequence

import typer

from jobs.display import Display, table
from pipeline import probe
from pipeline.cost import SPEEDS, Cost, estimate, keep, look_at, seconds
from pipeline.errors import SemiPruneError, UserError
from pipeline.recipe import Recipe
from pipeline.stage import Stage
from pipeline.units import counted, duration, size


def show_costs(recipe: Recipe, stages: list[Stage], given: Sequence[str]) -> None:
    """Print the estimate and keep it for the report; given: NAME=X, images/s.

    What is not given is measured here, which takes half a minute.
    """
    speeds = _parsed(given)
    data = look_at(recipe, stages)
    missing = [name for name in SPEEDS if name not in speeds and _is_wanted(name, recipe)]
    if missing:
        with Display() as display, display.stage("probe") as progress:
            speeds = probe.measure(recipe, missing, lambda done: progress(done, len(missing), "speeds")) | speeds
    tasks = recipe.resources.tasks or os.cpu_count() or 1
    costs = estimate(recipe, stages, data, speeds)
    done = {stage.title: stage.load(recipe.root) for stage in stages if stage.title in costs}
    took = {name: artifact.manifest["seconds"] for name, artifact in done.items() if artifact}
    rows = [_row(name, cost, seconds(cost, recipe, tasks), took.get(name)) for name, cost in costs.items()]
    rows.append(_row("all", _sum(costs.values()), sum(seconds(cost, recipe, tasks) for cost in costs.values()), None))
    kind = "GPU" if recipe.resources.gpus_per_worker else "worker"
    about = "" if data.exact else "about "
    images, shards = counted(data.num_samples, "images"), counted(data.num_shards, "shards")
    table(
        f"Cost of {about}{images}, {size(data.num_bytes)} in {shards}",
        ("stage", "decoded", f"{kind} hours", "core hours", "read", "written", "requests", "time", "took"),
        rows,
    )
    try:
        keep(recipe, stages, costs, speeds, tasks)
    except SemiPruneError as failed:
        typer.echo(f"The report will not compare this with what the stages take: {failed}", err=True)
    said = ", ".join(f"{name} {speeds[name]:,.0f}" for name in SPEEDS if name in speeds)
    typer.echo(
        f"Time is that of {counted(recipe.resources.min_workers, 'workers')} and {counted(tasks, 'tasks')} at "
        f"images/s of {said}{'; those of this machine: give others with --speed NAME=X' if missing else ''}"
    )


def _is_wanted(name: str, recipe: Recipe) -> bool:
    return {"ssl": recipe.ssl is not None, "final": recipe.evaluate is not None}.get(name, True)


def _parsed(given: Sequence[str]) -> dict[str, float]:
    speeds = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            speeds[name] = float(value)
        except ValueError:
            speeds[name] = 0.0
        if name not in SPEEDS or not 0 < speeds[name] < float("inf"):
            raise UserError(f"--speed {text!r} is not NAME=X, images/s above 0: the names are {', '.join(SPEEDS)}")
    return speeds


def _row(name: str, cost: Cost, estimated: float, took: float | None) -> list[str]:
    counts = [
        f"{cost.decoded:,}" if cost.decoded else "",
        _hours(cost.worker_seconds),
        _hours(cost.core_seconds),
        size(cost.read) if cost.read else "",
        size(cost.written) if cost.written else "",
        f"{cost.requests:,}" if cost.requests else "",
    ]
    return [name, *counts, duration(estimated), "" if took is None else duration(took)]


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}" if hours >= 0.0005 else ""


def _sum(costs: Iterable[Cost]) -> Cost:
    return Cost(*(sum(column) for column in zip(*(vars(cost).values() for cost in costs), strict=True)))
