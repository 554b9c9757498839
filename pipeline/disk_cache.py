"""A bounded folder of files that all processes of a machine fill and use together; what was not used longest goes.

A file that is mapped outlives its eviction, so nobody has to say that he is done with one.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from pipeline import storage
from pipeline.errors import UserError

_ABANDONED = 3600
"""Seconds after which a file that nobody writes on will not be finished."""


@dataclass(frozen=True)
class DiskCache:
    """folder: of the cache's own; max_bytes: of all files together. The folder may be deleted at any time."""

    folder: Path
    max_bytes: int

    @classmethod
    def at(cls, place: str | None, max_bytes: int | None) -> Self:
        """place: where its folder is, by default TMPDIR; max_bytes: by default half of what it could have there.

        UserError if there can be no such folder.
        """
        # A folder of its own in any place: whatever is in it may be evicted.
        folder = Path(place or tempfile.gettempdir()) / f"semiprune-cache-{os.getuid()}"
        free = _made(folder)
        return cls(folder, max_bytes if max_bytes is not None else (free + sum(_sizes(folder).values())) // 2)

    def find(self, name: str) -> Path | None:
        """The file of that name, which now counts as used; None if it is not there."""
        path = self.folder / name
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def fill(self, name: str, size: int, make: Callable[[Callable[[int, Any], None]], object]) -> bool:
        """Have `make` make the file, unless it is there; False, at once, while another process does.

        size: of the file, about, in bytes: so much goes first where there is no room; make: is given what puts bytes at
        an offset. False too if the folder was deleted meanwhile.
        """
        _made(self.folder)
        lock = FileLock(self.folder / f"{name[:2]}.lock")  # shared by some names, so that locks do not pile up
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):
            return False
        try:
            if self.find(name) is None:
                with suppress(FileNotFoundError):
                    for left in self.folder.glob(f".{name}.*.tmp"):  # by a process that was killed: who has the lock,
                        left.unlink(missing_ok=True)  # is the only one that writes this file
                self._make_room(size)
                with storage.replacing(self.folder / name) as put:
                    make(put)
                self._make_room(0, but=name)  # it may have become larger
            return True
        except storage.DeletedError:
            return False
        finally:
            lock.release()

    def _make_room(self, size: int, but: str | None = None) -> None:
        sizes = _sizes(self.folder)
        held = sum(sizes.values())
        for path in sorted(sizes, key=_last_used):
            if held + size <= self.max_bytes:
                return
            if path.name != but:
                path.unlink(missing_ok=True)
                held -= sizes[path]


def _made(folder: Path) -> int:
    """Have the folder, this user's own; returns the bytes that are free there. UserError if that cannot be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner, free = folder.stat().st_uid, shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"no cache at {str(folder)!r}: {error.strerror}; name a folder in resources.cache_dir"
        ) from error
    if owner != os.getuid():
        raise UserError(f"{str(folder)!r} belongs to another user: name another place in resources.cache_dir")
    return free


def _sizes(folder: Path) -> dict[Path, int]:
    """Bytes of each file that is no lock and that nobody is writing; none if the folder was deleted."""
    sizes: dict[Path, int] = {}
    now = time.time()
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                known = path.stat()
                if path.suffix != ".lock" and not (path.suffix == ".tmp" and known.st_mtime > now - _ABANDONED):
                    sizes[path] = known.st_size
    return sizes


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
