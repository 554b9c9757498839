"""Killed and interrupted here, a run ends on a cluster with the same coreset as one that nothing happened to.

One run suffers all of it, because every start of Ray Train takes its time: a worker dies, the driver dies, Ray dies,
somebody presses Ctrl-C; `ray job submit`, as the README shows it, does the rest. All the labels in its table that the
split does not draw are lies, and its images are streamed, where the undisturbed run has them from the cache.
"""

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.dynamics_store import DynamicsStore
from pipeline.index import load_index
from pipeline.stage import Artifact
from tests.running import REPOSITORY, artifacts, descendants, finish, kill_tree, run, start, tiny_recipe, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Submitted:
    """A run that a job has finished, and what the job printed."""

    root: Path
    stdout: str


def coresets(done: dict[str, Artifact]) -> dict[str, bytes]:
    """Every exported file, by its place."""
    folders = {title: Path(artifact.uri) for title, artifact in done.items() if title.startswith("export")}
    return {
        f"{title}: {path.relative_to(folder)}": path.read_bytes()
        for title, folder in folders.items()
        for path in sorted(folder.glob("**/*"))
        if path.is_file() and path.name != "_MANIFEST.json"
    }


def committed(root: Path, log: str, at_least: int) -> bool:
    return len(list(root.glob(f"{log}/epoch-*.json"))) >= at_least


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def lies(done: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of labels that is right wherever the split of the reference run looked, and there alone."""
    split = done["split"].table()
    visible = dict(zip(split["sample_id"].to_pylist(), split["label"].to_pylist(), strict=True))
    rows = load_index(done["index"], ["key", "label"]).to_pylist()
    table = tmp_path_factory.mktemp("lies") / "labels.csv"
    wrong = (f"{row['key']},{visible.get(row['sample_id'], (row['label'] + 1) % 10)}" for row in rows)
    table.write_text("\n".join(["key,label", *wrong]))
    return table


@pytest.fixture(scope="module")
def recipe(digits: Path, lies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed") / "run"
    return tiny_recipe(digits, root, **{"data.labels": str(lies), "resources": {"images": "stream"}})


@pytest.fixture(scope="module")
def killed(recipe: Path) -> Path:
    """The run directory after a worker, the driver and Ray were killed and Ctrl-C was pressed, at random moments."""
    root, seed = recipe.with_suffix(""), time.time_ns()
    print(f"seed of the moments: {seed}")  # shown when the test fails
    pause = random.Random(seed)

    driver = start("run", str(recipe))
    wait_for(lambda: committed(root, "ssl/*/training", 2), driver, "commit of ssl")
    time.sleep(pause.uniform(0, 0.3))
    workers = descendants(driver, "RayTrainWorker")
    assert workers, "no training worker found to kill"
    pause.choice(workers).send_signal(signal.SIGKILL)
    wait_for(lambda: committed(root, "proxy/*/dynamics", 1), driver, "epoch of the proxy after a worker's death")
    time.sleep(pause.uniform(0, 0.3))
    kill_tree(driver)

    driver = start("run", str(recipe), RAY_gcs_rpc_server_reconnect_timeout_s="5")
    wait_for(lambda: bool(descendants(driver, "RayTrainWorker")), driver, "workers of the proxy")
    time.sleep(pause.uniform(0, 2))
    for name in ("raylet/raylet", "gcs_server"):
        for process in descendants(driver, name):
            process.send_signal(signal.SIGKILL)
    status, _, err = finish(driver, timeout=100)
    assert status not in (0, 2), err

    driver = start("run", str(recipe))
    wait_for(lambda: bool(descendants(driver, "RayTrainWorker")), driver, "workers of the proxy")
    time.sleep(pause.uniform(0, 2))
    driver.send_signal(signal.SIGINT)
    status, _, err = finish(driver)
    assert status == 130 and "the same command continues" in err and "Traceback" not in err, err
    return root


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A `ray start --head` of the test's own, with a token; yields the environment in which clients reach it."""
    token = tmp_path_factory.mktemp("head") / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    dashboard = free_port()
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                *(RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
                *(f"--temp-dir={folder}", f"--port={free_port()}", f"--ray-client-server-port={free_port()}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                f"--dashboard-agent-listen-port={free_port()}",  # an agent of a killed Ray may linger on the usual one
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        address = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=2)
                break
            except urllib.error.HTTPError:
                break  # it answers, and asks for the token
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the head did not start"
                time.sleep(0.3)
        yield environment | {"RAY_ADDRESS": address}
        kill_tree(process)


@pytest.fixture(scope="module")
def submitted(killed: Path, recipe: Path, head: dict[str, str]) -> Submitted:
    """The killed run, finished by a job on another Ray."""
    command = [RAY, "job", "submit", "--working-dir", ".", "--", sys.executable, "-m", "jobs.cli", "run", str(recipe)]
    deadline = time.monotonic() + 60
    while True:
        job = subprocess.run(command, cwd=REPOSITORY, env=head, capture_output=True, text=True, timeout=200)
        if "No available agent" not in job.stderr or time.monotonic() > deadline:
            break  # the head answers before it can start a job
        time.sleep(0.5)
    assert job.returncode == 0, job.stdout + job.stderr
    return Submitted(killed, job.stdout)


def test_a_job_on_a_cluster_finishes_what_was_killed_elsewhere(submitted: Submitted) -> None:
    (report,) = submitted.root.glob("report/*/report.html")
    assert str(report) in submitted.stdout
    assert "ssl  found done" in submitted.stdout and "proxy  done in" in submitted.stdout


def test_a_killed_run_ends_with_the_same_coreset(submitted: Submitted, done: dict[str, Artifact]) -> None:
    ours, theirs = coresets(artifacts(submitted.root)), coresets(done)
    assert len(theirs) == 10
    assert ours == theirs


def test_hidden_labels_reach_neither_training_nor_coreset(submitted: Submitted, done: dict[str, Artifact]) -> None:
    ours = artifacts(submitted.root)
    assert ours["index"].table(columns=["label"]) != done["index"].table(columns=["label"])
    for title in ("split", "pseudo_label", "score", "select cutoff", "select beta"):
        assert ours[title].table().equals(done[title].table()), title


def test_every_epoch_is_recorded_once_and_whole(submitted: Submitted, done: dict[str, Artifact]) -> None:
    store, whole = (DynamicsStore(f"{run['proxy'].uri}/dynamics") for run in (artifacts(submitted.root), done))
    assert len(store.epochs) == len(whole.epochs) and store.coverage == 1


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("attempt", range(20))
def test_kills_at_any_moment(digits: Path, tmp_path: Path, done: dict[str, Artifact], attempt: int) -> None:
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
    assert coresets(artifacts(root)) == coresets(done)
