"""The folder of shards that an import writes: whole, or not there."""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from pipeline import class_names, sidecar, storage, tar
from pipeline.errors import UserError

LIST = "index.json"
"""The shards as a list of shards, which `data.shards` may name."""

Files = list[tuple[str, bytes]]
"""The members of one sample: name and payload."""


class ShardFolder:
    """An output folder that appears whole: a local one under its own name only when the block has succeeded.

    A mount point cannot be replaced: its files come up at the end from a folder inside, which is on the same disk. An
    object store has no such step: there, a block that fails removes what it wrote.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        self._shards: list[sidecar.Listed] = []
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
            refuse_to_overwrite(self.out)
            for name in self._names:
                Path(self._place, name).replace(folder / name)
                undo.callback((folder / name).unlink)
            undo.pop_all()

    @property
    def shards(self) -> tuple[str, ...]:
        """Where those are that were written."""
        return tuple(storage.join(self.out, shard.url) for shard in self._shards)

    def write_shards(self, prefix: str, shards: Iterable[Iterable[Files]]) -> None:
        """One shard per group of samples; no more than a few are in memory at a time."""
        for number, samples in enumerate(shards):
            self._write_shard(f"{prefix}-{number:06d}.tar", samples)

    def _write_shard(self, name: str, samples: Iterable[Files]) -> None:
        packed = [tar.pack(files) for files in samples]
        data = b"".join([*packed, tar.END])
        self._write(name, data)
        self._shards.append(sidecar.Listed(name, len(data), len(packed)))

    def write_list(self) -> None:
        """The list of the shards that were written."""
        self._write(LIST, sidecar.dump_list(self._shards, self.out.rstrip("/").rpartition("/")[2]))

    def write_classes(self, classes: Sequence[str]) -> None:
        """Names by class number."""
        self._write(class_names.FILE, json.dumps(list(classes), ensure_ascii=False).encode())

    def _write(self, name: str, data: bytes) -> None:
        self._names.append(name)
        storage.write(storage.join(self._place, name), data)


def refuse_to_overwrite(out: str) -> None:
    """UserError if anything is in the folder."""
    if storage.names(out):
        raise UserError(f"{out!r} is not empty: name a new folder, or empty this one")
