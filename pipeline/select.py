"""Stage `select`: the coreset, exact to the sample, and what annotating it will cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from pipeline import auto, storage
from pipeline.config import Config
from pipeline.dynamics_store import DynamicsStore
from pipeline.errors import UserError
from pipeline.parallel import stream_items
from pipeline.pool import Pool, Rows, TablePool, Without
from pipeline.ranks import Cut
from pipeline.resources import Resources
from pipeline.selectors import AUTO, SELECTORS, Selector, budget, build, cuts, preferred
from pipeline.stage import Artifact, Output, Part, Progress, write_table_part
from pipeline.trust import HeldOut, expected_wrong, unlabelled_alone

T = TypeVar("T")
Ids = NDArray[np.int64]

TOGETHER = 1 << 24
"""Samples whose scores one process holds at once, and members of a coreset that it ranks; beyond, parts stay apart."""


class SelectConfig(Config):
    """One coreset of the `select` section of a recipe. A plan puts the recipe's seed in where there is none."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="what people call this coreset")
    selector: str = Field(
        description="how it is chosen", json_schema_extra=lambda name: name.update(enum=[*SELECTORS.names()])
    )
    keep_fraction: float = Field(gt=0, le=1, description="share of the pool")
    seed: int | None = Field(default=None, description="of random selectors and of ties; null: the recipe's")
    keep_labelled: bool = Field(
        default=False, description="whether every sample whose label was paid for is in it, within the budget"
    )
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True, description="of the selector")

    @field_validator("selector")
    @classmethod
    def _exists(cls, selector: str) -> str:
        SELECTORS.get(selector)
        return selector

    @field_validator("options")
    @classmethod
    def _complete(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """With every default written out, so that equal settings have equal keys."""
        if not {"selector", "keep_fraction"} <= info.data.keys():
            return options  # those have their own errors
        complete = asdict(build(info.data["selector"], info.data["keep_fraction"], options).options)
        for name, value in complete.get("options", {}).items():
            if value == AUTO:
                raise ValueError(f"{name}='auto' is chosen for all classes at once, not class by class: give a number")
        return complete

    def build(self) -> Selector:
        """The selector with its options."""
        return build(self.selector, self.keep_fraction, self.options)

    @property
    def undecided(self) -> str | None:
        """The option that held-out labels are to choose, if one is."""
        return auto.undecided(self.build())


def run(
    inputs: Mapping[str, Artifact], config: SelectConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Select; parts: sample_id ascending, and of up to 2^24 the rank (0 is the one to annotate first).

    inputs: score, split, trust; embed, if the selector reads embeddings; `earlier`, this selection of the version
    before, if what it kept stays and the rest of the budget is chosen among the samples that are new since. Metrics:
    cuts are the least and the largest kept value of the first score that the selector reads; annotation_bill counts
    every label paid for, those of the split that are not in the coreset too; wrong: what is expected of the coreset's
    pseudo-labels, as expected_wrong has it, None where nothing is, as of selectors without a choice where every fold of
    the labels was held out from a pool of its own; choice: the option that held-out labels choose or could have chosen,
    as `auto.choose` has it. UserError if the samples that are to be kept exceed the budget, if the version
    before had another keep_fraction, or if nothing can choose an auto option.
    """
    seed = config.seed
    assert seed is not None, "a plan resolves the seed"
    held = HeldOut.load(inputs["trust"])
    harder = inputs["score"].metrics["harder"]
    selector = config.build()
    pool = _open_pool(inputs, selector.columns, resources, progress)
    size = budget(config.keep_fraction, pool.num_samples)
    labelled = np.sort(inputs["split"].table()["sample_id"].to_numpy())
    forced = labelled if config.keep_labelled else labelled[:0]
    if len(forced) > size:
        raise UserError(
            f"select: {config.name!r} keeps the {len(forced)} labelled samples but its budget is {size}: raise "
            "keep_fraction, or set keep_labelled to false"
        )
    settled = forced
    if "earlier" in inputs:
        forced, settled = _go_on(inputs["earlier"], forced, size, config)
    others = Without(pool, settled) if len(settled) else pool
    choice = auto.choose(selector, others, size - len(forced), held, harder, seed) if len(forced) < size else None
    if choice and choice["auto"]:
        if choice["used"] is None:
            raise UserError(
                f"select: {config.name!r} has {choice['option']}=auto but no label is held out to choose it by: set "
                "split.holdout_fraction above 0 and give more labels, or name a number"
            )
        selector = type(selector)(replace(selector.options, **{choice["option"]: choice["used"]}))
    found = cuts(selector, others, [size - len(forced)], seed) if len(forced) < size else []
    column = next((name for name in selector.columns if name in inputs["score"].metrics["harder"]), None)
    together = size <= TOGETHER
    kept = list(pool.map(_Keep(found, forced, settled, labelled, column, None if together else out.uri)))
    if together:
        ids = np.concatenate([forced, *(preferred(others, cut) for cut in found)])
        ascending = np.argsort(ids)
        out.write_table(pa.table({"sample_id": ids[ascending], "rank": ascending}))
    for part in sorted((facts.part for facts in kept if facts.part), key=lambda part: part.name):
        out.add(part)
    assert sum(part.rows for part in out.parts) == size, "a selector keeps its exact budget"
    in_coreset = np.concatenate([facts.labelled for facts in kept])
    both, seen = len(in_coreset), held.wrong[np.isin(held.sample_ids, in_coreset)]
    wrong, total = int(seen.sum()), len(seen)
    if choice and choice["auto"]:  # by rows that did not take part in the choice
        wrong, total = choice["evidence"]["kept"]
    elif not held.in_pool:  # by the cut or the draw in the pool of each fold
        wrong, total = choice["evidence"]["kept"] if choice and choice["evidence"] else (0, 0)
    expected = None if config.keep_labelled else expected_wrong(wrong, total, size - both)
    ranges = [facts.range for facts in kept if facts.range]
    return {
        "name": config.name,
        "selector": config.selector,
        "method": selector.source,
        "score": column,
        "keep_fraction": config.keep_fraction,
        "budget": size,
        "num_samples": pool.num_samples,
        "cuts": {"column": column, "low": min(low for low, _ in ranges), "high": max(high for _, high in ranges)}
        if ranges
        else None,
        "labelled_in_coreset": both,
        "annotation_bill": size - both + len(labelled),
        "wrong": expected if held.in_pool else unlabelled_alone(expected),
        "choice": choice,
    }


def _go_on(earlier: Artifact, forced: Ids, size: int, config: SelectConfig) -> tuple[Ids, Ids]:
    """Which samples are kept without choice, those of the version before too, and about which there is none."""
    was = earlier.metrics["keep_fraction"]
    if was != config.keep_fraction:
        raise UserError(
            f"select: {config.name!r} keeps what was selected at keep_fraction={was:g}, to which a part of the new "
            f"samples cannot be added at {config.keep_fraction:g}: put it back, or set refresh.budget to cumulative"
        )
    kept = np.union1d(earlier.table()["sample_id"].to_numpy(), forced)
    if len(kept) > size:
        raise UserError(
            f"select: {config.name!r} keeps the samples of the version before and the labelled ones, {len(kept)} in "
            f"all, but its budget is {size}: set keep_labelled to false, or refresh.budget to cumulative"
        )
    return kept, np.union1d(np.arange(earlier.metrics["num_samples"]), kept)


def _open_pool(
    inputs: Mapping[str, Artifact], columns: Sequence[str], resources: Resources, progress: Progress
) -> Pool:
    """The scores as one table in this process, or where they are many, part by part in Ray tasks."""
    score = inputs["score"]
    num_samples = sum(part.rows for part in score.parts())
    if "embedding" not in columns and num_samples > TOGETHER:
        return _Parts(score, columns, resources, progress)
    table = score.table(columns=["sample_id", *(name for name in columns if name != "embedding")])
    if "embedding" in columns:
        store = DynamicsStore(storage.join(inputs["embed"].uri, "dynamics"))
        vectors = store.read(0, 0, num_samples, ["embedding"])["embedding"]  # ids of both are 0 .. num_samples - 1
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        table = table.append_column("embedding", column)
    progress(num_samples, num_samples, "samples")
    return TablePool(table, columns)


class _Parts(Pool):
    """Every part of the scores is a partition, and every look at it a Ray task."""

    def __init__(self, score: Artifact, columns: Sequence[str], resources: Resources, progress: Progress) -> None:
        self.num_samples = sum(part.rows for part in score.parts())
        self._score = score
        self._columns = columns
        self._resources = resources
        self._progress = progress

    def map(self, function: Callable[[Rows], T]) -> Iterator[T]:
        """In Ray tasks."""
        look = partial(_look, score=self._score, columns=self._columns, function=function)
        found = stream_items(
            self._score.parts(), look, resources=self._resources, progress=self._progress, unit="parts"
        )
        return (result for _, result in found)


def _look(part: Part, score: Artifact, columns: Sequence[str], function: Callable[[Rows], T]) -> T:
    return function(Rows.of(score.read_table(part, ["sample_id", *columns]), columns))


@dataclass(frozen=True)
class _Kept:
    """Of one partition: labelled ids in the coreset, least and largest kept value, the part with the ids."""

    labelled: NDArray[np.int64]
    range: tuple[float, float] | None
    part: Part | None


@dataclass(frozen=True)
class _Keep:
    """What one partition says of the coreset. settled: about which the cuts, which leave them out, say nothing.

    folder: where its ids are written to, None if they are not.
    """

    cuts: Sequence[Cut]
    forced: Ids
    settled: Ids
    labelled: Ids
    column: str | None
    folder: str | None

    def __call__(self, rows: Rows) -> _Kept:
        mask = np.isin(rows.sample_ids, self.forced)
        open_ = ~np.isin(rows.sample_ids, self.settled)
        for cut in self.cuts:
            mask[np.flatnonzero(open_)[cut.kept(rows.where(open_))[0]]] = True
        kept = rows.where(mask)
        values = kept[self.column] if self.column else np.empty(0)
        ends = (float(values.min()), float(values.max())) if len(values) and values.ndim == 1 else None
        part = None
        if self.folder is not None:
            table = pa.table({"sample_id": kept.sample_ids})
            part = write_table_part(self.folder, f"part-{rows.sample_ids[0]:012d}", table)
        return _Kept(kept.sample_ids[np.isin(kept.sample_ids, self.labelled)], ends, part)
