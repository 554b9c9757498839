"""One shard on its own: its rows are kept where the next index finds them; a sample has one image or a reason."""

from pathlib import Path

import pytest

from pipeline import tar
from pipeline.index import DataConfig, IndexConfig
from pipeline.index_shard import Item, index_shards, is_kept, only_image, scan
from pipeline.quarantine import DefectError
from pipeline.shards import look
from pipeline.tar import Member, Sample
from tests.pipeline.making import image, write_shard

PNG, JPG, CLS = (Member(extension, 512, 3, f"a.{extension}") for extension in ("png", "jpg", "cls"))


def config(shard: Path, num_classes: int = 2, quarantine_limit: float = 1.0) -> IndexConfig:
    data = DataConfig(shards=(str(shard),), num_classes=num_classes, image_size=8, quarantine_limit=quarantine_limit)
    return IndexConfig.of(data)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    samples = [(f"s{n}", {"png": image(n), "cls": str(n).encode()}) for n in range(3)]
    return write_shard(tmp_path / "train-000000.tar", samples)


def test_the_rows_of_a_shard_are_kept_for_the_next_index(shard: Path, tmp_path: Path) -> None:
    item, folder = Item(0, look(str(shard))), str(tmp_path / "shards")
    assert not is_kept(item, config(shard), folder)
    (first,) = index_shards([item], config(shard), None, folder, str(tmp_path / "index"))
    assert is_kept(item, config(shard), folder) and not first.reused
    (again,) = index_shards([item], config(shard), None, folder, str(tmp_path / "index"))
    assert again.reused and (again.sha256, again.hashes, again.bad) == (first.sha256, first.hashes, first.bad)
    assert first.part and again.part and first.part.sha256 == again.part.sha256
    assert first.num_labelled == 2 and first.bad["reason"].to_pylist() == ["label out of range"]


def test_what_decides_a_row_makes_it_read_again_and_a_limit_does_not(shard: Path, tmp_path: Path) -> None:
    item, folder = Item(0, look(str(shard))), str(tmp_path / "shards")
    index_shards([item], config(shard), None, folder, str(tmp_path / "index"))
    assert is_kept(item, config(shard, quarantine_limit=0.5), folder)
    assert not is_kept(item, config(shard, num_classes=3), folder)


@pytest.mark.parametrize(
    ("members", "reason"),
    [((CLS,), "no image"), ((PNG, JPG), "several images"), ((), "no image")],
)
def test_a_sample_without_exactly_one_image_has_a_reason(members: tuple[Member, ...], reason: str) -> None:
    with pytest.raises(DefectError) as caught:
        only_image(Sample(0, "a", members, 0, 1024), set())
    assert caught.value.reason == reason


def test_a_key_that_was_seen_is_a_duplicate() -> None:
    sample = Sample(0, "a", (PNG, CLS), 0, 1024)
    assert only_image(sample, {"b"}) is PNG
    with pytest.raises(DefectError) as caught:
        only_image(sample, {"a"})
    assert caught.value.reason == "duplicate key"


@pytest.mark.parametrize(
    ("data", "reason"), [(b"no tar" * 200, "not a tar"), (b"", "no bytes"), (tar.END, "empty shard")]
)
def test_what_holds_no_sample_is_one_entry_about_the_whole(tmp_path: Path, data: bytes, reason: str) -> None:
    samples, bad = scan(str(tmp_path / "x.tar"), data)
    assert samples == [] and [entry["reason"] for entry in bad] == [reason]
