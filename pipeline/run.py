"""Runs a plan: finished stages are found, the others run in order, each commits before the next begins.

A stage is run by one attempt at a time, whoever else runs in the same root (`pipeline.lease`).
"""

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol

from pipeline import ingest, storage
from pipeline.checkout import code
from pipeline.cluster import connected
from pipeline.errors import SemiPruneError, UserError
from pipeline.index import check_unchanged
from pipeline.lease import Lease, hold
from pipeline.metrics import record, watched
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Progress, Stage
from pipeline.versions import Planned

PLAN = "_PLAN.json"


@dataclass(frozen=True)
class _Plan:
    stages: list[Planned]


class Display(Protocol):
    """What a run tells the person in front of it."""

    def stage(self, title: str) -> AbstractContextManager[Progress]:
        """A stage runs inside the block."""

    def skipped(self, title: str, key: str) -> None:
        """A stage was found done."""

    def note(self, title: str, text: str) -> None:
        """Something was decided."""


def execute(
    stages: Sequence[Stage], root: str, resources: Resources, display: Display, recipe: dict[str, Any]
) -> list[Artifact]:
    """Bring every stage to its committed artifact; what is done is not done again.

    recipe: kept beside the plan, so that the run directory alone tells what it is. Raises DataError if a shard is not
    the one that was indexed, UserError if another attempt that is alive runs a stage that is not done.
    """
    storage.write(storage.join(root, PLAN), json.dumps(describe(stages, recipe), indent=1).encode())
    done: dict[str, Artifact] = {}
    looked_at: set[str] = set()
    with ExitStack() as ray:
        started = False
        for stage in stages:
            with ExitStack() as leases:
                artifact = stage.load(root)
                if artifact is None:
                    tell = partial(display.note, stage.title)
                    lease = leases.enter_context(hold(stage.uri(root), f"stage {stage.title!r}", tell))
                    artifact = stage.load(root)  # who held it until now may have committed
                if artifact is None:
                    if not started:
                        ray.enter_context(connected(resources))
                        started = True
                    for source in [stage.inputs[name] for name in stage.images]:
                        if source.key not in looked_at:
                            looked_at.add(source.key)
                            _prepare_images(source, done[source.key], resources, display)
                    artifact = _run(stage, root, done, resources, display, lease)
                else:
                    display.skipped(stage.title, stage.key)
                    if stage.name == "index":
                        check_unchanged(artifact)
            done[stage.key] = artifact
    return [done[stage.key] for stage in stages]


def describe(stages: Sequence[Stage], recipe: dict[str, Any]) -> dict[str, Any]:
    """The plan as JSON: enough to say, from the run directory alone, what is done and what is missing."""
    return {
        "recipe": recipe,
        "stages": [{"stage": stage.name, "title": stage.title, "key": stage.key} for stage in stages],
    }


def last_plan(root: str) -> list[Planned]:
    """The stages of the last plan that ran in `root`, in order; UserError if none did."""
    try:
        plan: _Plan = storage.read_json(
            storage.join(root, PLAN), _Plan, mend="run the recipe again, which writes it anew"
        )
    except FileNotFoundError as error:
        raise UserError(f"{root!r} is not a run directory: it has no {PLAN}; name the root of a recipe") from error
    except UserError as error:
        if isinstance(error.__cause__, NotADirectoryError):
            raise UserError(f"{root!r} is a file: name a run directory, which is the root of a recipe") from error
        raise
    return plan.stages


def _prepare_images(source: Stage, index: Artifact, resources: Resources, display: Display) -> None:
    """Say where the images of an index will come from, and decode them if they are to be cached."""
    choice = ingest.choose(index, resources)
    title = source.title.replace(source.name, "images")
    display.note(title, f"{choice.way}: {choice.why}")
    missing = ingest.missing(index, resources)
    if missing:
        with display.stage(title) as progress, _explained(title):
            ingest.fill(missing, resources, progress)


def _run(
    stage: Stage, root: str, done: dict[str, Artifact], resources: Resources, display: Display, lease: Lease
) -> Artifact:
    out = Output(stage.uri(root))
    inputs = {name: done[source.key] for name, source in stage.inputs.items()}
    started = time.monotonic()
    with display.stage(stage.title) as shown, _explained(stage.title):
        told = watched(shown, root, stage.title)

        def progress(done: int, total: int, unit: str) -> None:
            lease.check()
            told(done, total, unit)

        metrics = stage.run(inputs, stage.config, out, resources=resources, progress=progress)
    seconds = round(time.monotonic() - started, 3)
    record("semiprune_stage_seconds", seconds, root, stage.title)
    if "num_quarantined" in metrics:
        record("semiprune_quarantined", metrics["num_quarantined"], root, stage.title)
    facts = {"seconds": seconds, "resources": resources.model_dump(), **environment()}
    lease.verify()
    return stage.commit(root, out, metrics, facts)


@contextmanager
def _explained(title: str) -> Iterator[None]:
    """Turn what Ray raises into the error of ours that caused it, or one sentence."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError) and isinstance(cause.cause, BaseException):
            cause = cause.cause
        if isinstance(cause, SemiPruneError):
            raise cause from error
        first = (str(cause).strip().splitlines() or [""])[0]
        raise SemiPruneError(
            f"the stage {title!r} was given up: {type(cause).__name__}: {first}; what was committed is kept, and the "
            "same command continues from there"
        ) from error


def environment() -> dict[str, Any]:
    """Versions, cores, the git commit of the code and whether it is just that, as far as they are known."""
    libraries = ("ray", "torch", "torchvision", "pyarrow", "numpy")
    return {
        "libraries": {name: version(name) for name in libraries},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        **code(),
    }
