"""AUM, forgetting and DUAL(T=30, J=10) by DuckDB and by Polars from the Parquet files of a dynamics store, exactly.

Several formulations each, with all cores and at most some 14 GB of memory, for any number of epochs; every function
returns sample_id ascending and the four columns of ours.
"""

import tempfile
from collections.abc import Callable
from functools import reduce
from itertools import pairwise

import duckdb
import polars as pl
import pyarrow as pa

from pipeline.dynamics_store import DynamicsStore
from pipeline.storage import join

T, J = 30, 10

MEMORY = "12GB"
"""Of DuckDB, which puts what is more on disk where it can; Polars takes less."""

OutOfMemory = duckdb.OutOfMemoryException

WORD = 60
"""Epochs whose `correct` are the bits of a 64-bit integer."""


def files(store: DynamicsStore) -> list[list[str]]:
    """Of every epoch."""
    return [[join(store.uri, part.name) for part in commit.files] for commit in store.commits]


def _records(store: DynamicsStore, epochs: range, columns: str) -> str:
    """SQL of all records of some epochs, with the epoch's number."""
    return " UNION ALL ".join(
        f"SELECT {epoch} AS epoch, sample_id, {columns} FROM read_parquet({files(store)[epoch]})" for epoch in epochs
    )


def duckdb_windows(store: DynamicsStore) -> pa.Table:
    """Window functions throughout."""
    records = _records(store, store.epochs, "p_label::DOUBLE AS p, p_other::DOUBLE AS o, correct")
    return _sql(f"""
        WITH records AS ({records}),
        steps AS (
            SELECT sample_id, epoch, p, o, correct, lag(correct) OVER history AS before,
                   stddev_samp(p) OVER w AS s, avg(p) OVER w AS m, count(*) OVER w AS filled
            FROM records WINDOW history AS (PARTITION BY sample_id ORDER BY epoch),
                 w AS (PARTITION BY sample_id ORDER BY epoch ROWS {J - 1} PRECEDING)
        )
        SELECT sample_id, sum(p - o) AS aum,
               CASE WHEN bool_or(correct) THEN count(*) FILTER (before AND NOT correct) ELSE count(*) END AS forgetting,
               10 * avg(s * (1 - m)) FILTER (filled = {J} AND epoch < {T}) AS dual,
               avg(p) FILTER (epoch < {T}) AS dual_mean
        FROM steps GROUP BY sample_id ORDER BY sample_id
    """)


def _history(store: DynamicsStore) -> list[str]:
    """SQL that makes a table `history` of what needs no window: AUM, and forgetting from `correct` as bits of integers.

    One aggregation of WORD epochs after the other, since DuckDB holds what it aggregates.
    """
    E = len(store.epochs)
    words = [range(start, min(start + WORD, E)) for start in range(0, E, WORD)]
    tables = [
        f"""
        CREATE TABLE history{i} AS
        SELECT sample_id, sum(p_label::DOUBLE - p_other) AS aum{i},
               bit_or(correct::BIGINT << (epoch - {word.start})) AS bits{i}
        FROM ({_records(store, word, "p_label, p_other, correct")}) GROUP BY sample_id
        """
        for i, word in enumerate(words)
    ]
    within = [f"bit_count(bits{i} & ~(bits{i} >> 1) & {(1 << len(word) - 1) - 1})" for i, word in enumerate(words)]
    between = [f"((bits{i} >> {WORD - 1}) & ~bits{i + 1} & 1)" for i in range(len(words) - 1)]
    never = " AND ".join(f"bits{i} = 0" for i in range(len(words)))
    joined = " JOIN ".join(f"history{i}" + (" USING (sample_id)" if i else "") for i in range(len(words)))
    whole = f"""
        CREATE TABLE history AS
        SELECT sample_id, {" + ".join(f"aum{i}" for i in range(len(words)))} AS aum,
               CASE WHEN {never} THEN {E} ELSE {" + ".join(f"{x}::INTEGER" for x in within + between)} END AS forgetting
        FROM {joined}
    """
    return [*tables, whole]


def _with_history(store: DynamicsStore, dual: str) -> pa.Table:
    """dual: SQL of sample_id, dual and dual_mean."""
    return _sql(*_history(store), f"SELECT * FROM history JOIN ({dual}) AS dual USING (sample_id) ORDER BY sample_id")


def duckdb_bits(store: DynamicsStore) -> pa.Table:
    """Window functions for DUAL alone."""
    windows = f"""
        SELECT sample_id, p, stddev_samp(p) OVER w AS s, avg(p) OVER w AS m, count(*) OVER w AS filled
        FROM ({_records(store, range(T), "p_label::DOUBLE AS p")})
        WINDOW w AS (PARTITION BY sample_id ORDER BY epoch ROWS {J - 1} PRECEDING)
    """
    return _with_history(
        store,
        f"""
        SELECT sample_id, 10 * avg(s * (1 - m)) FILTER (filled = {J}) AS dual, avg(p) AS dual_mean
        FROM ({windows}) GROUP BY sample_id
        """,
    )


def _wide_dual(wide: str) -> str:
    """SQL of DUAL from that of columns p0, p1, ..: first the windows' means."""
    windows = range(T - J + 1)
    means = ", ".join(f"({' + '.join(f'p{e}' for e in range(k, k + J))}) / {J} AS m{k}" for k in windows)
    spread = " + ".join(
        f"sqrt(({' + '.join(f'(p{e} - m{k}) * (p{e} - m{k})' for e in range(k, k + J))}) / {J - 1}) * (1 - m{k})"
        for k in windows
    )
    mean = " + ".join(f"p{e}" for e in range(T))
    return f"""
        SELECT sample_id, 10 * ({spread}) / {len(windows)} AS dual, ({mean}) / {T} AS dual_mean
        FROM (SELECT *, {means} FROM {wide})
    """


def duckdb_pivot(store: DynamicsStore) -> pa.Table:
    """An aggregation turns the first T epochs into columns."""
    columns = ", ".join(f"sum(p) FILTER (epoch = {e}) AS p{e}" for e in range(T))
    records = _records(store, range(T), "p_label::DOUBLE AS p")
    return _with_history(store, _wide_dual(f"(SELECT sample_id, {columns} FROM ({records}) GROUP BY sample_id)"))


def duckdb_lists(store: DynamicsStore) -> pa.Table:
    """Histories as lists, whose windows are slices."""
    windows = f"[h[k : k + {J - 1}] for k in range(1, {T - J + 2})]"
    return _with_history(
        store,
        f"""
        SELECT sample_id, 10 * list_avg([list_stddev_samp(w) * (1 - list_avg(w)) for w in {windows}]) AS dual,
               list_avg(h) AS dual_mean
        FROM (
            SELECT sample_id, list(p ORDER BY epoch) AS h
            FROM ({_records(store, range(T), "p_label::DOUBLE AS p")}) GROUP BY sample_id
        )
        """,
    )


def duckdb_joins(store: DynamicsStore) -> pa.Table:
    """The first T epochs joined on sample_id as columns."""
    joined = " JOIN ".join(
        f"(SELECT sample_id, p_label::DOUBLE AS p{e} FROM read_parquet({names})) AS e{e}"
        + (" USING (sample_id)" if e else "")
        for e, names in enumerate(files(store)[:T])
    )
    return _with_history(store, _wide_dual(joined))


def _sql(*statements: str) -> pa.Table:
    """Of the last one."""
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET enable_progress_bar = false")
        connection.execute(f"SET memory_limit = '{MEMORY}'")
        connection.execute(f"SET temp_directory = '{folder}'")
        for statement in statements[:-1]:
            connection.execute(statement)
        return connection.sql(statements[-1]).to_arrow_table()


def polars_wide(store: DynamicsStore) -> pa.Table:
    """Each epoch sorted by id, all epochs side by side."""
    return _in_groups(store, len(store.epochs), _sorted)


def polars_groups(store: DynamicsStore) -> pa.Table:
    """The same for T epochs at a time, which takes less memory."""
    return _in_groups(store, T, _sorted)


def polars_joins(store: DynamicsStore) -> pa.Table:
    """T epochs at a time, joined on sample_id."""
    return _in_groups(store, T, _joined)


Beside = Callable[[list[pl.LazyFrame]], pl.LazyFrame]
"""Epochs side by side as columns, with sample_id ascending."""


def _sorted(epochs: list[pl.LazyFrame]) -> pl.LazyFrame:
    first, *others = [epoch.sort("sample_id") for epoch in epochs]
    return pl.concat([first, *(epoch.drop("sample_id") for epoch in others)], how="horizontal")


def _joined(epochs: list[pl.LazyFrame]) -> pl.LazyFrame:
    return reduce(lambda wide, epoch: wide.join(epoch, on="sample_id"), epochs).sort("sample_id")


def _in_groups(store: DynamicsStore, size: int, beside: Beside) -> pa.Table:
    """Arithmetic of columns: of every group of epochs its part of the sums, of the first also DUAL."""
    E = len(store.epochs)
    groups = [range(start, min(start + size, E)) for start in range(0, E, size)]
    parts = []
    for group in groups:
        epochs = [
            pl.scan_parquet(files(store)[e]).select(
                "sample_id", pl.col("p_label", "p_other", "correct").name.suffix(str(e))
            )
            for e in group
        ]
        sums = {
            "aum": pl.sum_horizontal(_p(e) - pl.col(f"p_other{e}") for e in group),
            "ever": pl.any_horizontal(f"correct{e}" for e in group),
            "forgotten": pl.sum_horizontal(pl.lit(0), *(_forgotten(e) for e in group[:-1])),
            "first": pl.col(f"correct{group[0]}"),
            "last": pl.col(f"correct{group[-1]}"),
        }
        columns = [column.alias(f"{name}{group.start}") for name, column in sums.items()]
        if group.start == 0:
            wide = beside(epochs).with_columns(_means()).select("sample_id", *_dual(), *columns)
        else:
            wide = beside(epochs).select(columns)
        parts.append(wide.collect(engine="streaming"))
    forgotten = [pl.col(f"forgotten{group.start}") for group in groups]
    between = [
        (pl.col(f"last{one.start}") & ~pl.col(f"first{other.start}")).cast(pl.Int32) for one, other in pairwise(groups)
    ]
    whole = pl.concat(parts, how="horizontal").select(
        "sample_id",
        "dual",
        "dual_mean",
        aum=pl.sum_horizontal(f"aum{group.start}" for group in groups),
        forgetting=pl.when(pl.any_horizontal(f"ever{group.start}" for group in groups))
        .then(pl.sum_horizontal(*forgotten, *between))
        .otherwise(E),
    )
    return whole.to_arrow()


def _forgotten(epoch: int) -> pl.Expr:
    return (pl.col(f"correct{epoch}") & ~pl.col(f"correct{epoch + 1}")).cast(pl.Int32)


def _p(epoch: int) -> pl.Expr:
    return pl.col(f"p_label{epoch}").cast(pl.Float64)


def _means() -> list[pl.Expr]:
    """Of the windows in the first T epochs."""
    return [(pl.sum_horizontal(_p(e) for e in range(k, k + J)) / J).alias(f"m{k}") for k in range(T - J + 1)]


def _dual() -> list[pl.Expr]:
    squares = [pl.sum_horizontal((_p(e) - pl.col(f"m{k}")).pow(2) for e in range(k, k + J)) for k in range(T - J + 1)]
    hard = [(square / (J - 1)).sqrt() * (1 - pl.col(f"m{k}")) for k, square in enumerate(squares)]
    return [
        (10 * pl.mean_horizontal(hard)).alias("dual"),
        pl.mean_horizontal(_p(e) for e in range(T)).alias("dual_mean"),
    ]


FORMULATIONS: dict[str, list[Callable[[DynamicsStore], pa.Table]]] = {
    "duckdb": [duckdb_pivot, duckdb_bits, duckdb_windows, duckdb_joins, duckdb_lists],
    "polars": [polars_wide, polars_groups, polars_joins],
}
