"""A run as a job of a cluster, which is there once however often it is submitted.

The job is called after its run, so that the same run finds the job it has. A refresh that lives is found by its root,
for shards that came since have made another one of it. What a job may do, it may do by the roles or
the environment of the nodes: nothing of the submitter's environment travels with it.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jobs.cluster import Cluster, Job
from jobs.shipment import RECIPE, pack
from pipeline import plan, storage
from pipeline.checkout import code
from pipeline.errors import StorageError, UserError
from pipeline.recipe import Recipe
from pipeline.refresh import is_current
from pipeline.stage import Stage, are_done

Command = Literal["run", "refresh"]
_PREFIXES = {"run": "semiprune-", "refresh": "semiprune-refresh-"}


def run_id(recipe: Recipe, command: Command = "run") -> str:
    """What the jobs of a run or a refresh are called: the same for the same root and stages, whoever submits them.

    Reads the names behind wildcards and the tables of labels, as planning does: more shards are another job.
    """
    return _name(recipe, plan.build(recipe), command)


def _name(recipe: Recipe, stages: list[Stage], command: Command) -> str:
    content = json.dumps([command, recipe.root, stages[-1].key])
    return f"{_PREFIXES[command]}{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def local_places(recipe: Recipe) -> list[str]:
    """What the recipe names on this machine's disks, which other machines see only if they share them."""
    encode, evaluate = recipe.encode, recipe.evaluate
    named = [recipe.root, *recipe.data.shards, recipe.data.labels, recipe.split.labels]
    named += [encode.table] if encode else []
    named += [*evaluate.test_shards, evaluate.labels] if evaluate else []
    return [place for place in named if place is not None and storage.is_local(place)]


def submit(
    cluster: Cluster, recipe: Recipe, named: str, note: Callable[[str], None], command: Command = "run"
) -> tuple[Job, bool]:
    """The job of the run, and whether it is a new one: one that lives, or whose results are there, is the only one.

    named: what the user called the recipe; note: told if a success has to be believed unseen, or a refresh that is
    joined may have begun with less; command: what to do with the recipe. A further attempt has a number behind its id.
    """
    stages = plan.build(recipe)
    name = _name(recipe, stages, command)
    jobs = cluster.jobs()
    if command == "refresh" and (refreshing := [job for job in jobs if _refreshes(job, recipe.root)]):
        note(f"{refreshing[-1].id} refreshes this root: what came since it began, such as shards, is for the next one")
        return refreshing[-1], False
    attempts = [job for job in jobs if re.fullmatch(rf"{name}(-\d+)?", job.id)]
    if attempts:
        last = attempts[-1]
        if last.is_live or (last.status == "SUCCEEDED" and _is_done(recipe, stages, note, command)):
            return last, False
        name = f"{name}-{len(attempts) + 1}"
    metadata = {"root": recipe.root, "recipe": named, "commit": code()["commit"] or ""}
    with tempfile.TemporaryDirectory() as folder:
        pack(recipe, Path(folder))
        is_new = cluster.submit(name, folder, f"python -m jobs.cli {command} {RECIPE}", metadata)
    return cluster.find(name), is_new


def _refreshes(job: Job, root: str) -> bool:
    """Whether it is a refresh of that root, and lives."""
    return job.is_live and job.id.startswith(_PREFIXES["refresh"]) and job.root.rstrip("/") == root.rstrip("/")


def _is_done(recipe: Recipe, stages: list[Stage], note: Callable[[str], None], command: Command) -> bool:
    """Whether what a job that succeeded has made is there now, and as the recipe wants it; True where nobody can say.

    A folder may have been deleted since, as after damage, and other refreshes may have come after this one.
    """
    try:
        return is_current(recipe, stages) if command == "refresh" else are_done(stages, recipe.root)
    except (UserError, StorageError) as error:
        note(f"the root cannot be read from this machine, so that its job's word is all there is: {error}")
        return True
