"""A Ray cluster of several nodes on this machine, and an object store, for runs to which things happen.

The nodes share no disk: each has folders of its own, the image cache among them, and what they have in common is in the
store. All of it listens on loopback alone, and other Rays of this machine neither see it nor are seen.

`python -m tests.ray_cluster CPUS` holds the nodes: forks of a process with threads, as a test is, may hang. It adds a
node for every line of its input, a folder, answers with the cluster's address and the raylet's process id, and ends
them all when its input does.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import object_store
from tests.running import REPOSITORY

IP = "127.0.0.1"

RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else drivers look for 127.0.0.1 at this machine's other address
}
"""What nodes and drivers need to know."""


@dataclass
class Store:
    """rclone on a port of its own, which it has again when it is started again. folder: its buckets."""

    folder: Path
    port: int = 0
    endpoint: str = field(init=False)
    process: subprocess.Popen = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.process, self.endpoint = object_store.start(self.folder, self.port)
        self.port = int(self.endpoint.rpartition(":")[2])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Nodes:
    """A head and workers, each a raylet with some CPUs.

    head, workers: their raylets; environment: of drivers, which are on the head.
    """

    def __init__(self, folder: Path, count: int, cpus: int = 1, **environment: str) -> None:
        self._folder, self._count, self._cpus, self._own = folder, count, cpus, environment
        self._started = 0
        (folder / "ray").mkdir()  # where Ray notes, for whoever looks there, which cluster it started last
        self._begin()

    def _begin(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        ours = {**RAY, **self._own}
        self._holder = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_cluster", str(self._cpus)],
            env={**inherited, **ours, "RAY_TMPDIR": str(self._folder), "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self._folder / "cluster.log").open("a"),
            text=True,
        )
        disk = self._folder / str(self._started)
        self.address, self.head = self._start()
        self.environment = {**ours, "TMPDIR": str(disk), "RAY_ADDRESS": self.address}
        self.workers: list[psutil.Process] = []
        for _ in range(self._count - 1):
            self.add()

    def replace(self) -> None:
        """SIGKILL for the head and, as Ray's nodes do not live without it, for all others; then a new cluster."""
        self._end(patience=0)
        self._begin()

    def _start(self) -> tuple[str, psutil.Process]:
        folder = self._folder / str(self._started)
        folder.mkdir()
        self._started += 1
        assert self._holder.stdin and self._holder.stdout
        self._holder.stdin.write(f"{folder}\n")
        self._holder.stdin.flush()
        address, raylet = self._holder.stdout.readline().split()
        return address, psutil.Process(int(raylet))

    def add(self) -> None:
        """One more node."""
        self.workers.append(self._start()[1])

    def kill(self, raylet: psutil.Process) -> None:
        """SIGKILL for a worker's raylet. What ran on the node is to find out by itself; what does not is killed."""
        self.workers.remove(raylet)
        orphans = raylet.children(recursive=True)
        raylet.kill()
        _end(orphans, patience=5)

    def processes(self, name: str) -> list[psutil.Process]:
        """On all nodes, those whose command line contains `name`."""
        raylets = [self.head, *self.workers]
        return [each for raylet in raylets for each in raylet.children(recursive=True) if _is_called(each, name)]

    def end(self) -> None:
        """End all of it."""
        self._end(patience=10)

    def _end(self, patience: float) -> None:
        started = psutil.Process(self._holder.pid).children(recursive=True)
        assert self._holder.stdin and self._holder.stdout
        if patience:
            self._holder.stdin.close()
        _end([self._holder, *started], patience)
        self._holder.stdin.close()
        self._holder.stdout.close()


def _end(processes: Sequence[psutil.Process | subprocess.Popen], patience: float) -> None:
    """Kill what has not ended by itself after some seconds."""
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for straggler in alive:
        with contextlib.suppress(psutil.NoSuchProcess):  # many end with the one that was just killed
            straggler.kill()
    psutil.wait_procs(alive)


def _is_called(process: psutil.Process, name: str) -> bool:
    try:
        return name in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _hold(cpus: int) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for line in sys.stdin:
        node = _added(cluster, Path(line.strip()), cpus)
        print(cluster.address, node.all_processes["raylet"][0].process.pid, flush=True)
    cluster.shutdown()


def _added(cluster: Any, folder: Path, cpus: int) -> Any:
    """A new node; on a machine that has too much to do, Ray gives up some of them, which are tried again."""
    head = {} if cluster.head_node else {"include_dashboard": False}
    os.environ["TMPDIR"] = str(folder)
    for last in (False, False, True):
        before = psutil.Process().children()
        try:
            return cluster.add_node(
                num_cpus=cpus, node_ip_address=IP, temp_dir=str(folder), object_store_memory=100 << 20, **head
            )
        except Exception:  # Ray has no other for a node that did not come up in time
            if last:
                raise
            _end([child for child in psutil.Process().children() if child not in before], patience=0)
    raise AssertionError("the last try returns or raises")


if __name__ == "__main__":
    _hold(int(sys.argv[1]))
