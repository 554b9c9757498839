"""Difficulty scores from training dynamics; a file in this package is a score of that name.

>>> from pipeline.scores import compute_scores
>>> table = compute_scores("run/dynamics", ["aum", "dual"], dual={"T": 30, "J": 10})

"dual@60" is the score dual under a name of its own: several settings of a score in one pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.registry import ChoiceError, Component, Registry
from pipeline.windows import Counts, Rows, Window

if TYPE_CHECKING:
    import pyarrow as pa

Harder = Literal["high", "low"]
"""Which end of a column holds the harder examples."""


@dataclass(frozen=True)
class Records:
    """What one epoch says of m of a kernel's n examples; one that has no record in this epoch is not among them.

    epoch: 0-based; rows: which of the n examples these are; columns: as recorded, those that the score `reads`, [m]
    each: p_label f32, probability of the label trained on, 0..1; p_other f32, the largest other probability, 0..1; el2n
    f32, L2 norm of (softmax - one-hot), 0..sqrt(2); entropy f32, of the softmax in nats; correct bool, the argmax is
    the label; where they were recorded, probs f32[m, C] and embedding f32[m, d]. windows: of p_label, by J, for a score
    that is `windowed`. All scores are given the same arrays, and the next epoch their memory: copy what is to be kept
    or changed.
    """

    epoch: int
    rows: Rows
    columns: Mapping[str, NDArray[Any]]
    windows: dict[int, Window] = field(default_factory=dict)
    _float64: dict[str, NDArray[np.float64]] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    def float64(self, column: str) -> NDArray[np.float64]:
        """Numbers of a column that several scores add up, converted once for all of them."""
        if column not in self._float64:
            self._float64[column] = self.columns[column].astype(np.float64)
        return self._float64[column]


class Score(Component, ABC):
    """A score computed in one pass over epochs, for n examples at a time.

    reads: the recorded columns that it takes; harder: the columns of its result, and for each of them which end is
    hard; epochs_option: the option that says which epochs it needs, None if it takes what there is;
    windowed: whether it takes windows of its option J. A record that is missing is left out, never taken for 0; an
    example with too few records to have a score gets NaN.
    """

    reads: ClassVar[tuple[str, ...]]
    harder: ClassVar[Mapping[str, Harder]]
    epochs_option: ClassVar[str | None] = None
    windowed: ClassVar[bool] = False

    def __init__(self, n: int, options: Any, prepared: Any = None) -> None:
        self.options = options
        self.count = Counts(n)
        """Records of each example so far: `count[rows]`."""

    @classmethod
    def epochs(cls, options: Any, recorded: int) -> range:
        """The epochs it takes when so many are recorded; it reaches beyond them if it needs more."""
        return range(recorded if cls.epochs_option is None else int(getattr(options, cls.epochs_option)))

    @classmethod
    def prepare(cls, options: Any, sample: Mapping[str, NDArray[Any]], num_classes: int) -> Any:
        """What the kernels share, from a sample of the last epoch that the score takes; None if nothing."""
        return None

    def update(self, records: Records) -> None:
        """Take in one of its epochs; they come in order."""
        self.count.add(records.rows)
        self.add(records)

    def result(self) -> dict[str, NDArray[np.float32]]:
        """f32[n] for every column of `harder`; NaN where there was no record."""
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0, of an example without records
            found = {name: values.astype(np.float32) for name, values in self.values().items()}
        for values in found.values():
            values[self.count[:] == 0] = np.nan
        return found

    @abstractmethod
    def add(self, records: Records) -> None:
        """Bring the state of the examples at `records.rows` up to date; `count` is already."""

    @abstractmethod
    def values(self) -> dict[str, NDArray[Any]]:
        """[n] for every column of `harder`; whatever where `count` is 0."""


class OneEpoch(Score):
    """A score of the records of a single epoch; NaN without one in it."""

    epochs_option: ClassVar = "epoch"

    @dataclass(frozen=True)
    class Options(Score.Options):
        """epoch: which, from 0; None, the last recorded."""

        epoch: int | None = None

        def __post_init__(self) -> None:
            if self.epoch is not None and self.epoch < 0:
                raise ValueError(f"epoch={self.epoch} does not exist: count from 0, or leave it out for the last")

    @classmethod
    def epochs(cls, options: Any, recorded: int) -> range:
        """That one."""
        epoch = recorded - 1 if options.epoch is None else int(options.epoch)
        return range(epoch, epoch + 1)


SCORES = Registry("score", Score, __name__, __path__)  # type: ignore[type-abstract]


@dataclass(frozen=True)
class Request:
    """A score that is to be computed. name: "dual", or "dual@60" for the same score under a name of its own."""

    name: str
    options: Any

    @staticmethod
    def of(name: str, options: Mapping[str, Any]) -> "Request":
        """Checked and with defaults; ChoiceError naming what does not exist."""
        return Request(name, SCORES.options(_split(name)[0], options))

    @property
    def score(self) -> type[Score]:
        """The class that computes it."""
        return SCORES.get(_split(self.name)[0])

    @property
    def harder(self) -> dict[str, Harder]:
        """Its columns, "dual_mean@60" for a name of its own, and which end of each is hard."""
        suffix = _split(self.name)[1]
        return {column + suffix: end for column, end in self.score.harder.items()}

    def kernel(self, n: int, prepared: Any = None) -> Score:
        """A kernel for n examples."""
        return self.score(n, self.options, prepared)

    def epochs(self, recorded: int) -> range:
        """The epochs it takes, as Score.epochs."""
        return self.score.epochs(self.options, recorded)

    def lacking(self, recorded: int) -> str | None:
        """The complaint that it needs more epochs than are recorded; None if it does not."""
        needed = self.epochs(recorded).stop
        if needed <= recorded:
            return None
        option = self.score.epochs_option
        value = f" ({option}={getattr(self.options, option)})" if option else ""
        return f"{self.name} needs {needed} epochs{value} but {recorded} are recorded"


def _split(name: str) -> tuple[str, str]:
    """ "dual@60" to ("dual", "@60")."""
    score, at, variant = name.partition("@")
    if at and not variant:
        raise ChoiceError(f"score {name!r} has no name after the @: write {score}@NAME, or {score} alone")
    return score, at + variant


def direction(column: str) -> Harder | None:
    """Which end of a score column is hard; None for a column of none of our scores."""
    return directions().get(_split(column)[0])


def directions() -> dict[str, Harder]:
    """Which end is hard, for every column of every score."""
    return {column: end for name in SCORES.names() for column, end in SCORES.get(name).harder.items()}


def compute_scores(uri: str, names: Sequence[str], /, **options: Mapping[str, Any]) -> "pa.Table":
    """Scores of every example of a dynamics store, sorted by sample_id: sample_id and a f32 column per score column.

    uri: folder that a DynamicsWriter filled; names: scores, files of this package, "dual@60" for one more with settings
    of its own; options: settings of a score under its name. UserError if no score is named, if one or an option does
    not exist, or if it needs more epochs or other columns than are recorded.
    """
    from pipeline.reduce import reduce_store  # the one import of I/O: kernels below this package stay numpy only

    return reduce_store(uri, requests(names, options))


def requests(names: Iterable[str], options: Mapping[str, Mapping[str, Any]]) -> list[Request]:
    """What to compute; ChoiceError if it is nothing, something or a column twice, or options of something else."""
    wanted = list(names)
    if not wanted:
        raise ChoiceError(f"no score is asked for: choose from {', '.join(SCORES.names())}")
    for name in options:
        if name not in wanted:
            raise ChoiceError(f"options for score {name!r}, which is not computed: choose from {', '.join(wanted)}")
    for name in wanted:
        if wanted.count(name) > 1:
            raise ChoiceError(f"the score {name!r} is named twice: name it once, or call one of them {name}@NAME")
    found = [Request.of(name, options.get(name, {})) for name in wanted]
    givers: dict[str, str] = {}
    for request in found:
        for column in request.harder:
            if column in givers:
                raise ChoiceError(
                    f"the scores {givers[column]!r} and {request.name!r} both give the column {column!r}: ask for one "
                    "of them, or rename the column in the file of one"
                )
            givers[column] = request.name
    return found
