"""Every exception that SemiPrune raises on purpose.

SemiPruneError
├── UserError                a mistake that the user can mend: one sentence with value, choices and next step
│   └── DataError            the data is not what the recipe says (quarantine over its limit, a changed shard)
├── StorageError             a disk or a store failed in a way that may pass
└── CorruptArtifactError     a committed file is missing or damaged
"""


class SemiPruneError(Exception):
    """Base of all deliberate errors; its message is one clear sentence."""


class UserError(SemiPruneError):
    """The user's input cannot be used; the message names the value and the next step. Exit status 2."""


class DataError(UserError):
    """The data contradicts the recipe or the index; the message names the shard. Exit status 2."""


class CorruptArtifactError(SemiPruneError):
    """A committed file is missing or its checksum differs; the message names the file. Exit status 1."""


class StorageError(SemiPruneError):
    """A disk or a store failed in a way that may pass: trainings try again. The message names the place. Status 1."""
