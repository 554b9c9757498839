"""Reads a whole run again and tells what is damaged, missing or left over: no recipe, no Ray.

Every byte that a manifest names is compared with its SHA-256, and every epoch of training dynamics is searched for ids
that it lacks or has twice. A thread holds a piece of a file at a time, the whole a manifest and a listing.
"""

import os
from dataclasses import dataclass, replace

from pipeline import storage
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from pipeline.fsck.finding import Finding
from pipeline.fsck.verification import Epoch, File, Item, verify
from pipeline.fsck.walk import items
from pipeline.run import PLAN
from pipeline.stage import MANIFEST, Progress
from pipeline.threads import in_threads


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
    total = sum(_num_files(item) for item in items(run))
    report = Report([], 0, 0)
    progress(0, total, "files")
    for files, size, findings in in_threads(verify, items(run), min(8, os.cpu_count() or 1)):
        found = [replace(finding, where=finding.where.removeprefix(f"{run}/")) for finding in findings]
        report = Report(report.findings + found, report.files + files, report.bytes + size)
        progress(min(report.files, total), total, "files")  # a run that goes on may have committed more meanwhile
    return report


def _num_files(item: Item) -> int:
    return len(item.parts) if isinstance(item, Epoch) else int(isinstance(item, File))
