import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline import index, index_shard
from pipeline.errors import DataError, UserError
from pipeline.index import DataConfig, IndexConfig, check_unchanged, load_config, load_index, load_shards
from tests.pipeline.making import foreign_tar, image, run_index, run_stage, write_dataset, write_shard

SETTINGS = {"num_classes": 2, "image_size": 8}


def quarantined(artifact) -> list[tuple]:
    rows = artifact.table("quarantine").to_pylist()
    return [(row["uri"].rsplit("/", 1)[-1], row["row"], row["key"], row["reason"]) for row in rows]


def test_every_sample_gets_an_id_in_the_order_of_shards_and_rows(ray_local, tmp_path):
    artifact = run_index(tmp_path / "run", write_dataset(tmp_path / "data"))
    table = load_index(artifact)
    assert table.column_names == ["sample_id", *index_shard.SCHEMA.names]
    assert table["sample_id"].to_pylist() == list(range(12))
    assert table["key"].to_pylist() == [f"s{n:03d}" for n in range(12)]
    assert table["shard"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert table["row"].to_pylist() == [0, 1, 2, 3] * 3
    assert table["label"].to_pylist() == [0, 1] * 6
    assert load_index(artifact, ["label"]).column_names == ["sample_id", "label"]
    assert load_index(artifact, ["label", "key"]).column_names == ["sample_id", "label", "key"]
    shards = load_shards(artifact)
    assert [(shard.num_rows, shard.first_id) for shard in shards] == [(4, 0), (4, 4), (4, 8)]
    assert len(artifact.parts()) == 3
    assert artifact.table("quarantine").num_rows == 0
    assert artifact.metrics == {
        "num_samples": 12,
        "num_shards": 3,
        "num_classes": 2,
        "num_labelled_rows": 12,
        "labels_unmatched": 0,
        "num_quarantined": 0,
        "quarantined": {},
        "bytes": sum(shard.size for shard in shards),
    }
    for row in table.to_pylist():
        data = Path(shards[row["shard"]].uri).read_bytes()
        assert data[row["image_offset"] :][: row["image_size"]] == image(row["sample_id"])
        assert (row["offset"] % 512, row["length"]) == (0, 4 * 512)


def test_the_result_does_not_depend_on_the_number_of_workers(ray_local, tmp_path):
    pattern = write_dataset(tmp_path / "data", num_shards=5)
    one, two = (run_index(tmp_path / f"run{workers}", pattern) for workers in (1, 2))
    assert load_index(one) == load_index(two)
    assert one.metrics == two.metrics


def test_everything_unusable_is_listed_with_its_reason(ray_local, tmp_path):
    good = image()
    write_shard(
        tmp_path / "a.tar",
        [
            ("fine", {"png": good, "cls": b"1"}),
            ("unlabelled", {"jpg": image(1, form="JPEG")}),
            ("broken", {"jpg": image(1, form="JPEG")[:-9], "cls": b"0"}),
            ("text", {"jpg": b"hello"}),
            ("noimage", {"cls": b"0", "txt": b"x"}),
            ("two", {"png": good, "jpg": image(1, form="JPEG")}),
            ("high", {"png": good, "cls": b"17"}),
            ("low", {"png": good, "cls": b"-1"}),
            ("word", {"png": good, "cls": b"cat"}),
            ("huge", {"png": image(1, (60, 60))}),
            ("fine", {"png": image(2), "cls": b"0"}),
            ("last", {"PNG": good, "seg.png": b"?"}),
        ],
    )
    foreign_tar(tmp_path / "b.tar", [("plain", b"x"), ("b.png", good)], form=1)
    write_shard(tmp_path / "c.tar", [])
    (tmp_path / "d.tar").write_bytes(b"no tar at all" * 100)
    whole = write_shard(tmp_path / "e.tar", [(f"e{n}", {"png": image(n), "cls": b"1"}) for n in range(3)]).read_bytes()
    (tmp_path / "e.tar").write_bytes(whole[: 5 * 1024 + 100])
    artifact = run_index(tmp_path / "run", f"{tmp_path}/*.tar", max_pixels=3000)
    assert load_index(artifact)["key"].to_pylist() == ["fine", "unlabelled", "last", "b", "e0", "e1"]
    assert load_index(artifact)["row"].to_pylist() == [0, 1, 11, 1, 0, 1]
    assert load_index(artifact)["label"].to_pylist() == [1, None, None, None, 1, 1]
    assert quarantined(artifact) == [
        ("a.tar", 2, "broken", "undecodable image"),
        ("a.tar", 3, "text", "undecodable image"),
        ("a.tar", 4, "noimage", "no image"),
        ("a.tar", 5, "two", "several images"),
        ("a.tar", 6, "high", "label out of range"),
        ("a.tar", 7, "low", "label out of range"),
        ("a.tar", 8, "word", "unreadable label"),
        ("a.tar", 9, "huge", "undecodable image"),
        ("a.tar", 10, "fine", "duplicate key"),
        ("b.tar", 0, "plain", "unusable name"),
        ("c.tar", -1, "", "empty shard"),
        ("d.tar", -1, "", "not a tar"),
        ("e.tar", 2, "e2", "truncated shard"),
    ]
    details = artifact.table("quarantine")["detail"].to_pylist()
    assert "label 17 outside 0..1" in details
    assert "60x60 pixels are more than max_pixels=3000" in details
    assert artifact.metrics["num_quarantined"] == 13
    assert artifact.metrics["quarantined"]["undecodable image"] == 3
    assert artifact.metrics["num_labelled_rows"] == 3
    assert [(shard.num_rows, shard.first_id) for shard in load_shards(artifact)] == [
        (3, 0), (1, 3), (0, 4), (0, 4), (2, 4),
    ]  # fmt: skip
    assert len(artifact.parts()) == 3


def test_a_second_archive_in_a_shard_is_no_secret(ray_local, tmp_path):
    write_dataset(tmp_path / "data", num_shards=3)
    first, second, _ = sorted((tmp_path / "data").iterdir())
    first.write_bytes(first.read_bytes() + second.read_bytes())
    second.write_bytes(bytes(1024) + second.read_bytes())
    artifact = run_index(tmp_path / "run", f"{tmp_path}/data/*.tar")
    assert [(shard.num_rows, shard.first_id) for shard in load_shards(artifact)] == [(4, 0), (0, 4), (4, 4)]
    assert quarantined(artifact) == [(path.name, -1, "", "data after the end marker") for path in (first, second)]
    with pytest.raises(DataError, match=r"66\.67% of the data cannot be used \(2 data after the end marker\)"):
        run_index(tmp_path / "strict", f"{tmp_path}/data/*.tar", quarantine_limit=0.5)


def test_a_key_of_several_shards_stays_in_the_first(ray_local, tmp_path):
    def shard(name, *keys):
        write_shard(tmp_path / name, [(key, {"png": image(len(name)), "cls": b"0"}) for key in keys])

    shard("a.tar", "x", "y")
    shard("b.tar", "y", "b", "x")
    shard("c.tar", "b", "y")
    shard("d.tar", "d")
    artifact = run_index(tmp_path / "run", f"{tmp_path}/*.tar")
    table = load_index(artifact)
    assert list(zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True)) == [
        (0, "x"), (0, "y"), (1, "b"), (3, "d"),
    ]  # fmt: skip
    assert quarantined(artifact) == [
        ("b.tar", 0, "y", "duplicate key"),
        ("b.tar", 2, "x", "duplicate key"),
        ("c.tar", 0, "b", "duplicate key"),
        ("c.tar", 1, "y", "duplicate key"),
    ]
    assert artifact.metrics["num_labelled_rows"] == artifact.metrics["num_samples"] == 4


def test_equal_hashes_of_different_keys_are_no_duplicates(ray_local, tmp_path, monkeypatch):
    sharing = index._sharing

    def colliding(indexed):
        assert sharing(indexed) == {}
        return {1: {0}, 2: {0, 1}}

    monkeypatch.setattr(index, "_sharing", colliding)
    artifact = run_index(tmp_path / "run", write_dataset(tmp_path / "data"))
    assert (artifact.metrics["num_samples"], artifact.metrics["num_quarantined"]) == (12, 0)


@pytest.mark.parametrize("good", [8, 0])
def test_too_much_in_quarantine_is_an_error_that_names_the_table(ray_local, tmp_path, good):
    samples = [(f"g{n}", {"png": image(n)}) for n in range(good)] + [("bad1", {"png": b"x"}), ("bad2", {"cls": b"1"})]
    write_shard(tmp_path / "a.tar", samples)
    with pytest.raises(DataError) as caught:
        run_index(tmp_path / "run", f"{tmp_path}/a.tar", quarantine_limit=0.19 if good else 1.0)
    message = str(caught.value)
    assert "1 no image, 1 undecodable image" in message
    assert f"bad1 in {tmp_path}/a.tar" in message
    assert ("20.00%" in message and "quarantine_limit=0.19" in message) if good else "nothing is left" in message
    path = message.rsplit(" ", 1)[1]
    assert pq.read_table(path)["key"].to_pylist() == ["bad1", "bad2"]
    assert not list((tmp_path / "run").rglob("_MANIFEST.json"))


def test_the_limit_is_inclusive_and_counts_whole_shards(ray_local, tmp_path):
    pattern = write_dataset(tmp_path / "data", num_shards=4)
    (tmp_path / "data/train-000001.tar").write_bytes(b"x" * 1000)
    assert run_index(tmp_path / "run", pattern, quarantine_limit=0.25).metrics["num_samples"] == 12
    with pytest.raises(DataError, match=r"25\.00%"):
        run_index(tmp_path / "run2", pattern, quarantine_limit=0.2)


def test_labels_from_json(ray_local, tmp_path):
    samples = [("a", {"png": image(), "json": b'{"y": "dog"}'}), ("b", {"png": image(), "json": b"{}", "cls": b"1"})]
    write_shard(tmp_path / "a.tar", samples)
    artifact = run_index(
        tmp_path / "run", f"{tmp_path}/a.tar", label_field="y", classes=("cat", "dog", "cow"), num_classes=3
    )
    assert load_index(artifact)["label"].to_pylist() == [1, None]


def test_a_label_table_replaces_the_labels_of_the_shards(ray_local, tmp_path):
    pattern = write_dataset(tmp_path / "data", num_shards=1)
    pq.write_table(
        pa.table({"key": ["s001", "s002", "s003", "zz"], "label": [0, 1, 5, 0]}), tmp_path / "labels.parquet"
    )
    artifact = run_index(tmp_path / "run", pattern, labels=str(tmp_path / "labels.parquet"))
    assert load_index(artifact)["label"].to_pylist() == [None, 0, 1]
    assert quarantined(artifact) == [("train-000000.tar", 3, "s003", "label out of range")]
    assert (artifact.metrics["num_labelled_rows"], artifact.metrics["labels_unmatched"]) == (2, 2)
    check_unchanged(artifact)


def test_the_content_of_the_label_table_is_part_of_the_settings(tmp_path):
    pattern, table = write_dataset(tmp_path / "data", num_shards=1), tmp_path / "labels.csv"
    table.write_text("key,label\ns001,0\n")
    data = DataConfig(shards=pattern, labels=str(table), **SETTINGS)
    before = IndexConfig.of(data)
    assert IndexConfig.of(data) == before
    table.write_text("key,label\ns001,1\n")
    assert IndexConfig.of(data) != before
    with pytest.raises(DataError, match=r"labels\.csv' changed as the run began: run the same command again"):
        run_stage(tmp_path / "run", "index", index.run, before, {})
    table.unlink()
    with pytest.raises(UserError, match=r"data\.labels: there is no table of labels at '.*labels\.csv'"):
        IndexConfig.of(data)
    assert IndexConfig.of(data.model_copy(update={"labels": None})).labels_sha256 is None


def test_what_is_missing_is_said_before_any_work(tmp_path):
    # No Ray runs here: the error comes first.
    pattern = write_dataset(tmp_path / "data", num_shards=2).replace("000001", "000005")
    with pytest.raises(UserError, match=r"no file '.*train-000002\.tar'"):
        run_index(tmp_path / "run", pattern)
    with pytest.raises(UserError, match=r"no table of labels at '.*none\.csv'"):
        run_index(tmp_path / "run", f"{tmp_path}/data/*.tar", labels=f"{tmp_path}/none.csv")
    assert not (tmp_path / "run").exists()


def test_a_changed_dataset_is_seen(ray_local, tmp_path):
    pattern = str(tmp_path / "data" / "*.tar")
    write_dataset(tmp_path / "data")
    artifact = run_index(tmp_path / "run", pattern)
    check_unchanged(artifact)
    shard = tmp_path / "data/train-000001.tar"
    content = shard.read_bytes()
    os.utime(shard, (1, 1))
    check_unchanged(artifact)
    shard.write_bytes(content.replace(b"s004", b"t004"))
    with pytest.raises(DataError, match=r"train-000001\.tar' has changed"):
        check_unchanged(artifact)
    shard.write_bytes(content)
    extra = shard.with_name("train-000009.tar")
    extra.write_bytes(content)
    with pytest.raises(DataError, match=r"train-000009\.tar' was not there"):
        check_unchanged(artifact)
    extra.unlink()
    shard.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar' is not matched any more"):
        check_unchanged(artifact)


def test_a_store_works_like_a_disk(tmp_path, ray_local):
    pattern = write_dataset(tmp_path / "data", num_shards=1)
    artifact = run_index(tmp_path / "run", f"file://{pattern}")
    assert load_index(artifact).num_rows == 4


def test_settings_from_json():
    config = DataConfig.model_validate_json('{"shards": ["a", "b"], "classes": ["cat", "dog"], "image_size": 8}')
    here = str(Path.cwd())
    assert (config.shards, config.num_classes, config.classes) == ((f"{here}/a", f"{here}/b"), 2, ("cat", "dog"))
    config = DataConfig.model_validate_json('{"shards": "/a", "num_classes": 2, "image_size": 8}')
    assert config.shards == ("/a",)
    assert DataConfig.model_validate(config.model_dump()) == config
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


def test_relative_places_are_those_of_the_folder(ray_local, tmp_path, monkeypatch):
    for folder in ("one", "two"):
        write_dataset(tmp_path / folder / "data", num_shards=2)
        (tmp_path / folder / "labels.csv").write_text("key,label\ns001,1\n")
    configs = []
    for folder in ("one", "two"):
        monkeypatch.chdir(tmp_path / folder)
        configs.append(DataConfig(shards="data/train-{000000..000001}.tar", labels="labels.csv", **SETTINGS))
    assert configs[0].shards == (f"{tmp_path}/one/data/train-{{000000..000001}}.tar",)
    assert configs[0].labels == f"{tmp_path}/one/labels.csv"
    assert configs[0] != configs[1]
    artifact = run_index(tmp_path / "run", "data/*.tar", labels="labels.csv")
    monkeypatch.chdir(tmp_path)
    assert load_config(artifact).data.shards == (f"{tmp_path}/two/data/*.tar",)
    check_unchanged(artifact)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("cat", "cat")}, "2 different names"),
        ({"classes": ("cat", "dog", "cow")}, "2 different names"),
        ({"label_field": "y", "labels": "l.csv"}, "name one"),
        ({"shards": ()}, "at least 1 item"),
        ({"shards": []}, "at least 1 item"),
        ({"shards": ""}, "at least 1 character"),
        ({"shards": ("a", "")}, "at least 1 character"),
        ({"shards": 7}, "valid tuple"),
        ({"labels": ""}, "at least 1 character"),
        ({"image_size": 7}, "greater than or equal to 8"),
        ({"num_classes": 1}, "greater than or equal to 2"),
        ({"quarantine_limit": 1.5}, "less than or equal to 1"),
        ({"max_pixels": 10**12}, "less than or equal to"),
        ({"shard": "a"}, "Extra inputs"),
    ],
)
def test_settings_that_contradict(changes, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig(**{"shards": "a", **SETTINGS, **changes})


def test_hashes_meet_in_the_first_shard():
    def shard(*hashes):
        class Stub:
            pass

        stub = Stub()
        stub.hashes = np.array(hashes, np.uint64).tobytes()
        return stub

    assert index._sharing([shard(), shard(5, 1), shard(2), shard(1, 9, 2), shard(1, 5)]) == {3: {1, 2}, 4: {1}}
    assert index._sharing([shard(), shard()]) == {}
