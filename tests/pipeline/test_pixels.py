import contextlib
import shutil
import tempfile

import numpy as np
import pytest

from pipeline import images, pixels
from pipeline.errors import CorruptArtifactError, DataError, UserError
from pipeline.index import load_index
from pipeline.pixels import Pixels, PixelsConfig
from pipeline.stage import Artifact
from tests.pipeline.making import image, run_index, run_stage, write_dataset, write_shard

CONFIG = PixelsConfig(image_size=8, max_pixels=10**6)


@pytest.fixture(scope="module")
def decoded(ray_local, tmp_path_factory):
    """Three shards of which the middle one is empty and the last misses an image."""
    folder = tmp_path_factory.mktemp("pixels")
    pattern = write_dataset(folder / "data", num_shards=3)
    write_shard(folder / "data/train-000001.tar", [])
    samples = [
        ("x1", {"jpg": image(50, (20, 30), "JPEG")}),
        ("bad", {"png": b"x"}),
        ("x2", {"webp": image(51, (9, 9), "WEBP")}),
    ]
    write_shard(folder / "data/train-000002.tar", samples)
    index = run_index(folder / "run", pattern)
    return index, run_stage(folder / "run", "pixels", pixels.run, CONFIG, {"index": index})


EXPECTED = np.stack(
    [
        images.decode(data, 8, 10**6)
        for data in (*map(image, range(4)), image(50, (20, 30), "JPEG"), image(51, (9, 9), "WEBP"))
    ]
)


def test_images_stand_in_the_order_of_their_ids(decoded):
    index, artifact = decoded
    opened = Pixels.open(artifact)
    assert (len(opened), opened.size) == (6, 8)
    assert load_index(index).num_rows == 6
    assert artifact.metrics == {"num_samples": 6, "image_size": 8}
    np.testing.assert_array_equal(opened.take(np.arange(6)), EXPECTED)


@pytest.mark.parametrize("ids", [[5, 0, 3, 4, 0, 5, 5], [4], [], [1, 2]])
def test_take_in_any_order(decoded, ids):
    taken = Pixels.open(decoded[1]).take(np.array(ids, np.int64))
    assert taken.dtype == np.uint8
    assert taken.flags.writeable
    np.testing.assert_array_equal(taken, EXPECTED[ids].reshape(-1, 8, 8, 3))


def test_parts_are_mapped_and_not_copied(decoded):
    opened = Pixels.open(decoded[1])
    opened.take(np.array([0]))
    first, last = opened._arrays
    assert last is None
    assert not first.flags.writeable
    assert not first.flags.owndata


@pytest.mark.parametrize("ids", [[6], [-1]])
def test_ids_outside_are_refused(decoded, ids):
    with pytest.raises(AssertionError, match="out of range"):
        Pixels.open(decoded[1]).take(np.array(ids))


def test_a_shard_that_changed_is_an_error(ray_local, tmp_path):
    pattern = write_dataset(tmp_path / "data", num_shards=2)
    index = run_index(tmp_path / "run", pattern)
    path = tmp_path / "data/train-000001.tar"
    path.write_bytes(path.read_bytes().replace(b"s004", b"t004"))
    with pytest.raises(DataError, match=r"train-000001\.tar' has changed since indexing"):
        run_stage(tmp_path / "run", "pixels", pixels.run, CONFIG, {"index": index})


def test_an_image_that_decoded_only_at_indexing_is_named_with_its_shard(decoded, tmp_path):
    strict = CONFIG.model_copy(update={"max_pixels": 63})
    with pytest.raises(DataError, match=r"train-000000\.tar' that could be decoded .* max_pixels=63\): use the same"):
        run_stage(tmp_path, "pixels", pixels.run, strict, {"index": decoded[0]})


def moved(artifact, folder) -> Artifact:
    shutil.copytree(artifact.uri, folder)
    return Artifact(str(folder), artifact.manifest)


def test_a_damaged_or_missing_part_is_named(decoded, tmp_path):
    copy = moved(decoded[1], tmp_path / "copy")
    (first, last) = copy.parts()
    path = tmp_path / "copy" / first.name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match="is damaged"):
        Pixels.open(copy).take(np.array([0]))
    (tmp_path / "copy" / last.name).unlink()
    with pytest.raises(CorruptArtifactError, match="missing"):
        Pixels.open(copy).take(np.array([5]))


def remote(artifact, name) -> Artifact:
    import fsspec

    fsspec.filesystem("memory").put(artifact.uri, f"/{name}", recursive=True)
    return Artifact(f"memory://{name}", artifact.manifest)


def test_remote_parts_are_copied_once(decoded, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    artifact = remote(decoded[1], "once")
    np.testing.assert_array_equal(Pixels.open(artifact).take(np.array([5, 0])), EXPECTED[[5, 0]])
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {f"{part.sha256}.arrow" for part in artifact.parts()}
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(pixels.storage, "read_verified", None)
    np.testing.assert_array_equal(Pixels.open(artifact).take(np.array([5, 0])), EXPECTED[[5, 0]])


def test_a_damaged_remote_part_is_never_cached(decoded, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    artifact = remote(decoded[1], "damaged")
    pixels.storage.write(f"{artifact.uri}/{artifact.parts()[0].name}", b"other")
    with pytest.raises(CorruptArtifactError, match="SHA-256"):
        Pixels.open(artifact).take(np.array([0]))
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_cache_that_cannot_be_made_is_one_sentence(decoded, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    artifact = remote(decoded[1], "nowhere")
    for place in (tmp_path / "none", tmp_path / "file"):
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with pytest.raises(UserError, match=r"no cache for images: .*; set TMPDIR to"):
            Pixels.open(artifact).take(np.array([0]))


def test_a_full_cache_is_one_sentence(decoded, small_disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    artifact = remote(decoded[1], "full")
    with contextlib.suppress(OSError):
        (small_disk / "filling").write_bytes(bytes(1 << 20))
    with pytest.raises(UserError, match=r"no (space left to write|cache for images)"):
        Pixels.open(artifact).take(np.array([0]))


def test_the_cache_may_be_deleted_at_any_time(decoded, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = Pixels.open(remote(decoded[1], "deleted"))
    opened.take(np.array([0]))
    (folder,) = tmp_path.iterdir()
    shutil.rmtree(folder)
    np.testing.assert_array_equal(opened.take(np.array([5, 0])), EXPECTED[[5, 0]])


def test_a_cache_of_someone_else_is_not_trusted(decoded, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    artifact = remote(decoded[1], "foreign")
    owner = pixels.os.getuid()
    (tmp_path / f"semiprune-pixels-{owner + 1}").mkdir()
    monkeypatch.setattr(pixels.os, "getuid", lambda: owner + 1)
    with pytest.raises(UserError, match="belongs to another user"):
        Pixels.open(artifact).take(np.array([0]))
