"""Runs of the real command in processes of their own, on a recipe that takes seconds."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from pipeline import plan
from pipeline.recipe import Recipe
from pipeline.run import PLAN
from pipeline.stage import Artifact

REPOSITORY = Path(__file__).parent.parent


def tiny_recipe(data: Path, root: Path, **changes: object) -> Path:
    """A recipe on the digits in `data` that exercises every stage; `changes` are dotted keys."""
    model = {"name": "resnet9", "width": 4}
    augment = {"flip": False}
    recipe: dict = {
        "root": str(root),
        "data": {"shards": f"{data}/train-{{000000..000005}}.tar", "num_classes": 10, "image_size": 8},
        "split": {"num_labelled": 100},
        "ssl": {
            "model": model,
            "steps": 60,
            "checkpoint_every": 5,
            "batch_size": 32,
            "unlabelled_ratio": 2,
            "augment": augment,
        },
        "proxy": {"model": model, "epochs": 8, "batch_size": 64, "augment": augment},
        "score": {"aum": {}, "confidence": {}, "forgetting": {}, "el2n": {"num_epochs": 5}, "dual": {"T": 8, "J": 4}},
        "select": [
            {"name": "cutoff", "selector": "double_end", "keep_fraction": 0.3, "options": {"mislabel_fraction": 0.1}},
            {"name": "beta", "selector": "dual_beta", "keep_fraction": 0.3},
        ],
        "evaluate": {
            "test_shards": f"{data}/test-000000.tar",
            "seeds": 1,
            "training": {"model": model, "epochs": 2, "augment": augment},
        },
    }
    for key, value in changes.items():
        node = recipe
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
    path = root.parent / f"{root.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    """`semiprune` with these arguments, as a process of its own with its own Ray."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *arguments],
        cwd=REPOSITORY,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{out}\n{err}") from None
    return process.returncode, out, err


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """`semiprune` with these arguments, to its end."""
    return finish(start(*arguments, **environment))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, what: str, timeout: float = 90) -> None:
    """Until `condition` holds while `process` runs."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"ended before {what}: {finish(process)}"
        assert time.monotonic() < deadline, f"no {what} within {timeout} s"
        time.sleep(0.02)


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL the driver; what it started must go with it, and is awaited."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=1.5)  # but for two agents of Ray, which would linger
    for straggler in alive:
        straggler.kill()


def descendants(process: subprocess.Popen, name: str) -> list[psutil.Process]:
    """Processes below `process` whose command line contains `name`."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def artifacts(root: Path) -> dict[str, Artifact]:
    """The committed stages of the last plan that ran in `root`, by title."""
    recipe = Recipe.model_validate_json(json.dumps(json.loads((root / PLAN).read_text())["recipe"]))
    found = {stage.title: stage.load(str(root)) for stage in plan.build(recipe)}
    return {title: artifact for title, artifact in found.items() if artifact is not None}
