"""The reducer on stores: the reference values of the methods' own code, an SQL engine's, and any cut of the ids."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from pipeline import dynamics, reduce
from pipeline.dynamics import DynamicsWriter
from pipeline.dynamics_store import DynamicsStore
from pipeline.errors import UserError
from pipeline.scores import SCORES, compute_scores, requests
from pipeline.storage import join

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "dynamics_reference.npz")
LOGITS, LABELS = GOLDEN["logits_f16"], GOLDEN["labels"]
NAMES = SCORES.names()
VARIANTS = [*NAMES, "dual@20", "tdds@20", "el2n@10", "dyn_unc@5", "entropy@first", "grand@first", "prototypicality@few"]
OPTIONS: dict[str, dict[str, Any]] = {
    "dual@20": {"T": 20},
    "tdds@20": {"T": 20},
    "el2n@10": {"num_epochs": 10},
    "dyn_unc@5": {"J": 5},
    "entropy@first": {"epoch": 0},
    "grand@first": {"epoch": 0},
    "prototypicality@few": {"k": 3, "seed": 7},
}


def write(uri: str, ranks: int = 2, seed: int = 0, epochs: Sequence[int] = range(40), vectors: bool = True) -> str:
    """The reference logits, written by several ranks in batches of another order every epoch."""
    rng = np.random.default_rng(seed)
    writers = [DynamicsWriter(uri, len(LABELS), rank, ranks, probs=vectors) for rank in range(ranks)]
    for epoch, z in enumerate(LOGITS[list(epochs)]):
        for number, batch in enumerate(np.array_split(rng.permutation(len(LABELS)), 11)):
            embeddings = z[batch, :6].astype(np.float32) if vectors else None
            writers[number % ranks].observe(batch, z[batch], LABELS[batch], embeddings)
        writers[0].commit_epoch(epoch, [writer.flush(epoch) for writer in writers])
    return uri


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches are small: on a busy machine, threads of torch would wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(str(tmp_path_factory.mktemp("golden") / "dynamics"))


@pytest.fixture(scope="module")
def expected(store: str) -> pa.Table:
    return compute_scores(store, VARIANTS, **OPTIONS)


def test_scores_are_those_of_the_methods_own_code(store: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "forgetting": {"never_learned": "zero"},
        "dual": {"T": 30, "J": 10},
        "dual@all": {"T": 40},
        "el2n": {"num_epochs": 20},
        "tdds": {"T": 20, "J": 10, "decay": 0.9},
    }
    table = compute_scores(store, ["aum", "correctness", "confidence", "dyn_unc", *options], **options)
    assert table["sample_id"].to_pylist() == list(range(400))
    for column, name in {"forgetting": "forgetting_never_learned_zero", "correctness": "correctness"}.items():
        np.testing.assert_array_equal(table[column], GOLDEN[name])
    sums = {
        "aum": "aum",
        "el2n": "el2n_sum_first20",
        "confidence": "target_prob_mean",
        "dual_mean@all": "target_prob_mean",
        "dual_mean": "target_prob_mean_T30",
        "dual": "dual_T30_J10",
        "dyn_unc": "dynunc_J10",
        "tdds": "tdds_T20_J10_d09",  # from probabilities of 16 significant bits
    }
    for column, name in sums.items():
        np.testing.assert_allclose(table[column], GOLDEN[name], rtol=1e-4, err_msg=column)


def test_the_scores_that_have_no_reference_code_are_those_of_the_logits(expected: pa.Table) -> None:
    z = LOGITS.astype(np.float64)
    n = np.arange(400)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    others = z.copy()
    others[:, n, LABELS] = -np.inf
    margin = z[:, n, LABELS] - others.max(-1)
    error = p - np.eye(10)[LABELS]
    h = z[..., :6]
    np.testing.assert_allclose(expected["aum_logit"], margin.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(expected["variability"], p[:, n, LABELS].std(0), rtol=1e-5)
    for suffix, e in {"": -1, "@first": 0}.items():
        np.testing.assert_allclose(expected["entropy" + suffix], -(p[e] * np.log(p[e])).sum(-1), rtol=1e-4, atol=1e-6)
        grand = np.linalg.norm(error[e], axis=-1) * np.sqrt(1 + np.square(h[e]).sum(-1))
        np.testing.assert_allclose(expected["grand" + suffix], grand, rtol=1e-5)


def test_scores_are_those_of_an_sql_engine_on_the_files(store: str) -> None:
    """An independent reader of the Parquet files, and window functions instead of streams."""
    found = DynamicsStore(store)
    files = {join(store, part.name): epoch for epoch, commit in enumerate(found.commits) for part in commit.files}
    connection = duckdb.connect()
    connection.register("epochs", pa.table({"filename": list(files), "epoch": list(files.values())}))
    rows: pa.Table = connection.sql(
        """
        WITH records AS (
            SELECT sample_id, epoch, p_label::DOUBLE AS p, p_other::DOUBLE AS o, el2n::DOUBLE AS e, correct,
                   lag(correct) OVER history AS before,
                   count(*) OVER last AS filled, stddev_samp(p_label::DOUBLE) OVER last AS s,
                   avg(p_label::DOUBLE) OVER last AS m
            FROM read_parquet($files, filename = true) JOIN epochs USING (filename)
            WINDOW history AS (PARTITION BY sample_id ORDER BY epoch),
                   last AS (PARTITION BY sample_id ORDER BY epoch ROWS 9 PRECEDING)
        )
        SELECT sample_id, sum(p - o) AS aum, avg(ln(p / o)) AS aum_logit,
               CASE WHEN bool_or(correct) THEN count(*) FILTER (before AND NOT correct) ELSE count(*) END AS forgetting,
               count(*) FILTER (correct) AS correctness, sum(e) FILTER (epoch < 20) AS el2n, avg(p) AS confidence,
               stddev_pop(p) AS variability, avg(10 * s) FILTER (filled = 10) AS dyn_unc,
               avg(10 * s * (1 - m)) FILTER (filled = 10 AND epoch < 30) AS dual,
               avg(p) FILTER (epoch < 30) AS dual_mean
        FROM records GROUP BY sample_id ORDER BY sample_id
        """,
        params={"files": list(files)},
    ).to_arrow_table()
    columns = [name for name in rows.column_names if name != "sample_id"]
    table = compute_scores(store, [name for name in columns if name != "dual_mean"])
    assert table["sample_id"].to_pylist() == rows["sample_id"].to_pylist()
    for column in columns:
        np.testing.assert_allclose(table[column], rows[column], rtol=1e-6, atol=1e-6, err_msg=column)


def test_every_score_is_finite_and_in_a_column_of_its_own(expected: pa.Table) -> None:
    columns = [column for request in requests(VARIANTS, OPTIONS) for column in request.harder]
    assert expected.column_names == ["sample_id", *columns]
    assert all(np.isfinite(expected[column]).all() for column in columns)


@pytest.mark.parametrize("name", VARIANTS)
def test_several_scores_in_one_pass_are_those_of_single_passes(store: str, expected: pa.Table, name: str) -> None:
    alone = compute_scores(store, [name], **{key: value for key, value in OPTIONS.items() if key == name})
    assert alone.equals(expected.select(alone.column_names))


@pytest.mark.parametrize(
    ("cut", "chunk", "read_bytes", "together"),
    [(400, 23, 1 << 28, 16), (31, 400, 1 << 28, 1), (200, 1, 1, 3), (57, 16, 40_000, 16), (100, 7, 200_000, 40)],
)
def test_any_cut_gives_the_same_bytes(
    store: str,
    expected: pa.Table,
    cut: int,
    chunk: int,
    read_bytes: int,
    together: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reduce, "CHUNK", chunk)
    monkeypatch.setattr(reduce, "TOGETHER", together)
    monkeypatch.setattr(reduce, "READ_BYTES", read_bytes)
    reduction = reduce.Reduction.of(DynamicsStore(store), requests(VARIANTS, OPTIONS))
    parts = [reduction.range(low, min(low + cut, 400)) for low in range(0, 400, cut)]
    assert pa.concat_tables(parts).combine_chunks().equals(expected)


def test_any_ranks_batches_and_blocks_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"dual": {"T": 8, "J": 4}, "tdds": {"T": 8, "J": 4}, "dyn_unc": {"J": 4}, "el2n": {"num_epochs": 8}}
    tables, spans = [], set()
    for ranks, block_rows in [(2, 1 << 15), (1, 1 << 15), (1, 16), (3, 8), (4, 50)]:
        monkeypatch.setattr(dynamics, "BLOCK_ROWS", block_rows)
        uri = write(str(tmp_path / f"{ranks}-{block_rows}"), ranks, seed=ranks, epochs=range(8))
        tables.append(compute_scores(uri, NAMES, **options))
        spans.add(DynamicsStore(uri).span)
    assert len(spans) > 3 and all(table.equals(tables[0]) for table in tables)


@pytest.mark.slow
def test_processes_give_the_same_bytes(store: str, expected: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduce, "WORTH_PROCESSES", 1)
    found = DynamicsStore(store)
    found.span = 64  # ranges of whole blocks are a matter of speed
    steps: list[tuple[int, int, str]] = []
    reduction = reduce.Reduction.of(found, requests(VARIANTS, OPTIONS))
    assert reduce.reduce_all(reduction, lambda *step: steps.append(step)).equals(expected)
    assert len(steps) > 1 and [done for done, _, _ in steps] == list(range(1, steps[0][1] + 1))


def test_a_range_is_a_slice_of_the_whole(store: str, expected: pa.Table) -> None:
    reduction = reduce.Reduction.of(DynamicsStore(store), requests(VARIANTS, OPTIONS))
    assert reduction.range(123, 321).combine_chunks().equals(expected.slice(123, 198).combine_chunks())
    assert reduction.range(5, 6).combine_chunks().equals(expected.slice(5, 1).combine_chunks())
    assert reduction.range(5, 5).schema == expected.schema and len(reduction.range(5, 5)) == 0


def test_an_epoch_of_many_is_scored_as_if_it_were_the_only_one(store: str, tmp_path: Path) -> None:
    first = write(str(tmp_path / "dynamics"), epochs=[0])
    names = ["entropy", "grand", "prototypicality"]
    named = compute_scores(store, names, **{name: {"epoch": 0} for name in names})
    assert named.equals(compute_scores(first, names))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dual", {"T": 41}, r"^dual needs 41 epochs \(T=41\) but 40 are recorded: lower T, or record more$"),
        ("tdds", {"T": 50}, r"^tdds needs 50 epochs \(T=50\) but 40 are recorded: lower T, or record more$"),
        (
            "el2n",
            {"num_epochs": 60},
            r"^el2n needs 60 epochs \(num_epochs=60\) but 40 are recorded: lower num_epochs, or",
        ),
        (
            "entropy",
            {"epoch": 40},
            r"^entropy needs 41 epochs \(epoch=40\) but 40 are .*: lower epoch, or record more$",
        ),
        ("dyn_unc", {"J": 41}, r"^dyn_unc needs 41 epochs \(J=41\) but 40 are recorded: lower J, or record"),
    ],
)
def test_too_few_epochs_are_an_error_before_anything_is_read(
    store: str, name: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DynamicsStore, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match=message):
        compute_scores(store, ["aum", name], **{name: options})


def test_a_column_that_is_not_recorded_is_an_error(tmp_path: Path) -> None:
    uri = write(str(tmp_path / "dynamics"), epochs=range(3), vectors=False)
    hints = {
        "tdds": r"'probs', which was not recorded: train again with DynamicsWriter\(.., probs=True\)$",
        "grand": r"'embedding', which was not recorded: train again with observe\(.., embeddings=..\)$",
        "prototypicality": r"'embedding', which was not recorded: train again with observe",
    }
    for name, hint in hints.items():
        with pytest.raises(UserError, match=f"^{name} needs the column {hint}"):
            compute_scores(uri, ["aum", name], **({"tdds": {"T": 3, "J": 3}} if name == "tdds" else {}))


def test_only_the_epochs_and_columns_that_scores_take_are_read(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, taken = DynamicsStore.read, dict[int, list[str]]()

    def spy(
        self: DynamicsStore, epoch: int, low: int, high: int, columns: Sequence[str], **into: Any
    ) -> Mapping[str, NDArray[Any]]:
        taken[epoch] = sorted(columns)
        return read(self, epoch, low, high, columns)

    monkeypatch.setattr(DynamicsStore, "read", spy)
    compute_scores(store, ["el2n", "dual", "entropy"], dual={"T": 15}, el2n={"num_epochs": 8}, entropy={"epoch": 20})
    expected = {e: ["el2n", "p_label"] if e < 8 else ["p_label"] for e in range(15)}
    assert taken == {**expected, 20: ["entropy"]}
