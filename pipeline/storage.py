"""Bytes in and out of a location: a local path or any fsspec URI such as s3://bucket/prefix.

Every write is all or nothing. Bytes are complete before the first one is sent, because s3fs and pyarrow commit a
partial object when an exception leaves their `with` block.
"""

import contextlib
import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import CorruptArtifactError, UserError


def join(root: str, *names: str) -> str:
    """`root` and `names` with single slashes between them."""
    return "/".join([root.rstrip("/"), *names])


def resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem and the path on it; an unknown scheme is a UserError."""
    try:
        fs, path = url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot open {uri!r}: {error}; use a local path or s3://bucket/prefix") from error
    return fs, str(path)


def is_local(uri: str) -> bool:
    """Whether `uri` is on a filesystem of this machine."""
    return isinstance(resolve(uri)[0], LocalFileSystem)


def sha256(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _named(uri: str) -> Iterator[None]:
    """Turn what the operating system says about space and permission into one sentence that names the place."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"no permission to write {uri!r}: choose another root or change its mode") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left to write {uri!r}: free some, then run the same command again") from error
        if error.errno == errno.EROFS:
            raise UserError(f"{uri!r} is on a read-only filesystem: choose another root") from error
        raise


def _write_temporary(path: Path, data: bytes | memoryview) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write(uri: str, data: bytes | memoryview) -> None:
    """Replace the object at `uri` in one step: readers see the old bytes or the new ones."""
    fs, path = resolve(uri)
    with _named(uri):
        if isinstance(fs, LocalFileSystem):
            _write_temporary(Path(path), data).replace(path)
        else:
            fs.pipe_file(path, bytes(data))


def create(uri: str, data: bytes | memoryview) -> bool:
    """Write `uri` only if nothing is there; False if something was. Of several callers at once, one gets True.

    Local disks decide by a hard link, object stores by a conditional PUT.
    """
    fs, path = resolve(uri)
    with _named(uri):
        if isinstance(fs, LocalFileSystem):
            temporary = _write_temporary(Path(path), data)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            return True
        try:
            fs.pipe_file(path, bytes(data), mode="create")
        except FileExistsError:
            return False
        return True


def read(uri: str) -> bytes:
    """All bytes of the object; FileNotFoundError if there is none."""
    fs, path = resolve(uri)
    data: bytes = fs.cat_file(path)
    return data


def read_range(uri: str, start: int, length: int) -> bytes:
    """`length` bytes from offset `start`."""
    fs, path = resolve(uri)
    data: bytes = fs.cat_file(path, start=start, end=start + length)
    return data


def read_verified(uri: str, checksum: str) -> bytes:
    """All bytes of a committed object, whose SHA-256 must be `checksum`; else CorruptArtifactError."""
    try:
        data = read(uri)
    except FileNotFoundError as error:
        raise CorruptArtifactError(f"{uri!r} is named by its manifest but missing") from error
    if sha256(data) != checksum:
        raise CorruptArtifactError(f"{uri!r} is damaged: its SHA-256 is not the one in its manifest")
    return data


def exists(uri: str) -> bool:
    """Whether an object is there now; never answered from a listing cache."""
    fs, path = resolve(uri)
    fs.invalidate_cache(fs._parent(path))
    return bool(fs.exists(path))


def names(uri: str) -> list[str]:
    """Sorted names directly under a folder; empty if the folder does not exist."""
    fs, path = resolve(uri)
    fs.invalidate_cache(path)
    try:
        found = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(name for name in (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found) if name)


def info(uri: str) -> dict[str, Any]:
    """fsspec's facts about one object, at least `size`; FileNotFoundError if there is none."""
    fs, path = resolve(uri)
    fs.invalidate_cache(fs._parent(path))
    facts: dict[str, Any] = fs.info(path)
    return facts


def delete(uri: str) -> None:
    """Remove one object; nothing happens if it is gone already."""
    fs, path = resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)
