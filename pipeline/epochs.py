"""The commit log of a resumable training: an epoch counts once its manifest is there, never in part.

`{uri}/epoch-00003.json` names the epoch's files and the checkpoint that continues after it. Everything it names is
written before it, under names of the attempt's own, so one JSON file decides about all of them.

| killed                              | left behind                   | what readers see; what the next attempt does  |
|-------------------------------------|-------------------------------|-----------------------------------------------|
| while the epoch's files are written | some files                    | the epoch before; it trains this one again    |
| while the checkpoint is written     | files, perhaps the checkpoint | the same                                      |
| before the manifest is there        | files and checkpoint          | the same                                      |
| after the manifest                  | a committed epoch             | this epoch; it continues after it             |
| while old checkpoints are deleted   | a checkpoint more than needed | this epoch; its commit deletes what was left  |

Files that no manifest names are never read. Of two attempts that commit the same epoch, one succeeds.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import storage
from pipeline.errors import CorruptArtifactError, UserError
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


class EpochLog:
    """Epochs 0, 1, 2, .. committed one after the other under `uri`, a local path or an object store."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def commit(
        self, epoch: int, files: Sequence[Part], checkpoint: bytes | None = None, facts: Mapping[str, Any] | None = None
    ) -> Commit:
        """Make an epoch count, with files that are written already; UserError if it does already or would leave a gap.

        checkpoint: all that is needed to continue after this epoch; facts: JSON values to remember with it.
        """
        if epoch > 0 and not storage.exists(self._manifest(epoch - 1)):
            raise UserError(
                f"epoch {epoch} cannot be committed to {self.uri!r} before epoch {epoch - 1}: "
                "commit epochs in order, the first is 0"
            )
        part = None if checkpoint is None else write_part(self.uri, f"checkpoint-{epoch:05d}", ".pt", checkpoint)
        commit = Commit(epoch, tuple(files), part, dict(facts or {}))
        data = json.dumps(asdict(commit), indent=1, allow_nan=False).encode()
        # A store answers "exists" to the repetition of a request whose first answer was lost: then the bytes are ours.
        if not storage.create(self._manifest(epoch), data) and storage.read(self._manifest(epoch)) != data:
            raise UserError(
                f"epoch {epoch} is already committed to {self.uri!r}: let one training write there, "
                "and continue after its last epoch"
            )
        self._delete_checkpoints_before(epoch - KEPT_CHECKPOINTS + 1)
        return commit

    def commits(self) -> list[Commit]:
        """All committed epochs in order; CorruptArtifactError if one is missing between them."""
        return [self._read(epoch) for epoch in self._epochs()]

    def latest(self) -> Commit | None:
        """The last committed epoch, or None."""
        epochs = self._epochs()
        return self._read(epochs[-1]) if epochs else None

    def read_checkpoint(self, commit: Commit) -> bytes:
        """The verified checkpoint of one of the last two commits; CorruptArtifactError if it is damaged or gone."""
        assert commit.checkpoint is not None, f"epoch {commit.epoch} was committed without a checkpoint"
        return storage.read_verified(storage.join(self.uri, commit.checkpoint.name), commit.checkpoint.sha256)

    def _manifest(self, epoch: int) -> str:
        return storage.join(self.uri, f"epoch-{epoch:05d}.json")

    def _epochs(self) -> range:
        matches = (_MANIFEST.fullmatch(name) for name in storage.names(self.uri))
        epochs = sorted(int(match[1]) for match in matches if match)
        missing = sorted(set(range(len(epochs))) - set(epochs))
        if missing:
            raise CorruptArtifactError(
                f"{self._manifest(missing[0])!r} is missing, but later epochs are there: {storage.MEND}"
            )
        return range(len(epochs))

    def _read(self, epoch: int) -> Commit:
        commit: Commit = storage.read_json(self._manifest(epoch), Commit)
        return commit

    def _delete_checkpoints_before(self, epoch: int) -> None:
        """Found by name, so that what a killed or a losing attempt left behind goes too."""
        for name in storage.names(self.uri):
            match = _CHECKPOINT.fullmatch(name)
            if match and int(match[1]) < epoch:
                storage.delete(storage.join(self.uri, name))
