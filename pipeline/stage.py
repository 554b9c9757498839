"""A stage is a frozen value; its place in the run directory is a hash of what it does and of what it reads.

`{root}/{stage}/{key}/part-*` hold the results and `_MANIFEST.json`, written last, makes them exist: readers know only
parts that a manifest names. Parts are written under names of their own, so a killed or a second attempt leaves files
behind that nobody reads.
"""

import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import CorruptArtifactError
from pipeline.threads import in_threads

MANIFEST = "_MANIFEST.json"

STAGES = frozenset(
    [
        "index",
        "split",
        "encode",
        "neighbours",
        "cluster",
        "ssl",
        "pseudo_label",
        "proxy",
        "embed",
        "score",
        "trust",
        "fold",
        "fold_trust",
        "select",
        "export",
        "evaluate",
        "report",
    ]
)
"""Of a recipe, by name: what is below these folders of a run directory is ours."""

READERS = 8
"""Parts that are read at a time: an object store takes tens of milliseconds for the first byte of each."""


class Progress(Protocol):
    """Told by a stage how far it is."""

    def __call__(self, done: int, total: int, unit: str) -> None:
        """`done` of `total` `unit`s are finished."""


@dataclass(frozen=True)
class Part:
    """One written file of an artifact: its name, rows (0 where rows mean nothing), bytes and SHA-256."""

    name: str
    rows: int
    bytes: int
    sha256: str


def write_part(folder: str, stem: str, suffix: str, data: bytes | memoryview, rows: int = 0) -> Part:
    """Write `data` as `{stem}-{unique}{suffix}` under `folder`; it exists for readers once a manifest names it."""
    name = f"{stem}-{uuid.uuid4().hex[:8]}{suffix}"
    storage.write(storage.join(folder, name), data)
    return Part(name, rows, len(data), storage.sha256(data))


def write_table_part(folder: str, stem: str, table: pa.Table) -> Part:
    """Write a table as one Parquet part."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return write_part(folder, stem, ".parquet", sink.getbuffer(), table.num_rows)


class _Manifest(BaseModel):
    """What every reader relies on; a manifest tells more, for people."""

    model_config = ConfigDict(extra="allow")

    stage: str
    title: str
    key: str
    config: dict[str, Any]
    parts: list[Part]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """A committed stage: where it is and what its manifest says."""

    uri: str
    manifest: Mapping[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage returned as its summary."""
        return dict(self.manifest["metrics"])

    def parts(self, prefix: str = "part") -> list[Part]:
        """Parts named `{prefix}` or `{prefix}-...`, in the order in which they were added."""
        return [
            Part(**part)
            for part in self.manifest["parts"]
            if part["name"] == prefix or part["name"].startswith(f"{prefix}-")
        ]

    def read(self, part: Part) -> bytes:
        """The verified bytes of a part; CorruptArtifactError if they are not what the manifest says."""
        return storage.read_verified(storage.join(self.uri, part.name), part.sha256)

    def read_table(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """A Parquet part, verified; columns: those to decode, default all."""
        return pq.read_table(io.BytesIO(self.read(part)), columns=columns)

    def tables(self, prefix: str = "part", columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The Parquet parts with that prefix, one at a time, in order."""
        yield from in_threads(partial(self.read_table, columns=columns), self.parts(prefix), READERS)

    def table(self, prefix: str = "part", columns: list[str] | None = None) -> pa.Table:
        """All Parquet parts with that prefix as one table, in order; CorruptArtifactError if there is none."""
        tables = list(self.tables(prefix, columns))
        if not tables:
            raise CorruptArtifactError(f"{self.uri!r} has no part named {prefix!r}: {storage.MEND}")
        return pa.concat_tables(tables)


@dataclass
class Output:
    """Where a stage that is running writes; `add` decides what its manifest will name."""

    uri: str
    parts: list[Part] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Name a part in the manifest, after those added before."""
        self.parts.append(part)

    def write(self, stem: str, suffix: str, data: bytes | memoryview, rows: int = 0) -> Part:
        """Write bytes as a part and name it in the manifest."""
        part = write_part(self.uri, stem, suffix, data, rows)
        self.add(part)
        return part

    def publish(self, name: str, data: bytes | memoryview, rows: int = 0) -> Part:
        """Write deterministic bytes under a name that people rely on, and name it in the manifest."""
        storage.write(storage.join(self.uri, name), data)
        part = Part(name, rows, len(data), storage.sha256(data))
        self.add(part)
        return part

    def write_table(self, table: pa.Table, stem: str = "part") -> Part:
        """Write a table as a Parquet part and name it in the manifest."""
        part = write_table_part(self.uri, stem, table)
        self.add(part)
        return part


def _canonical(value: object) -> object:
    """`value` as JSON data, or TypeError: what has no order or no JSON form of its own has no stable hash."""
    if isinstance(value, Mapping):
        assert all(isinstance(name, str) for name in value), value
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_canonical(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{value!r} has no stable hash: use numbers, strings, tuples and nested Config objects")


Run = Callable[..., dict[str, Any]]
"""`run(inputs: Mapping[str, Artifact], config, out: Output, *, resources, progress) -> metrics`."""


@dataclass(frozen=True)
class Stage:
    """What to run, on which inputs; equal stages have equal keys on any machine.

    name: folder under the root; version: raised when the code changes what a stage means; config: everything that
    changes the result; inputs: the stages read, by the name under which `run` receives them; title: what people call
    this stage, its name unless several share one; images: those of the inputs that are indexes whose images it wants.
    """

    name: str
    version: int
    config: Config
    inputs: Mapping[str, "Stage"]
    run: Run
    title: str = ""
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)

    def settings(self) -> object:
        """The config as JSON data, with the fields of the objects that really are in it."""
        return _canonical(self.config.model_dump(serialize_as_any=True))

    @cached_property
    def key(self) -> str:
        """16 hex digits: hash of (name, version, config, keys of the inputs); resources never enter."""
        content = {
            "stage": self.name,
            "version": self.version,
            "config": self.settings(),
            "inputs": {name: stage.key for name, stage in sorted(self.inputs.items())},
        }
        return storage.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())[:16]

    def uri(self, root: str) -> str:
        """The stage's folder under `root`."""
        return storage.join(root, self.name, self.key)

    def load(self, root: str) -> Artifact | None:
        """The committed artifact, or None if the stage has not finished."""
        manifest = storage.join(self.uri(root), MANIFEST)
        try:
            content = storage.read_json(manifest, _Manifest)
        except FileNotFoundError:
            return None
        if content.key != self.key:
            raise CorruptArtifactError(f"{manifest!r} belongs to another stage: {storage.MEND}")
        return Artifact(self.uri(root), content.model_dump())

    def commit(self, root: str, out: Output, metrics: dict[str, Any], facts: dict[str, Any]) -> Artifact:
        """Write the manifest, last and in one step. If another attempt was first, its artifact is the result.

        metrics: JSON values that are functions of the inputs; facts: what is not (seconds, versions, commit).
        """
        manifest = {
            "stage": self.name,
            "title": self.title,
            "version": self.version,
            "key": self.key,
            "config": self.settings(),
            "inputs": {name: stage.key for name, stage in self.inputs.items()},
            "parts": [asdict(part) for part in out.parts],
            "metrics": metrics,
            **facts,
        }
        storage.create(storage.join(out.uri, MANIFEST), json.dumps(manifest, indent=1, allow_nan=False).encode())
        artifact = self.load(root)
        assert artifact is not None
        return artifact


def are_done(stages: Iterable[Stage], root: str) -> bool:
    """Whether the manifests of all of them are there now; none is read."""
    manifests = (storage.join(stage.uri(root), MANIFEST) for stage in stages)
    return all(in_threads(storage.exists, manifests, READERS))
