"""Training dynamics: what every example looked like in every epoch, as sorted Arrow files and a commit log.

Columns: sample_id int64, p_label f32, p_other f32, el2n f32, entropy f32, correct bool. Usable from any PyTorch loop:

>>> writer = DynamicsWriter("run/dynamics", num_samples=N)
>>> writer.observe(sample_ids, logits, labels)  # every batch of the epoch, in any order
>>> writer.commit_epoch(epoch)
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import counter, storage
from pipeline.epochs import Commit, EpochLog
from pipeline.errors import CorruptArtifactError, UserError
from pipeline.scores import EpochStatistics
from pipeline.stage import Part, write_part

STATISTICS = ("p_label", "p_other", "el2n", "entropy")
BATCH_ROWS = 1 << 16
"""Rows of a record batch: a reader of some ids decompresses only the batches that hold them."""


@dataclass(frozen=True)
class DynamicsPart:
    """What one rank wrote of one epoch. digest: of its ids, which are distinct; duplicates: records left out."""

    part: Part
    digest: int
    duplicates: int


class DynamicsWriter:
    """Records each example once per epoch; of several ranks, each has a writer of its own on the same `uri`.

    num_samples: of the whole pool, ids are 0..num_samples-1; log: the committed epochs, to continue after the last.
    """

    def __init__(self, uri: str, num_samples: int, rank: int = 0, world_size: int = 1) -> None:
        self.log = EpochLog(uri)
        self.num_samples = num_samples
        self.rank = rank
        self.world_size = world_size
        self._observed: list[tuple[Any, Any, Any]] = []

    def observe(self, sample_ids: Any, logits: Any, labels: Any) -> None:
        """Take in a batch of the epoch: int64[B], [B, C] of any float type, int64[B]; torch on any device, or numpy.

        The statistics are float32, taken on the device of the logits, and wait there for `flush`. Of an id that comes
        twice in an epoch the first record counts. labels: what the model is trained on.
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
        self._observed.append((ids.clone(), *_statistics(z, y.to(z.device, torch.int64))))

    def flush(self, epoch: int) -> DynamicsPart:
        """Write what was observed as this rank's sorted file of the epoch, and start afresh; it counts when committed.

        UserError if an id is not one of the pool's, a logit is not finite or a label is not one of the classes.
        """
        ids, values, correct = self._drain()
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.num_samples:
            raise UserError(
                f"epoch {epoch} has sample_ids {ids.min()}..{ids.max()} but num_samples={self.num_samples}: "
                f"ids must lie in 0..{self.num_samples - 1}"
            )
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        if bad:
            raise UserError(
                f"epoch {epoch} has {bad} records with logits that are not finite or a label that is no class: "
                "the training diverged or its labels are wrong; lower the learning rate or mend them"
            )
        distinct, first = np.unique(ids, return_index=True)
        table = pa.table([distinct, *values[first].T, correct[first]], names=["sample_id", *STATISTICS, "correct"])
        stem = f"epoch-{epoch:05d}-rank-{self.rank}"
        part = write_part(self.log.uri, stem, ".arrow", _encode(table), len(distinct))
        return DynamicsPart(part, _digest(distinct), len(ids) - len(distinct))

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
        if parts is None:
            if self.world_size != 1:
                raise UserError(f"commit_epoch() of {self.world_size} ranks needs parts=, from flush() of each")
            parts = [self.flush(epoch)]
        files = [part.part for part in parts]
        same = sum(part.digest for part in parts) % 2**64 == _digest_of_range(self.num_samples)
        if not same or sum(file.rows for file in files) != self.num_samples:
            raise UserError(self._coverage(epoch, files))
        own = {"num_samples": self.num_samples, "duplicates": sum(part.duplicates for part in parts)}
        return self.log.commit(epoch, files, checkpoint, {**(facts or {}), **own})

    def _drain(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        import torch

        observed, self._observed = self._observed, []
        if not observed:
            return np.empty(0, np.int64), np.empty((0, len(STATISTICS)), np.float32), np.empty(0, bool)
        ids, values, correct = (torch.cat(column).cpu().numpy() for column in zip(*observed, strict=True))
        return ids.astype(np.int64), values, correct

    def _coverage(self, epoch: int, files: Sequence[Part]) -> str:
        """The sentence about an epoch that is not complete; only now are the ids gathered."""
        counts = np.zeros(self.num_samples, dtype=np.int64)
        for file in files:
            data = _map_verified(self.log.uri, file)
            counts[pa.ipc.open_file(data).read_all()["sample_id"].to_numpy()] += 1
        return (
            f"epoch {epoch} is not complete: of {self.num_samples} samples {(counts == 0).sum()} are missing and "
            f"{(counts > 1).sum()} are in the files of several ranks; observe each once, without the sampler's padding"
        )


class DynamicsStore:
    """The committed epochs of a folder that DynamicsWriters filled.

    UserError if there is none; CorruptArtifactError if a file that counts is missing or damaged.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._commits = EpochLog(uri).commits()
        self._verified: set[str] = set()
        if not self._commits:
            raise UserError(f"{uri!r} has no committed epoch of training dynamics: name the folder of a DynamicsWriter")
        sizes = {commit.facts["num_samples"] for commit in self._commits}
        if len(sizes) > 1:
            raise UserError(f"{uri!r} holds epochs of pools of {sorted(sizes)} samples: give each pool its own folder")
        self.num_samples: int = sizes.pop()

    @property
    def epochs(self) -> range:
        """0..E-1."""
        return range(len(self._commits))

    @property
    def coverage(self) -> float:
        """Share of (sample, epoch) pairs that are recorded; 1, since commits verify it."""
        rows = sum(file.rows for commit in self._commits for file in commit.files)
        return rows / (self.num_samples * len(self._commits))

    def read(self, epoch: int, low: int, high: int) -> EpochStatistics:
        """Statistics of ids low..high-1 in an epoch."""
        types = {**dict.fromkeys(STATISTICS, np.float32), "correct": np.bool_, "present": np.bool_}
        columns: dict[str, Any] = {name: np.zeros(high - low, dtype=dtype) for name, dtype in types.items()}
        for file in self._commits[epoch].files:
            for batch in self._batches(file, low, high):
                ids = batch["sample_id"].to_numpy()
                start, stop = np.searchsorted(ids, (low, high))
                rows = _compact(ids[start:stop] - low)
                columns["present"][rows] = True
                for name in (*STATISTICS, "correct"):
                    columns[name][rows] = batch[name].to_numpy(zero_copy_only=False)[start:stop]
        return EpochStatistics(**columns)

    def _batches(self, file: Part, low: int, high: int) -> Iterator[pa.RecordBatch]:
        """The record batches of a file that can hold ids low..high-1; a file is verified when first read."""
        if file.name in self._verified:
            data = _map(storage.join(self.uri, file.name))
        else:
            data = _map_verified(self.uri, file)
            self._verified.add(file.name)
        reader = pa.ipc.open_file(data)
        firsts = json.loads(reader.schema.metadata[b"first_ids"])
        start = max(bisect_right(firsts, low) - 1, 0)
        for index in range(start, bisect_left(firsts, high)):
            yield reader.get_batch(index)


def _statistics(z: Any, y: Any) -> tuple[Any, Any]:
    """([B, 4] f32 in the order of STATISTICS, [B] bool) from logits [B, C] and labels [B], on their device."""
    import torch

    valid = (y >= 0) & (y < z.shape[1])
    label = y.clamp(0, z.shape[1] - 1)[:, None]
    p = z.float().softmax(dim=1)
    p_label = p.gather(1, label).squeeze(1).where(valid, torch.nan)  # `flush` reports it; a look now would block a GPU
    p_other = p.scatter(1, label, -torch.inf).amax(dim=1)
    el2n = p.scatter_add(1, label, torch.full_like(p[:, :1], -1)).norm(dim=1)  # sum p^2 - 2 p_y + 1, which cancels
    entropy = torch.special.entr(p).sum(dim=1)
    return torch.stack([p_label, p_other, el2n, entropy], dim=1), z.argmax(dim=1) == y


def _digest(ids: NDArray[np.int64]) -> int:
    """Sum of the ids' hashes mod 2^64: of distinct ids, equal only for equal sets (but for a chance of 2^-64)."""
    return int(counter.hash64(0, "coverage", 0, ids).sum(dtype=np.uint64))


@lru_cache(maxsize=8)
def _digest_of_range(n: int) -> int:
    return sum(_digest(np.arange(low, min(low + 2**20, n))) for low in range(0, n, 2**20)) % 2**64


def _encode(table: pa.Table) -> memoryview:
    """Arrow IPC file, LZ4; its metadata name the first id of every record batch."""
    firsts = table["sample_id"].to_numpy()[::BATCH_ROWS].tolist()
    table = table.replace_schema_metadata({"first_ids": json.dumps(firsts)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
        file.write_table(table, max_chunksize=BATCH_ROWS)
    return memoryview(sink.getvalue())


def _map(uri: str) -> pa.Buffer:
    """The bytes of a file: mapped on a local disk, else read."""
    if not storage.is_local(uri):
        return pa.py_buffer(storage.read(uri))
    with pa.memory_map(storage.resolve(uri)[1]) as file:
        return file.read_buffer()  # keeps the mapping, not the file handle


def _map_verified(folder: str, file: Part) -> pa.Buffer:
    uri = storage.join(folder, file.name)
    try:
        data = _map(uri)
    except FileNotFoundError as error:
        raise CorruptArtifactError(f"{uri!r} is named by its manifest but missing: {storage.MEND}") from error
    if storage.sha256(memoryview(data)) != file.sha256:
        raise CorruptArtifactError(f"{uri!r} is damaged, its SHA-256 is not the one in its manifest: {storage.MEND}")
    return data


def _compact(rows: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """Ascending rows as a slice where they have no gap, which numpy copies many times faster."""
    dense = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
    return slice(rows[0], rows[-1] + 1) if dense else rows
