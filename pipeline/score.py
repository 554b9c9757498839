"""Stage `score`: one value per score and example, from the proxy's dynamics; Ray tasks over ranges of ids."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import field_validator, model_validator

from pipeline import storage
from pipeline.config import Config
from pipeline.dynamics import DynamicsStore
from pipeline.parallel import map_items
from pipeline.reduce import CHUNK, RANGE, check_epochs, reduce_range
from pipeline.resources import Resources
from pipeline.scores import SCORES, directions
from pipeline.stage import Artifact, Output, Part, Progress, write_table_part


class ScoreConfig(Config):
    """scores: options by name of score, in a recipe without the word `scores`: `score: {aum: {}, dual: {T: 30}}`."""

    scores: dict[str, dict[str, Any]]

    @model_validator(mode="before")
    @classmethod
    def _wrap(cls, content: Any) -> Any:
        return content if isinstance(content, dict) and "scores" in content else {"scores": content}

    @field_validator("scores")
    @classmethod
    def _complete(cls, scores: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Sorted and with every default written out, so that equal settings have equal keys."""
        if not scores:
            raise ValueError(f"no score is asked for: choose from {', '.join(SCORES.names())}")
        return {name: asdict(SCORES.options(name, scores[name])) for name in sorted(scores)}

    def options(self) -> dict[str, Any]:
        """The Options of every score."""
        return {name: SCORES.options(name, values) for name, values in self.scores.items()}


def run(
    inputs: Mapping[str, Artifact], config: ScoreConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Reduce; parts: `part-*` with ascending ranges of sample_id and one f32 column per score column.

    inputs: proxy.
    """
    uri = storage.join(inputs["proxy"].uri, "dynamics")
    store = DynamicsStore(uri)
    check_epochs(store, config.options())
    reduce = partial(_reduce, uri=uri, config=config, out=out.uri)
    ranges = cut(store.num_samples, resources.num_workers)
    results = map_items(ranges, reduce, resources=resources, progress=progress, unit="ranges")
    parts, facts = zip(*results, strict=True)
    for part in parts:
        out.add(part)
    columns = {name: np.concatenate([fact[name] for fact in facts]) for name in facts[0]}
    return {
        "num_samples": store.num_samples,
        "num_epochs": len(store.epochs),
        "coverage": store.coverage,
        "harder": {name: directions()[name] for name in columns},
        "columns": {
            name: {"min": rows[:, 0].min(), "max": rows[:, 1].max(), "mean": math.fsum(rows[:, 2]) / store.num_samples}
            for name, rows in columns.items()
        },
    }


def cut(n: int, num_workers: int) -> list[tuple[int, int]]:
    """0..n-1 in nearly equal ranges [low, high) from multiples of CHUNK: one a worker, more where RANGE wants it."""
    chunks = -(-n // CHUNK)
    count = min(max(num_workers, -(-n // RANGE)), chunks)
    return list(itertools.pairwise([chunks * index // count * CHUNK for index in range(count)] + [n]))


def _reduce(
    ids: tuple[int, int], uri: str, config: ScoreConfig, out: str
) -> tuple[Part, dict[str, NDArray[np.float64]]]:
    """One task: writes the part of ids [low, high); returns it and what the metrics need of it."""
    table = reduce_range(DynamicsStore(uri), *ids, config.options())
    return write_table_part(out, f"part-{ids[0]:012d}", table), facts_of(table)


def facts_of(table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """(min, max, sum) of every CHUNK of rows of each score column: the metrics then add up alike for any ranges."""
    starts = np.arange(0, table.num_rows, CHUNK)
    columns = {name: table[name].to_numpy().astype(np.float64) for name in table.column_names if name != "sample_id"}
    return {
        name: np.stack([how.reduceat(column, starts) for how in (np.minimum, np.maximum, np.add)], axis=1)
        for name, column in columns.items()
    }
