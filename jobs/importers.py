"""From what people have to shards: folders of images by class, torchvision's datasets, scikit-learn's digits."""

import contextlib
import inspect
import io
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import class_names, counter, images, storage, tar
from pipeline.errors import UserError

SAMPLES_PER_SHARD = 2500
"""Small images make shards of a few megabytes."""

_KNOWN = "CIFAR10, STL10, SVHN or MNIST"

Files = list[tuple[str, bytes]]
"""The members of one sample: name and payload."""


@dataclass(frozen=True)
class Imported:
    """What was written. skipped: names of files that are no images, in the source's order."""

    shards: tuple[str, ...]
    num_samples: int
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()


def import_imagefolder(
    src: str, out: str, samples_per_shard: int = SAMPLES_PER_SHARD, known: str | None = None
) -> Imported:
    """`SRC/class/.../*.jpg` as `OUT/train-000000.tar` and on, in an order that mixes the classes; bytes untouched.

    The class is the name of the first folder, its number the place among the sorted names, or in `known`, the
    `classes.json` of another import; the names are written to `classes.json`. The key is the file's path below SRC
    without the extension. Files of other kinds are listed in `skipped`.
    """
    root = Path(src).expanduser()
    if not root.is_dir():
        raise UserError(f"{src!r} is no folder: name one that holds a folder of images per class")
    _refuse_to_overwrite(out)
    classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    numbers = _numbers(known, classes) if known else {name: number for number, name in enumerate(classes)}
    files = [file for name in classes for file in sorted((root / name).rglob("*")) if file.is_file()]
    found = [file for file in files if file.suffix[1:].lower() in images.EXTENSIONS]
    empty = set(classes) - {file.relative_to(root).parts[0] for file in found}
    if not found or empty:
        where = f"the class folder {str(root / min(empty))!r}" if empty else repr(src)
        raise UserError(f"{where} holds no .jpg, .png or .webp file: every class needs one, as in {src}/cat/1.jpg")
    keys = _keys([file.relative_to(root) for file in found])

    def sample(number: int) -> Files:
        file, key = found[number], keys[number]
        label = numbers[file.relative_to(root).parts[0]]
        return [(f"{key}{file.suffix.lower()}", file.read_bytes()), (f"{key}.cls", str(label).encode())]

    order = counter.permutation(0, "import", 0, np.arange(len(found)))
    with _Folder(out) as folder:
        folder.write_shards("train", np.array_split(order, _num_shards(len(found), samples_per_shard)), sample)
        folder.write_classes(list(numbers))
    skipped = tuple(str(file.relative_to(root)) for file in files if file.suffix[1:].lower() not in images.EXTENSIONS)
    return Imported(tuple(folder.shards), len(found), tuple(numbers), skipped)


def _numbers(known: str, classes: Sequence[str]) -> dict[str, int]:
    """The numbers of the names in the file, in its order; UserError if it lacks a folder's name."""
    names = class_names.read(known)
    if names is None:
        raise UserError(f"{known!r} is no list of class names: name the {class_names.FILE} of another import")
    if more := sorted(set(classes) - set(names)):
        raise UserError(
            f"the class {more[0]!r} is not in {known!r}: rename its folder, or import all images from one folder"
        )
    return {name: number for number, name in enumerate(names)}


def import_torchvision(
    name: str, out: str, root: str | None = None, samples_per_shard: int = SAMPLES_PER_SHARD
) -> Imported:
    """A classification dataset of `torchvision.datasets` as PNG: `OUT/train-...tar`, `OUT/test-...tar`, `classes.json`.

    root: where torchvision keeps its download, default a folder that is deleted afterwards.
    """
    from torchvision import datasets

    kind = getattr(datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)):
        raise UserError(f"torchvision has no dataset {name!r}: choose one such as {_KNOWN}")
    _refuse_to_overwrite(out)
    num_samples, classes = 0, list[str]()
    with tempfile.TemporaryDirectory() as scratch, _Folder(out) as folder:
        for split, dataset, size in _splits(kind, root or scratch):
            classes = [str(item) for item in getattr(dataset, "classes", [])] or classes
            order = counter.permutation(0, f"import-{split}", 0, np.arange(size))
            shards = np.array_split(order, _num_shards(size, samples_per_shard))
            folder.write_shards(split, shards, _torchvision_sample(name, split, dataset))
            num_samples += size
        folder.write_classes(classes)
    return Imported(tuple(folder.shards), num_samples, tuple(classes))


def write_digits(out: str) -> Imported:
    """scikit-learn's 1,797 handwritten digits as 8x8 PNG: 1,437 in 6 shards `train-...`, 360 in `test-000000.tar`."""
    from sklearn.datasets import load_digits

    _refuse_to_overwrite(out)
    pixels, labels = load_digits(return_X_y=True)
    pixels = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)

    def sample(number: int) -> Files:
        key = f"digit-{number:04d}"
        return [(f"{key}.png", _png(Image.fromarray(pixels[number]))), (f"{key}.cls", str(labels[number]).encode())]

    order = counter.permutation(0, "digits", 0, np.arange(len(labels)))
    classes = [str(digit) for digit in range(10)]
    with _Folder(out) as folder:
        folder.write_shards("train", np.array_split(order[:1437], 6), sample)
        folder.write_shards("test", [order[1437:]], sample)
        folder.write_classes(classes)
    return Imported(tuple(folder.shards), len(labels), tuple(classes))


class _Folder:
    """An output folder that appears whole: a local one under its own name only when the block has succeeded.

    A mount point cannot be replaced: its files come up at the end from a folder inside, which is on the same disk. An
    object store has no such step: there, a block that fails removes what it wrote.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        self.shards: list[str] = []
        self._names: list[str] = []
        self._local = Path(storage.resolve(out)[1]).resolve() if storage.is_local(out) else None
        self._is_mount = self._local is not None and self._local.is_mount()
        self._place = out
        if self._local:
            beside = self._local if self._is_mount else self._local.parent
            self._place = str(beside / f".{self._local.name}.{uuid.uuid4().hex}.tmp")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._local:
            try:
                if kind is None:
                    self._appear(self._local)
            finally:
                shutil.rmtree(self._place, ignore_errors=True)
        elif kind is not None:
            for name in self._names:
                storage.delete(storage.join(self._place, name))

    def _appear(self, folder: Path) -> None:
        with storage.explained(self.out, mend="choose another place"), contextlib.ExitStack() as undo:
            if not self._is_mount:
                Path(self._place).replace(folder)
                return
            _refuse_to_overwrite(self.out)
            for name in self._names:
                Path(self._place, name).replace(folder / name)
                undo.callback((folder / name).unlink)
            undo.pop_all()

    def write_shards(self, prefix: str, shards: Sequence[NDArray[np.int64]], sample: Callable[[int], Files]) -> None:
        """One shard per array of sample numbers."""
        for number, members in enumerate(shards):
            name = f"{prefix}-{number:06d}.tar"
            self._write(name, tar.pack(file for item in members.tolist() for file in sample(item)) + tar.END)
            self.shards.append(storage.join(self.out, name))

    def write_classes(self, classes: Sequence[str]) -> None:
        """Names by class number."""
        self._write("classes.json", json.dumps(list(classes), ensure_ascii=False).encode())

    def _write(self, name: str, data: bytes) -> None:
        self._names.append(name)
        storage.write(storage.join(self._place, name), data)


def _refuse_to_overwrite(out: str) -> None:
    if storage.names(out):
        raise UserError(f"{out!r} is not empty: name a new folder, or empty this one")


def _num_shards(num_samples: int, samples_per_shard: int) -> int:
    return max(1, -(-num_samples // samples_per_shard))


def _keys(files: Sequence[Path]) -> list[str]:
    """One key per file: its path without extension, dots of the stem as `_`, equal ones told apart by a number."""
    keys: list[str] = []
    taken: set[str] = set()
    for file in files:
        stem = file.stem.replace(".", "_") or "_"
        base = key = (file.parent / stem).as_posix()
        number = 1
        while key in taken:
            number += 1
            key = f"{base}-{number}"
        taken.add(key)
        keys.append(key)
    return keys


@contextlib.contextmanager
def _explained(name: str, split: str) -> Iterator[None]:
    """Turn what a dataset of torchvision raises, which may be anything, into one sentence."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"torchvision cannot provide {name} ({split}) as images with class numbers: {reason}; try again, or choose "
            f"another, such as {_KNOWN}"
        ) from error


def _splits(kind: Callable[..., Any], root: str) -> Iterator[tuple[str, Any, int]]:
    """The train and test split of a torchvision dataset and their sizes, whichever way its class asks for them."""
    known = inspect.signature(kind).parameters
    for split in ("train", "test"):
        choice = {"train": split == "train"} if "train" in known else {"split": split} if "split" in known else {}
        if not choice and split == "test":
            return
        download = {"download": True} if "download" in known else {}
        with _explained(kind.__name__, split):
            dataset = kind(root, **choice, **download)
            size = len(dataset)
        yield split, dataset, size


def _torchvision_sample(name: str, split: str, dataset: Any) -> Callable[[int], Files]:
    def sample(number: int) -> Files:
        with _explained(name, split):
            image, label = dataset[number]
            if not isinstance(image, Image.Image) or not isinstance(label, int | np.integer):
                raise TypeError(f"its samples are {type(image).__name__} and {type(label).__name__}")
        key = f"{name.lower()}-{split}-{number:07d}"
        return [(f"{key}.png", _png(image)), (f"{key}.cls", str(int(label)).encode())]

    return sample


def _png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()
