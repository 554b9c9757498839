"""Index sidecars: what other tools keep beside shards. Both kinds are written, and believed only after a comparison.

`shard.idx` beside `shard.tar`, of NVIDIA DALI's `wds2idx` (tools/wds2idx.py and webdataset_loader.cc in NVIDIA/DALI):
lines of text, "v1.2 N" and then one line per sample with "extension offset size name" of every regular file, offset
that of the payload; a sample is a run of names that are equal up to the first dot. v1.1 lacks the names.

A list of shards in JSON, of WebDataset's `wids` (wids/wids_index.py in webdataset/webdataset): {"wids_version": 1,
"shardlist": [{"url", "nsamples", "filesize"}, ..]}, urls relative to "base", else to the file's own folder.

The `.index` files of wids are pickles, which run code when they are read: nothing here opens one.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline import storage
from pipeline.errors import CorruptArtifactError, DataError, UserError
from pipeline.tar import Member, Sample

SUFFIX = ".idx"


@dataclass(frozen=True)
class Listed:
    """A shard in a list of shards. url: as it is written there; filesize: bytes, None where the list does not say."""

    url: str
    filesize: int | None = None
    nsamples: int | None = None


@dataclass(frozen=True)
class _ShardList:
    shardlist: list[Listed]
    base: str | None = None


def dump(samples: Sequence[Sample]) -> bytes:
    """The `.idx` of a shard with these samples, none of which may have a defect."""
    groups = _groups(samples)
    return "".join(f"{line}\n" for line in (f"v1.2 {len(groups)}", *map(_line, groups))).encode()


def check(uri: str, samples: Sequence[Sample]) -> str | None:
    """The sidecar of the shard at `uri`, after every line of it was compared with what the shard holds; None if none.

    DataError if it describes other bytes. A shard with defects is not compared: where it is whole is not known.
    """
    found = _find(uri)
    if found is None:
        return None
    place, data = found
    if any(sample.defect for sample in samples):
        return place
    groups = _groups(samples)
    first, *lines = data.decode("utf-8", "surrogateescape").splitlines() or [""]
    version, _, count = first.partition(" ")
    if version not in ("v1.1", "v1.2"):
        raise _wrong(place, uri, f"it begins with {first[:40]!r} instead of v1.2")
    if count.strip() != str(len(groups)) or len(lines) != len(groups):
        raise _wrong(
            place, uri, f"it counts {count[:20]!r} samples in {len(lines)} lines, and the shard has {len(groups)}"
        )
    for number, (line, group) in enumerate(zip(lines, groups, strict=True)):
        if line.strip() not in (_line(group, version), _line(group, version, _escaped)):
            raise _wrong(place, uri, f"its line {number + 2} says {line[:80]!r} of {_line(group, version)[:80]!r}")
    return place


def dump_list(shards: Iterable[Listed], name: str) -> bytes:
    """The list of shards as `wids` reads it; urls relative to the folder of the file."""
    content = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": name,
        "shardlist": [vars(shard) for shard in shards],
    }
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def load_list(uri: str) -> list[Listed]:
    """The shards of a list with whole urls, in its order; UserError if the file is no such list."""
    try:
        content = storage.read_json(uri, _ShardList)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"there is no list of shards at {uri!r}: check the path") from error
    except CorruptArtifactError as error:
        raise UserError(
            f'{uri!r} is no list of shards: it needs {{"shardlist": [{{"url": "a.tar"}}]}} as wids-index writes it'
        ) from error
    base = content.base or uri.rpartition("/")[0]
    return [
        shard if "://" in shard.url or shard.url.startswith("/") else Listed(storage.join(base, shard.url), *rest)
        for shard in content.shardlist
        for rest in [(shard.filesize, shard.nsamples)]
    ]


def place(uri: str) -> str:
    """Where the `.idx` of a shard is: its own name with another ending."""
    return f"{uri[:-4] if uri.lower().endswith('.tar') else uri}{SUFFIX}"


def _find(uri: str) -> tuple[str, bytes] | None:
    for candidate in (place(uri), f"{uri}{SUFFIX}"):
        try:
            return candidate, storage.read(candidate)
        except (FileNotFoundError, IsADirectoryError):
            continue
        except UserError as error:
            # Without the right to list, a store says "forbidden" of what is not there.
            if not isinstance(error.__cause__, PermissionError):
                raise
    return None


def _groups(samples: Sequence[Sample]) -> list[list[Member]]:
    """Members as DALI groups them: by the key alone, also where an extension comes twice."""
    members = [(sample.key, member) for sample in samples for member in sample.members]
    return [[member for _, member in group] for _, group in groupby(members, key=lambda item: item[0])]


def _plain(name: str) -> str:
    return name


def _escaped(name: str) -> str:
    """As GNU tar prints a name where the locale is C."""
    raw = name.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if byte < 128 else f"\\{byte:03o}" for byte in raw)


def _line(group: list[Member], version: str = "v1.2", shown: Callable[[str], str] = _plain) -> str:
    fields = []
    for member in group:
        extension = member.name.rpartition("/")[2].partition(".")[2]  # the key has its case; so has this
        fields += [shown(extension), str(member.offset), str(member.size)]
        fields += [shown(member.name)] if version == "v1.2" else []
    return " ".join(fields)


def _wrong(place: str, uri: str, detail: str) -> DataError:
    return DataError(f"the sidecar {place!r} does not describe {uri!r}: {detail}; delete it, or make it again")
