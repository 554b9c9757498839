"""A run as a job of a cluster, which is there once however often it is submitted.

The job is called after its run, so that the same run finds the job it has. What a job may do, it may do by the roles or
the environment of the nodes: nothing of the submitter's environment travels with it.
"""

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Literal

from jobs.cluster import Cluster, Job
from jobs.shipment import RECIPE, pack
from pipeline import plan, storage
from pipeline.checkout import code
from pipeline.recipe import Recipe

Command = Literal["run", "refresh"]


def run_id(recipe: Recipe, command: Command = "run") -> str:
    """What the jobs of a run or a refresh are called: the same for the same root and stages, whoever submits them.

    Reads the names behind wildcards and the tables of labels, as planning does: more shards are another job.
    """
    last = plan.build(recipe)[-1]
    return f"semiprune-{hashlib.sha256(json.dumps([command, recipe.root, last.key]).encode()).hexdigest()[:16]}"


def local_places(recipe: Recipe) -> list[str]:
    """What the recipe names on this machine's disks, which other machines see only if they share them."""
    encode, evaluate = recipe.encode, recipe.evaluate
    named = [recipe.root, *recipe.data.shards, recipe.data.labels, recipe.split.labels]
    named += [encode.table] if encode else []
    named += [*evaluate.test_shards, evaluate.labels] if evaluate else []
    return [place for place in named if place is not None and storage.is_local(place)]


def submit(cluster: Cluster, recipe: Recipe, named: str, command: Command = "run") -> tuple[Job, bool]:
    """The job of the run, and whether it is a new one: one that lives or succeeded is not submitted again.

    named: what the user called the recipe; command: what to do with it. An attempt after one that failed or was stopped
    has a number behind its id.
    """
    name = run_id(recipe, command)
    attempts = [job for job in cluster.jobs() if re.fullmatch(rf"{name}(-\d+)?", job.id)]
    if attempts and (attempts[-1].is_live or attempts[-1].status == "SUCCEEDED"):
        return attempts[-1], False
    if attempts:
        name = f"{name}-{len(attempts) + 1}"
    metadata = {"root": recipe.root, "recipe": named, "commit": code()["commit"] or ""}
    with tempfile.TemporaryDirectory() as folder:
        pack(recipe, Path(folder))
        is_new = cluster.submit(name, folder, f"python -m jobs.cli {command} {RECIPE}", metadata)
    return cluster.find(name), is_new
