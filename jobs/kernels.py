"""`semiprune score` and `semiprune select`: the kernels on files of the user's own, without a recipe or Ray."""

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from pipeline import storage
from pipeline.errors import UserError
from pipeline.scores import SCORES, compute_scores, directions
from pipeline.selectors import select


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """ "T=30" to {"T": 30}: the value is YAML."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"{text!r} is not of the form name=value")
        options[name] = yaml.safe_load(value)
    return options


def score_store(dynamics: str, out: str, requests: Sequence[str]) -> list[tuple[str, ...]]:
    """Compute scores ("dual:T=30,J=10"; all with their defaults when none is named) and write them as Parquet.

    Returns (column, harder, min, mean, max) per score column.
    """
    wanted: dict[str, dict[str, Any]] = {}
    for request in requests or SCORES.names():
        name, _, options = request.partition(":")
        wanted[name] = parse_options([text for text in options.split(",") if text])
    scores = compute_scores(dynamics, list(wanted), **wanted)
    _write(out, scores)
    rows = []
    for column in scores.column_names[1:]:
        values = scores[column]
        extremes = pc.min_max(values).as_py()
        numbers = (extremes["min"], pc.mean(values).as_py(), extremes["max"])
        rows.append((column, directions()[column], *(f"{number:.4g}" for number in numbers)))
    return rows


def select_from_table(
    scores: str, selector: str, keep_fraction: float, seed: int, options: Sequence[str], out: str
) -> tuple[int, int]:
    """Select from a Parquet file with sample_id and score columns; writes sample_id, ascending. Returns (kept, of)."""
    try:
        table = pq.read_table(io.BytesIO(storage.read(scores)))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {scores!r}: write one with `semiprune score`") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{scores!r} is not a Parquet file: write one with `semiprune score`") from error
    chosen = parse_options(options)
    taken = sorted({"keep_fraction", "seed"} & chosen.keys())
    if taken:
        raise UserError(f"{taken[0]!r} is no option of a selector: give it as --{taken[0].replace('_', '-')}")
    kept = select(table, selector, keep_fraction=keep_fraction, seed=seed, **chosen)
    _write(out, pa.table({"sample_id": kept}))
    return len(kept), table.num_rows


def _write(uri: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write(uri, sink.getbuffer())
