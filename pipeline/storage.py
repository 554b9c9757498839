"""Bytes in and out of a location: a local path or any fsspec URI such as s3://bucket/prefix.

Every write is all or nothing. Bytes are complete before the first one is sent, because s3fs and pyarrow commit a
partial object when an exception leaves their `with` block. What is particular to object stores is in
`pipeline.object_store`.
"""

import contextlib
import errno
import glob
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations
from pydantic import TypeAdapter, ValidationError

from pipeline import object_store
from pipeline.errors import CorruptArtifactError, SemiPruneError, StorageError, UserError

MEND = "delete the folder of that stage and run the same command again"
"""What helps against damage: the stage is done once more."""


_CREDENTIALS = re.compile(r"://([^/@]*|[^/:@,]*:[^@]*)@")
"""What stands between the scheme and an @: anything without a slash, or NAME:SECRET, which may hold some."""
_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
"""Of any URL in a text: clients quote that of the endpoint, which may carry a name and a password."""
_ONE_SLASH = re.compile(r"(?!file:|local:)([a-z][a-z0-9+.-]+):/(?!/)", re.IGNORECASE)
"""A scheme with one slash after it, which would be a local folder of that name; of a local one it is as good as two."""
_NO_BUCKET = re.compile(r"(s3a?|gc?s)://(?:/|$)", re.IGNORECASE)
_PASSING = (errno.EIO, errno.ESTALE, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.EAGAIN)


def join(root: str, *names: str) -> str:
    """`root` and `names` with single slashes between them; those of a scheme stay."""
    return "/".join([root if root.endswith("://") else root.rstrip("/"), *names])


def refuse_credentials(uri: str) -> None:
    """UserError if a URI carries a user's name or password."""
    if found := _CREDENTIALS.search(uri):
        place = f"{uri[: found.start()]}://{uri.rpartition('@')[2]}"  # a secret may hold an @ too
        raise UserError(f"a URI such as {place!r} must not carry credentials: hand them over by the environment")


def refuse_chains(uri: str) -> None:
    """UserError if there is a `::` in a path or URI, where fsspec would take it apart."""
    if "::" in uri:
        raise UserError(f"{uri!r} has '::' in it, which means a chain of filesystems: name a place without it")


def refuse_misspelt(uri: str) -> None:
    """UserError if there is one slash behind a URI's scheme, or no bucket behind the slashes."""
    if found := _ONE_SLASH.match(uri):
        scheme, rest = found[1], uri[found.end() :]
        raise UserError(f"{uri!r} has one slash after {scheme}: write {scheme}://{rest}, or ./{uri} for a folder here")
    if found := _NO_BUCKET.match(uri):
        raise UserError(f"{uri!r} names no bucket: write it like {found[1]}://bucket/prefix")


def resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem and the path on it; an unknown or misspelt scheme, credentials and chains are UserErrors.

    Without a listing cache: with one, an object that another process wrote after a listing does not exist.
    """
    refuse_credentials(uri)
    refuse_chains(uri)
    refuse_misspelt(uri)
    try:
        fs, path = url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        package = known_implementations.get(uri.partition("://")[0], {}).get("class", "fsspec").partition(".")[0]
        need = str(error) if package == "fsspec" else f"pip install {package}"
        raise UserError(f"cannot open {uri!r}: {need}, or use s3://bucket/prefix or a local path") from error
    except ValueError as error:
        raise UserError(f"cannot open {uri!r}: {error}; use a local path or s3://bucket/prefix") from error
    return fs, str(path)


def is_local(uri: str) -> bool:
    """Whether `uri` is on a filesystem of this machine."""
    return isinstance(resolve(uri)[0], LocalFileSystem)


def sha256(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def explained(uri: str, mend: str = "check the path") -> Iterator[None]:
    """Turn what the system or the store says about a place into one sentence that names it.

    That something is missing, a folder, or there already goes through: the caller knows what it means.
    """
    try:
        yield
    except Exception as error:  # disks, networks and stores, each with exceptions of its own
        if explanation := _explanation(uri, error, mend):
            raise explanation from (None if _USER.search(str(error)) else error)  # which a traceback would quote
        raise


def _explanation(uri: str, error: Exception, mend: str) -> SemiPruneError | None:
    if refusal := object_store.refusal(error):
        return UserError(f"cannot use {uri!r}: {refusal[0]}; {refusal[1]}")
    if isinstance(error, SemiPruneError | FileNotFoundError | IsADirectoryError | FileExistsError):
        return None
    if isinstance(error, PermissionError):
        return UserError(f"no permission for {uri!r}: allow it to this user or role, or {mend}")
    if isinstance(error, NotADirectoryError):
        above = Path(resolve(uri)[1]).parents
        return UserError(f"{next((str(place) for place in above if place.is_file()), uri)!r} is a file: {mend}")
    said = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    said = _USER.sub("***", said)
    if object_store.may_pass(error):
        return StorageError(f"{uri!r} failed: {said}; run the same command again, or look after the store")
    if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in _PASSING):
        return StorageError(f"{uri!r} failed: {said}; run the same command again, or look after the disk")
    if isinstance(error, BotoCoreError):
        return UserError(f"cannot reach {uri!r}: {said}; check network, endpoint and credentials")
    if isinstance(error, OSError | ValueError):
        return UserError(f"cannot use {uri!r}: {said}; {mend}")
    return None


@contextlib.contextmanager
def _explained_write(uri: str) -> Iterator[None]:
    """The same for writing, where whatever stands in the way is the user's to mend."""
    with explained(uri, mend="choose another place"):
        try:
            yield
        except FileNotFoundError as error:
            if is_local(uri):
                raise UserError(f"cannot write {uri!r}: no file can be made there; choose another place") from error
            raise UserError(f"cannot write {uri!r}: its bucket does not exist; create it first") from error
        except (FileExistsError, IsADirectoryError) as error:
            raise UserError(
                f"cannot write {uri!r}: a file or folder of that name is in the way; choose another place"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"no space left to write {uri!r}: free some, then run the same command again"
                ) from error
            if error.errno == errno.EROFS:
                raise UserError(f"{uri!r} is on a read-only filesystem: choose another place") from error
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
    with _explained_write(uri):
        if isinstance(fs, LocalFileSystem):
            if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
                raise UserError(f"{uri!r} is a device, a pipe or a socket: name a file")
            temporary = _write_temporary(Path(path), data)
            try:
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        else:
            fs.pipe_file(path, bytes(data))


class DeletedError(UserError):
    """What was being written is gone, or its folder: somebody deleted it."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Callable[[int, Any], None]]:
    """The same for a file of this machine that is never in memory whole: yields what puts bytes at an offset of it.

    Nothing is there until all went well. DeletedError if its folder is not there, or not any more.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    with _explained_write(str(path)), _deleted(path):
        file = os.open(temporary, os.O_CREAT | os.O_WRONLY)

    def put(offset: int, data: Any) -> None:
        with _explained_write(str(path)):
            rest = memoryview(data).cast("B")
            while len(rest):
                written = os.pwrite(file, rest, offset)
                rest, offset = rest[written:], offset + written

    try:
        try:
            yield put
        finally:
            os.close(file)
        with _explained_write(str(path)), _deleted(path):
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _deleted(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DeletedError(f"{str(path)!r} was deleted while it was written: run the same command again") from error


def create(uri: str, data: bytes | memoryview) -> bool:
    """Write `uri` only if nothing is there; False if something was. Of several callers at once, one gets True.

    Local disks decide by a hard link, object stores by a conditional PUT; `object_store.create` says what a store
    without it can promise, and `is_exclusive` which kind a place is.
    """
    fs, path = resolve(uri)
    with _explained_write(uri):
        if isinstance(fs, LocalFileSystem):
            return _link(uri, Path(path), data)
        return object_store.create(fs, path, bytes(data))


def _link(uri: str, path: Path, data: bytes | memoryview) -> bool:
    temporary = _write_temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
            raise UserError(f"{uri!r} is on a filesystem without hard links: choose another place") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return True


def is_exclusive(uri: str) -> bool:
    """Whether `create` has one winner at `uri` also among callers at the very same moment; asks the store, once."""
    fs, path = resolve(uri)
    with _explained_write(uri):
        return isinstance(fs, LocalFileSystem) or object_store.is_conditional(fs, path)


def read(uri: str) -> bytes:
    """All bytes of the object; FileNotFoundError if there is none."""
    fs, path = resolve(uri)
    with explained(uri):
        return object_store.fetch(fs, path) if isinstance(fs, LocalFileSystem) else object_store.read(fs, path)


def read_range(uri: str, start: int, length: int) -> bytes:
    """`length` bytes from offset `start`; fewer where the object ends before, and nowhere else."""
    if length == 0:
        return b""  # s3fs would ask for "bytes=0--1" and get the whole object
    if not uri.startswith("/"):  # fsspec takes a plain path apart for longer than it takes to read it
        fs, path = resolve(uri)
        if not isinstance(fs, LocalFileSystem):
            with explained(uri):
                return object_store.read_range(fs, path, start, length)
        uri = path
    with explained(uri), Path(uri).open("rb") as file:
        file.seek(start)
        return file.read(length)


@contextlib.contextmanager
def open_input(uri: str) -> Iterator[BinaryIO]:
    """The object as a file for reading here and there; FileNotFoundError if there is none."""
    fs, path = resolve(uri)
    with explained(uri), fs.open(path, "rb", **({} if is_local(uri) else {"cache_type": "none"})) as file:
        yield file


def read_verified(uri: str, checksum: str) -> bytes:
    """All bytes of a committed object, whose SHA-256 must be `checksum`; else CorruptArtifactError."""
    fs, path = resolve(uri)
    try:
        with explained(uri):
            data = object_store.fetch(fs, path)
            if sha256(data) != checksum and not isinstance(fs, LocalFileSystem):
                data = object_store.read(fs, path)  # what happened to them on the way need not have happened there
    except FileNotFoundError as error:
        raise CorruptArtifactError(f"{uri!r} is named by its manifest but missing: {MEND}") from error
    if sha256(data) != checksum:
        raise CorruptArtifactError(f"{uri!r} is damaged, its SHA-256 is not the one in its manifest: {MEND}")
    return data


def read_json(uri: str, kind: Any = dict[str, Any], mend: str = MEND) -> Any:
    """The JSON at `uri` as a value of `kind`, such as a dataclass; FileNotFoundError if there is none.

    CorruptArtifactError if it is no such value; mend: what to do then.
    """
    try:
        return TypeAdapter(kind).validate_json(read(uri))
    except (ValidationError, IsADirectoryError) as error:
        raise CorruptArtifactError(f"{uri!r} is damaged: {mend}") from error


def exists(uri: str) -> bool:
    """Whether an object is there now."""
    fs, path = resolve(uri)
    with explained(uri):
        return bool(object_store.asked_twice(fs, path, fs.exists))


def names(uri: str) -> list[str]:
    """Sorted names directly under a folder, without unfinished writes; empty if the folder does not exist."""
    fs, path = resolve(uri)
    with explained(uri):
        try:
            found = fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
    last = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found)
    return sorted(name for name in last if name and not (name.startswith(".") and name.endswith(".tmp")))


def info(uri: str) -> dict[str, Any]:
    """fsspec's facts about one object, at least `size`; FileNotFoundError if there is none."""
    fs, path = resolve(uri)
    with explained(uri):
        facts: dict[str, Any] = object_store.asked_twice(fs, path, fs.info)
    return facts


def delete(uri: str) -> None:
    """Remove one object; nothing happens if it is gone already."""
    fs, path = resolve(uri)
    with explained(uri), contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def delete_all(uris: Sequence[str]) -> None:
    """Remove objects of one object store, a thousand in a request; nothing happens to those that are gone already."""
    if not uris:
        return
    fs, _ = resolve(uris[0])
    with explained(uris[0]), contextlib.suppress(FileNotFoundError):
        fs.rm([glob.escape(resolve(uri)[1]) for uri in uris])  # else a name with * ? [ would match others
