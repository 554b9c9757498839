"""The versions of a coreset: what each refresh made, of what, and how it differs from the one before.

`{root}/versions/000001/_MANIFEST.json` is created once and never written over; it names the stages of that refresh, and
as its parts the tables `added`, `dropped` and `to_annotate` beside it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import CorruptArtifactError
from pipeline.stage import MANIFEST, READERS, Artifact, Part, Stage
from pipeline.threads import in_threads
from pipeline.warm_start import Learned

FOLDER = "versions"


@dataclass(frozen=True)
class Planned:
    """A stage of a version, or of the last plan, as `run.describe` writes it."""

    stage: str
    title: str
    key: str


@dataclass(frozen=True)
class Coreset:
    """One selection of a version against the one before. to_annotate: images in it whose label is not known."""

    name: str
    size: int
    added: int
    dropped: int
    to_annotate: int


@dataclass(frozen=True)
class Version:
    """What a refresh made.

    key: the number, as its folder is called; made: when, ISO 8601, UTC; state: hash of all that it was made of, by
    which a refresh sees that nothing is new; learned: the last training from scratch of the semi-supervised model;
    started_from: the version whose model it began as, None from scratch; stages: all that its plan names, with those
    of the version before that it read.
    """

    number: int
    key: str
    made: str
    state: str
    num_shards: int
    num_samples: int
    num_labels: int
    learned: Learned
    started_from: int | None
    why: str
    coresets: list[Coreset]
    stages: list[Planned]
    parts: list[Part]

    def of(self, title: str) -> "Past":
        """The stage that people call `title`."""
        (planned,) = (each for each in self.stages if each.title == title)
        return Past.of(planned, self.number)

    def has(self, title: str) -> bool:
        """Whether it has such a stage."""
        return any(planned.title == title for planned in self.stages)

    def artifact(self, root: str, title: str) -> Artifact:
        """What that stage made; CorruptArtifactError if it is gone."""
        stage = self.of(title)
        found = stage.load(root)
        if found is None:
            raise CorruptArtifactError(f"{stage.uri(root)!r} is gone, which version {self.number} names: put it back")
        return found


def folder(root: str, number: int) -> str:
    """Where a version is."""
    return storage.join(root, FOLDER, f"{number:06d}")


def load(root: str) -> list[Version]:
    """All versions in their order; CorruptArtifactError if one is damaged."""
    numbers = [int(name) for name in storage.names(storage.join(root, FOLDER)) if re.fullmatch(r"\d{6,}", name)]
    found = in_threads(lambda number: _read(root, number), sorted(numbers), READERS)
    return [version for version in found if version is not None]


def _read(root: str, number: int) -> Version | None:
    """None for one that no refresh has finished."""
    uri = storage.join(folder(root, number), MANIFEST)
    try:
        version: Version = storage.read_json(uri, Version, mend="put it back from a copy of the run directory")
    except FileNotFoundError:
        return None
    return version


def manifest(root: str, version: Version) -> Artifact:
    """Its tables: `added`, `dropped`, `to_annotate`, each with selection, sample_id, key and rank."""
    return Artifact(folder(root, version.number), asdict(version))


def create(root: str, version: Version) -> bool:
    """Write it; False if another refresh has written one of that number."""
    uri = storage.join(folder(root, version.number), MANIFEST)
    data = json.dumps(asdict(version), indent=1, allow_nan=False).encode()
    # A store answers "exists" to the repetition of a request whose first answer was lost: then the bytes are ours.
    return storage.create(uri, data) or storage.read(uri) == data


class _PastConfig(Config):
    """What is known of a finished stage: its key."""

    key: str


class Past(Stage):
    """A finished stage of an earlier version, to be an input of a plan; it is never run."""

    @cached_property
    def key(self) -> str:
        """As the version names it."""
        assert isinstance(self.config, _PastConfig)
        return self.config.key

    @staticmethod
    def of(planned: Planned, number: int) -> "Past":
        """A stage of that version."""
        title = f"{planned.title} of version {number}"
        return Past(planned.stage, 0, _PastConfig(key=planned.key), {}, _gone, title)


def _gone(*_: Any, **__: Any) -> dict[str, Any]:
    raise CorruptArtifactError(
        "a stage of the last version is gone, which this refresh goes on from: put it back from a copy, or run the "
        "recipe under another root"
    )


@dataclass(frozen=True)
class Since:
    """Further inputs of a plan's stages, from the version before. None of it in a plan from scratch.

    split: by the name of the input; ssl: the same, by the title of the stage; select: by the name of the selection;
    steps_fraction: of the steps that a warm start takes.
    """

    split: Mapping[str, Stage] = field(default_factory=dict)
    ssl: Mapping[str, Mapping[str, Stage]] = field(default_factory=dict)
    select: Mapping[str, Mapping[str, Stage]] = field(default_factory=dict)
    steps_fraction: float = 1.0

    def stages(self) -> list[Stage]:
        """All of them, once."""
        return list({stage.key: stage for stage in self._all()}.values())

    def _all(self) -> Iterator[Stage]:
        for inputs in (self.split, *self.ssl.values(), *self.select.values()):
            yield from inputs.values()
