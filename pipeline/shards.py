"""The shards that a recipe names: which they are, and whether they are still what was indexed."""

import contextlib
import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field

from pipeline import sidecar, storage, tar
from pipeline.errors import DataError, SemiPruneError, UserError
from pipeline.sidecar import Listed

_PROBES = 16


def absolute(uri: str) -> str:
    """A local path from the root, braces and wildcards kept; a URI as it is. UserError if it cannot be a place."""
    storage.refuse_credentials(uri)
    storage.refuse_misspelt(uri)
    place = uri if "://" in uri or uri.lstrip("{").startswith("/") else storage.resolve(uri)[1]
    storage.refuse_chains(place)
    return place


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Uri = Annotated[str, Field(min_length=1), AfterValidator(absolute)]
"""A place in settings, absolute: workers run in other folders, and equal settings must mean equal places."""

Patterns = Annotated[
    tuple[Uri, ...], Field(min_length=1), BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...])
]
"""Shards in settings, one string or several: paths or URIs with {000..019} and wildcards, or lists of shards."""


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

    patterns: local paths or URIs with {000000..000019} and the wildcards * ? [] (matches in order of their names); a
    wildcard in the name of a file that exists is a plain character. NAME.json is a list of shards as `sidecar` has it.
    """
    named = [shard for pattern in patterns for shard in _expand(pattern)]
    twice = [uri for uri, count in Counter(shard.url for shard in named).items() if count > 1]
    if twice:
        raise UserError(f"the shard {twice[0]!r} is named twice: name every shard once")
    with ThreadPoolExecutor(_PROBES) as pool:
        found = list(pool.map(_probe, [shard.url for shard in named]))
    for shard, source in zip(named, found, strict=True):
        if shard.filesize not in (None, source.size):
            raise DataError(
                f"the list of shards says {shard.filesize:,} bytes for {source.uri!r}, which has {source.size:,}: make "
                "the list again, or put the old shard back"
            )
    return found


def checksum(patterns: Sequence[str]) -> str | None:
    """SHA-256 of the names behind wildcards and lists, which may become more; None if the patterns say it all."""
    open_ended = [name for pattern in patterns for name in _unbraced(pattern) if _is_list(name) or _is_wild(name)]
    if not open_ended:
        return None
    return storage.sha256("\n".join(shard.url for pattern in patterns for shard in _expand(pattern)).encode())


def _unbraced(pattern: str) -> list[str]:
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{pattern!r} has unbalanced braces: write it like train-{{000..019}}.tar") from error


def _expand(pattern: str) -> list[Listed]:
    return [shard for name in _unbraced(pattern) for shard in _resolved(name)]


def _resolved(name: str) -> list[Listed]:
    if _is_list(name):
        return [Listed(_named(shard.url), shard.filesize) for shard in sidecar.load_list(name)]
    return [Listed(uri) for uri in (_match(name) if _is_wild(name) else [_named(name)])]


def _is_list(name: str) -> bool:
    return name.lower().endswith(".json")


def _is_wild(name: str) -> bool:
    return glob.has_magic(name) and not storage.exists(name)


def _named(uri: str) -> str:
    """The one name of a place, however it is written."""
    fs, path = storage.resolve(uri)
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _match(pattern: str) -> list[str]:
    fs, path = storage.resolve(pattern)
    fs.invalidate_cache()
    with storage.explained(pattern):
        found = sorted(name for name, facts in fs.glob(path, detail=True).items() if facts["type"] == "file")
    if not found:
        raise UserError(f"no file matches {pattern!r}: check the path and the pattern")
    return [name if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(name)) for name in found]


def _probe(uri: str) -> Source:
    try:
        source = look(uri)
        storage.read_range(uri, 0, min(1, source.size))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {uri!r}: check the path and the numbers in braces") from error
    except IsADirectoryError as error:
        raise UserError(f"{uri!r} is a folder: name the shards in it, like {uri}/*.tar") from error
    except SemiPruneError:
        raise
    except Exception as error:  # stores have their own exceptions for credentials, endpoints and regions
        raise UserError(f"cannot read {uri!r}: {_line(error)}; check the address and your credentials") from error
    return source


def look(uri: str) -> Source:
    """What the store says of a shard; FileNotFoundError if there is none."""
    facts = storage.info(uri)
    if facts["type"] == "directory":
        raise IsADirectoryError(uri)
    stamp = facts.get("ETag") or facts.get("mtime") or facts.get("LastModified") or ""
    return Source(uri, int(facts["size"]), str(stamp))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what a disk or a store says while it reads into one sentence that names the shard."""
    try:
        yield
    except SemiPruneError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"the shard {uri!r} is gone: put it back, or name the others in a new recipe") from error
    except Exception as error:  # disks, networks and stores, each with exceptions of its own
        raise SemiPruneError(
            f"cannot read the shard {uri!r}: {_line(error)}; once it can be read, the same command continues"
        ) from error


def read(uri: str, size: int) -> bytes:
    """The whole shard; DataError if it is gone or has another size, SemiPruneError if it cannot be read."""
    with _explained(uri):
        data = storage.read(uri)
    if len(data) != size:
        raise changed(uri)
    return data


def read_unchanged(shard: Shard) -> bytes:
    """The whole shard, whose SHA-256 must be the one that was indexed; else DataError."""
    data = read(shard.uri, shard.size)
    if storage.sha256(data) != shard.sha256:
        raise changed(shard.uri)
    return data


def read_range(shard: Shard, start: int, length: int) -> bytes:
    """`length` bytes of a shard that `check` has passed; DataError if it ends before."""
    with _explained(shard.uri):
        data = storage.read_range(shard.uri, start, length)
    if len(data) != length:
        raise changed(shard.uri)
    return data


def check(shard: Shard) -> None:
    """DataError if the shard is not the one that was indexed, SemiPruneError if it cannot be read.

    Size and stamp decide; only where the stamp differs, as after a copy, the bytes are read and compared.
    """
    with _explained(shard.uri):
        source = look(shard.uri)
    if source.size != shard.size:
        raise changed(shard.uri)
    if source.stamp != shard.mtime_or_etag:
        read_unchanged(shard)


def check_all(shards: Iterable[Shard]) -> None:
    """`check` for many shards at once."""
    with ThreadPoolExecutor(_PROBES) as pool:
        list(pool.map(check, shards))


def changed(uri: str) -> DataError:
    """The error for a shard with other bytes than those that were indexed."""
    return DataError(f"the shard {uri!r} has changed since indexing: put the old one back, or use another root")


@dataclass(frozen=True)
class Piece:
    """The spans of one shard, in order, that go into one new shard. offsets, lengths: int64 [n], in bytes."""

    source: Shard
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]


def plan(rows: pa.Table, sources: Sequence[Shard], samples_per_shard: int) -> list[tuple[int, list[Piece]]]:
    """What goes into every new shard, by number: a run of `rows` (shard, offset, length), taken in their order."""
    planned = []
    for number, start in enumerate(range(0, rows.num_rows, samples_per_shard)):
        chunk = rows.slice(start, samples_per_shard)
        shard, offset, length = (chunk[name].to_numpy() for name in ("shard", "offset", "length"))
        pieces = [Piece(sources[one], offset[shard == one], length[shard == one]) for one in np.unique(shard)]
        planned.append((number, pieces))
    return planned


def gather(pieces: Sequence[Piece]) -> bytes:
    """A new shard from the bytes of its samples, headers included; DataError if a source has changed."""
    blocks: list[bytes | memoryview] = []
    for piece in pieces:
        check(piece.source)
        # One read from the first to the last span: requests cost more than the bytes between spans.
        first = int(piece.offsets[0])
        data = memoryview(read_range(piece.source, first, int(piece.offsets[-1] + piece.lengths[-1]) - first))
        blocks += [
            data[offset - first : offset - first + length]
            for offset, length in zip(piece.offsets.tolist(), piece.lengths.tolist(), strict=True)
        ]
    return b"".join([*blocks, tar.END])
