"""How far a run is, read from its directory alone: no recipe, no Ray."""

import json
from dataclasses import dataclass

from pipeline import storage
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from pipeline.run import PLAN
from pipeline.stage import MANIFEST


@dataclass(frozen=True)
class StageStatus:
    """One line of the status. state: "done", "started" or "to run"; detail: seconds, or commits so far."""

    title: str
    key: str
    state: str
    detail: str


def read_status(root: str) -> list[StageStatus]:
    """The stages of the last plan that ran in `root`, in order."""
    try:
        plan = json.loads(storage.read(storage.join(root, PLAN)))
    except FileNotFoundError as error:
        raise UserError(f"{root!r} is not a run directory: it has no {PLAN}; name the root of a recipe") from error
    return [_status(root, entry["stage"], entry["title"], entry["key"]) for entry in plan["stages"]]


def _status(root: str, stage: str, title: str, key: str) -> StageStatus:
    folder = storage.join(root, stage, key)
    found = storage.names(folder)
    if MANIFEST in found:
        seconds = json.loads(storage.read(storage.join(folder, MANIFEST)))["seconds"]
        return StageStatus(title, key, "done", f"{seconds:.1f} s")
    if not found:
        return StageStatus(title, key, "to run", "")
    for log in ("training", "dynamics"):
        if log in found:
            commits = EpochLog(storage.join(folder, log)).commits()
            return StageStatus(title, key, "started", f"{len(commits)} commits")
    return StageStatus(title, key, "started", "")
