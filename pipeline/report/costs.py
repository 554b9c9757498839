"""What a run was estimated to take, and what it took.

`semiprune plan --cost` leaves its estimate in the run directory, by the keys of the stages: it is no input of any, and
of another recipe's estimate nothing fits. What a stage took its manifest says.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import storage
from pipeline.epochs import EpochLog
from pipeline.stage import Artifact

ESTIMATE = "_ESTIMATE.json"


@dataclass(frozen=True)
class Estimate:
    """Of one stage. seconds: of the clock; images: that workers train on or look at; speed: of those, images/s that
    one worker was thought to do; written: bytes.
    """

    seconds: float
    images: int
    speed: float | None
    written: int


@dataclass(frozen=True)
class Estimates:
    """stages: by key; speeds: images/s, by name, that they rest on."""

    stages: dict[str, Estimate]
    speeds: dict[str, float]

    def write(self, root: str) -> None:
        """Keep them in place of earlier ones."""
        storage.write(storage.join(root, ESTIMATE), json.dumps(asdict(self), indent=1).encode())


def compare(inputs: Mapping[str, Artifact]) -> list[dict[str, Any]] | None:
    """A row for each stage that was estimated; None if none was.

    Title, estimated and took: seconds, and their ratio where both are a second or more; of those with images also speed
    and reached: images/s of one worker; of those that write also written and is_written: bytes.
    """
    root = next(iter(inputs.values())).uri.rsplit("/", 2)[0]
    place = storage.join(root, ESTIMATE)
    try:
        estimates = storage.read_json(place, Estimates, f"delete {place!r}")
    except FileNotFoundError:
        return None
    rows = [_row(artifact, found) for artifact in inputs.values() if (found := estimates.stages.get(_key(artifact)))]
    return rows or None


def _key(artifact: Artifact) -> str:
    key: str = artifact.manifest["key"]
    return key


def _row(artifact: Artifact, estimate: Estimate) -> dict[str, Any]:
    took = artifact.manifest["seconds"]
    return {
        "title": artifact.manifest["title"],
        "estimated": estimate.seconds,
        "took": took,
        "ratio": took / estimate.seconds if min(took, estimate.seconds) >= 1 else None,
        "images": estimate.images,
        "speed": estimate.speed,
        "reached": estimate.images / (took * _workers(artifact)) if estimate.speed and took else None,
        "written": estimate.written,
        "is_written": _written(artifact),
    }


def _workers(artifact: Artifact) -> int:
    """That it ran on last; what may vary without a training of its own has the fewest that it may have."""
    sizes = artifact.metrics.get("world_sizes")
    if sizes:
        return int(sizes[-1])
    workers = artifact.manifest["resources"]["num_workers"]
    return int(workers["min"] if isinstance(workers, dict) else workers)


def _written(artifact: Artifact) -> int:
    """Bytes of its parts, and of the training dynamics that its epochs name."""
    commits = (
        EpochLog(storage.join(artifact.uri, "dynamics")).commits() if artifact.manifest["stage"] == "proxy" else []
    )
    parts: list[dict[str, Any]] = artifact.manifest["parts"]
    return sum(int(part["bytes"]) for part in parts) + sum(file.bytes for commit in commits for file in commit.files)
