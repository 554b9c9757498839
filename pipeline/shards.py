"""The shards that a recipe names: which they are, and whether they are still what was indexed."""

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem

from pipeline import storage
from pipeline.errors import DataError, UserError

_PROBES = 16


@dataclass(frozen=True)
class Source:
    """A shard before it is read. stamp: the store's ETag or the file's modification time."""

    uri: str
    size: int
    stamp: str


@dataclass(frozen=True)
class Shard:
    """A row of the index's table of shards; `first_id` is the sample_id of its first sample."""

    shard: int
    uri: str
    size: int
    sha256: str
    mtime_or_etag: str
    num_rows: int
    first_id: int


def find(patterns: Sequence[str]) -> list[Source]:
    """Every shard that the patterns name, in their order, each seen to exist and to be readable; else UserError.

    patterns: local paths or URIs with {000000..000019} and the wildcards * ? [] (matches in order of their names).
    """
    uris = [uri for pattern in patterns for uri in _expand(pattern)]
    twice = [uri for uri, count in Counter(uris).items() if count > 1]
    if twice:
        raise UserError(f"data.shards names {twice[0]!r} twice: name every shard once")
    with ThreadPoolExecutor(_PROBES) as pool:
        return list(pool.map(_probe, uris))


def _expand(pattern: str) -> list[str]:
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(
            f"data.shards: {pattern!r} has unbalanced braces: write it like train-{{000..019}}.tar"
        ) from error
    return [uri for name in names for uri in (_match(name) if glob.has_magic(name) else [_absolute(name)])]


def _absolute(uri: str) -> str:
    """Local paths from the root: workers run in other folders."""
    fs, path = storage.resolve(uri)
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _match(pattern: str) -> list[str]:
    fs, path = storage.resolve(pattern)
    fs.invalidate_cache()
    found = sorted(name for name, facts in fs.glob(path, detail=True).items() if facts["type"] == "file")
    if not found:
        raise UserError(f"data.shards: no file matches {pattern!r}: check the path and the pattern")
    return [name if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(name)) for name in found]


def _probe(uri: str) -> Source:
    try:
        source = _source(uri)
        storage.read_range(uri, 0, min(1, source.size))
    except FileNotFoundError as error:
        raise UserError(f"data.shards: there is no file {uri!r}: check the path and the numbers in braces") from error
    except IsADirectoryError as error:
        raise UserError(f"data.shards: {uri!r} is a folder: name the shards in it, like {uri}/*.tar") from error
    except PermissionError as error:
        raise UserError(f"data.shards: no permission to read {uri!r}: change its mode or your credentials") from error
    except Exception as error:  # stores have their own exceptions for credentials, endpoints and regions
        raise UserError(f"data.shards: cannot read {uri!r}: {error}; check the address and your credentials") from error
    return source


def _source(uri: str) -> Source:
    facts = storage.info(uri)
    if facts["type"] == "directory":
        raise IsADirectoryError(uri)
    stamp = facts.get("ETag") or facts.get("mtime") or facts.get("LastModified") or ""
    return Source(uri, int(facts["size"]), str(stamp))


def read(uri: str, size: int) -> bytes:
    """The whole shard; DataError if it is gone or has another size."""
    try:
        data = storage.read(uri)
    except FileNotFoundError as error:
        raise DataError(f"the shard {uri!r} is gone: put it back, or take it out of data.shards") from error
    if len(data) != size:
        raise _changed(uri)
    return data


def read_unchanged(shard: Shard) -> bytes:
    """The whole shard, whose SHA-256 must be the one that was indexed; else DataError."""
    data = read(shard.uri, shard.size)
    if storage.sha256(data) != shard.sha256:
        raise _changed(shard.uri)
    return data


def check(shard: Shard) -> None:
    """DataError if the shard is not the one that was indexed.

    Size and stamp decide; only where the stamp differs, as after a copy, the bytes are read and compared.
    """
    try:
        source = _source(shard.uri)
    except FileNotFoundError as error:
        raise DataError(f"the shard {shard.uri!r} is gone since indexing: put it back, or use another root") from error
    if source.size != shard.size:
        raise _changed(shard.uri)
    if source.stamp != shard.mtime_or_etag:
        read_unchanged(shard)


def check_all(shards: Iterable[Shard]) -> None:
    """`check` for many shards at once."""
    with ThreadPoolExecutor(_PROBES) as pool:
        list(pool.map(check, shards))


def _changed(uri: str) -> DataError:
    return DataError(f"the shard {uri!r} has changed since indexing: put the old one back, or use another root")
