"""Reading of training dynamics: the committed epochs of a folder, by ranges of ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import counter
from pipeline.epoch_file import VECTORS, EpochFile, Footer
from pipeline.epochs import EpochLog
from pipeline.errors import CorruptArtifactError, UserError
from pipeline.registry import ChoiceError
from pipeline.storage import MEND, join

SAMPLE = 1 << 18
"""Examples from which a score prepares what all of them share."""


class DynamicsStore:
    """The committed epochs of a folder that DynamicsWriters filled.

    UserError if there is none; CorruptArtifactError if a file that counts is missing or damaged, when it is read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.commits = EpochLog(uri).commits()
        self._files: dict[str, EpochFile] = {}
        if not self.commits:
            raise UserError(f"{uri!r} has no committed epoch of training dynamics: name the folder of a DynamicsWriter")
        facts = [commit.facts for commit in self.commits]
        if not all("footers" in fact for fact in facts):
            raise UserError(f"{uri!r} holds commits without training dynamics: name the folder of a DynamicsWriter")
        footers = ([Footer(**footer) for footer in fact["footers"]] for fact in facts)
        self._bounds = [np.array([(one.first, one.last) for one in epoch]).T for epoch in footers]
        for what, name in (("samples", "num_samples"), ("classes", "num_classes")):
            found = sorted({fact[name] for fact in facts})
            if len(found) > 1:
                raise UserError(f"{uri!r} holds epochs of pools of {found} {what}: give each pool its own folder")
        self.num_samples: int = facts[-1]["num_samples"]
        self.num_classes: int = facts[-1]["num_classes"]
        self.columns: dict[str, int] = {
            name: width
            for name, width in facts[-1]["columns"].items()
            if all(fact["columns"].get(name) == width for fact in facts)
        }
        """Width by name, of the columns that every epoch has."""
        self.span: int = max(fact["span"] for fact in facts)
        """Ids of a block: ranges of whole blocks are read without decoding anything twice."""

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the files itself."""
        return {**self.__dict__, "_files": {}}

    @property
    def epochs(self) -> range:
        """0..E-1."""
        return range(len(self.commits))

    @property
    def coverage(self) -> float:
        """Share of (sample, epoch) pairs that are recorded; 1, since commits verify it."""
        rows = sum(file.rows for commit in self.commits for file in commit.files)
        return rows / (self.num_samples * len(self.commits))

    def read(
        self, epoch: int, low: int, high: int, columns: Sequence[str], into: dict[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """These columns of ids low..high-1 in an epoch, [high - low] each in the order of the ids; vectors [.., C].

        into: arrays of an earlier reading of as many ids, to be filled again: new memory costs more than filling it.
        ChoiceError for a column that not every epoch has.
        """
        for name in columns:
            if name not in self.columns:
                raise ChoiceError(f"{self.uri!r} has no column {name!r}: choose from {', '.join(self.columns)}")
        if low >= high:
            return {name: self._none_of(name) for name in columns}
        found = {} if into is None else into
        rows = 0
        for file in self.files(epoch, low, high):
            for ids, values in file.blocks(columns, low, high):
                rows += len(ids)
                if len(ids) == high - low:
                    return values
                places = _places(ids, low)
                for name, column in values.items():
                    if name not in found:
                        found[name] = np.empty((high - low, *column.shape[1:]), dtype=column.dtype)
                    found[name][places] = column
        if rows != high - low:
            raise CorruptArtifactError(
                f"epoch {epoch} of {self.uri!r} lacks {high - low - rows} of the samples {low}..{high - 1}: {MEND}"
            )
        return {name: found[name] for name in columns}

    def sample(self, epoch: int, columns: Sequence[str], size: int = SAMPLE) -> dict[str, NDArray[Any]]:
        """These columns of about `size` ids of an epoch that a hash picks, all of a smaller pool, ordered by id."""
        limit = np.uint64(min(2**64 - 1, 2**64 * size // self.num_samples))
        parts = []
        for low in range(0, self.num_samples, self.span):
            ids = np.arange(low, min(low + self.span, self.num_samples))
            picked = counter.hash64(0, "score-sample", 0, ids) <= limit
            read = self.read(epoch, low, int(ids[-1]) + 1, columns)
            parts.append({name: column[picked] for name, column in read.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in columns}

    def _none_of(self, name: str) -> NDArray[Any]:
        width = self.columns[name]
        return np.empty((0, width) if name in VECTORS else 0, dtype=bool if name == "correct" else np.float32)

    def files(self, epoch: int, low: int = 0, high: int = 2**63 - 1) -> list[EpochFile]:
        """The epoch's files that have some of the ids low..high-1, each with records of one rank; opened once."""
        commit, (first, last) = self.commits[epoch], self._bounds[epoch]
        found = []
        for number in np.flatnonzero((first < high) & (last >= low)).tolist():
            part = commit.files[number]
            if part.name not in self._files:
                footer = Footer(**commit.facts["footers"][number])
                self._files[part.name] = EpochFile(join(self.uri, part.name), part.bytes, footer, f"epoch {epoch}")
            found.append(self._files[part.name])
        return found


def _places(ids: NDArray[np.int64] | range, low: int) -> slice | NDArray[np.int64]:
    """Where ascending ids are in an array that begins with `low`; as a slice, many times faster, where it can be."""
    return slice(ids.start - low, ids.stop - low) if isinstance(ids, range) else ids - low
