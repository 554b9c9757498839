"""Reads a whole run again and tells what is damaged, missing or left over: no recipe, no Ray.

Every byte that a manifest names is compared with its SHA-256, and every epoch of training dynamics is searched for ids
that it lacks or has twice. A thread holds a piece of a file at a time, the whole a manifest and a listing.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.epoch_file import EpochFile, Footer
from pipeline.epochs import KEPT_CHECKPOINTS, Commit, EpochLog
from pipeline.errors import CorruptArtifactError, SemiPruneError, UserError
from pipeline.run import PLAN
from pipeline.stage import MANIFEST, Part, Progress

Kind = Literal["damaged", "missing", "unreadable", "gap", "coverage", "left over"]

PIECE = 1 << 24
"""Bytes of a file that are held at a time."""
IDS = 1 << 20
"""Ids whose records are counted at a time."""
SHOWN = 6
"""Runs of ids that a finding names; of the others it tells the number."""
DEEPEST = 16
"""Folders in folders that are looked into: a link may lead back to where it is."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file or an epoch, or which files nobody needs; where: below the run."""

    where: str
    kind: Kind
    detail: str
    fix: str

    @property
    def is_damage(self) -> bool:
        """False for what killed attempts left over, which no reader ever sees."""
        return self.kind != "left over"


@dataclass(frozen=True)
class Report:
    """All findings, and what was read: the files that manifests name, and their bytes."""

    findings: list[Finding]
    files: int
    bytes: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing is damaged."""
        return not any(finding.is_damage for finding in self.findings)


@dataclass(frozen=True)
class _File:
    """A part of a stage."""

    uri: str
    part: Part
    fix: str


@dataclass(frozen=True)
class _Epoch:
    """A commit of a training; last: whether it is one of those whose checkpoints are kept."""

    log: EpochLog
    commit: Commit
    last: bool
    fix: str

    @property
    def parts(self) -> list[Part]:
        checkpoint = self.commit.checkpoint if self.last else None
        return [*self.commit.files, *([checkpoint] if checkpoint else [])]


_Item = _File | _Epoch | Finding


@dataclass(frozen=True)
class _Stage:
    """What is needed of a stage's manifest."""

    key: str
    parts: list[Part]


@dataclass(frozen=True)
class _Trained:
    """A result that all evaluations of a run share."""

    accuracy: float


def check(run: str, progress: Progress) -> Report:
    """Verify a run directory, a stage's folder in one, or a folder of training dynamics; on a disk or object store.

    UserError if `run` is none of these.
    """
    run = run.rstrip("/") or "/"
    log = EpochLog(run)
    marks = [*(storage.join(run, name) for name in (PLAN, MANIFEST)), *map(log.manifest, log.present()[:1])]
    if not any(map(storage.exists, marks)):
        raise UserError(
            f"{run!r} is not a run directory: it has no {PLAN}; name the root of a recipe, the folder of a stage, or "
            "that of a DynamicsWriter"
        )
    total = sum(_num_files(item) for item in _items(run))
    report = Report([], 0, 0)
    progress(0, total, "files")
    for files, size, findings in _in_threads(_items(run)):
        found = [replace(finding, where=finding.where.removeprefix(f"{run}/")) for finding in findings]
        report = Report(report.findings + found, report.files + files, report.bytes + size)
        progress(min(report.files, total), total, "files")  # a run that goes on may have committed more meanwhile
    return report


def _num_files(item: _Item) -> int:
    return len(item.parts) if isinstance(item, _Epoch) else int(isinstance(item, _File))


def _items(uri: str, depth: int = 0, above: Iterable[str] = (), home: str | None = None) -> Iterator[_Item]:
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
        named |= {PLAN}
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
            yield _File(storage.join(uri, part.name), part, fix)
    if epochs:
        for item in _commits(log, epochs, fix):
            if isinstance(item, _Epoch):
                named |= {part.name for part in item.parts}
            yield item
        named |= {log.manifest(epoch).rsplit("/", 1)[-1] for epoch in epochs}
    left = [size for name, size in files.items() if name not in named]
    if left:
        detail = f"no manifest names {len(left):,} of its files, {sum(left):,} bytes"
        yield Finding(uri, "left over", detail, "delete them once no run writes there")
    for name in folders if depth < DEEPEST else []:
        inside = [path.removeprefix(f"{name}/") for path in named if path.startswith(f"{name}/")]
        yield from _items(storage.join(uri, name), depth + 1, inside, home)


def _commits(log: EpochLog, epochs: list[int], fix: str) -> Iterator[_Epoch | Finding]:
    absent = sorted(set(range(epochs[-1])) - set(epochs))
    if len(absent) == 1 and storage.exists(log.manifest(absent[0])):
        absent = []  # it was committed while the listing went on, which is no snapshot
    gap = _Ids()
    gap.add(np.array(absent, dtype=np.int64))
    if gap.count:
        yield Finding(log.uri, "gap", f"lacks epochs {gap}, and has later ones", fix)
    for epoch in epochs:
        try:
            yield _Epoch(log, log.read(epoch), epoch in epochs[-KEPT_CHECKPOINTS:], fix)
        except (OSError, SemiPruneError) as error:
            yield _trouble(log.manifest(epoch), error, fix)


def _json(uri: str, kind: Any, fix: str) -> tuple[Any, list[Finding]]:
    """The JSON at `uri` as a value of this kind, or None and why not."""
    try:
        return storage.read_json(uri, kind), []
    except (OSError, SemiPruneError) as error:
        return None, [_trouble(uri, error, fix)]


def _trouble(uri: str, error: Exception, fix: str) -> Finding:
    if isinstance(error, FileNotFoundError):
        return Finding(uri, "missing", "a manifest names it", fix)
    if isinstance(error, CorruptArtifactError | IsADirectoryError):
        return Finding(uri, "damaged", "it is not what was written", fix)
    return Finding(uri, "unreadable", str(error), "look after the disk and the permissions")


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


def _in_threads(items: Iterable[_Item]) -> Iterator[tuple[int, int, list[Finding]]]:
    """Files, bytes and findings of every item in order, a few items ahead."""
    threads = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[tuple[int, int, list[Finding]]]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_verify, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _verify(item: _Item) -> tuple[int, int, list[Finding]]:
    """Files, bytes and findings of one item."""
    if isinstance(item, Finding):
        return 0, 0, [item]
    if isinstance(item, _File):
        return 1, *_verify_file(item.uri, item.part, item.fix)
    size, findings, commit = 0, [], item.commit
    for part in item.parts:
        length, found = _verify_file(storage.join(item.log.uri, part.name), part, item.fix)
        if part is commit.checkpoint and commit.epoch not in item.log.present()[-KEPT_CHECKPOINTS:]:
            found = []  # a training that goes on has deleted it meanwhile
        size += length
        findings += found
    if "footers" in commit.facts:
        findings += _coverage(item.log, commit, item.fix)
    return len(item.parts), size, findings


def _verify_file(uri: str, part: Part, fix: str) -> tuple[int, list[Finding]]:
    """Bytes of a file, and what is wrong with it."""
    checksum, size = hashlib.sha256(), 0
    try:
        while piece := storage.read_range(uri, size, PIECE):
            checksum.update(piece)
            size += len(piece)
    except (OSError, SemiPruneError) as error:
        return size, [_trouble(uri, error, fix)]
    if size != part.bytes:
        return size, [Finding(uri, "damaged", f"it has {size:,} bytes, not {part.bytes:,}", fix)]
    if checksum.hexdigest() != part.sha256:
        return size, [Finding(uri, "damaged", "its SHA-256 is not the one in its manifest", fix)]
    return size, []


def _coverage(log: EpochLog, commit: Commit, fix: str) -> list[Finding]:
    """Which ids the readable records of an epoch lack or have twice."""
    files = []
    for part, footer in zip(commit.files, commit.facts["footers"], strict=True):
        try:
            files.append(EpochFile(storage.join(log.uri, part.name), part.bytes, Footer(**footer), "fsck"))
        except SemiPruneError:
            continue  # the file has a finding of its own; its records are lacking
    num_samples, span = commit.facts["num_samples"], commit.facts["span"]
    lacking, twice = _Ids(), _Ids()
    step = max(1, IDS // span) * span  # every block is read once
    for low in range(0, num_samples, step):
        counts = np.zeros(min(step, num_samples - low), dtype=np.int64)
        for file in files:
            _count(file, low, counts)
        lacking.add(low + np.flatnonzero(counts == 0))
        twice.add(low + np.flatnonzero(counts > 1))
    complaints = [
        f"of {num_samples:,} samples it {verb} {ids}"
        for verb, ids in (("lacks", lacking), ("has twice", twice))
        if ids.count
    ]
    return [Finding(log.manifest(commit.epoch), "coverage", complaint, fix) for complaint in complaints]


def _count(file: EpochFile, low: int, counts: NDArray[np.int64]) -> None:
    """Add the records of ids from `low` on; a block that is damaged has none."""
    for block in range(np.searchsorted(file.last, low), np.searchsorted(file.first, low + len(counts))):
        first, stop = int(file.first[block]), int(file.last[block]) + 1
        try:
            for ids, _ in file.blocks([], first, stop):
                counts[first - low : stop - low] += np.bincount(np.asarray(ids) - first, minlength=stop - first)
        except SemiPruneError:
            continue


class _Ids:
    """Ascending ids, told as "5, 17-200": only the first runs are kept, however many come."""

    def __init__(self) -> None:
        self.count = 0
        self._runs: list[list[int]] = []

    def add(self, ids: NDArray[np.int64]) -> None:
        """More of them, above those before."""
        self.count += len(ids)
        for run in np.split(ids, np.flatnonzero(np.diff(ids) > 1)[: SHOWN + 1] + 1)[: SHOWN + 1] if len(ids) else []:
            if self._runs and self._runs[-1][1] + 1 == run[0]:
                self._runs[-1][1] = int(run[-1])
            elif len(self._runs) <= SHOWN:
                self._runs.append([int(run[0]), int(run[-1])])

    def __str__(self) -> str:
        told = [f"{first}" if first == last else f"{first}-{last}" for first, last in self._runs[:SHOWN]]
        if len(self._runs) > SHOWN:
            told.append(f".. ({self.count:,} in all)")
        return ", ".join(told)
