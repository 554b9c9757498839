import errno
import inspect
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from jobs import importers
from jobs.importers import import_imagefolder, import_torchvision, write_digits
from pipeline import storage, tar
from pipeline.errors import UserError
from tests.running import REPOSITORY


def picture(value: int, form: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(sink, form)
    return sink.getvalue()


def members(path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}


def make_folder(root: Path) -> dict[str, bytes]:
    files = {
        "dog/1.jpg": picture(1, "JPEG"),
        "dog/deep/1.JPEG": picture(2, "JPEG"),
        "cat/ü.v2.png": picture(3),
        "cat/1.png": picture(4),
        "cat/1.jpg": picture(5, "JPEG"),
        "cow.v1/x.webp": picture(6, "WEBP"),
        "dog/notes.txt": b"no image",
        ".git/x.png": picture(7),
        "readme.md": b"beside the classes",
        "loose.jpg": picture(8, "JPEG"),
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return files


def test_imagefolder(tmp_path):
    files = make_folder(tmp_path / "in")
    written = import_imagefolder(str(tmp_path / "in"), str(tmp_path / "out"), 4)
    assert written.shards == tuple(f"{tmp_path}/out/train-{n:06d}.tar" for n in range(2))
    assert written.classes == ("cat", "cow.v1", "dog")
    assert written.num_samples == 6
    assert written.skipped == ("loose.jpg", "readme.md", "dog/notes.txt")
    assert json.loads((tmp_path / "out/classes.json").read_text()) == ["cat", "cow.v1", "dog"]
    found = members(written.shards[0]) | members(written.shards[1])
    assert found == {
        "dog/1.jpg": files["dog/1.jpg"], "dog/1.cls": b"2",
        "dog/deep/1.jpeg": files["dog/deep/1.JPEG"], "dog/deep/1.cls": b"2",
        "cat/ü_v2.png": files["cat/ü.v2.png"], "cat/ü_v2.cls": b"0",
        "cat/1.jpg": files["cat/1.jpg"], "cat/1.cls": b"0",
        "cat/1-2.png": files["cat/1.png"], "cat/1-2.cls": b"0",
        "cow.v1/x.webp": files["cow.v1/x.webp"], "cow.v1/x.cls": b"1",
    }  # fmt: skip
    samples = [sample for path in written.shards for sample in tar.scan(Path(path).read_bytes())]
    assert len(samples) == 6
    assert not any(sample.defect for sample in samples)


def test_imagefolder_with_the_numbers_of_another(tmp_path):
    make_folder(tmp_path / "in")
    (tmp_path / "classes.json").write_text('["dog", "bird", "cow.v1", "cat"]')
    written = import_imagefolder(str(tmp_path / "in"), str(tmp_path / "out"), known=str(tmp_path / "classes.json"))
    assert written.classes == ("dog", "bird", "cow.v1", "cat")
    assert (tmp_path / "out/classes.json").read_text() == (tmp_path / "classes.json").read_text()
    found = members(written.shards[0])
    assert {found[f"{key}.cls"] for key in ("dog/1", "dog/deep/1")} == {b"0"}
    assert (found["cow_v1/x.cls"] if "cow_v1/x.cls" in found else found["cow.v1/x.cls"]) == b"2"
    for content, sentence in [('["dog", "cat"]', "'cow.v1' is not in"), ("{}", "is no list of class names")]:
        (tmp_path / "classes.json").write_text(content)
        with pytest.raises(UserError, match=sentence):
            import_imagefolder(str(tmp_path / "in"), str(tmp_path / "no"), known=str(tmp_path / "classes.json"))
    assert not (tmp_path / "no").exists()


def test_imagefolder_is_deterministic_and_mixes_classes(tmp_path):
    for label in range(2):
        for number in range(40):
            path = tmp_path / f"in/{label}/{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
    first, second = (import_imagefolder(str(tmp_path / "in"), str(tmp_path / out), 20) for out in "ab")
    assert [Path(a).read_bytes() for a in first.shards] == [Path(b).read_bytes() for b in second.shards]
    for path in first.shards:
        labels = [data for name, data in members(path).items() if name.endswith(".cls")]
        assert len(labels) == 20
        assert set(labels) == {b"0", b"1"}


def test_shards_are_of_one_size_whatever_is_imported():
    defaults = [
        inspect.signature(call).parameters["samples_per_shard"] for call in (import_imagefolder, import_torchvision)
    ]
    assert {parameter.default for parameter in defaults} == {importers.SAMPLES_PER_SHARD} == {2500}


def test_imagefolder_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"none' is no folder"):
        import_imagefolder(str(tmp_path / "none"), str(tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty' holds no \.jpg, \.png or \.webp file"):
        import_imagefolder(str(tmp_path / "empty"), str(tmp_path / "out"))
    make_folder(tmp_path / "in")
    (tmp_path / "in/bird").mkdir()
    with pytest.raises(UserError, match=r"the class folder '.*bird' holds no"):
        import_imagefolder(str(tmp_path / "in"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", [write_digits, lambda out: import_torchvision("FakeData", out)])
def test_nothing_is_overwritten(tmp_path, write):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: name a new folder"):
        write(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_digits(tmp_path):
    written = write_digits(str(tmp_path / "digits"))
    names = [f"train-{n:06d}.tar" for n in range(6)] + ["test-000000.tar"]
    assert [Path(path).name for path in written.shards] == names
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == sorted([*names, "classes.json"])
    shards = [members(path) for path in written.shards]
    assert [len(shard) // 2 for shard in shards] == [240, 240, 240, 239, 239, 239, 360]
    everything = {name: data for shard in shards for name, data in shard.items()}
    assert len(everything) == 2 * 1797
    image = np.asarray(Image.open(io.BytesIO(everything["digit-0000.png"])))
    assert image[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert everything["digit-0000.cls"] == b"0"
    again = write_digits(str(tmp_path / "again"))
    assert [Path(path).read_bytes() for path in again.shards] == [Path(path).read_bytes() for path in written.shards]


class Tiny(datasets.FakeData):
    """FakeData with the arguments of a real dataset."""

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        assert download
        super().__init__(size=10 if train else 4, image_size=(3, 6, 6), num_classes=3, random_offset=int(train))
        self.classes = ["a", "b", "c"]


class BySplit(datasets.FakeData):
    def __init__(self, root: str, split: str = "train") -> None:
        super().__init__(size={"train": 5, "test": 2}[split], image_size=(3, 6, 6), num_classes=3)


class Offline(datasets.VisionDataset):
    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        raise RuntimeError("Error downloading x.tar.gz")


class Pairs(datasets.FakeData):
    def __getitem__(self, index: int):
        return (*super().__getitem__(index), 1)

    def __len__(self) -> int:
        return 3


class Boxes(datasets.FakeData):
    def __init__(self, root: str, train: bool = True) -> None:
        super().__init__(size=3, image_size=(3, 6, 6))

    def __getitem__(self, index: int):
        return super().__getitem__(index)[0], {"boxes": []}


@pytest.fixture(autouse=True)
def _own_datasets(monkeypatch):
    for kind in (Tiny, BySplit, Offline, Pairs, Boxes):
        monkeypatch.setattr(datasets, kind.__name__, kind, raising=False)


def test_torchvision(tmp_path):
    written = import_torchvision("Tiny", str(tmp_path / "out"), samples_per_shard=4)
    assert [Path(path).name for path in written.shards] == [
        "train-000000.tar", "train-000001.tar", "train-000002.tar", "test-000000.tar",
    ]  # fmt: skip
    assert (written.num_samples, written.classes) == (14, ("a", "b", "c"))
    found = {name: data for path in written.shards for name, data in members(path).items()}
    assert len(found) == 28
    for split, source in (("train", Tiny("", True, True)), ("test", Tiny("", False, True))):
        for number in range(len(source)):
            image, label = source[number]
            key = f"tiny-{split}-{number:07d}"
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found[f"{key}.png"]))), np.asarray(image))
            assert found[f"{key}.cls"] == str(int(label)).encode()


def test_torchvision_split_by_name(tmp_path):
    written = import_torchvision("BySplit", str(tmp_path / "out"))
    assert [Path(path).name for path in written.shards] == ["train-000000.tar", "test-000000.tar"]
    assert written.num_samples == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR11", "has no dataset 'CIFAR11': choose one such as CIFAR10"),
        ("os", "has no dataset 'os'"),
        ("Offline", r"cannot provide Offline \(train\) as images with class numbers: Error downloading"),
        ("Boxes", r"cannot provide Boxes \(train\) .*: its samples are Image and dict; try again, or choose another"),
        ("Pairs", r"cannot provide Pairs \(train\) .*; try again, or choose another, such as CIFAR10"),
        ("FakeData", r"cannot provide FakeData \(train\) "),
        ("VisionDataset", r"cannot provide VisionDataset \(train\) .*: NotImplementedError; try"),
        ("CocoDetection", r"cannot provide CocoDetection \(train\) .*annFile"),
        ("DatasetFolder", r"cannot provide DatasetFolder \(train\) .*loader"),
        ("EMNIST", r"cannot provide EMNIST \(train\) .*Unknown value 'train'"),
    ],
)
def test_torchvision_mistakes_leave_nothing(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        import_torchvision(name, str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_an_import_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    calls = iter(range(300))
    monkeypatch.setattr(importers, "_png", lambda image: picture(next(calls) % 256))
    for out in (str(tmp_path / "out"), "memory://broken"):
        with pytest.raises((StopIteration, RuntimeError)):
            write_digits(out)
        assert storage.names(out) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "status"), [("4m", 0), ("64k", 1)])
def test_an_import_into_a_mount_point(tmp_path, size, status):
    """Its own disk is used alone; one that is full is left empty."""
    (tmp_path / "out").mkdir()
    import_ = f"{sys.executable} -c 'from jobs.importers import write_digits; write_digits(\"{tmp_path}/out\")'"
    mount = f"mount -t tmpfs -o size={size} tmpfs {tmp_path}/out && echo mounted"
    script = f"{mount} && {import_}; echo $?; ls -A {tmp_path}/out"
    ran = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    if not ran.stdout.startswith("mounted"):
        pytest.skip("mounting needs a namespace of its own")
    shards = [f"train-{number:06d}.tar" for number in range(6)]
    files = [] if status else ["classes.json", "test-000000.tar", *shards]
    assert ran.stdout.split() == ["mounted", str(status), *files], ran.stderr
    assert ("no space left" in ran.stderr) == bool(status)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_import_into_an_empty_folder_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    written = write_digits(str(tmp_path / "link"))
    assert Path(written.shards[0]) == tmp_path / "link/train-000000.tar"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/classes.json").exists()


@pytest.mark.parametrize("is_mount", [False, True])
def test_an_import_that_cannot_appear_leaves_nothing(tmp_path, monkeypatch, is_mount):
    replace, refused = Path.replace, tmp_path / "out" / ("train-000001.tar" if is_mount else "")

    def refuse(path, target):
        if Path(target) == refused:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return replace(path, target)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda _: is_mount)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match=r"out': Device or resource busy; choose another place"):
        write_digits(str(tmp_path / "out"))
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_an_import_into_a_store(tmp_path):
    written = write_digits("memory://digits")
    assert storage.names("memory://digits") == sorted([Path(path).name for path in written.shards] + ["classes.json"])
