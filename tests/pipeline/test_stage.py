"""Keys, manifests and what a crash, a race or damage does to them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import CorruptArtifactError
from pipeline.stage import MANIFEST, Output, Part, Stage, write_part, write_table_part


class Optimizer(Config):
    rate: float
    schedule: Literal["cosine", "constant"] = "cosine"


class Settings(Config):
    seed: int = 0
    epochs: int = 1
    shards: tuple[str, ...] = ()
    weights: dict[str, float] = Field(default_factory=dict)
    optimizer: Optimizer | None = None


class Momentum(Optimizer):
    momentum: float


class Defaults(Config):
    rate: float = 10


class Unordered(Config):
    names: frozenset[str]


def never(*_: object, **__: object) -> dict[str, Any]:
    raise AssertionError("these tests commit by hand")


def stage(name: str = "index", version: int = 1, config: Config | None = None, **inputs: Stage) -> Stage:
    return Stage(name, version, config or Settings(), inputs, never)


def commit(
    made: Stage, root: str, rows: tuple[int, ...] = (1, 2, 3), metrics: Mapping[str, Any] | None = None, **facts: Any
) -> Any:
    out = Output(made.uri(root))
    out.write_table(pa.table({"sample_id": rows}))
    return made.commit(root, out, dict(metrics or {}), facts)


def test_keys_are_the_same_for_ever() -> None:
    """A changed literal means that every finished run is recomputed: raise versions, never the way of hashing."""
    config = Settings(seed=7, shards=("a.tar", "ü.tar"), weights={"b": 0.1, "a": 1e-9}, optimizer=Optimizer(rate=1))
    source = stage(config=config)
    assert source.key == "4ef10484b3deba2e"
    assert stage("score", 3, Settings(), source=source).key == "9c3a012a494513d7"


def test_keys_do_not_depend_on_the_process() -> None:
    program = "from tests.pipeline.test_stage import *; print(stage(config=Settings(weights={'a': .1, 'b': .2})).key)"
    folders = str(Path(__file__).parents[2])
    keys = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": folders},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert keys == {stage(config=Settings(weights={"b": 0.2, "a": 0.1})).key + "\n"}


def test_what_changes_a_key() -> None:
    source = stage()
    keys = [
        stage("score", 1, Settings(), source=source).key,
        stage("select", 1, Settings(), source=source).key,
        stage("score", 2, Settings(), source=source).key,
        stage("score", 1, Settings(seed=1), source=source).key,
        stage("score", 1, Settings(), other=source).key,
        stage("score", 1, Settings(), source=stage(version=2)).key,
        stage("score", 1, Settings(), source=stage(config=Settings(epochs=2))).key,
        stage("score", 1, Settings()).key,
    ]
    assert len(set(keys)) == len(keys)


def test_what_does_not_change_a_key() -> None:
    first, second = stage(), stage(version=2)
    assert stage("score", a=first, b=second).key == stage("score", b=second, a=first).key
    assert Stage("index", 1, Settings(), {}, print, title="another").key == stage().key
    assert "title" not in stage().uri("/root")


def test_every_field_of_a_derived_config_counts() -> None:
    slow, fast = (Settings(optimizer=Momentum(rate=0.1, momentum=momentum)) for momentum in (0.9, 0.0))
    assert stage(config=slow).key != stage(config=fast).key


def test_a_default_and_the_same_value_given_have_one_key() -> None:
    assert stage(config=Defaults()).key == stage(config=Defaults(rate=10)).key == stage(config=Defaults(rate=10.0)).key


def test_what_has_no_order_is_refused() -> None:
    with pytest.raises(TypeError, match="no stable hash"):
        _ = stage(config=Unordered(names=frozenset({"a", "b"}))).key


def test_a_config_cannot_be_changed_or_misspelt() -> None:
    with pytest.raises(ValidationError):
        Settings().seed = 1  # type: ignore[misc]
    for wrong in ({"sed": 1}, {"seed": "1"}, {"seed": 1.0}, {"weights": {"a": float("nan")}}, {"shards": ["a"]}):
        with pytest.raises(ValidationError):
            Settings(**wrong)


finite = st.floats(allow_nan=False, allow_infinity=False)
settings = st.builds(
    Settings,
    seed=st.integers(-2, 2),
    epochs=st.integers(0, 2),
    shards=st.lists(st.text(max_size=2), max_size=2).map(tuple),
    weights=st.dictionaries(st.sampled_from("ab"), finite, max_size=2),
    optimizer=st.none() | st.builds(Optimizer, rate=finite, schedule=st.sampled_from(["cosine", "constant"])),
)


@given(settings, settings)
def test_keys_are_equal_exactly_when_configs_are(one: Settings, other: Settings) -> None:
    assert (stage(config=one).key == stage(config=other).key) == (repr_sorted(one) == repr_sorted(other))
    assert stage(config=Settings.model_validate_json(one.model_dump_json())).key == stage(config=one).key


def repr_sorted(config: Settings) -> str:
    """Tells -0.0 from 0.0, as a key does; the order of a mapping means nothing."""
    return repr({**config.model_dump(), "weights": sorted(config.weights.items())})


def test_commit_and_load(root: str) -> None:
    made = stage(config=Settings(optimizer=Momentum(rate=0.1, momentum=0.9)), source=stage("other"))
    assert made.load(root) is None
    out = Output(made.uri(root))
    out.write_table(pa.table({"x": [1, 2]}), "part-00000")
    out.add(write_table_part(out.uri, "part-00001", pa.table({"x": [3]})))
    out.write("model", ".pt", b"weights")
    out.publish("keys.txt", b"a\nb\n", rows=2)
    write_part(out.uri, "part-00009", ".parquet", b"nobody names this")
    written = made.commit(root, out, {"num_rows": 3}, {"seconds": 1.5})
    artifact = made.load(root)
    assert artifact == written
    assert artifact is not None
    assert artifact.metrics == {"num_rows": 3}
    assert artifact.table()["x"].to_pylist() == [1, 2, 3]
    assert [part.rows for part in artifact.parts()] == [2, 1]
    assert [artifact.read(part) for part in artifact.parts("model")] == [b"weights"]
    assert storage.read(storage.join(made.uri(root), "keys.txt")) == b"a\nb\n"
    expected = {
        "stage": "index",
        "version": 1,
        "key": made.key,
        "config": {
            "seed": 0,
            "epochs": 1,
            "shards": [],
            "weights": {},
            "optimizer": {"rate": 0.1, "schedule": "cosine", "momentum": 0.9},
        },
        "inputs": {"source": stage("other").key},
        "seconds": 1.5,
    }
    assert {name: artifact.manifest[name] for name in expected} == expected


def test_prefixes_do_not_mix(tmp_path: Path) -> None:
    out = Output(stage().uri(str(tmp_path)))
    for stem in ("part", "part-00000", "partial", "shards"):
        out.write_table(pa.table({"x": [1]}), stem)
    artifact = stage().commit(str(tmp_path), out, {}, {})
    assert [part.name.rsplit("-", 1)[0] for part in artifact.parts()] == ["part", "part-00000"]
    assert len(artifact.parts("shards")) == 1
    with pytest.raises(CorruptArtifactError, match="no part named 'none'"):
        artifact.table("none")


def test_before_the_manifest_there_is_nothing(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(uri: str, _data: bytes) -> bool:
        assert uri.endswith(MANIFEST)
        raise KeyboardInterrupt

    made = stage()
    with monkeypatch.context() as patched:
        patched.setattr(storage, "create", crash)
        with pytest.raises(KeyboardInterrupt):
            commit(made, root, (9, 9))
    assert made.load(root) is None
    assert len(storage.names(made.uri(root))) == 1
    assert commit(made, root).table()["sample_id"].to_pylist() == [1, 2, 3]


def test_the_second_committer_gets_the_first_result(root: str) -> None:
    made = stage()
    first = commit(made, root, (1,), {"num_rows": 1}, seconds=1)
    second = commit(made, root, (1, 2), {"num_rows": 2}, seconds=2)
    assert first == second == made.load(root)
    assert second.table()["sample_id"].to_pylist() == [1]


def test_many_committers_agree(root: str) -> None:
    made = stage()
    with ThreadPoolExecutor(8) as pool:
        artifacts = list(pool.map(lambda number: commit(made, root, (number,), {"winner": number}), range(8)))
    assert all(artifact == artifacts[0] for artifact in artifacts)
    assert artifacts[0].table()["sample_id"].to_pylist() == [artifacts[0].metrics["winner"]]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_part_is_named(root: str, damage: str) -> None:
    made = stage()
    artifact = commit(made, root)
    [part] = artifact.parts()
    uri = storage.join(made.uri(root), part.name)
    good = storage.read(uri)
    if damage == "delete":
        storage.delete(uri)
    else:
        storage.write(uri, good[:-1] if damage == "truncate" else bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(CorruptArtifactError, match=part.name):
        artifact.table()
    with pytest.raises(CorruptArtifactError, match=part.name):
        artifact.read(part)


@pytest.mark.parametrize("content", [b"", b'{"stage": "ind', b"\xff\xfe", b"[]", b'{"stage": "index"}'])
def test_a_damaged_manifest_is_named(root: str, content: bytes) -> None:
    made = stage()
    storage.write(storage.join(made.uri(root), MANIFEST), content)
    with pytest.raises(CorruptArtifactError, match=rf"{made.key}/{MANIFEST}' is damaged: delete the folder"):
        made.load(root)


def test_a_manifest_of_another_stage_is_refused(tmp_path: Path) -> None:
    commit(stage(), str(tmp_path))
    other = stage(version=2)
    Path(stage().uri(str(tmp_path))).rename(other.uri(str(tmp_path)))
    with pytest.raises(CorruptArtifactError, match="another stage"):
        other.load(str(tmp_path))


@pytest.mark.parametrize("metrics", [{"loss": float("nan")}, {"loss": object()}])
def test_metrics_that_are_no_json_commit_nothing(tmp_path: Path, metrics: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        commit(stage(), str(tmp_path), metrics=metrics)
    assert stage().load(str(tmp_path)) is None


def test_parts_of_two_attempts_never_share_a_name(tmp_path: Path) -> None:
    parts = [write_part(str(tmp_path), "part-00000", ".bin", b"same") for _ in range(20)]
    assert len({part.name for part in parts}) == 20
    assert {(part.bytes, part.sha256) for part in parts} == {(4, storage.sha256(b"same"))}
    assert Part("part", 0, 4, storage.sha256(b"same")).rows == 0
