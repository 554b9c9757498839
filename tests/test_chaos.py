"""What becomes of a run when parts of its cluster die; benchmarks/chaos.py does the same hundreds of times."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from benchmarks.chaos import Chaos, broken_epochs
from pipeline.epochs import EpochLog
from tests.running import REPOSITORY, finish, tiny_recipe, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SIGNS = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
"""Ray is to take a node for dead within 2 s; by default it waits longer, as it should where networks are real."""

PATIENCE = 240.0
"""Seconds within which a training goes on, on a machine that has much else to do."""


@pytest.fixture(scope="module")
def chaos() -> Iterator[Chaos]:
    with tempfile.TemporaryDirectory(prefix="c-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        chaos = Chaos(Path(folder), seed=time.time_ns(), **SIGNS)
        yield chaos
        chaos.end()


def test_an_elastic_training_loses_and_gains_a_node(chaos: Chaos) -> None:
    """With three workers, then two, then three again; Ray looks for new nodes every 20 s."""
    recipe = tiny_recipe(
        Path("s3://data"),
        chaos.store.folder.parent / "elastic",
        **{
            "data.shards": "s3://data/train-{000000..000005}.tar",
            "ssl.steps": 5,
            "proxy.epochs": 500,
            "score": {"aum": {}},
            "select": [{"name": "most", "selector": "top_k", "keep_fraction": 0.3}],
            "evaluate": None,
            "resources": {"num_workers": {"min": 1, "max": 3}},
        },
    )
    root = chaos.store.folder / "runs" / "elastic"

    def reached(*wanted: int) -> bool:
        """Whether the committed epochs are of so many workers, in this order, the last two of the last number."""
        logs = [EpochLog(str(place)) for place in root.glob("proxy/*/dynamics")]
        sizes = [commit.facts["world_size"] for log in logs for commit in log.commits()]
        return [size for size, _ in groupby(sizes)] == list(wanted) and sizes[-2:] == [wanted[-1]] * 2

    looks_often = "from pipeline import training; training.RESIZE = 1.0; from jobs.cli import main; main()"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = subprocess.Popen(
        [sys.executable, "-c", looks_often, "run", str(recipe), "--set", "root=s3://runs/elastic"],
        cwd=REPOSITORY,
        env={**inherited, **chaos.nodes.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: reached(3), driver, "epochs of three workers", PATIENCE)
    chaos.nodes.kill(chaos.nodes.workers[0])
    wait_for(lambda: reached(3, 2), driver, "epochs of two workers", PATIENCE)
    chaos.nodes.add()
    wait_for(lambda: reached(3, 2, 3), driver, "epochs of three workers again", PATIENCE)
    driver.kill()
    finish(driver)
    [dynamics] = root.glob("proxy/*/dynamics")
    assert broken_epochs(dynamics) == []


def test_a_run_survives_its_cluster(chaos: Chaos, reference_run: Path) -> None:
    """A worker, a node, the store and the driver are killed; what comes out is what came out elsewhere, undisturbed."""
    plan = [("worker", "ssl"), ("node", "proxy"), ("store killed", "proxy"), ("driver", "evaluate")]
    outcome = chaos.ordeal(plan, reference_run)
    assert outcome.violations == [], outcome
    assert [fault.kind for fault in outcome.faults] == [kind for kind, _ in plan]
