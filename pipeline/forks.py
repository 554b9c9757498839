"""Processes that start in milliseconds with what this one has imported, and share no lock with it.

They are forked by a process of our own with a single thread, which this one starts when it first wants some, and which
imports once what they need. This one itself cannot fork: it has threads, perhaps a GPU, perhaps is Ray's. Unlike
multiprocessing's, they do not import its `__main__` again, and have the environment that it has now.
"""

import contextlib
import gc
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import fsspec.config

_HEAVY = ("torch", "pipeline.random_crop", "s3fs")
"""Worth to be imported once for all, if this process has."""

_CODE = "import sys; sys.path[:] = {path!r}; from pipeline import forks; forks._serve({fd}, {modules!r})"

_SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""No library starts a thread when it is imported: a process with threads must not fork."""

_lock = threading.Lock()
_servers: dict[tuple[int, str], tuple[subprocess.Popen[bytes], socket.socket]] = {}
"""By process, as a fork of this one must have its own, and by the module that the processes run."""


def start(module: str, descriptor: int, *arguments: Any) -> Connection:
    """Run `main(connection, descriptor)` of a module in a process of its own; returns the connection's other end.

    descriptor: of an open file, which the process gets a copy of; arguments: what `main` receives first, as a tuple, in
    pickle's words. The process ends when that end is closed, or this process ends in any way, provided that `main` ends
    at EOF. ConnectionError or ChildProcessError if it ends at once.
    """
    message = pickle.dumps(arguments)
    ours, theirs = socket.socketpair()
    with theirs:
        _send(module, [theirs.fileno(), descriptor])
    connection = Connection(ours.detach())
    connection.send((dict(os.environ), fsspec.config.conf))
    connection.send_bytes(message)
    return connection


def _send(module: str, descriptors: list[int]) -> None:
    with _lock:
        for _ in range(2):
            key = (os.getpid(), module)
            if key not in _servers:
                _servers[key] = _start_server(module)
            try:
                socket.send_fds(_servers[key][1], [b"1"], descriptors)
                return
            except OSError:  # somebody has killed it
                process, control = _servers.pop(key)
                control.close()
                process.wait()
    raise ChildProcessError("the process that starts others ends at once")


def _start_server(module: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    modules = [module, *(name for name in _HEAVY if name in sys.modules)]
    code = _CODE.format(path=sys.path, fd=theirs.fileno(), modules=modules)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | _SINGLE_THREADED,
        )
    return process, ours


def _serve(control: int, modules: list[str]) -> None:
    """Fork for every pair of descriptors that comes, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the process that has started us decides
    signal.signal(signal.SIGCHLD, _reap)
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection of each would copy the pages that they share
    with socket.socket(fileno=control) as asking:
        while True:
            message, descriptors, *_ = socket.recv_fds(asking, 1, 2)
            if not message:
                return
            if os.fork() == 0:
                try:
                    asking.close()
                    _run(modules[0], *descriptors)
                finally:
                    os._exit(1)
            for descriptor in descriptors:
                os.close(descriptor)


def _reap(*_: object) -> None:
    """Nobody waits for them; so their CPU time counts as this process's children's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _run(module: str, descriptor: int, other: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection = Connection(descriptor)
    environment, settings = connection.recv()
    os.environ.clear()
    os.environ.update(environment)
    fsspec.config.conf.clear()
    fsspec.config.conf.update(settings)
    importlib.import_module(module).main(connection, other)
    os._exit(0)
