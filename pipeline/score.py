"""Stage `score`: one value per score and example, from the proxy's dynamics; Ray tasks over ranges of ids."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ConfigDict, field_validator, model_validator

from pipeline import storage
from pipeline.config import Config
from pipeline.dynamics_store import DynamicsStore
from pipeline.parallel import map_items
from pipeline.pseudo_label import train_labels
from pipeline.reduce import Reduction
from pipeline.resources import Resources
from pipeline.scores import SCORES, Request, requests
from pipeline.stage import Artifact, Output, Part, Progress, write_table_part

SUM_ROWS = 1 << 13
"""Rows whose sum is one term of a mean: the terms, and so the mean, do not depend on how ids are cut into ranges."""


PART_ROWS = 1 << 21
"""Samples of a part, at most."""


def _as_written(schema: dict[str, Any]) -> None:
    """The JSON Schema of what stands in a recipe, where a mapping of scores is not called `scores`."""
    schema["properties"], schema["required"] = {}, []
    schema["propertyNames"] = {"pattern": f"^({'|'.join(SCORES.names())})(@.+)?$"}
    schema["additionalProperties"] = {"type": "object"}


class ScoreConfig(Config):
    """scores: options by name of score, in a recipe without the word `scores`: `score: {aum: {}, dual: {T: 30}}`.

    `dual@60: {T: 60}` is one more with settings of its own.
    """

    model_config = ConfigDict(json_schema_extra=_as_written)

    scores: dict[str, dict[str, Any]]

    @model_validator(mode="before")
    @classmethod
    def _wrap(cls, content: Any) -> Any:
        return content if isinstance(content, dict) and "scores" in content else {"scores": content}

    @field_validator("scores")
    @classmethod
    def _complete(cls, scores: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Sorted and with every default written out, so that equal settings have equal keys."""
        return {request.name: asdict(request.options) for request in requests(sorted(scores), scores)}

    def requests(self) -> list[Request]:
        """What is to be computed."""
        return requests(self.scores, self.scores)


def run(
    inputs: Mapping[str, Artifact], config: ScoreConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Reduce; parts: `part-*` with ascending ranges of sample_id, train_label and one f32 column per score column.

    inputs: pseudo_label, proxy; embed, if a score reads embeddings.
    """
    stores = {name: DynamicsStore(storage.join(inputs[name].uri, "dynamics")) for name in STORES if name in inputs}
    wanted = {name: [request for request in config.requests() if store_of(request) == name] for name in stores}
    reductions = [Reduction.of(stores[name], wanted[name]) for name in stores if wanted[name]]
    dynamics = stores["proxy"]
    reduce = partial(_reduce, reductions=reductions, pseudo_label=inputs["pseudo_label"], out=out.uri)
    span = max(store.span for store in stores.values())
    ranges = cut(dynamics.num_samples, span, resources.tasks or resources.max_workers)
    results = map_items(ranges, reduce, resources=resources, progress=progress, unit="ranges")
    parts, facts = zip(*(part for result in results for part in result), strict=True)
    for part in parts:
        out.add(part)
    harder = {column: end for request in config.requests() for column, end in request.harder.items()}
    columns = {name: np.concatenate([fact[name] for fact in facts]) for name in harder}
    return {
        "num_samples": dynamics.num_samples,
        "num_epochs": len(dynamics.epochs),
        "coverage": dynamics.coverage,
        "harder": harder,
        "columns": {
            name: {
                "min": rows[:, 0].min(),
                "max": rows[:, 1].max(),
                "mean": math.fsum(rows[:, 2]) / dynamics.num_samples,
            }
            for name, rows in columns.items()
        },
    }


STORES = ("proxy", "embed")


def store_of(request: Request) -> str:
    """The stage whose records a score reads: the proxy's training, or its last look at the pool."""
    return "embed" if "embedding" in request.score.reads else "proxy"


def cut(n: int, span: int, tasks: int) -> list[tuple[int, int]]:
    """0..n-1 in nearly equal ranges [low, high) of whole blocks, up to two a task: each opens every file anew.

    The larger ones come first, so that no task begins one when the others end.
    """
    unit = max(span, SUM_ROWS)  # both are powers of two
    blocks = -(-n // unit)
    count = min(2 * tasks, blocks)
    size, larger = divmod(blocks, count)
    return list(pairwise([unit * (i * size + min(i, larger)) for i in range(count)] + [n]))


def _reduce(
    ids: tuple[int, int], reductions: Sequence[Reduction], pseudo_label: Artifact, out: str
) -> list[tuple[Part, dict[str, NDArray[np.float64]]]]:
    """One task: writes the parts of ids [low, high); returns them and what the metrics need of each."""
    low, high = ids
    size = max(PART_ROWS, *(reduction.store.span for reduction in reductions))
    return [_write(start, min(start + size, high), reductions, pseudo_label, out) for start in range(low, high, size)]


def _write(
    low: int, high: int, reductions: Sequence[Reduction], pseudo_label: Artifact, out: str
) -> tuple[Part, dict[str, NDArray[np.float64]]]:
    tables = [reduction.range(low, high) for reduction in reductions]
    scores = {name: table[name] for table in tables for name in table.column_names if name != "sample_id"}
    labels = train_labels(pseudo_label, low, high)
    table = pa.table({"sample_id": np.arange(low, high), "train_label": labels, **scores})
    return write_table_part(out, f"part-{low:012d}", table), facts_of(pa.table(scores))


def facts_of(scores: pa.Table) -> dict[str, NDArray[np.float64]]:
    """(min, max, sum) of every SUM_ROWS rows of each column: the metrics then add up alike for any ranges."""
    starts = np.arange(0, scores.num_rows, SUM_ROWS)
    columns = {name: scores[name].to_numpy().astype(np.float64) for name in scores.column_names}
    return {
        name: np.stack([how.reduceat(column, starts) for how in (np.minimum, np.maximum, np.add)], axis=1)
        for name, column in columns.items()
    }
