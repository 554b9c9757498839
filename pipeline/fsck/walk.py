"""What there is to verify in a folder and below it, from listings and manifests alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import lease, storage, versions
from pipeline.epochs import KEPT_CHECKPOINTS, EpochLog
from pipeline.errors import SemiPruneError
from pipeline.fsck.finding import Finding, trouble
from pipeline.fsck.id_runs import IdRuns
from pipeline.fsck.verification import Epoch, File, Item
from pipeline.report.costs import ESTIMATE
from pipeline.run import PLAN
from pipeline.stage import MANIFEST, STAGES, Part

DEEPEST = 16
"""Folders in folders that are looked into: a link may lead back to where it is."""


@dataclass(frozen=True)
class _Stage:
    """What is needed of a stage's manifest."""

    key: str
    parts: list[Part]


@dataclass(frozen=True)
class _Trained:
    """A result that all evaluations of a run share."""

    accuracy: float


def items(uri: str, depth: int = 0, above: Iterable[str] = (), home: str | None = None) -> Iterator[Item]:
    """What there is to verify in a folder and below it, and the findings for which no file has to be read.

    above: files in or below this folder that a manifest above it names; home: the folder to delete when something in it
    is damaged: that of the stage.
    """
    named = set(above)
    try:
        files, folders = _list(uri)
    except (OSError, SemiPruneError) as error:
        yield Finding(uri, "unreadable", str(error), "look after the disk and the permissions")
        return
    log = EpochLog(uri)
    epochs = log.present()
    if home is None and (MANIFEST in files or epochs or depth == 2):
        home = uri
    fix = f"delete {home} and run the same command again"
    if depth == 0 and PLAN in files:
        named |= {PLAN, ESTIMATE}
        yield from _json(storage.join(uri, PLAN), dict[str, Any], "run the recipe again, which writes it anew")[1]
    if uri.endswith("/evaluate/trainings"):
        named |= set(files)
        for place in (storage.join(uri, name) for name in files):
            yield from _json(place, _Trained, f"delete {place} and run the same command again")[1]
    if MANIFEST in files:
        stage, findings = _json(storage.join(uri, MANIFEST), _Stage, fix)
        yield from findings
        parts = stage.parts if stage else []
        if stage and depth == 2 and stage.key != uri.rsplit("/", 1)[-1]:
            yield Finding(storage.join(uri, MANIFEST), "damaged", f"it is that of the stage {stage.key}", fix)
        named |= {MANIFEST, *(part.name for part in parts)}
        for part in parts:
            yield File(storage.join(uri, part.name), part, fix)
    else:
        named |= {name for name in files if lease.is_file(name)}  # who runs the stage, or ran it last
    if epochs:
        for item in _commits(log, epochs, fix):
            if isinstance(item, Epoch):
                named |= {part.name for part in item.parts}
            yield item
        named |= {log.manifest(epoch).rsplit("/", 1)[-1] for epoch in epochs}
    left = [size for name, size in files.items() if name not in named]
    if depth == 0 and PLAN in files:  # what else is in a root may be anybody's, such as the pool
        left, folders = [], [name for name in folders if name in STAGES or name == versions.FOLDER]
    if left:
        detail = f"no manifest names {len(left):,} of its files, {sum(left):,} bytes"
        yield Finding(uri, "left over", detail, "delete them once no run writes there")
    for name in folders if depth < DEEPEST else []:
        if name.startswith(".") and name.endswith(".tmp"):
            detail = "a stage that was being deleted, which no reader is shown"
            yield Finding(storage.join(uri, name), "left over", detail, "run semiprune gc --delete again")
            continue
        inside = [path.removeprefix(f"{name}/") for path in named if path.startswith(f"{name}/")]
        yield from items(storage.join(uri, name), depth + 1, inside, home)


def _commits(log: EpochLog, epochs: list[int], fix: str) -> Iterator[Epoch | Finding]:
    absent = sorted(set(range(epochs[-1])) - set(epochs))
    if len(absent) == 1 and storage.exists(log.manifest(absent[0])):
        absent = []  # it was committed while the listing went on, which is no snapshot
    gap = IdRuns()
    gap.add(np.array(absent, dtype=np.int64))
    if gap.count:
        yield Finding(log.uri, "gap", f"lacks epochs {gap}, and has later ones", fix)
    for epoch in epochs:
        try:
            yield Epoch(log, log.read(epoch), epoch in epochs[-KEPT_CHECKPOINTS:], fix)
        except (OSError, SemiPruneError) as error:
            yield trouble(log.manifest(epoch), error, fix)


def _json(uri: str, kind: Any, fix: str) -> tuple[Any, list[Finding]]:
    """The JSON at `uri` as a value of this kind, or None and why not."""
    try:
        return storage.read_json(uri, kind), []
    except (OSError, SemiPruneError) as error:
        return None, [trouble(uri, error, fix)]


def _list(uri: str) -> tuple[dict[str, int], list[str]]:
    """Sizes of the files in a folder by name, unfinished writes among them, and the folders in it; both sorted."""
    fs, path = storage.resolve(uri)
    try:
        entries = sorted(fs.ls(path, detail=True), key=lambda entry: str(entry["name"]))
    except FileNotFoundError:
        return {}, []
    files, folders = {}, []
    for entry in entries:
        name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
        if entry["type"] == "directory" or (entry.get("islink") and fs.isdir(entry["name"])):
            folders.append(name)
        elif str(entry["name"]).strip("/") != path.strip("/"):  # a store may list the folder in itself
            files[name] = int(entry["size"] or 0)
    return files, folders
