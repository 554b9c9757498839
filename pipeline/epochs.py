"""The commit log of a resumable training: an epoch counts once its manifest is there, never in part.

`{uri}/epoch-00003.json` names the epoch's files and the checkpoint that continues after it. Everything it names is
written before it, under names of the attempt's own, so one JSON file decides about all of them.

The writes of a full commit of epoch e in their order, and a crash before or after each of them:

| write                       | before it, there are         | after it, there are       | what counts              |
|-----------------------------|------------------------------|---------------------------|--------------------------|
| file of the first rank      | epochs up to e-1             | and a file nobody reads   | e-1: trains e again      |
| file of each other rank     | files nobody reads           | files nobody reads        | e-1: trains e again      |
| checkpoint, if any          | all files of e, unread       | and a checkpoint, unread  | e-1: trains e again      |
| manifest, created if absent | files and checkpoint, unread | the whole epoch           | before: e-1; after: e    |
| deletion of each checkpoint | epoch e, and checkpoints     | one less; the commit of   | e: training goes on from |
| older than the last two     | nobody needs                 | e+1 deletes what is left  | its checkpoint           |

A write is all or nothing (`pipeline.storage`): there is no third state. Files that no manifest names are never read.

Of two attempts that are alive at once and commit the same epoch, one creates its manifest. An attempt commits only on
top of the very commit that it made before, so that one that lost an epoch and trained on does not slip in behind. So
the files and the checkpoint of an epoch are one attempt's, which went on from the checkpoint of the epoch before.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline import storage
from pipeline.errors import CorruptArtifactError, StorageError, UserError
from pipeline.stage import Part, write_part

KEPT_CHECKPOINTS = 2
"""The last, and the one before it, which a slower worker that is restarting may still be reading."""

_MANIFEST = re.compile(r"epoch-(\d{5,})\.json")
_CHECKPOINT = re.compile(r"checkpoint-(\d{5,})-.*")


@dataclass(frozen=True)
class Commit:
    """One committed epoch: the files it counts, the checkpoint that continues after it, and JSON facts."""

    epoch: int
    files: tuple[Part, ...]
    checkpoint: Part | None
    facts: Mapping[str, Any]


_COMMIT = TypeAdapter(Commit)


class EpochLog:
    """Epochs 0, 1, 2, .. committed one after the other under `uri`, a local path or an object store.

    Who commits with it is one attempt at the training; a new attempt takes a new log.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._next: tuple[int, bytes | None] | None = None  # the epoch to commit, and the manifest it goes on from

    def commit(
        self, epoch: int, files: Sequence[Part], checkpoint: bytes | None = None, facts: Mapping[str, Any] | None = None
    ) -> Commit:
        """Make an epoch count, with files that are written already.

        checkpoint: all that is needed to continue after this epoch; facts: JSON values to remember with it. UserError
        if the epoch counts already, would leave a gap, or does not go on from what was committed with this log before.
        """
        before = self._read_before(epoch)
        if self._next not in (None, (epoch, before)):
            raise UserError(
                f"epoch {epoch} cannot be committed to {self.uri!r}, it does not go on from what this training "
                "committed before: let one training write there, and continue after its last epoch, anew"
            )
        self._next = (epoch, before)
        part = None if checkpoint is None else write_part(self.uri, f"checkpoint-{epoch:05d}", ".pt", checkpoint)
        commit = Commit(epoch, tuple(files), part, dict(facts or {}))
        data = _encode(commit)
        # A store answers "exists" to the repetition of a request whose first answer was lost: then the bytes are ours.
        if not storage.create(self.manifest(epoch), data) and storage.read(self.manifest(epoch)) != data:
            raise UserError(
                f"epoch {epoch} is already committed to {self.uri!r}: let one training write there, "
                "and continue after its last epoch"
            )
        self._next = (epoch + 1, data)
        self._delete_checkpoints_before(epoch - KEPT_CHECKPOINTS + 1)
        return commit

    def commits(self) -> list[Commit]:
        """All committed epochs in order; CorruptArtifactError if one is damaged or missing between them."""
        return [self.read(epoch) for epoch in self._epochs()]

    def latest(self) -> Commit | None:
        """The last committed epoch, or None."""
        epochs = self._epochs()
        return self.read(epochs[-1]) if epochs else None

    def read(self, epoch: int) -> Commit:
        """One committed epoch; FileNotFoundError if there is none, CorruptArtifactError if its manifest is damaged."""
        uri = self.manifest(epoch)
        commit = _decode(storage.read_json(uri))
        if commit is None or commit.epoch != epoch:
            raise CorruptArtifactError(f"{uri!r} is damaged: {storage.MEND}")
        return commit

    def present(self) -> list[int]:
        """The epochs whose manifests are there, ascending; `commits` wants them without a gap."""
        matches = (_MANIFEST.fullmatch(name) for name in storage.names(self.uri))
        return sorted(int(match[1]) for match in matches if match)

    def read_checkpoint(self, commit: Commit) -> bytes:
        """The verified checkpoint of one of the last two commits; CorruptArtifactError if it is damaged or gone.

        StorageError if other commits followed since, which deleted it: what there is to do is to look again.
        """
        assert commit.checkpoint is not None, f"epoch {commit.epoch} was committed without a checkpoint"
        try:
            return storage.read_verified(storage.join(self.uri, commit.checkpoint.name), commit.checkpoint.sha256)
        except CorruptArtifactError as error:
            if storage.exists(self.manifest(commit.epoch + KEPT_CHECKPOINTS)):
                raise StorageError(
                    f"the checkpoint of epoch {commit.epoch} in {self.uri!r} is deleted, for another training went on "
                    "from there: continue after its last epoch"
                ) from error
            raise

    def manifest(self, epoch: int) -> str:
        """Where the manifest of an epoch is, or would be."""
        return storage.join(self.uri, f"epoch-{epoch:05d}.json")

    def _epochs(self) -> range:
        epochs = self.present()
        last = epochs[-1] if epochs else -1
        for epoch in sorted(set(range(last)) - set(epochs)):
            # A listing is no snapshot: it may tell of a commit made while it went on, and not of the one before.
            if not storage.exists(self.manifest(epoch)):
                raise CorruptArtifactError(
                    f"{self.manifest(epoch)!r} is missing, but later epochs are there: {storage.MEND}"
                )
        return range(last + 1)

    def _read_before(self, epoch: int) -> bytes | None:
        """The manifest of the epoch before, which must be there; None before the first."""
        if epoch == 0:
            return None
        try:
            return storage.read(self.manifest(epoch - 1))
        except FileNotFoundError as error:
            raise UserError(
                f"epoch {epoch} cannot be committed to {self.uri!r} before epoch {epoch - 1}: "
                "commit epochs in order, the first is 0"
            ) from error

    def _delete_checkpoints_before(self, epoch: int) -> None:
        """Found by name, so that what a killed or a losing attempt left behind goes too."""
        for name in storage.names(self.uri):
            match = _CHECKPOINT.fullmatch(name)
            if match and int(match[1]) < epoch:
                storage.delete(storage.join(self.uri, name))


def _encode(commit: Commit) -> bytes:
    """A manifest: what was committed, and the SHA-256 of that."""
    content = json.dumps(asdict(commit), allow_nan=False)
    return json.dumps({**json.loads(content), "sha256": _sha256(json.loads(content))}, indent=1).encode()


def _decode(content: dict[str, Any]) -> Commit | None:
    """What a manifest says; None if it is not what was written."""
    checksum = content.pop("sha256", None)
    try:
        commit: Commit = _COMMIT.validate_python(content)
    except ValidationError:
        return None
    return commit if checksum == _sha256(content) else None


def _sha256(content: dict[str, Any]) -> str:
    return storage.sha256(json.dumps(content, sort_keys=True).encode())
