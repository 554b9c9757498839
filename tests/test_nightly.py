"""deploy/nightly.sh, with programs in the places of `ray` and `semiprune`."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.scripts.scripts import cli as ray_cli
from typer.main import get_command

from jobs.cli import app
from tests.running import REPOSITORY

# As `ray dashboard` does: the tunnel is a child, which a signal to its parent alone would leave.
RAY = """#!/bin/bash
echo "$@" > ray.arguments
echo $$ > ray.pid
[[ -e no-cluster ]] && exit 1
{python} -c '
import os, socket, sys, time
open("ssh.pid", "w").write(str(os.getpid()))
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(600)
' "$4"
"""
SEMIPRUNE = """#!/bin/bash
echo "$@" > semiprune.arguments
echo $$ > semiprune.pid
all="$*"
(exec 3<>"/dev/tcp/127.0.0.1/${{all##*:}}") || exit 99
sleep "$(cat seconds)"
exit "$(cat status)"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (tmp_path / "deploy").mkdir()
    shutil.copy(REPOSITORY / "deploy/nightly.sh", tmp_path / "deploy")
    for name, text in (("ray", RAY), ("semiprune", SEMIPRUNE)):
        (programs / name).write_text(text.format(python=sys.executable))
        (programs / name).chmod(0o755)
    (tmp_path / "seconds").write_text("0")
    (tmp_path / "status").write_text("0")
    return tmp_path


def start(checkout: Path) -> "subprocess.Popen[str]":
    command = [checkout / "deploy/nightly.sh", "recipe.yaml", "--set", "seed=1"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(checkout)}  # of cron
    return subprocess.Popen(
        command, cwd="/", env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def is_over(checkout: Path, name: str) -> bool:
    try:
        os.kill(int((checkout / f"{name}.pid").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def eventually(condition: object) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if callable(condition) and condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("status", [0, 75])
def test_its_status_is_that_of_the_submission_and_the_tunnel_ends(checkout: Path, status: int) -> None:
    (checkout / "status").write_text(str(status))
    night = start(checkout)
    _, said = night.communicate(timeout=60)
    assert (night.returncode, said) == (status, "")
    port = int((checkout / "ray.arguments").read_text().split()[-1])
    assert (checkout / "ray.arguments").read_text() == f"dashboard cluster.yaml --port {port}\n"
    submitted = (checkout / "semiprune.arguments").read_text()
    assert submitted == f"submit recipe.yaml --set seed=1 --refresh --address http://127.0.0.1:{port}\n"
    ray_cli.commands["dashboard"].make_context("", ["cluster.yaml", "--port", str(port)])
    get_command(app).commands["submit"].make_context("", submitted.split()[1:])
    assert eventually(lambda: is_over(checkout, "ray") and is_over(checkout, "ssh"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_without_a_cluster_nothing_is_submitted(checkout: Path) -> None:
    (checkout / "no-cluster").touch()
    night = start(checkout)
    _, said = night.communicate(timeout=60)
    assert night.returncode == 1 and said.startswith("nightly.sh: no tunnel to the head")
    assert not (checkout / "semiprune.arguments").exists()


def test_a_signal_ends_submission_and_tunnel(checkout: Path) -> None:
    (checkout / "seconds").write_text("600")
    night = start(checkout)
    assert eventually((checkout / "semiprune.pid").exists)
    night.send_signal(signal.SIGTERM)
    assert night.wait(timeout=30) == 143
    assert eventually(lambda: all(is_over(checkout, name) for name in ("ray", "ssh", "semiprune")))


def test_it_is_shell() -> None:
    subprocess.run(["bash", "-n", REPOSITORY / "deploy/nightly.sh"], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, REPOSITORY / "deploy/nightly.sh"], check=True)
