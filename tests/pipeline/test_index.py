import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline import index, index_shard, sidecar, storage, tar
from pipeline.errors import CorruptArtifactError, DataError, UserError
from pipeline.index import DataConfig, IndexConfig, check_unchanged, load_config, load_index, load_shards
from pipeline.stage import Artifact
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
    assert table["key"].type == pa.large_string(), "all keys of a large pool are more than 2 GiB"
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
        "num_shards_read": 3,
        "num_shards_reused": 0,
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
    with pytest.raises(DataError, match=r"66\.67% of the shards cannot be used \(2 data after the end marker\)"):
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
    earlier = index.SharedKeys.earlier

    def colliding(keys):
        assert earlier(keys) == {}
        return {1: {0}, 2: {0, 1}}

    monkeypatch.setattr(index.SharedKeys, "earlier", colliding)
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
    assert not list((tmp_path / "run/index").glob("????????????????/_MANIFEST.json"))


def test_the_limit_is_inclusive_and_counts_whole_shards(ray_local, tmp_path):
    pattern = write_dataset(tmp_path / "data", num_shards=4)
    (tmp_path / "data/train-000001.tar").write_bytes(b"x" * 1000)
    assert run_index(tmp_path / "run", pattern, quarantine_limit=0.25).metrics["num_samples"] == 12
    with pytest.raises(DataError, match=r"25\.00%"):
        run_index(tmp_path / "run2", pattern, quarantine_limit=0.2)


def test_a_shard_of_zero_bytes_is_a_failed_copy_and_one_without_a_sample_is_harmless(ray_local, tmp_path):
    pattern = write_dataset(tmp_path / "data", num_shards=4)
    write_shard(tmp_path / "data/train-000002.tar", [])
    assert run_index(tmp_path / "run", pattern, quarantine_limit=0.0).metrics["quarantined"] == {"empty shard": 1}
    (tmp_path / "data/train-000001.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"25\.00%.*\(1 empty shard, 1 no bytes\)"):
        run_index(tmp_path / "run2", pattern, quarantine_limit=0.24)


def test_what_a_truncated_shard_lost_is_not_known_so_it_counts_as_a_shard(ray_local, tmp_path):
    pattern, path = write_dataset(tmp_path / "data", num_shards=4), tmp_path / "data/train-000001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    artifact = run_index(tmp_path / "run", pattern, quarantine_limit=0.25)
    assert artifact.metrics["num_samples"] == 14, "those before the break are used"
    assert quarantined(artifact) == [(path.name, 2, "s006", "truncated shard")]
    with pytest.raises(DataError, match=r"25\.00%.*\(1 truncated shard\).*; first s006 in .*, at byte 5000 of 5000\)"):
        run_index(tmp_path / "run2", pattern, quarantine_limit=0.24)


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
        pa.table({"key": ["s001", "s002", "s003", "zz"], "label": [0, 1, 1, 0]}), tmp_path / "labels.parquet"
    )
    artifact = run_index(tmp_path / "run", pattern, labels=str(tmp_path / "labels.parquet"))
    assert load_index(artifact)["label"].to_pylist() == [None, 0, 1, 1]
    assert quarantined(artifact) == []
    assert (artifact.metrics["num_labelled_rows"], artifact.metrics["labels_unmatched"]) == (3, 1)
    check_unchanged(artifact)


@pytest.mark.parametrize("pattern", ["photos/*.jpg", "s3://b/{0..3}.PNG"])
def test_images_are_not_taken_for_shards(pattern):
    with pytest.raises(ValueError, match=r"names images: make shards of them by `semiprune import images`"):
        DataConfig(shards=pattern, **SETTINGS)


def test_a_wrong_label_table_is_told_when_the_run_is_planned(tmp_path):
    pattern, table = write_dataset(tmp_path / "data", num_shards=1), tmp_path / "labels.csv"
    table.write_text("key,label\ns001,99\n")
    with pytest.raises(UserError, match="gives the key 's001' the label 99"):
        IndexConfig.of(DataConfig(shards=pattern, labels=str(table), **SETTINGS))


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


def content(artifact: Artifact) -> tuple[Any, ...]:
    """What an index holds, whichever way it came about, to the byte."""
    metrics = {name: value for name, value in artifact.metrics.items() if not name.startswith("num_shards_")}
    checksums = [(part.rows, part.bytes, part.sha256) for part in artifact.parts() + artifact.parts("shards")]
    return metrics, checksums, artifact.table("quarantine"), load_shards(artifact)


def counts(artifact: Artifact) -> tuple[int, int]:
    return artifact.metrics["num_shards_read"], artifact.metrics["num_shards_reused"]


def rewrite(path: Path, change: Callable[[bytes], bytes], new_time: bool) -> None:
    times = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + new_time * 10**9))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks in this process: quick, and open to the test."""

    def stream_here(items: list[Any], function: Callable[[Any], Any], **_: Any) -> Iterator[tuple[int, Any]]:
        return ((position, function(item)) for position, item in enumerate(items))

    monkeypatch.setattr(index, "stream_items", stream_here)


def test_a_shard_more_leaves_the_others_unread_and_their_ids_alone(ray_local: None, tmp_path: Path) -> None:
    whole = write_dataset(tmp_path / "data", num_shards=4)
    first = run_index(tmp_path / "run", whole.replace("..000003", "..000002"))
    rewrite(tmp_path / "data/train-000001.tar", lambda data: data.replace(b"s004", b"t004"), new_time=False)
    more = run_index(tmp_path / "run", whole)
    assert (counts(first), counts(more)) == ((3, 0), (1, 3))
    assert load_index(more).slice(0, 12) == load_index(first)  # were it read, it would now have another key
    rewrite(tmp_path / "data/train-000001.tar", lambda data: data.replace(b"t004", b"s004"), new_time=False)
    assert content(more) == content(run_index(tmp_path / "fresh", whole))


KEYS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4), min_size=1, max_size=5)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=KEYS, data=st.data())
def test_any_way_to_an_index_gives_the_bytes_of_a_fresh_one(
    here: None, keys: list[list[str]], data: st.DataObject
) -> None:
    picture, order = image(), data.draw(st.permutations(range(len(keys))))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names = [
            write_shard(folder / f"{n}.tar", [(key, {"png": picture if key != "h" else b"?"}) for key in shard])
            for n, shard in enumerate([["first"], *keys])
        ]
        shards = [str(names[0]), *(str(names[1 + n]) for n in order)]
        limits = iter(range(10))
        for cut in data.draw(st.lists(st.integers(1, len(shards)), max_size=2)):
            run_index(folder / "run", shards[:cut], quarantine_limit=1 - next(limits) / 100)
        stepwise = run_index(folder / "run", shards, quarantine_limit=0.9995)
        assert content(stepwise) == content(run_index(folder / "fresh", shards, quarantine_limit=0.9995))


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ({"quarantine_limit": 0.5}, 0),
        ({"num_classes": 3}, 3),
        ({"classes": ("cat", "dog")}, 3),
        ({"image_size": 9}, 3),
        ({"label_field": "y"}, 3),
        ({"max_pixels": 63}, 3),
        ({"labels": "labels.csv"}, 3),
    ],
)
def test_only_what_decides_a_row_has_shards_read_again(
    here: None, tmp_path: Path, setting: dict[str, Any], read: int
) -> None:
    pattern = write_dataset(tmp_path / "data")
    (tmp_path / "labels.csv").write_text("key,label\ns001,1\n")
    if "labels" in setting:
        setting = {"labels": str(tmp_path / "labels.csv")}
    run_index(tmp_path / "run", pattern)
    if "max_pixels" in setting:
        with pytest.raises(DataError, match="12 undecodable image"):
            run_index(tmp_path / "run", pattern, **setting)
        return
    assert counts(run_index(tmp_path / "run", pattern, **setting)) == (read, 3 - read)


def test_labels_that_changed_are_looked_up_anew_and_no_shard_is_read_for_them(here: None, tmp_path: Path) -> None:
    pattern, table = write_dataset(tmp_path / "data"), tmp_path / "labels.csv"
    for label in (0, 1):
        table.write_text(f"key,label\ns001,{label}\n")
        artifact = run_index(tmp_path / "run", pattern, labels=str(table))
        assert load_index(artifact)["label"].to_pylist()[1] == label
    assert counts(artifact) == (0, 3)
    table.rename(tmp_path / "moved.csv")
    assert counts(run_index(tmp_path / "run", pattern, labels=str(tmp_path / "moved.csv"))) == (0, 3)


@pytest.mark.parametrize("change", [lambda data: data.replace(b"s004", b"t004"), lambda data: data + bytes(512)])
def test_a_changed_shard_is_an_error_by_name_also_in_another_index(
    here: None, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    whole = write_dataset(tmp_path / "data", num_shards=4)
    run_index(tmp_path / "run", whole.replace("..000003", "..000002"))
    shard = tmp_path / "data/train-000001.tar"
    before = shard.read_bytes()
    rewrite(shard, change, new_time=True)
    with pytest.raises(DataError, match=r"train-000001\.tar' has changed since indexing: put the old one back"):
        run_index(tmp_path / "run", whole)
    shard.write_bytes(before)  # the same bytes at another time: read, and found to be the same
    assert counts(run_index(tmp_path / "run", whole)) == (2, 2)


def test_an_index_that_failed_is_continued_and_a_mended_shard_is_no_changed_one(here: None, tmp_path: Path) -> None:
    pattern = write_dataset(tmp_path / "data")
    shard = tmp_path / "data/train-000001.tar"
    before = shard.read_bytes()
    shard.write_bytes(b"?" * len(before))
    with pytest.raises(DataError, match="1 not a tar"):
        run_index(tmp_path / "run", pattern, quarantine_limit=0.0)
    shard.write_bytes(before)
    artifact = run_index(tmp_path / "run", pattern, quarantine_limit=0.0)
    assert counts(artifact) == (1, 2)
    assert content(artifact) == content(run_index(tmp_path / "fresh", pattern, quarantine_limit=0.0))


def test_a_shard_kept_from_before_is_verified(here: None, tmp_path: Path) -> None:
    pattern = write_dataset(tmp_path / "data", num_shards=1)
    run_index(tmp_path / "run", pattern)
    (kept,) = (tmp_path / "run/index/shards").glob("*/rows-*.parquet")
    kept.write_bytes(b"x" + kept.read_bytes()[1:])
    with pytest.raises(CorruptArtifactError, match=kept.name):
        run_index(tmp_path / "run", pattern, quarantine_limit=0.5)


def test_a_shard_more_behind_a_wildcard_is_another_index_and_one_less_an_error(here: None, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_shards=4)
    pattern, last = f"{tmp_path}/data/*.tar", tmp_path / "data/train-000003.tar"
    last.rename(tmp_path / "away")
    data = DataConfig(shards=pattern, **SETTINGS)
    before = IndexConfig.of(data)
    first = run_index(tmp_path / "run", pattern)
    (tmp_path / "away").rename(last)
    assert IndexConfig.of(data) != before
    with pytest.raises(DataError, match=r"the set of shards changed as the run began: run the same command again"):
        run_stage(tmp_path / "run", "index", index.run, before, {})
    more = run_index(tmp_path / "run", pattern)
    assert (first.uri == more.uri, counts(more)) == (False, (1, 3))
    assert load_index(more).slice(0, 12) == load_index(first)
    (tmp_path / "data/train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar' is not matched any more.*: put it back, or index"):
        run_index(tmp_path / "run", pattern)
    assert counts(run_index(tmp_path / "run", [f"{tmp_path}/data/train-00000{n}.tar" for n in (0, 2, 3)])) == (0, 3)


def test_a_bucket_works_the_same(here: None, tmp_path: Path, s3_root: str) -> None:
    write_dataset(tmp_path / "data")
    paths = sorted((tmp_path / "data").iterdir())
    for path in paths[:2]:
        storage.write(f"{s3_root}/data/{path.name}", path.read_bytes())
    first = run_index(f"{s3_root}/run", f"{s3_root}/data/*.tar")
    storage.write(f"{s3_root}/data/{paths[2].name}", paths[2].read_bytes())
    more = run_index(f"{s3_root}/run", f"{s3_root}/data/*.tar")
    assert (counts(first), counts(more)) == ((2, 0), (1, 2))
    assert content(more) == content(run_index(f"{s3_root}/fresh", f"{s3_root}/data/*.tar"))
    storage.write(f"{s3_root}/data/{paths[0].name}", paths[1].read_bytes())
    with pytest.raises(DataError, match=r"train-000000\.tar' has changed since indexing"):
        run_index(f"{s3_root}/run", f"{s3_root}/data/*.tar", quarantine_limit=0.5)


def test_names_in_braces_are_known_without_a_look(tmp_path: Path) -> None:
    assert IndexConfig.of(DataConfig(shards=f"{tmp_path}/none-{{0..9}}.tar", **SETTINGS)).names_sha256 is None


def test_a_sidecar_of_other_bytes_stops_the_index_by_name(here: None, tmp_path: Path) -> None:
    pattern = write_dataset(tmp_path / "data", num_shards=2)
    for number in (0, 1):
        shard = tmp_path / f"data/train-{number:06d}.tar"
        shard.with_suffix(".idx").write_bytes(sidecar.dump(tar.scan(shard.read_bytes())))
    assert run_index(tmp_path / "run", pattern).metrics["num_samples"] == 8
    shard.with_suffix(".idx").write_bytes((tmp_path / "data/train-000000.idx").read_bytes())
    with pytest.raises(DataError, match=r"sidecar '.*train-000001\.idx' does not describe '.*train-000001\.tar'"):
        run_index(tmp_path / "other", pattern)


def test_images_of_every_kind_are_taken_as_the_convention_has_it(here: None, tmp_path: Path) -> None:
    gray16 = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(gray16, "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    samples = {
        "folder.v1/a": {"JPG": image(0, form="JPEG")},
        "folder.v1/b": {"Jpeg": image(1, form="JPEG", mode="L"), "CLS": b"1"},
        "./x/c": {"PNG": gray16.getvalue(), "seg.PNG": b"?"},
        "d": {"jpg": image(3, form="JPEG", mode="CMYK"), "cls": b"0"},
        "e": {"WebP": image(4, form="WEBP", mode="RGBA")},
        "f": {"png": image(5, mode="LA")},
        "g": {"png": image(6, mode="P")},
        "h": {"jpg": image(7, (9, 12), form="JPEG", exif=turned)},
    }
    write_shard(tmp_path / "a.tar", samples.items())
    table = load_index(run_index(tmp_path / "run", f"{tmp_path}/a.tar", quarantine_limit=0.0))
    assert table["key"].to_pylist() == list(samples)
    assert table["label"].to_pylist() == [None, 1, None, 0, None, None, None, None]


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
