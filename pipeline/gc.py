"""Removes from a run directory what neither a version that is kept nor the last plan names.

Of the stages that are named, files stay that their manifests name; others, which killed attempts left, go. Rows of
single shards (`index/shards`) and trainings of evaluations stay: they are small, and later runs take them over. So do
the records of all versions, with their tables of changes.

A run that is alive is spared: what is not committed and was written to within the last hour stays, and if the last plan
does not name it, nothing is removed at all, since nobody knows what that run reads.

A stage goes in one step for all who look for it: on a disk its folder gets a name that no reader is shown, in an object
store one request deletes its manifests, up to a thousand. So gc can be killed at any moment, and started again.
"""

import re
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pipeline import storage, versions
from pipeline.errors import UserError
from pipeline.fsck.verification import Epoch, File
from pipeline.fsck.walk import items
from pipeline.run import last_plan
from pipeline.stage import MANIFEST, STAGES

YOUNG = 3600.0
"""Seconds since the last write, up to which an attempt may be alive."""

_KEY = re.compile(r"[0-9a-f]{16}")
_VERSION = re.compile(r"\d{6,}")
_TRASH = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{32}\.tmp")
_EPOCH = re.compile(r"epoch-\d{5,}\.json")

Kind = Literal["stage", "unfinished", "left over"]


@dataclass(frozen=True)
class Waste:
    """What can go. where: a folder below the root; kind: a finished stage, an unfinished one, or files in a stage.

    files: their paths below `where`.
    """

    where: str
    kind: Kind
    files: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class _Stored:
    size: int
    written: float


def find(root: str, keep: int, now: float | None = None) -> list[Waste]:
    """What neither the last `keep` versions nor the last plan need; keep >= 1; now: seconds since 1970.

    UserError if `root` is no run directory, or if a run is alive there that is not the last plan's.
    """
    now = time.time() if now is None else now
    needed = _needed(root, keep)
    waste = []
    for where, files in sorted(_folders(root).items()):
        is_young = now - max(file.written for file in files.values()) < YOUNG
        if _TRASH.fullmatch(where.rpartition("/")[2]):
            waste.append(_waste(where, "left over", files))
        elif where in needed or where.startswith(f"{versions.FOLDER}/"):
            if MANIFEST in files:
                named = _named(storage.join(root, where))
                old = {name: file for name, file in files.items() if name not in named and now - file.written >= YOUNG}
                if named and old:
                    waste.append(_waste(where, "left over", old))
        elif MANIFEST in files:
            waste.append(_waste(where, "stage", files))
        elif is_young:
            raise UserError(
                f"something was written to {where} in {root!r} within the hour, which neither a version nor the last "
                "plan names: a run is alive there, or was killed; run gc again once it has ended, or in an hour"
            )
        else:
            waste.append(_waste(where, "unfinished", files))
    return waste


def remove(root: str, keep: int, waste: Sequence[Waste]) -> None:
    """Delete what `find` found with the same `keep`, but for what a run that began since needs."""
    for each in waste:
        if each.kind == "left over":
            _delete(root, each)
        elif each.where not in _needed(root, keep):
            _remove_stage(root, each)


def _needed(root: str, keep: int) -> set[str]:
    """Folders of the stages that the kept versions and the last plan name."""
    assert keep >= 1, keep
    planned = last_plan(root)
    stages = [stage for version in versions.load(root)[-keep:] for stage in version.stages]
    return {f"{stage.stage}/{stage.key}" for stage in [*stages, *planned]}


def _folders(root: str) -> dict[str, dict[str, _Stored]]:
    """The files of the folders that are ours, by their paths below them, unfinished writes among them.

    Ours are keys below the name of a stage, and numbers of versions: whatever else is below the root, such as the pool
    in folders by date, is not touched.
    """
    fs, path = storage.resolve(root)
    with storage.explained(root):
        found = fs.find(path, detail=True)
    folders: dict[str, dict[str, _Stored]] = defaultdict(dict)
    for name, facts in found.items():
        stage, _, rest = str(name).removeprefix(path.rstrip("/") + "/").partition("/")
        key, _, file = rest.partition("/")
        ours = _VERSION if stage == versions.FOLDER else _KEY if stage in STAGES else None
        if file and ours and (ours.fullmatch(key) or _TRASH.fullmatch(key)):
            folders[f"{stage}/{key}"][file] = _Stored(int(facts["size"] or 0), _written(facts))
    return folders


def _written(facts: Mapping[str, Any]) -> float:
    stamp = facts.get("mtime", facts.get("LastModified"))
    return stamp.timestamp() if isinstance(stamp, datetime) else float(stamp or time.time())


def _waste(where: str, kind: Kind, files: Mapping[str, _Stored]) -> Waste:
    return Waste(where, kind, tuple(files), sum(file.size for file in files.values()))


def _named(uri: str) -> set[str]:
    """Files of a committed stage that its manifests name, as fsck reads them; none at all if it is damaged."""
    named = {storage.join(uri, MANIFEST)}
    for item in items(uri, depth=2):
        if isinstance(item, File):
            named.add(item.uri)
        elif isinstance(item, Epoch):
            named |= {item.log.manifest(item.commit.epoch), *(storage.join(item.log.uri, p.name) for p in item.parts)}
        elif item.is_damage:
            return set()
    return {name.removeprefix(f"{uri}/") for name in named}


def _remove_stage(root: str, waste: Waste) -> None:
    place = storage.join(root, waste.where)
    if storage.is_local(root):
        path = Path(storage.resolve(place)[1])
        trash = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        with suppress(FileNotFoundError):  # another gc was first
            path.rename(trash)
            shutil.rmtree(trash)
        return
    manifests = [name for name in waste.files if name == MANIFEST or _EPOCH.fullmatch(name.rpartition("/")[2])]
    for some in (manifests, set(waste.files) - set(manifests)):
        storage.delete_all([storage.join(place, name) for name in some])


def _delete(root: str, waste: Waste) -> None:
    place = storage.join(root, waste.where)
    if not storage.is_local(root):
        storage.delete_all([storage.join(place, name) for name in waste.files])
    elif _TRASH.fullmatch(waste.where.rpartition("/")[2]):
        with suppress(FileNotFoundError):
            shutil.rmtree(storage.resolve(place)[1])
    else:
        for name in waste.files:
            storage.delete(storage.join(place, name))
