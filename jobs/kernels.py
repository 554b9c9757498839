"""`semiprune score` and `semiprune select`: the kernels on files of the user's own, without a recipe or Ray.

Importing this costs no more than numpy, so that --help can describe the methods: Parquet and storage come when used.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.scores import SCORES, compute_scores, directions
from pipeline.selectors import SELECTORS, select
from pipeline.values import parse_value

if TYPE_CHECKING:
    import pyarrow as pa


def describe_scores() -> str:
    """Every score in a paragraph of its own: name, what it is, where it comes from."""
    return SCORES.describe()


def describe_selectors() -> str:
    """Every selector in a paragraph of its own: name, what it is, where it comes from."""
    return SELECTORS.describe()


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """ "T=30" to {"T": 30}: the value is YAML."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"{text!r} is not of the form name=value")
        if name in options:
            raise UserError(f"the option {name!r} is given twice: give it once")
        options[name] = parse_value(value, name)
    return options


def score_store(dynamics: str, out: str, requests: Sequence[str]) -> list[tuple[str, ...]]:
    """Compute scores ("dual:T=30,J=10") and write them as Parquet; all that the recorded epochs allow if none is named.

    Returns (column, harder, min, mean, max) per score column; of a score that was left out, its name and why.
    """
    import pyarrow.compute as pc

    wanted: dict[str, dict[str, Any]] = {}
    for request in requests:
        name, _, options = request.partition(":")
        if name in wanted:
            raise UserError(f"the score {name!r} is named twice: name it once")
        wanted[name] = parse_options([text for text in options.split(",") if text])
    left_out = {} if requests else _too_long(dynamics)
    names = list(wanted) or [name for name in SCORES.names() if name not in left_out]
    scores = compute_scores(dynamics, names, **wanted)
    _write(out, scores)
    rows: list[tuple[str, ...]] = []
    for column in scores.column_names[1:]:
        values = scores[column]
        extremes = pc.min_max(values).as_py()
        numbers = (extremes["min"], pc.mean(values).as_py(), extremes["max"])
        rows.append((column, directions()[column], *(f"{number:.4g}" for number in numbers)))
    return rows + [(name, f"left out: {why}", "", "", "") for name, why in left_out.items()]


def select_from_table(
    scores: str, selector: str, keep_fraction: float, seed: int, options: Sequence[str], out: str
) -> tuple[int, int]:
    """Select from a Parquet file with sample_id and score columns; writes sample_id, ascending. Returns (kept, of)."""
    import pyarrow as pa

    chosen = parse_options(options)
    taken = sorted({"keep_fraction", "seed"} & chosen.keys())
    if taken:
        raise UserError(f"{taken[0]!r} is no option of a selector: give it as --{taken[0].replace('_', '-')}")
    table = _read(scores)
    kept = select(table, selector, keep_fraction=keep_fraction, seed=seed, **chosen)
    _write(out, pa.table({"sample_id": kept}))
    return len(kept), table.num_rows


def _too_long(dynamics: str) -> dict[str, str]:
    """The scores whose defaults need more epochs than are recorded, and what they say."""
    from pipeline.dynamics import DynamicsStore
    from pipeline.reduce import lacking_epochs

    recorded = len(DynamicsStore(dynamics).epochs)
    complaints = {name: lacking_epochs(name, SCORES.options(name, {}), recorded) for name in SCORES.names()}
    return {name: why for name, why in complaints.items() if why}


def _read(uri: str) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline import storage

    try:
        data = storage.read(uri)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {uri!r}: write one with `semiprune score`") from error
    except IsADirectoryError as error:
        raise UserError(f"{uri!r} is a folder: name the Parquet file in it") from error
    try:
        table = pq.read_table(io.BytesIO(data))
        return table.rename_columns(table.column_names)  # names are decoded here, not when someone asks for them
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{uri!r} is no whole Parquet file: write it again, as with `semiprune score`") from error


def _write(uri: str, table: "pa.Table") -> None:
    import pyarrow.parquet as pq

    from pipeline import storage

    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write(uri, sink.getbuffer())
