import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from jobs import cli, importers
from jobs.importers import Imported, import_imagefolder
from pipeline import storage, tar
from pipeline.errors import UserError
from pipeline.index import load_index
from tests.jobs.test_importers import members, picture
from tests.object_store import Fault, proxied, reached, serve
from tests.pipeline.making import run_index, silent
from tests.running import kill_tree, start, wait_for

KEYS = {
    "sku0002.jpg": "sku0002.jpg",
    "sku0001.PNG": "sku0001.png",
    "shop/2024.v2/a.b.JPEG": "shop/2024.v2/a_b.jpeg",
    "shop/2024.v2/deeper/ü ö.webp": "shop/2024.v2/deeper/ü ö.webp",
}
"""Images, and what they are called in shards."""
OTHERS = [".thumbnails/sku0002.jpg", "shop/._a.jpg", "shop/notes.txt"]


def import_images(src: object, out: object, samples_per_shard: int = 2500) -> Imported:
    return importers.import_images(str(src), str(out), samples_per_shard, progress=silent)


def make_photos(root: Path) -> dict[str, bytes]:
    """The members that shards of them must have."""
    forms = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
    photos = {path: picture(n, forms[Path(path).suffix.lower()]) for n, path in enumerate(KEYS)}
    for path, data in {**photos, **dict.fromkeys(OTHERS, b"no photo")}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return {KEYS[path]: data for path, data in photos.items()}


def semiprune(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["semiprune", *arguments])
    try:
        cli.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_images_become_shards_without_labels_that_the_pipeline_indexes(ray_local, tmp_path):
    photos = make_photos(tmp_path / "in")
    (tmp_path / "in/linked").symlink_to(tmp_path / "in/shop")
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    written = import_images(tmp_path / "in", tmp_path / "out", 3)
    assert written.shards == tuple(f"{tmp_path}/out/images-{n:06d}.tar" for n in range(2))
    assert (written.num_samples, written.classes, written.key) == (4, (), "shop/2024.v2/a_b")
    assert written.skipped == tuple(sorted([*OTHERS, "link.jpg", "linked"]))
    found = [members(path) for path in written.shards]
    assert found[0] | found[1] == photos
    assert [name for shard in found for name in shard] == sorted(photos), "sorted by path"
    assert not any(sample.defect for path in written.shards for sample in tar.scan(Path(path).read_bytes()))

    index = run_index(tmp_path / "run", f"{tmp_path}/out/index.json", quarantine_limit=0)
    rows = load_index(index, ["key", "label"])
    assert rows["key"].to_pylist() == [name.rpartition(".")[0] for name in sorted(photos)]
    assert rows["label"].null_count == 4
    table = tmp_path / "labels.csv"
    table.write_text("key,label\nsku0002,dog\nshop/2024.v2/a_b,cat\n")
    settings = {"labels": str(table), "classes": ("cat", "dog"), "num_classes": 2}
    index = run_index(tmp_path / "run", f"{tmp_path}/out/index.json", quarantine_limit=0, **settings)
    assert load_index(index, ["label"])["label"].to_pylist() == [0, None, None, 1]


def test_a_flat_folder_gives_equal_shards_each_time(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / f"in/{number}.jpg").write_bytes(picture(number, "JPEG") * 10)
    monkeypatch.setattr(importers, "SHARD_BYTES", 10 * len(picture(0, "JPEG")) * 4)
    first, second = (import_images(tmp_path / "in", tmp_path / out) for out in "ab")
    assert [Path(a).read_bytes() for a in first.shards] == [Path(b).read_bytes() for b in second.shards]
    assert all(2 <= len(members(path)) <= 5 for path in first.shards), "a shard of large images has fewer"
    assert sum(len(members(path)) for path in first.shards) == 40
    listed = json.loads((tmp_path / "a/index.json").read_text())["shardlist"]
    assert sum(shard["nsamples"] for shard in listed) == 40


def test_from_a_store_into_a_store(tmp_path):
    photos = make_photos(tmp_path / "store/photos/all")
    make_photos(tmp_path / "store/photos/all-others")
    (tmp_path / "store/shards").mkdir()
    with serve(tmp_path / "store") as endpoint, proxied(endpoint) as proxy, reached(proxy.endpoint):
        written = import_images("s3://photos/all/", "s3://shards/one", 3)
        assert written.shards == tuple(f"s3://shards/one/images-{n:06d}.tar" for n in range(2))
        assert written.skipped == tuple(OTHERS)
        assert members(tmp_path / "store/shards/one/images-000000.tar") | members(
            tmp_path / "store/shards/one/images-000001.tar"
        ) == {name: photos[name] for name in photos}
        import_images(tmp_path / "store/photos/all", tmp_path / "local", 3)
        for name in ("images-000000.tar", "images-000001.tar"):
            assert (tmp_path / "store/shards/one" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()

        for src, sentence in [
            ("s3://photos/none", "'s3://photos/none' holds no .jpg"),
            ("s3://photos/all/sku0002.jpg", "is no folder: name one that holds images"),
            ("s3://nowhere/all", "its bucket does not exist"),
        ]:
            with pytest.raises(UserError, match=sentence):
                import_images(src, "s3://shards/two")
        with pytest.raises(UserError, match=r"one' is not empty: name a new folder"):
            import_images("s3://photos/all", "s3://shards/one")
        with pytest.raises(UserError, match=r"reads local folders only, and not 's3://photos/all': import images"):
            import_imagefolder("s3://photos/all", "s3://shards/two")

        proxy.plan = lambda request: (
            Fault(403, "AccessDenied") if request.method == "GET" and request.path.endswith("sku0002.jpg") else None
        )
        with pytest.raises(UserError, match=r"no permission for 's3://photos/all/sku0002\.jpg'"):
            import_images("s3://photos/all", "s3://shards/two", 1)
        assert storage.names("s3://shards/two") == []


def test_mistakes(tmp_path, monkeypatch, capsys):
    make_photos(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    twins = tmp_path / "twins"
    twins.mkdir()
    for name in ("a.jpg", "a-b.jpg", "a.png", "c.d.jpg", "c_d.jpg"):
        (twins / name).write_bytes(picture(0))
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    out = str(tmp_path / "out")
    for src, to, sentence in [
        (tmp_path / "none", out, "none' is no folder: name one that holds images"),
        (tmp_path / "in/sku0002.jpg", out, "sku0002.jpg' is no folder"),
        (tmp_path / "empty", out, "empty' holds no .jpg, .jpeg, .png or .webp file, at any depth"),
        (twins, out, "'a.jpg' and 'a.png' would have the same key 'a', as 1 more file that of another: rename"),
        (tmp_path / "in", full, "full' is not empty: name a new folder"),
    ]:
        assert semiprune(monkeypatch, "import", "images", str(src), str(to)) == 2
        told = capsys.readouterr()
        assert told.out == "" and sentence in told.err.splitlines()[-1], told.err
    assert not Path(out).exists()


@pytest.mark.parametrize("name", [b"\xff.jpg", b"a\nb.jpg", "line\u2028end.jpg".encode()])
def test_names_that_shards_would_not_keep_are_refused(tmp_path, name):
    folder = tmp_path / "in/class"
    folder.mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(picture(0))
    for make in (import_images, import_imagefolder):
        with pytest.raises(
            UserError, match=r"^the name of 'class/.*' is not printable UTF-8, as a key must be: rename"
        ):
            make(str(tmp_path / "in"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_comes_next(tmp_path, monkeypatch, capsys):
    make_photos(tmp_path / "in")
    assert semiprune(monkeypatch, "import", "images", f"{tmp_path}/in", f"{tmp_path}/out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "Left out, no images or hidden: 3 files, such as '.thumbnails/sku0002.jpg'"
    assert lines[-1].startswith("Keys look like 'shop/2024.v2/a_b': label some of them in a table key,label")
    assert f"{tmp_path}/out/index.json" in lines[-1] and lines[-1].endswith("semiprune run RECIPE")


def test_imagefolder_names_the_other_command_for_images_without_classes(tmp_path):
    make_photos(tmp_path / "in")
    shutil.rmtree(tmp_path / "in/shop")
    with pytest.raises(UserError, match=r"images lie directly in '.*in', and not .*: semiprune import images .*in out"):
        import_imagefolder(str(tmp_path / "in"), "out")


def test_a_killed_import_leaves_nothing_that_counts(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3000):
        (tmp_path / f"in/{number}.jpg").write_bytes(b"not read as an image")
    out = tmp_path / "out"
    process = start("import", "images", str(tmp_path / "in"), str(out), "--samples-per-shard", "1")
    wait_for(lambda: bool(list(tmp_path.glob(".out.*.tmp/images-000003.tar"))), process, "a shard")
    kill_tree(process)
    assert not out.exists()
    assert len(import_images(tmp_path / "in", out).shards) == 2


def test_a_lost_image_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    make_photos(tmp_path / "in")
    read = storage.read

    def lose(uri):
        time.sleep(0.01)
        Path(tmp_path, "in/sku0002.jpg").unlink(missing_ok=True)
        return read(uri)

    monkeypatch.setattr(storage, "read", lose)
    for out in (str(tmp_path / "out"), "memory://lost"):
        with pytest.raises(UserError, match=r"sku0002\.jpg' is gone since it was listed"):
            import_images(tmp_path / "in", out, 1)
        assert storage.names(out) == []
        make_photos(tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
