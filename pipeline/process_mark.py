"""A file of this machine that is locked while a process lives: the kernel unlocks it, however the process ends.

Unlike a process id it is not another's later, and it means the same in every container that sees the file.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Mark:
    """A mark that a process bears. kept: whether the file stays when it no longer does, as if it were killed."""

    kept: bool = False


@contextmanager
def marked(name: str) -> Iterator[Mark]:
    """This process bears the mark `name`, which must be new, for the length of the block.

    Where there is no place for such a file, none is made: then nobody can tell that the process is gone.
    """
    mark = Mark()
    descriptor = _create(_path(name))
    try:
        yield mark
    finally:
        if descriptor is not None:
            if not mark.kept:
                _path(name).unlink(missing_ok=True)
            os.close(descriptor)


def _create(path: Path) -> int | None:
    """The descriptor of a new file that is locked; where there are no locks, nobody can lock it, which says nothing."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def is_gone(name: str) -> bool:
    """Whether a process of this machine bore the mark and ended, and left the file; False where that is not known."""
    try:
        descriptor = os.open(_path(name), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"semiprune-{name}.alive"
