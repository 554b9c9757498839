"""`ray job submit` of a recipe to a real Ray head with token authentication, as the README shows it."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.index import load_index
from tests.running import REPOSITORY, artifacts, kill_tree, tiny_recipe

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Run:
    root: Path
    stdout: str


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A `ray start --head` of the test's own; yields the environment in which clients reach it."""
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
def submitted(head: dict[str, str], digits: Path, reference_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny recipe as a job, with labels that lie wherever the split does not look."""
    done = artifacts(reference_run)
    index, split = load_index(done["index"], ["key"]), done["split"].table()
    visible = dict(zip(split["sample_id"].to_pylist(), split["label"].to_pylist(), strict=True))
    lies = [f"{key},{visible.get(sample_id, 3)}" for sample_id, key in enumerate(index["key"].to_pylist())]
    root = tmp_path_factory.mktemp("submitted") / "run"
    table = root.parent / "lies.csv"
    table.write_text("\n".join(["key,label", *lies]))
    recipe = tiny_recipe(digits, root, evaluate=None, **{"data.labels": str(table)})
    submitted = subprocess.run(
        [RAY, "job", "submit", "--working-dir", ".", "--", sys.executable, "-m", "jobs.run", str(recipe)],
        cwd=REPOSITORY,
        env=head,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    return Run(root, submitted.stdout)


@pytest.mark.timeout(300)
def test_a_submitted_job_prunes(submitted: Run) -> None:
    (report,) = submitted.root.glob("report/*/report.html")
    assert str(report) in submitted.stdout
    assert len(list(submitted.root.glob("export/*/_MANIFEST.json"))) == 2


def test_hidden_labels_do_not_reach_the_coreset(submitted: Run, reference_run: Path) -> None:
    """Every label that was not drawn was replaced by a wrong one: split, scores and coreset are the same."""
    ours, theirs = artifacts(submitted.root), artifacts(reference_run)
    assert ours["index"].manifest["key"] != theirs["index"].manifest["key"]
    for title in ("split", "pseudo_label", "score", "select cutoff", "select beta"):
        assert ours[title].table().equals(theirs[title].table()), title
