"""From what people have to shards: images, folders of them by class, torchvision's datasets, scikit-learn's digits."""

import contextlib
import inspect
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs import image_files
from jobs.image_files import ImageFile
from jobs.shard_folder import Files, ShardFolder, refuse_to_overwrite
from pipeline import class_names, counter, storage
from pipeline.errors import UserError
from pipeline.stage import Progress
from pipeline.threads import in_threads
from pipeline.units import counted

SAMPLES_PER_SHARD = 2500
"""Small images make shards of a few megabytes."""

SHARD_BYTES = 200_000_000
"""A shard of photos is full from here on: readers hold one whole."""

READERS = 16
"""Images that are read at a time."""

_KNOWN = "CIFAR10, STL10, SVHN or MNIST"


@dataclass(frozen=True)
class Imported:
    """What was written. skipped: names of files that were left out, in the source's order; key: that of an image."""

    shards: tuple[str, ...]
    num_samples: int
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    key: str = ""


def import_images(src: str, out: str, samples_per_shard: int = SAMPLES_PER_SHARD, *, progress: Progress) -> Imported:
    """All images below SRC, local or s3://, as `OUT/images-000000.tar` and on, without labels; bytes untouched.

    Sorted by path. The key is the path below SRC without the extension, dots of the name as `_`; UserError if two have
    the same. A shard ends after `samples_per_shard` images or SHARD_BYTES. `OUT/index.json`, the list of the shards,
    is written last. Files of other kinds and hidden ones are listed in `skipped`.
    """
    refuse_to_overwrite(out)
    found, skipped = image_files.find(src)
    if not found:
        raise UserError(f"{src!r} holds no .jpg, .jpeg, .png or .webp file, at any depth: check the path")
    _refuse_equal_keys(found)

    def sample(file: ImageFile) -> Files:
        return [(f"{file.key}{PurePath(file.path).suffix.lower()}", file.read())]

    def samples() -> Iterator[Files]:
        for done, files in enumerate(in_threads(sample, found, READERS)):
            progress(done, len(found), "images")
            yield files

    with ShardFolder(out) as folder:
        folder.write_shards("images", _full(samples(), samples_per_shard))
        folder.write_list()
        progress(len(found), len(found), "images")
    return Imported(folder.shards, len(found), (), tuple(skipped), found[0].key)


def _refuse_equal_keys(found: Sequence[ImageFile]) -> None:
    first: dict[str, ImageFile] = {}
    again = [file for file in found if first.setdefault(file.key, file) is not file]
    if again:
        more = f", as {counted(len(again) - 1, 'more files')} that of another" if len(again) > 1 else ""
        raise UserError(
            f"{first[again[0].key].path!r} and {again[0].path!r} would have the same key {again[0].key!r}{more}: "
            "rename one, or move it to another folder"
        )


def _full(samples: Iterable[Files], samples_per_shard: int) -> Iterator[list[Files]]:
    """The samples of one shard after the other."""
    shard, size = list[Files](), 0
    for files in samples:
        shard.append(files)
        size += sum(len(data) for _, data in files)
        if len(shard) == samples_per_shard or size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def import_imagefolder(
    src: str, out: str, samples_per_shard: int = SAMPLES_PER_SHARD, known: str | None = None
) -> Imported:
    """`SRC/class/.../*.jpg` as `OUT/train-000000.tar` and on, in an order that mixes the classes; bytes untouched.

    The class is the name of the first folder, its number the place among the sorted names, or in `known`, the
    `classes.json` of another import; the names are written to `classes.json`. The key is the file's path below SRC
    without the extension. Files of other kinds, and those in no folder, are listed in `skipped`.
    """
    if "://" in src and not storage.is_local(src):
        raise UserError(
            f"import imagefolder reads local folders only, and not {src!r}: import images reads it, without classes; "
            "the labels are then a table key,label"
        )
    root = Path(src).expanduser()
    if not root.is_dir():
        raise UserError(f"{src!r} is no folder: name one that holds a folder of images per class")
    refuse_to_overwrite(out)
    classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    numbers = _numbers(known, classes) if known else {name: number for number, name in enumerate(classes)}
    files = [file for name in classes for file in sorted((root / name).rglob("*")) if file.is_file()]
    found = [file for file in files if image_files.is_image(file)]
    loose = sorted(file for file in root.iterdir() if file.is_file())
    if not found and any(map(image_files.is_image, loose)):
        raise UserError(
            f"the images lie directly in {src!r}, and not in a folder per class: semiprune import images {src} {out} "
            "imports them without classes"
        )
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
    with ShardFolder(out) as folder:
        folder.write_shards("train", _split(order, samples_per_shard, sample))
        folder.write_classes(list(numbers))
    others = [*loose, *(file for file in files if not image_files.is_image(file))]
    return Imported(folder.shards, len(found), tuple(numbers), tuple(str(file.relative_to(root)) for file in others))


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
    refuse_to_overwrite(out)
    num_samples, classes = 0, list[str]()
    with tempfile.TemporaryDirectory() as scratch, ShardFolder(out) as folder:
        for split, dataset, size in _splits(kind, root or scratch):
            classes = [str(item) for item in getattr(dataset, "classes", [])] or classes
            order = counter.permutation(0, f"import-{split}", 0, np.arange(size))
            sample = _torchvision_sample(name, split, dataset)
            folder.write_shards(split, _split(order, samples_per_shard, sample))
            num_samples += size
        folder.write_classes(classes)
    return Imported(folder.shards, num_samples, tuple(classes))


def write_digits(out: str) -> Imported:
    """scikit-learn's 1,797 handwritten digits as 8x8 PNG: 1,437 in 6 shards `train-...`, 360 in `test-000000.tar`."""
    from sklearn.datasets import load_digits

    refuse_to_overwrite(out)
    pixels, labels = load_digits(return_X_y=True)
    pixels = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)

    def sample(number: int) -> Files:
        key = f"digit-{number:04d}"
        return [(f"{key}.png", _png(Image.fromarray(pixels[number]))), (f"{key}.cls", str(labels[number]).encode())]

    order = counter.permutation(0, "digits", 0, np.arange(len(labels)))
    classes = [str(digit) for digit in range(10)]
    with ShardFolder(out) as folder:
        folder.write_shards("train", _split(order[:1437], 240, sample))
        folder.write_shards("test", _split(order[1437:], 360, sample))
        folder.write_classes(classes)
    return Imported(folder.shards, len(labels), tuple(classes))


def _split(
    order: NDArray[np.int64], samples_per_shard: int, sample: Callable[[int], Files]
) -> Iterator[Iterator[Files]]:
    """The samples of these numbers in shards of about the same number, at least one."""
    for numbers in np.array_split(order, max(1, -(-len(order) // samples_per_shard))):
        yield (sample(number) for number in numbers.tolist())


def _keys(files: Sequence[Path]) -> list[str]:
    """One key per file, equal ones told apart by a number."""
    keys: list[str] = []
    taken: set[str] = set()
    for file in files:
        base = key = image_files.key(file)
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
