"""Difficulty scores from training dynamics; a file in this package is a score of that name.

>>> from pipeline.scores import compute_scores
>>> table = compute_scores("run/dynamics", ["aum", "dual"], dual={"T": 30, "J": 10})
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.registry import ChoiceError, Component, Registry

if TYPE_CHECKING:
    import pyarrow as pa

Harder = Literal["high", "low"]
"""Which end of a column holds the harder examples."""


@dataclass(frozen=True)
class EpochStatistics:
    """One epoch of a range of n ids: dense arrays in id order; rows that are not `present` hold no meaning.

    p_label: probability of the label trained on, 0..1; p_other: the largest other probability, 0..1; el2n: L2 norm of
    (softmax - one-hot), 0..sqrt(2); entropy: of the softmax in nats; correct: the argmax is the label.
    """

    p_label: NDArray[np.float32]
    p_other: NDArray[np.float32]
    el2n: NDArray[np.float32]
    entropy: NDArray[np.float32]
    correct: NDArray[np.bool_]
    present: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.present)

    def slice(self, low: int, high: int) -> "EpochStatistics":
        """Rows low..high-1, as views."""
        return EpochStatistics(**{field.name: getattr(self, field.name)[low:high] for field in fields(self)})


class Score(Component, ABC):
    """A score computed in one pass over epochs, for n examples at a time.

    harder: the columns of its result, and for each of them which end is hard; epochs_option: the option that says how
    many leading epochs it needs, None if it takes what there is. A record that is not present is left out, never taken
    for 0; an example with too few records to have a score gets NaN.
    """

    harder: ClassVar[Mapping[str, Harder]]
    epochs_option: ClassVar[str | None] = None

    def __init__(self, n: int, options: Any) -> None:
        self.options = options

    @classmethod
    def num_epochs(cls, options: Any) -> int | None:
        """How many leading epochs the score needs, all of them recorded; None: it takes what there is."""
        return None if cls.epochs_option is None else int(getattr(options, cls.epochs_option))

    @abstractmethod
    def update(self, statistics: EpochStatistics, epoch: int) -> None:
        """Take in one epoch; epochs come in order from 0."""

    @abstractmethod
    def result(self) -> dict[str, NDArray[np.float32]]:
        """f32[n] for every column of `harder`."""


SCORES = Registry("score", Score, __name__, __path__)  # type: ignore[type-abstract]


def directions() -> dict[str, Harder]:
    """Which end is hard, for every column of every score."""
    return {column: end for name in SCORES.names() for column, end in SCORES.get(name).harder.items()}


def compute_scores(uri: str, names: Sequence[str], /, **options: Mapping[str, Any]) -> "pa.Table":
    """Scores of every example of a dynamics store, sorted by sample_id: sample_id and a f32 column per score column.

    uri: folder that a DynamicsWriter filled; names: scores, files of this package; options: settings of a score under
    its name. UserError if no score is named, if one or an option does not exist or needs more epochs than are recorded.
    """
    from pipeline.reduce import reduce_store  # the one import of I/O: kernels below this package stay numpy only

    if not names:
        raise ChoiceError(f"no score is asked for: choose from {', '.join(SCORES.names())}")
    for name in options:
        if name not in names:
            raise ChoiceError(f"options for score {name!r}, which is not computed: choose from {', '.join(names)}")
    return reduce_store(uri, {name: SCORES.options(name, options.get(name, {})) for name in names})
