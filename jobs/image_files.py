"""The images below a place, a local folder or a store, found without reading one, and the keys that they get."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from pipeline import images, storage, tar
from pipeline.errors import UserError


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image: where it is, and its path below the place that was searched."""

    uri: str
    path: str

    @property
    def key(self) -> str:
        """What it is called in a shard."""
        return key(PurePath(self.path))

    def read(self) -> bytes:
        """All of its bytes; UserError if it is not there any more."""
        try:
            return storage.read(self.uri)
        except FileNotFoundError as error:
            raise UserError(f"{self.uri!r} is gone since it was listed: run the same command again") from error


def find(src: str) -> tuple[list[ImageFile], list[str]]:
    """The images at any depth, and the paths of all else: other files, hidden ones, links to folders. Sorted by path.

    UserError if `src` is no folder, or a folder in it cannot be listed.
    """
    with storage.explained(src):
        entries = sorted(_on_disk(src) if storage.is_local(src) else _in_store(src))
    found, others = list[ImageFile](), list[str]()
    for path, uri in entries:
        if uri is None or not is_image(path) or any(name.startswith(".") for name in path.split("/")):
            others.append(path)
        else:
            found.append(ImageFile(uri, path))
    return found, others


def is_image(path: str | PurePath) -> bool:
    """Whether the file has the extension of an image, in upper or lower case."""
    return PurePath(path).suffix[1:].lower() in images.EXTENSIONS


def key(path: PurePath) -> str:
    """The path without extension, dots of the name as `_`: a key ends at the first one.

    UserError if no key may have such a name.
    """
    if tar.UNWRITABLE.search(str(path)):
        raise UserError(f"the name of {str(path)!r} is not printable UTF-8, as a key must be: rename it")
    return (path.parent / (path.stem.replace(".", "_") or "_")).as_posix()


def _on_disk(src: str) -> Iterator[tuple[str, str | None]]:
    """Path below `src` and whole path of each file; None for what is no regular file."""
    root = Path(storage.resolve(src)[1])
    if not root.is_dir():
        raise UserError(f"{src!r} is no folder: name one that holds images")

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        links = (name for name in folders if Path(folder, name).is_symlink())
        for place in (Path(folder, name) for name in (*names, *links)):
            yield place.relative_to(root).as_posix(), str(place) if place.is_file() else None


def _in_store(src: str) -> Iterator[tuple[str, str | None]]:
    """Path below `src` and URI of each object."""
    fs, root = storage.resolve(src)
    names = [str(name) for name in fs.find(root)]
    if names == [root]:
        raise UserError(f"{src!r} is no folder: name one that holds images")
    for name in names:
        yield name[len(root) :].lstrip("/"), str(fs.unstrip_protocol(name))
