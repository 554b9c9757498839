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
from pathlib import Path

import pytest

from tests.running import REPOSITORY, kill_tree, tiny_recipe

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A `ray start --head` of the test's own; yields the environment in which clients reach it."""
    token = tmp_path / "token"
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


@pytest.mark.timeout(240)
def test_a_submitted_job_prunes(head: dict[str, str], digits: Path, tmp_path: Path, reference_run: Path) -> None:
    recipe = tiny_recipe(digits, tmp_path / "submitted", evaluate=None)
    submitted = subprocess.run(
        [RAY, "job", "submit", "--working-dir", ".", "--", sys.executable, "-m", "jobs.run", str(recipe)],
        cwd=REPOSITORY,
        env=head,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    (report,) = (tmp_path / "submitted").glob("report/*/report.html")
    assert str(report) in submitted.stdout
    for name in ("indices.npy", "keys.txt"):
        ours = sorted(path.read_bytes() for path in (tmp_path / "submitted").glob(f"export/*/{name}"))
        theirs = sorted(path.read_bytes() for path in reference_run.glob(f"export/*/{name}"))
        assert len(ours) == 2 and ours == theirs
