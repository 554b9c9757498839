"""Shards and run directory in an object store, from the first byte to the exported shards."""

import uuid

import boto3
import numpy as np
import pyarrow as pa
import pytest

from pipeline import export, images, index, ingest, shards, storage
from pipeline.epoch_plan import in_order
from pipeline.errors import DataError, UserError
from pipeline.index import DataConfig, IndexConfig, check_unchanged, load_index, load_shards
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Stage
from tests.pipeline.making import image, silent, write_dataset


@pytest.fixture
def bucket(s3_bucket):
    """An empty one."""
    name = uuid.uuid4().hex
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """Ray's workers may be older than the server, so they would not find it."""

    def here(items, function, *, resources, progress, unit):
        return [function(item) for item in items]

    def stream_here(items, function, **settings):
        return enumerate(here(items, function, **settings))

    for stage in (ingest, export):
        monkeypatch.setattr(stage, "map_items", here)
    monkeypatch.setattr(index, "stream_items", stream_here)


def run(root, name, stage_run, config, inputs) -> Artifact:
    stage = Stage(name, 1, config, {}, stage_run)
    out = Output(stage.uri(root))
    return stage.commit(root, out, stage_run(inputs, config, out, resources=None, progress=silent), {})


def test_ingest_and_export(bucket, tmp_path):
    write_dataset(tmp_path / "data", num_shards=2)
    for path in (tmp_path / "data").iterdir():
        storage.write(f"{bucket}/data/{path.name}", path.read_bytes())
    storage.write(f"{bucket}/labels.csv", b"key,label\ns001,1\n")
    root = f"{bucket}/run"
    config = DataConfig(shards=f"{bucket}/data/*.tar", num_classes=2, image_size=8, labels=f"{bucket}/labels.csv")
    indexed = run(root, "index", index.run, IndexConfig.of(config), {})
    assert load_index(indexed)["key"].to_pylist() == [f"s{n:03d}" for n in range(8)]
    assert load_index(indexed)["label"].to_pylist() == [None, 1] + [None] * 6
    assert [shard.uri for shard in load_shards(indexed)] == [f"{bucket}/data/train-{n:06d}.tar" for n in range(2)]
    check_unchanged(indexed)
    assert shards.find([f"{bucket}/data/train-{{000000..000001}}.tar"]) == shards.find(config.shards)

    expected = np.stack([images.decode(image(n), 8, 10**6) for n in range(8)])
    for way in ("cache", "stream"):
        resources = Resources(images=way, cache_dir=str(tmp_path / "cache"))
        ingest.fill(ingest.missing(indexed, resources), resources, silent)
        opened = ingest.open_images(indexed, resources)
        (step,) = opened.steps(in_order(opened.samples, np.arange(7, -1, -1), 8))
        np.testing.assert_array_equal(step.images, expected[::-1])
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 2

    rows = Output(f"{root}/rows")
    rows.write_table(pa.table({"sample_id": [1, 6], "rank": [1, 0], "pseudo_label": [0, 1], "confidence": [0.5, 1.0]}))
    manifest = {"parts": [vars(part) for part in rows.parts], "inputs": {}, "metrics": {"name": "two"}}
    table = Artifact(rows.uri, manifest)
    inputs = {"index": indexed, "split": table, "select": table, "score": table, "pseudo_label": table}
    exported = run(root, "export", export.run, export.ExportConfig(), inputs)
    content = storage.read(f"{exported.uri}/shards/coreset-000000.tar")
    assert image(1) in content
    assert image(6) in content

    storage.write(f"{bucket}/data/train-000001.tar", content)
    with pytest.raises(DataError, match=r"train-000001\.tar' has changed"):
        check_unchanged(indexed)


def test_mistakes(bucket):
    for pattern, message in (("no-{0..1}.tar", "there is no file"), ("no*.tar", "no file matches")):
        with pytest.raises(UserError, match=message):
            shards.find([f"{bucket}/{pattern}"])
    with pytest.raises(UserError, match="its bucket does not exist"):
        shards.find([f"s3://{uuid.uuid4().hex}/a.tar"])
