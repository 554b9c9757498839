"""Reads what a manifest names, piece by piece, and compares."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.epoch_file import EpochFile, Footer
from pipeline.epochs import KEPT_CHECKPOINTS, Commit, EpochLog
from pipeline.errors import SemiPruneError
from pipeline.fsck.finding import Finding, trouble
from pipeline.fsck.id_runs import IdRuns
from pipeline.stage import Part

PIECE = 1 << 24
"""Bytes of a file that are held at a time."""

IDS = 1 << 20
"""Ids whose records are counted at a time."""


@dataclass(frozen=True)
class File:
    """A part of a stage."""

    uri: str
    part: Part
    fix: str


@dataclass(frozen=True)
class Epoch:
    """A commit of a training; last: whether it is one of those whose checkpoints are kept."""

    log: EpochLog
    commit: Commit
    last: bool
    fix: str

    @property
    def parts(self) -> list[Part]:
        """The files that it names and that must be there."""
        checkpoint = self.commit.checkpoint if self.last else None
        return [*self.commit.files, *([checkpoint] if checkpoint else [])]


Item = File | Epoch | Finding
"""What there is to verify, and what is known to be wrong already."""


def verify(item: Item) -> tuple[int, int, list[Finding]]:
    """Files, bytes and findings of one item."""
    if isinstance(item, Finding):
        return 0, 0, [item]
    if isinstance(item, File):
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
        return size, [trouble(uri, error, fix)]
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
    lacking, twice = IdRuns(), IdRuns()
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
