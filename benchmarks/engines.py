"""AUM, forgetting and DUAL(T=30, J=10) by DuckDB and by Polars from the Parquet files of a dynamics store, exactly.

Several formulations each, with all cores; every function returns sample_id ascending and the four columns of ours.
"""

from collections.abc import Callable

import duckdb
import polars as pl
import pyarrow as pa

from pipeline.dynamics import DynamicsStore
from pipeline.storage import join

T, J = 30, 10


def files(store: DynamicsStore) -> list[list[str]]:
    """Of every epoch."""
    return [[join(store.uri, part.name) for part in commit.files] for commit in store.commits]


def _records(store: DynamicsStore, epochs: int, columns: str) -> str:
    """SQL of all records of the first epochs, with the epoch's number."""
    return " UNION ALL ".join(
        f"SELECT {epoch} AS epoch, sample_id, {columns} FROM read_parquet({names})"
        for epoch, names in enumerate(files(store)[:epochs])
    )


_WINDOWS = f"""
    SELECT sample_id, epoch, p, stddev_samp(p) OVER w AS s, avg(p) OVER w AS m, count(*) OVER w AS filled
    FROM records WHERE epoch < {T} WINDOW w AS (PARTITION BY sample_id ORDER BY epoch ROWS {J - 1} PRECEDING)
"""


def duckdb_windows(store: DynamicsStore) -> pa.Table:
    """Window functions throughout."""
    records = _records(store, len(store.epochs), "p_label::DOUBLE AS p, p_other::DOUBLE AS o, correct")
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


def _history(store: DynamicsStore) -> str:
    """SQL of AUM, and of `correct` as the bits of one integer: what needs no window."""
    assert len(store.epochs) <= 120
    return f"""
        SELECT sample_id, sum(p_label::DOUBLE - p_other) AS aum, bit_or(correct::HUGEINT << epoch) AS bits
        FROM ({_records(store, len(store.epochs), "p_label, p_other, correct")}) GROUP BY sample_id
    """


def _forgetting(store: DynamicsStore) -> str:
    E = len(store.epochs)
    mask = (1 << (E - 1)) - 1
    return f"CASE WHEN bits = 0 THEN {E} ELSE bit_count(bits & ~(bits >> 1) & {mask}::HUGEINT) END AS forgetting"


def duckdb_bits(store: DynamicsStore) -> pa.Table:
    """Window functions for DUAL alone, one aggregation for the rest."""
    return _sql(f"""
        WITH records AS ({_records(store, T, "p_label::DOUBLE AS p")}), windows AS ({_WINDOWS}),
        dual AS (
            SELECT sample_id, 10 * avg(s * (1 - m)) FILTER (filled = {J}) AS dual, avg(p) AS dual_mean
            FROM windows GROUP BY sample_id
        ), history AS ({_history(store)})
        SELECT sample_id, aum, {_forgetting(store)}, dual, dual_mean
        FROM history JOIN dual USING (sample_id) ORDER BY sample_id
    """)


def _wide_dual() -> tuple[str, str]:
    """SQL of DUAL from columns p0, p1, ..: the windows' means, and the rest from p and means."""
    windows = range(T - J + 1)
    means = ", ".join(f"({' + '.join(f'p{e}' for e in range(k, k + J))}) / {J} AS m{k}" for k in windows)
    spread = " + ".join(
        f"sqrt(({' + '.join(f'(p{e} - m{k}) * (p{e} - m{k})' for e in range(k, k + J))}) / {J - 1}) * (1 - m{k})"
        for k in windows
    )
    mean = " + ".join(f"p{e}" for e in range(T))
    return means, f"10 * ({spread}) / {len(windows)} AS dual, ({mean}) / {T} AS dual_mean"


def duckdb_pivot(store: DynamicsStore) -> pa.Table:
    """One aggregation turns epochs into columns; no window function."""
    means, dual = _wide_dual()
    columns = ", ".join(f"sum(p_label) FILTER (epoch = {e}) AS p{e}" for e in range(T))
    return _sql(f"""
        WITH wide AS (
            SELECT sample_id, sum(p_label::DOUBLE - p_other) AS aum, bit_or(correct::HUGEINT << epoch) AS bits,
                   {columns}
            FROM ({_records(store, len(store.epochs), "p_label, p_other, correct")}) GROUP BY sample_id
        ), means AS (SELECT *, {means} FROM wide)
        SELECT sample_id, aum, {_forgetting(store)}, {dual} FROM means ORDER BY sample_id
    """)


def duckdb_lists(store: DynamicsStore) -> pa.Table:
    """Histories as lists, whose windows are slices."""
    windows = f"[h[k : k + {J - 1}] for k in range(1, {T - J + 2})]"
    return _sql(f"""
        WITH lists AS (
            SELECT sample_id, list(p ORDER BY epoch) AS h FROM ({_records(store, T, "p_label::DOUBLE AS p")})
            GROUP BY sample_id
        ), history AS ({_history(store)})
        SELECT sample_id, aum, {_forgetting(store)},
               10 * list_avg([list_stddev_samp(w) * (1 - list_avg(w)) for w in {windows}]) AS dual,
               list_avg(h) AS dual_mean
        FROM history JOIN lists USING (sample_id) ORDER BY sample_id
    """)


def duckdb_joins(store: DynamicsStore) -> pa.Table:
    """The first T epochs joined on sample_id as columns, an aggregation for the rest."""
    means, dual = _wide_dual()
    joined = " JOIN ".join(
        f"(SELECT sample_id, p_label::DOUBLE AS p{e} FROM read_parquet({names})) AS e{e}"
        + (" USING (sample_id)" if e else "")
        for e, names in enumerate(files(store)[:T])
    )
    return _sql(f"""
        WITH history AS ({_history(store)}), means AS (SELECT *, {means} FROM {joined})
        SELECT sample_id, aum, {_forgetting(store)}, {dual}
        FROM history JOIN means USING (sample_id) ORDER BY sample_id
    """)


def _sql(query: str) -> pa.Table:
    connection = duckdb.connect()
    connection.execute("SET preserve_insertion_order = false")
    return connection.sql(query).to_arrow_table()


def polars_wide(store: DynamicsStore) -> pa.Table:
    """Each epoch sorted by id, epochs side by side, then arithmetic of columns."""
    E = len(store.epochs)
    epochs = [
        pl.scan_parquet(names)
        .select("sample_id", pl.col("p_label", "p_other", "correct").name.suffix(str(epoch)))
        .sort("sample_id")
        .drop(["sample_id"] if epoch else [])
        for epoch, names in enumerate(files(store))
    ]
    wide = pl.concat(epochs, how="horizontal")
    return _wide_scores(wide, E)


def polars_joins(store: DynamicsStore) -> pa.Table:
    """Epochs joined on sample_id as columns."""
    wide = pl.LazyFrame({"sample_id": range(store.num_samples)})
    for epoch, names in enumerate(files(store)):
        columns = pl.scan_parquet(names).select(
            "sample_id", pl.col("p_label", "p_other", "correct").name.suffix(str(epoch))
        )
        wide = wide.join(columns, on="sample_id")
    return _wide_scores(wide, len(store.epochs))


def _wide_scores(wide: pl.LazyFrame, E: int) -> pa.Table:
    p = [pl.col(f"p_label{e}").cast(pl.Float64) for e in range(E)]
    forgotten = [(pl.col(f"correct{e}") & ~pl.col(f"correct{e + 1}")).cast(pl.Int32) for e in range(E - 1)]
    means = [(pl.sum_horizontal(p[k : k + J]) / J).alias(f"m{k}") for k in range(T - J + 1)]
    spread = [
        (pl.sum_horizontal((x - pl.col(f"m{k}")).pow(2) for x in p[k : k + J]) / (J - 1)).sqrt() * (1 - pl.col(f"m{k}"))
        for k in range(T - J + 1)
    ]
    scores = wide.with_columns(means).select(
        "sample_id",
        aum=pl.sum_horizontal(p[e] - pl.col(f"p_other{e}") for e in range(E)),
        forgetting=pl.when(pl.any_horizontal(f"correct{e}" for e in range(E)))
        .then(pl.sum_horizontal(forgotten))
        .otherwise(E),
        dual=10 * pl.mean_horizontal(spread),
        dual_mean=pl.mean_horizontal(p[:T]),
    )
    return scores.sort("sample_id").collect(engine="streaming").to_arrow()


FORMULATIONS: dict[str, list[Callable[[DynamicsStore], pa.Table]]] = {
    "duckdb": [duckdb_pivot, duckdb_bits, duckdb_windows, duckdb_joins, duckdb_lists],
    "polars": [polars_wide, polars_joins],
}
