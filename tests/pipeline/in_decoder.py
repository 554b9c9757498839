"""What a test does inside the processes that decode: it travels there with the views of a stream."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import s3fs

from pipeline import forks, storage
from pipeline.decoder import Views


class Arriving:
    """Stands for `views`, None for the centre, and calls `hook` in every decoder before its first order."""

    def __init__(self, hook: Callable[[], None], views: Views | None = None) -> None:
        self._hook, self._views = hook, views

    def __call__(self, epoch: int, ids: Any) -> Any:
        raise AssertionError("only decoders ask for views")

    def __reduce__(self) -> Any:
        return _arrive, (self._hook, self._views)


def _arrive(hook: Callable[[], None], views: Views | None) -> Views | None:
    hook()
    return views


def decoders() -> list[psutil.Process]:
    """All that this process has now."""
    return [child for server, _ in forks._servers.values() for child in psutil.Process(server.pid).children()]


def record(into: Path) -> None:
    """Note every range that is asked for, a line each: uri, start, length."""
    read = storage.read_range

    def recording(uri: str, start: int, length: int) -> bytes:
        with into.open("a") as file:
            file.write(f"{uri} {start} {length}\n")
        return read(uri, start, length)

    storage.read_range = recording


def impatient() -> None:
    """s3fs does not try again, so that we do."""
    s3fs.S3FileSystem.retries = 1


def environment(name: str, into: Path) -> None:
    """Note a variable."""
    into.write_text(os.environ.get(name, "none"))


def broken() -> None:
    """A mistake in the program."""
    raise KeyError("a mistake")


def die(epoch: int, ids: Any) -> Any:
    """As views: the decoder is killed while it decodes."""
    os.kill(os.getpid(), 9)


def mistake(epoch: int, ids: Any) -> Any:
    """As views."""
    raise KeyError("a mistake")
