"""Killed or interrupted at random points, a run continues by the same command to the same coreset, byte for byte."""

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.dynamics import DynamicsStore
from tests.running import descendants, finish, kill_tree, run, start, tiny_recipe, wait_for


def coresets(root: Path) -> dict[str, bytes]:
    """Every exported file, by its place inside its export and in a fixed order."""
    files = sorted(path for path in root.glob("export/*/**/*") if path.is_file() and path.name != "_MANIFEST.json")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def committed(root: Path, log: str, at_least: int) -> bool:
    return len(list(root.glob(f"{log}/epoch-*.json"))) >= at_least


@pytest.mark.timeout(300)
def test_a_killed_run_continues_to_the_same_coreset(digits: Path, tmp_path: Path, reference_run: Path) -> None:
    root, seed = tmp_path / "killed", time.time_ns()
    print(f"seed of the moments: {seed}")  # shown when the test fails
    pause = random.Random(seed)
    recipe = str(tiny_recipe(digits, root))

    driver = start("run", recipe)
    wait_for(lambda: committed(root, "ssl/*/training", 2), driver, "commit of ssl")
    time.sleep(pause.uniform(0, 0.3))
    workers = descendants(driver, "RayTrainWorker")
    assert workers, "no training worker found to kill"
    pause.choice(workers).send_signal(signal.SIGKILL)
    wait_for(lambda: committed(root, "proxy/*/dynamics", 1), driver, "epoch of the proxy after a worker's death")
    time.sleep(pause.uniform(0, 0.3))
    kill_tree(driver)

    driver = start("run", recipe, RAY_gcs_rpc_server_reconnect_timeout_s="5")
    wait_for(lambda: bool(descendants(driver, "RayTrainWorker")), driver, "workers of the proxy")
    time.sleep(pause.uniform(0, 2))
    for name in ("raylet/raylet", "gcs_server"):
        for process in descendants(driver, name):
            process.send_signal(signal.SIGKILL)
    status, _, err = finish(driver, timeout=100)
    assert status not in (0, 2), err

    driver = start("run", recipe)
    wait_for(lambda: bool(list(root.glob("score/*/_MANIFEST.json"))), driver, "scores")
    time.sleep(pause.uniform(0, 1))
    driver.send_signal(signal.SIGINT)
    status, _, err = finish(driver)
    assert status == 130 and "the same command continues" in err and "Traceback" not in err, err

    status, _, err = run("run", recipe)
    assert status == 0, err
    assert coresets(root) == coresets(reference_run)
    (folder,) = root.glob("proxy/*/dynamics")
    store = DynamicsStore(str(folder))
    for epoch in store.epochs:
        assert np.all(store.read(epoch, 0, store.num_samples).present)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("attempt", range(20))
def test_kills_at_any_moment(digits: Path, tmp_path: Path, reference_run: Path, attempt: int) -> None:
    root, chance = tmp_path / "killed", random.Random(attempt)
    recipe = str(tiny_recipe(digits, root))
    for _ in range(4):
        driver = start("run", recipe)
        time.sleep(chance.uniform(2, 25))
        if driver.poll() is None:
            kill_tree(driver)
        else:
            assert finish(driver)[0] == 0
    status, _, err = run("run", recipe)
    assert status == 0, err
    assert coresets(root) == coresets(reference_run)
