"""What fsck says of a place, and what it makes of an error."""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import CorruptArtifactError

Kind = Literal["damaged", "missing", "unreadable", "gap", "coverage", "left over"]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file or an epoch, or which files nobody needs; where: below the run."""

    where: str
    kind: Kind
    detail: str
    fix: str

    @property
    def is_damage(self) -> bool:
        """False for what killed attempts left over, which no reader ever sees."""
        return self.kind != "left over"


def trouble(uri: str, error: Exception, fix: str) -> Finding:
    """What is wrong with a file whose reading raised this."""
    if isinstance(error, FileNotFoundError):
        return Finding(uri, "missing", "a manifest names it", fix)
    if isinstance(error, CorruptArtifactError | IsADirectoryError):
        return Finding(uri, "damaged", "it is not what was written", fix)
    return Finding(uri, "unreadable", str(error), "look after the disk and the permissions")
