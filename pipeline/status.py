"""How far a run is, read from its directory alone: no recipe, no Ray."""

from dataclasses import dataclass

from pipeline import lease, storage
from pipeline.epochs import EpochLog
from pipeline.run import last_plan
from pipeline.stage import MANIFEST
from pipeline.versions import Planned


@dataclass(frozen=True)
class StageStatus:
    """One line of the status. state: "done", "running", "started" or "to run".

    detail: seconds, or commits so far and who runs it.
    """

    title: str
    key: str
    state: str
    detail: str


@dataclass(frozen=True)
class _Finished:
    seconds: float


def read_status(root: str) -> list[StageStatus]:
    """The stages of the last plan that ran in `root`, in order."""
    return [_status(root, planned) for planned in last_plan(root)]


def _status(root: str, planned: Planned) -> StageStatus:
    title, key = planned.title, planned.key
    folder = storage.join(root, planned.stage, key)
    found = storage.names(folder)
    if MANIFEST in found:
        seconds = storage.read_json(storage.join(folder, MANIFEST), _Finished).seconds
        return StageStatus(title, key, "done", f"{seconds:.1f} s")
    details = []
    for log in ("training", "dynamics"):
        if log in found:
            commits = EpochLog(storage.join(folder, log)).commits()
            details = [f"{len(commits)} commits"]
            break
    if holder := lease.running(folder, found):
        return StageStatus(title, key, "running", ", ".join([*details, str(holder)]))
    if all(map(lease.is_file, found)):
        return StageStatus(title, key, "to run", "")
    return StageStatus(title, key, "started", ", ".join(details))
