"""`semiprune score` and `semiprune select`: the kernels on files of the user's own, without a recipe or Ray.

Importing this costs no more than numpy, so that --help can describe the methods: Parquet and storage come when used.
"""

import io
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.scores import SCORES, Request, direction, requests
from pipeline.selectors import SELECTORS, budget, build, cuts
from pipeline.values import parse_value

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.stage import Progress

    Stage = Callable[[str], AbstractContextManager[Progress]]


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


def score_store(
    dynamics: str, out: str, asked: Sequence[str], stage: "Stage"
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Compute scores and write them as Parquet.

    asked: such as "dual:T=30,J=10" or "dual@60:T=60"; all that the store allows if none is. Returns (column, harder,
    min, mean, max) per score column, and why other scores were left out.
    """
    import pyarrow.compute as pc

    from pipeline.dynamics_store import DynamicsStore
    from pipeline.reduce import Reduction, lacking, reduce_all

    _refuse_input(out, dynamics)
    options = {}
    for request in asked:
        name, _, settings = request.partition(":")
        if name in options:
            raise UserError(f"the score {name!r} is named twice: name it once, or call one of them {name}@NAME")
        options[name] = parse_options([text for text in settings.split(",") if text])
    store = DynamicsStore(dynamics)
    left_out = {}
    if not asked:
        complaints = {name: lacking(store, Request.of(name, {})) for name in SCORES.names()}
        left_out = {name: why for name, why in complaints.items() if why}
    names = list(options) or [name for name in SCORES.names() if name not in left_out]
    reduction = Reduction.of(store, requests(names, options))
    with stage("score") as progress:
        scores = reduce_all(reduction, progress)
        _write(out, scores)
    rows: list[tuple[str, ...]] = []
    for column in scores.column_names[1:]:
        values = scores[column]
        extremes = pc.min_max(values).as_py()
        numbers = (extremes["min"], pc.mean(values).as_py(), extremes["max"])
        rows.append((column, direction(column) or "", *(f"{number:.4g}" for number in numbers)))
    return rows, list(left_out.values())


def select_from_files(
    scores: str,
    selector: str,
    keep_fractions: Sequence[float],
    seed: int,
    options: Sequence[str],
    out: str,
    stage: "Stage",
) -> list[tuple[str, int, int]]:
    """Select from Parquet files with sample_id and score columns; writes sample_id, ascending.

    out: where to, with {keep} in its place for each of several keep fractions. Returns (file, kept, of) for each.
    """
    import numpy as np
    import pyarrow as pa

    from pipeline.score_files import ScoreFiles, open_scores

    chosen = parse_options(options)
    taken = sorted({"keep_fraction", "seed"} & chosen.keys())
    if taken:
        raise UserError(f"{taken[0]!r} is no option of a selector: give it as --{taken[0].replace('_', '-')}")
    files = [out.replace("{keep}", f"{keep:g}") for keep in keep_fractions]
    if len(set(files)) < len(files):
        raise UserError(
            f"{out!r} is one file for {len(files)} keep fractions: write {{keep}} where theirs should stand"
        )
    for file in files:
        _refuse_input(file, scores)
    built = [build(selector, keep, chosen) for keep in keep_fractions]
    pool = open_scores(scores, built[0].columns)
    budgets = [budget(keep, pool.num_samples) for keep in keep_fractions]
    with stage("select") as progress:
        if isinstance(pool, ScoreFiles):
            pool.progress = progress
        found = cuts(built[0], pool, budgets, seed)
        kept = list(pool.map(lambda rows: [rows.sample_ids[cut.kept(rows)[0]] for cut in found]))
        for file, size, parts in zip(files, budgets, zip(*kept, strict=True), strict=True):
            ids = np.sort(np.concatenate(parts))
            assert len(ids) == size, "a selector keeps its exact budget"
            _write(file, pa.table({"sample_id": ids}))
    return [(file, size, pool.num_samples) for file, size in zip(files, budgets, strict=True)]


def _refuse_input(out: str, source: str) -> None:
    """UserError if writing `out` would replace what is read, or put a file among it."""
    for read in _places(source):
        for written in _places(out):
            if written == read:
                raise UserError(f"{out!r} is what is read: name another file to write")
            if written[: len(read)] == read:
                raise UserError(f"{out!r} lies in {source!r}, which is read: name a file outside of it to write")


def _places(uri: str) -> list[tuple[str, ...]]:
    """Where an object is, in parts: for a link both its own place and that of what it points to."""
    from pipeline import storage

    fs, path = storage.resolve(uri)
    paths = [path]
    if storage.is_local(uri):
        paths = [os.path.realpath(path), str(Path(os.path.realpath(Path(path).parent), Path(path).name))]
    return [(type(fs).__name__, *path.rstrip("/").split("/")) for path in paths]


def _write(uri: str, table: "pa.Table") -> None:
    import pyarrow.parquet as pq

    from pipeline import storage

    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write(uri, sink.getbuffer())
