"""Recording of training dynamics: what every example looked like in every epoch.

A store is a folder of sorted Parquet files and a commit log, which `pipeline.dynamics_store` reads.

Columns: sample_id int64, p_label f32, p_other f32, el2n f32, entropy f32, correct bool; on demand probs f32[C] and
embedding f32[d]. Usable from any PyTorch loop:

>>> writer = DynamicsWriter("run/dynamics", num_samples=N)
>>> writer.observe(sample_ids, logits, labels)  # every batch of the epoch, in any order
>>> writer.commit_epoch(epoch)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from operator import index
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import counter
from pipeline.epoch_file import STATISTICS, EpochFile, Footer, encode
from pipeline.epochs import Commit, EpochLog
from pipeline.errors import UserError
from pipeline.stage import Part, write_part
from pipeline.storage import join

BLOCK_ROWS = 1 << 14
"""Records of a rank in a block, at most: what a reader of some ids decodes at least."""

BLOCK_BYTES = 1 << 22
"""The same in bytes, where records have vectors."""

FILE_BLOCKS = 64
"""Blocks of a file, at most: who reads some ids holds the footers of the files that have some, 5 kB a block."""

LOGITS_BYTES = 1 << 22
"""Logits that wait for their statistics: these take twenty small operations, which many batches share."""


@dataclass(frozen=True)
class DynamicsPart:
    """What one rank wrote of one epoch.

    files, footers: by ascending ids, none without a record; columns: width by name, 1 or that of a vector; span: ids of
    a block; digest: of the ids, which are distinct; duplicates: records left out; num_classes: of the logits, 0 without
    any.
    """

    files: tuple[Part, ...]
    footers: tuple[Footer, ...]
    columns: Mapping[str, int]
    span: int
    digest: int
    duplicates: int
    num_classes: int

    @property
    def rows(self) -> int:
        """Records."""
        return sum(file.rows for file in self.files)


class DynamicsWriter:
    """Records each example once per epoch; of several ranks, each has a writer of its own on the same `uri`.

    num_samples: of the whole pool, ids are 0..num_samples-1; probs: whether the probabilities of all classes are kept,
    which TDDS needs, in 3 bytes or less each (16 significant bits); log: the committed epochs, to continue after the
    last.
    """

    def __init__(self, uri: str, num_samples: int, rank: int = 0, world_size: int = 1, *, probs: bool = False) -> None:
        num_samples, rank, world_size = index(num_samples), index(rank), index(world_size)  # numpy's integers too
        if num_samples < 1 or not 0 <= rank < world_size:
            raise UserError(
                f"DynamicsWriter() cannot use num_samples={num_samples}, rank={rank}, world_size={world_size}: "
                "give it 1 sample or more, and ranks from 0 to world_size - 1"
            )
        self.log = EpochLog(uri)
        self.num_samples = num_samples
        self.rank = rank
        self.world_size = world_size
        self._probs = probs
        self._waiting: list[tuple[Any, Any, Any]] = []  # ids, logits, labels of batches
        self._bytes = 0  # of these logits
        self._observed: list[dict[str, Any]] = []
        self._embeddings: list[Any] = []
        self._shape = (0, 0)  # classes, and numbers of an embedding, of the epoch's batches

    def observe(self, sample_ids: Any, logits: Any, labels: Any, embeddings: Any = None) -> None:
        """Take in a batch of the epoch: int64[B], [B, C] of any float type, int64[B]; torch on any device, or numpy.

        The statistics are float32, taken on the device of the logits for many batches at a time, and wait there for
        `flush`. Of an id that comes twice in an epoch the first record counts. labels: what the model is trained on;
        embeddings: [B, d], to be kept with the records, in every batch of an epoch or in none.
        """
        import torch

        ids, z, y = (
            x.detach() if isinstance(x, torch.Tensor) else torch.tensor(x) for x in (sample_ids, logits, labels)
        )
        if z.ndim != 2 or z.shape[1] < 2 or ids.shape != y.shape or ids.shape != z.shape[:1]:
            raise UserError(
                f"observe() needs ids [B], logits [B, C] with C of 2 or more and labels [B], "
                f"not {list(ids.shape)}, {list(z.shape)} and {list(y.shape)}"
            )
        if any(x.dtype == torch.bool or x.is_floating_point() or x.is_complex() for x in (ids, y)):
            raise UserError(f"observe() needs ids and labels that are integers, not {ids.dtype} and {y.dtype}")
        h = None
        if embeddings is not None:
            h = torch.as_tensor(embeddings).detach()
            if h.ndim != 2 or h.shape[:1] != ids.shape or h.shape[1] == 0:
                raise UserError(f"observe() needs embeddings [B, d] for ids {list(ids.shape)}, not {list(h.shape)}")
        shape = (z.shape[1], 0 if h is None else h.shape[1])
        if (self._waiting or self._observed) and shape != self._shape:
            raise UserError(
                f"observe() has {shape[0]} classes and embeddings of {shape[1]} numbers, but {self._shape[0]} and "
                f"{self._shape[1]} in an earlier batch of the epoch: give every batch the same"
            )
        self._shape = shape
        # Copies, for a loader may use its buffers again.
        self._waiting.append((ids.clone(), z.clone(), y.to(z.device, torch.int64, copy=True)))
        if h is not None:
            self._embeddings.append(h.to(torch.float32, copy=True))
        self._bytes += z.nbytes
        if self._bytes >= LOGITS_BYTES:
            self._take_statistics()

    def flush(self, epoch: int) -> DynamicsPart:
        """Write what was observed as this rank's sorted files of the epoch, and start afresh; committed, they count.

        UserError if an id is not one of the pool's, a logit is not finite or a label is not one of the classes.
        """
        epoch = index(epoch)
        columns, num_classes = self._drain()
        ids = columns.pop("sample_id")
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.num_samples:
            raise UserError(
                f"epoch {epoch} has sample_ids {ids.min()}..{ids.max()} but num_samples={self.num_samples}: "
                f"ids must lie in 0..{self.num_samples - 1}"
            )
        finite = [np.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in columns.values()]
        bad = int((~np.all(finite, axis=0)).sum())
        if bad:
            raise UserError(
                f"epoch {epoch} has {bad} records with logits that are not finite or a label that is no class: "
                "the training diverged or its labels are wrong; lower the learning rate or mend them"
            )
        distinct, first = np.unique(ids, return_index=True)
        widths = {name: column.shape[1] if column.ndim == 2 else 1 for name, column in columns.items()}
        rows = min(BLOCK_ROWS, max(1, BLOCK_BYTES // (4 * sum(widths.values()))))
        span = 1 << (rows.bit_length() - 1 + (self.world_size - 1).bit_length())
        files, footers = [], []
        ends = np.flatnonzero(np.diff(distinct // (span * FILE_BLOCKS), append=-1)) + 1
        for start, stop in pairwise([0, *ends.tolist()]):
            kept = first[start:stop]
            table = _table(distinct[start:stop], {name: column[kept] for name, column in columns.items()})
            data, footer = encode(table, span)
            stem = f"epoch-{epoch:05d}-rank-{self.rank}"
            files.append(write_part(self.log.uri, stem, ".parquet", data, stop - start))
            footers.append(footer)
        duplicates = len(ids) - len(distinct)
        return DynamicsPart(tuple(files), tuple(footers), widths, span, _digest(distinct), duplicates, num_classes)

    def commit_epoch(
        self,
        epoch: int,
        parts: Sequence[DynamicsPart] | None = None,
        checkpoint: bytes | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Commit:
        """Make the epoch count, together with the checkpoint that continues after it.

        parts: of all ranks, from their `flush`; a process alone leaves it out. UserError if the ids of all parts are
        not exactly 0..num_samples-1, and as EpochLog.commit says.
        """
        epoch = index(epoch)
        if parts is None:
            if self.world_size != 1:
                raise UserError(f"commit_epoch() of {self.world_size} ranks needs parts=, from flush() of each")
            parts = [self.flush(epoch)]
        files = [file for part in parts for file in part.files]
        other = [file.name for file in files if not file.name.startswith(f"epoch-{epoch:05d}-")]
        if other:
            raise UserError(f"epoch {epoch} cannot have {other[0]!r}: give the parts that flush({epoch}) returned")
        same = sum(part.digest for part in parts) % 2**64 == _digest_of_range(self.num_samples)
        if not same or sum(file.rows for file in files) != self.num_samples:
            raise UserError(self._coverage(epoch, parts))
        filled = [part for part in parts if part.rows]
        if any((part.columns, part.num_classes) != (filled[0].columns, filled[0].num_classes) for part in filled):
            raise UserError(f"epoch {epoch} has other classes or vectors on some ranks: record the same on each")
        own = {
            "num_samples": self.num_samples,
            "num_classes": filled[0].num_classes,
            "columns": dict(filled[0].columns),
            "span": max(part.span for part in filled),
            "duplicates": sum(part.duplicates for part in parts),
            "footers": [asdict(footer) for part in parts for footer in part.footers],
        }
        return self.log.commit(epoch, files, checkpoint, {**(facts or {}), **own})

    def _take_statistics(self) -> None:
        """Turn the logits that wait into columns, on their device."""
        import torch

        if not self._waiting:
            return
        ids, z, y = (torch.cat(batches) for batches in zip(*self._waiting, strict=True))
        self._waiting, self._bytes = [], 0
        self._observed.append({"sample_id": ids, **_statistics(z, y, self._probs)})

    def _drain(self) -> tuple[dict[str, NDArray[Any]], int]:
        """All columns of what was observed, by name, and the number of classes."""
        import torch

        self._take_statistics()
        observed, self._observed = self._observed, []
        embeddings, self._embeddings = self._embeddings, []
        if not observed:
            empty = dict.fromkeys(STATISTICS, np.empty(0, np.float32))
            return {"sample_id": np.empty(0, np.int64), **empty, "correct": np.empty(0, bool)}, 0
        columns = {name: torch.cat([record[name] for record in observed]).cpu().numpy() for name in observed[0]}
        if embeddings:
            columns["embedding"] = torch.cat(embeddings).cpu().numpy()
        return {**columns, "sample_id": columns["sample_id"].astype(np.int64)}, self._shape[0]

    def _coverage(self, epoch: int, parts: Sequence[DynamicsPart]) -> str:
        """The sentence about an epoch that is not complete; only now are the ids gathered."""
        counts = np.zeros(self.num_samples, dtype=np.int64)
        for part in parts:
            for named, footer in zip(part.files, part.footers, strict=True):
                file = EpochFile(join(self.log.uri, named.name), named.bytes, footer, f"epoch {epoch}")
                for ids, _ in file.blocks([]):
                    counts[ids] += 1
        return (
            f"epoch {epoch} is not complete: of {self.num_samples} samples {(counts == 0).sum()} are missing and "
            f"{(counts > 1).sum()} are in the files of several ranks; observe each once, without the sampler's padding"
        )


def _statistics(z: Any, y: Any, probs: bool) -> dict[str, Any]:
    """The columns of a record, [B] each, from logits [B, C] and labels [B], on their device."""
    import torch

    valid = (y >= 0) & (y < z.shape[1])
    label = y.clamp(0, z.shape[1] - 1)[:, None]
    p = z.float().softmax(dim=1)
    p_label = p.gather(1, label).squeeze(1).where(valid, torch.nan)  # `flush` reports it; a look now would block a GPU
    columns = {
        "p_label": p_label,
        "p_other": p.scatter(1, label, -torch.inf).amax(dim=1),
        # sum p^2 - 2 p_y + 1, which cancels
        "el2n": p.scatter_add(1, label, torch.full_like(p[:, :1], -1)).norm(dim=1),
        "entropy": torch.special.entr(p).sum(dim=1),
        "correct": z.argmax(dim=1) == y,
    }
    return {**columns, "probs": _rounded(p)} if probs else columns


def _rounded(p: Any) -> Any:
    """Probabilities to 16 significant bits: the low byte of their float32 is 0, and takes no room in a file."""
    import torch

    return ((p.view(torch.int32) + 0x80) & ~0xFF).view(torch.float32)


def _table(ids: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> pa.Table:
    """An Arrow table without nulls, vectors as lists of a fixed size."""
    arrays = [pa.array(ids)]
    for column in columns.values():
        values = pa.array(column.reshape(-1))
        if column.ndim == 2:
            element = pa.field("element", values.type, nullable=False)
            values = pa.FixedSizeListArray.from_arrays(values, type=pa.list_(element, column.shape[1]))
        arrays.append(values)
    names = ["sample_id", *columns]
    fields = [pa.field(name, array.type, nullable=False) for name, array in zip(names, arrays, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _digest(ids: NDArray[np.int64]) -> int:
    """Sum of the ids' hashes mod 2^64: of distinct ids, equal only for equal sets (but for a chance of 2^-64)."""
    return int(counter.hash64(0, "coverage", 0, ids).sum(dtype=np.uint64))


@lru_cache(maxsize=8)
def _digest_of_range(n: int) -> int:
    return sum(_digest(np.arange(low, min(low + 2**20, n))) for low in range(0, n, 2**20)) % 2**64
