"""Records of versions: created once, read in order, verified by fsck; stages of earlier ones as inputs of a plan."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import storage, versions
from pipeline.config import Config
from pipeline.errors import CorruptArtifactError
from pipeline.fsck import check
from pipeline.run import PLAN
from pipeline.stage import Output, Stage, write_table_part
from pipeline.versions import Coreset, Past, Planned, Version
from pipeline.warm_start import Learned
from tests.pipeline.making import silent


class Number(Config):
    number: int


def make(number: int = 1, stages: list[Planned] | None = None, root: str | None = None) -> Version:
    """A version; with a root, one with a table there."""
    table = pa.table({"selection": ["all"], "sample_id": [number], "key": ["k"], "rank": [0]})
    return Version(
        number=number,
        key=f"{number:06d}",
        made="2026-01-01T00:00:00+00:00",
        state="s",
        num_shards=1,
        num_samples=10,
        num_labels=2,
        learned=Learned(1, "l", 10, 2),
        started_from=number - 1 or None,
        why="",
        coresets=[Coreset("all", 3, 1, 0, 1)],
        stages=stages or [],
        parts=[write_table_part(versions.folder(root, number), "added", table)] if root else [],
    )


def test_a_version_is_created_once_and_read_as_it_was(root: str) -> None:
    first = make(root=root)
    assert versions.load(root) == [] and versions.create(root, first)
    assert versions.create(root, first), "the repetition of a request whose answer was lost"
    assert not versions.create(root, replace(first, made="later"))
    second = make(2)
    assert versions.create(root, second)
    assert versions.load(root) == [first, second]
    assert versions.manifest(root, first).table("added")["sample_id"].to_pylist() == [1]


def test_what_a_refresh_that_was_killed_left_is_no_version(tmp_path: Path) -> None:
    root = str(tmp_path)
    make(root=root)
    storage.write(storage.join(root, "versions", "notes", "_MANIFEST.json"), b"")
    assert versions.load(root) == []


def test_fsck_reads_versions_and_their_tables(tmp_path: Path) -> None:
    root = str(tmp_path)
    version = make(root=root)
    versions.create(root, version)
    storage.write(storage.join(root, PLAN), json.dumps({"stages": []}).encode())
    assert check(root, silent).findings == []
    part = tmp_path / "versions" / "000001" / version.parts[0].name
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    (finding,) = check(root, silent).findings
    assert finding.kind == "damaged" and finding.where.endswith(part.name)


def test_a_damaged_version_is_one_sentence(tmp_path: Path) -> None:
    storage.write(str(tmp_path / "versions" / "000001" / "_MANIFEST.json"), b"{}")
    with pytest.raises(CorruptArtifactError, match="is damaged: put it back from a copy"):
        versions.load(str(tmp_path))


def test_a_stage_of_a_version_is_found_by_its_key_and_enters_the_keys_of_its_readers(tmp_path: Path) -> None:
    stage = Stage("double", 1, Number(number=2), {}, lambda *_, **__: {})
    version = make(stages=[Planned(stage.name, stage.title, stage.key)])
    past = version.of("double")
    assert (past.key, past.title, past.uri("/r")) == (stage.key, "double of version 1", stage.uri("/r"))
    assert past.load(str(tmp_path)) is None and version.has("double") and not version.has("double of version 1")
    with pytest.raises(CorruptArtifactError, match="is gone, which version 1 names"):
        version.artifact(str(tmp_path), "double")
    stage.commit(str(tmp_path), Output(stage.uri(str(tmp_path))), {"n": 1}, {})
    assert version.artifact(str(tmp_path), "double").metrics == {"n": 1}
    readers = [Stage("read", 1, Number(number=1), {"a": source}, stage.run) for source in (stage, past)]
    assert readers[0].key == readers[1].key
    other = Past.of(Planned("double", "double", "0" * 16), 1)
    assert Stage("read", 1, Number(number=1), {"a": other}, stage.run).key != readers[0].key
    with pytest.raises(CorruptArtifactError, match="a stage of the last version is gone"):
        past.run()
