"""Dynamics: each record is what the formulas say, each epoch holds every id once, whoever dies or races."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import counter, dynamics, storage
from pipeline.dynamics import DynamicsPart, DynamicsWriter
from pipeline.dynamics_store import DynamicsStore
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from pipeline.registry import ChoiceError
from pipeline.scores import compute_scores

PLAIN = [*dynamics.STATISTICS, "correct"]


def random_epoch(n: int, classes: int = 5, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.permutation(n), rng.normal(0, 3, (n, classes)).astype(np.float32), rng.integers(0, classes, n)


def record(writers: list[DynamicsWriter], ids: Any, logits: Any, labels: Any, embeddings: Any = None) -> None:
    """One batch, its rows dealt out to the ranks."""
    for rank, writer in enumerate(writers):
        rows = slice(rank, None, len(writers))
        writer.observe(ids[rows], logits[rows], labels[rows], None if embeddings is None else embeddings[rows])


def flush(writers: list[DynamicsWriter], epoch: int) -> list[DynamicsPart]:
    return [writer.flush(epoch) for writer in writers]


def plausible(ids: Any, epoch: int, classes: int = 10) -> tuple[Any, Any]:
    """Logits and labels as a training has them: margins that grow, easy and hard samples, wrong labels."""
    rng = np.random.default_rng(epoch)
    labels = ids % classes
    ease = counter.uniform(0, "ease", 0, ids) * 2 - 0.3
    logits = rng.normal(0, 1, (len(ids), classes)).astype(np.float32)
    logits[np.arange(len(ids)), labels] += (6 * ease * np.tanh((epoch + 1) / 5)).astype(np.float32)
    return logits, labels


def by_hand(logits: Any, label: int) -> dict[str, float]:
    """One record in float64, word for word as the definitions."""
    p = np.exp(np.float64(logits) - np.max(np.float64(logits)))
    p = p / p.sum()
    return {
        "p_label": p[label],
        "p_other": max(p[c] for c in range(len(p)) if c != label),
        "el2n": np.sqrt(max(0, (p**2).sum() - 2 * p[label] + 1)),
        "entropy": -sum(x * np.log(x) for x in p if x > 0),
        "correct": np.argmax(logits) == label,
    }


def test_numbers_may_be_integers_of_numpy(tmp_path: Path) -> None:
    n, rank, world_size, epoch = (np.int64(number) for number in (4, 0, 1, 0))
    writer = DynamicsWriter(str(tmp_path), n, rank, world_size)
    writer.observe(*random_epoch(4))
    commit = writer.commit_epoch(epoch, [writer.flush(epoch)])
    assert commit == EpochLog(str(tmp_path)).read(0) and commit.facts["num_samples"] == 4


@pytest.mark.parametrize("kind", ["numpy", "float64", "float16", "bfloat16", "torch"])
def test_a_record_is_what_the_definitions_say(tmp_path: Path, kind: str) -> None:
    ids, logits, labels = random_epoch(200)
    logits[7] = [80, 0, 0, 0, 0]  # saturated: el2n by the definition's own sum would cancel
    given: Any = logits
    if kind in ("float64", "float16"):
        given = logits.astype(kind)
    elif kind in ("bfloat16", "torch"):
        given = torch.tensor(logits, requires_grad=True).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    writer = DynamicsWriter(str(tmp_path), 200)
    writer.observe(ids if kind == "numpy" else torch.tensor(ids), given, labels)
    writer.commit_epoch(0)
    read = DynamicsStore(str(tmp_path)).read(0, 0, 200, PLAIN)
    exact = given.detach().float().numpy() if isinstance(given, torch.Tensor) else given
    for i, z, y in zip(ids, exact, labels, strict=True):
        for name, value in by_hand(z, y).items():
            assert read[name][i] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert {read[name].dtype for name in dynamics.STATISTICS} == {np.dtype(np.float32)}
    assert read["correct"].dtype == bool


def test_masked_classes_and_ties_have_records(tmp_path: Path) -> None:
    logits = np.array([[0, 0, -np.inf], [0, 0, -np.inf]], dtype=np.float32)
    writer = DynamicsWriter(str(tmp_path), 2)
    writer.observe(np.arange(2), logits, np.array([0, 1]))
    writer.commit_epoch(0)
    read = DynamicsStore(str(tmp_path)).read(0, 0, 2, PLAIN)
    assert read["correct"].tolist() == [True, False]  # the argmax of a tie is the first
    assert read["entropy"].tolist() == pytest.approx([np.log(2)] * 2)


@given(st.data())
@settings(max_examples=25)
def test_batches_order_ranks_and_blocks_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Epochs of different world sizes and spans, ranks without a sample, any cut of the ids."""
    n, epochs = data.draw(st.integers(1, 60)), 3
    uri = str(tmp_path_factory.mktemp("store"))
    plain = DynamicsWriter(f"{uri}/plain", n, probs=True)
    for epoch in range(epochs):
        ids, logits, labels = random_epoch(n, seed=n + epoch)
        embeddings = logits[:, :2] * 7
        world = data.draw(st.integers(1, 4))
        order = data.draw(st.permutations(range(n)))
        owner = np.array(data.draw(st.lists(st.integers(0, world - 1), min_size=n, max_size=n)))
        writers = [DynamicsWriter(uri, n, rank, world, probs=True) for rank in range(world)]
        size = data.draw(st.integers(1, 9))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dynamics, "BLOCK_ROWS", data.draw(st.integers(1, 20)))
            patch.setattr(dynamics, "LOGITS_BYTES", data.draw(st.sampled_from([1, 300, 1 << 22])))
            for start in range(0, n, size):
                rows = np.array(order[start : start + size])
                for rank, writer in enumerate(writers):
                    mine = rows[owner[rows] == rank]
                    writer.observe(ids[mine], logits[mine], labels[mine], embeddings[mine])
            writers[0].commit_epoch(epoch, flush(writers, epoch))
        plain.observe(ids, logits, labels, embeddings)
        plain.commit_epoch(epoch)
    store, one = DynamicsStore(uri), DynamicsStore(f"{uri}/plain")
    assert store.columns == one.columns == {**dict.fromkeys(PLAIN, 1), "probs": 5, "embedding": 2}
    columns = data.draw(st.lists(st.sampled_from(list(store.columns)), unique=True))
    for epoch in range(epochs):
        low = data.draw(st.integers(0, n))
        high = data.draw(st.integers(low, n))
        got, expected = store.read(epoch, low, high, columns), one.read(epoch, 0, n, columns)
        assert set(got) == set(columns)
        for name in columns:
            assert got[name].dtype == expected[name].dtype
            assert got[name].shape == expected[name][low:high].shape
            np.testing.assert_allclose(got[name], expected[name][low:high], rtol=1e-5, atol=1e-7)


SOME_IDS = st.lists(st.integers(0, 9), min_size=1, max_size=30)
ALL_IDS = st.tuples(SOME_IDS, st.permutations(range(10))).map(lambda lists: lists[0] + lists[1])


@given(SOME_IDS | ALL_IDS)
@settings(max_examples=30)
def test_of_duplicates_the_first_counts_and_of_gaps_the_number_is_told(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int]
) -> None:
    uri = str(tmp_path_factory.mktemp("store"))
    writer = DynamicsWriter(uri, 10)
    for time, i in enumerate(ids):
        writer.observe(np.array([i]), np.array([[time / 10, 0.0]]), np.array([0]))
    if len(set(ids)) < 10:
        with pytest.raises(UserError, match=f"of 10 samples {10 - len(set(ids))} are missing and 0 are in"):
            writer.commit_epoch(0)
        assert EpochLog(uri).latest() is None
        return
    commit = writer.commit_epoch(0)
    assert commit.facts["duplicates"] == len(ids) - 10
    first = [ids.index(i) for i in range(10)]
    expected = 1 / (1 + np.exp(-np.array(first) / 10))
    np.testing.assert_allclose(DynamicsStore(uri).read(0, 0, 10, ["p_label"])["p_label"], expected, rtol=1e-5)


def test_an_id_in_the_files_of_two_ranks_is_no_epoch(tmp_path: Path) -> None:
    ids, logits, labels = random_epoch(8)
    writers = [DynamicsWriter(str(tmp_path), 8, rank, 2) for rank in range(2)]
    writers[0].observe(ids[:5], logits[:5], labels[:5])
    writers[1].observe(ids[4:], logits[4:], labels[4:])  # one is a sampler's padding
    parts = [writer.flush(0) for writer in writers]
    with pytest.raises(UserError, match="of 8 samples 0 are missing and 1 are in the files of several ranks"):
        writers[0].commit_epoch(0, parts)
    with pytest.raises(UserError, match="of 8 samples 3 are missing and 0 are"):
        writers[0].commit_epoch(0, parts[:1])
    writers[1].observe(ids[4:7], logits[4:7], labels[4:7])  # as many records as there are samples
    with pytest.raises(UserError, match="of 8 samples 1 are missing and 1 are in"):
        writers[0].commit_epoch(0, [parts[0], writers[1].flush(0)])
    with pytest.raises(UserError, match="2 ranks needs parts="):
        writers[0].commit_epoch(0)


def test_an_epoch_counts_with_its_checkpoint_and_training_continues(tmp_path: Path) -> None:
    ids, logits, labels = random_epoch(6)
    writer = DynamicsWriter(str(tmp_path), 6)
    writer.observe(ids, logits, labels)
    writer.flush(0)  # killed here: the file is there and nobody reads it
    writer = DynamicsWriter(str(tmp_path), 6)
    assert writer.log.latest() is None
    for epoch in range(2):
        writer.observe(ids, logits * (epoch + 1), labels)
        writer.commit_epoch(epoch, checkpoint=b"weights", facts={"metrics": {"loss": 1.0}})
    last = DynamicsWriter(str(tmp_path), 6).log.latest()
    assert last is not None and last.epoch == 1
    assert last.facts["metrics"] == {"loss": 1.0}
    assert (last.facts["num_samples"], last.facts["num_classes"], last.facts["duplicates"]) == (6, 5, 0)
    assert writer.log.read_checkpoint(last) == b"weights"
    store = DynamicsStore(str(tmp_path))
    assert (store.num_samples, store.num_classes, list(store.epochs), store.coverage) == (6, 5, [0, 1], 1.0)
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_what_was_observed_is_taken_at_once(tmp_path: Path) -> None:
    """A loader may use the same buffers for its next batch."""
    writer = DynamicsWriter(str(tmp_path), 4)
    ids, logits, labels = torch.arange(2), torch.tensor([[9.0, 0.0, 0.0]] * 2), torch.zeros(2, dtype=torch.int64)
    embeddings = torch.ones(2, 2)
    writer.observe(ids, logits, labels, embeddings)
    ids += 2
    labels += 1
    logits.zero_()
    embeddings.zero_()
    writer.observe(ids, logits, labels, embeddings)
    writer.commit_epoch(0)
    read = DynamicsStore(str(tmp_path)).read(0, 0, 4, ["p_label", "embedding"])
    assert read["p_label"].tolist() == pytest.approx([1, 1, 1 / 3, 1 / 3], abs=1e-3)
    assert read["embedding"].tolist() == [[1, 1]] * 2 + [[0, 0]] * 2


@pytest.mark.parametrize(
    ("ids", "logits", "labels", "message"),
    [
        ([0, 4], [[0.0, 1.0]] * 2, [0, 1], r"sample_ids 0\.\.4 but num_samples=4"),
        ([-1], [[0.0, 1.0]], [0], r"sample_ids -1\.\.-1"),
        ([0, 1], [[0.0, np.nan], [0.0, 1.0]], [0, 1], "1 records with logits that are not finite"),
        ([0, 1], [[0.0, 1.0]] * 2, [2, -100], "2 records .* a label that is no class"),
        ([0], [[0.0]], [0], r"C of 2 or more .* not \[1\], \[1, 1\] and \[1\]"),
        ([0, 1], [[0.0, 1.0]], [0], r"not \[2\], \[1, 2\] and \[1\]"),
        ([0.5], [[0.0, 1.0]], [0], r"ids and labels that are integers, not torch\.float64 and torch\.int64"),
        ([0], [[0.0, 1.0]], [0.5], r"integers, not torch\.int64 and torch\.float64"),
        ([True], [[0.0, 1.0]], [0], r"integers, not torch\.bool"),
    ],
)
def test_what_cannot_be_recorded_is_said(
    tmp_path: Path, ids: list[Any], logits: Any, labels: list[Any], message: str
) -> None:
    writer = DynamicsWriter(str(tmp_path), 4)
    with pytest.raises(UserError, match=message):
        writer.observe(np.array(ids), np.array(logits, dtype=np.float32), np.array(labels))
        writer.commit_epoch(0)


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_an_object_store_serves_as_well_as_a_disk(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    uri = "memory://dynamics-test/store" if place == "memory" else f"{request.getfixturevalue('s3_root')}/store"
    for where in (uri, str(tmp_path)):
        writers = [DynamicsWriter(where, 300, rank, 2, probs=True) for rank in range(2)]
        for epoch in range(2):
            record(writers, *random_epoch(300, seed=epoch))
            writers[0].commit_epoch(epoch, flush(writers, epoch), checkpoint=b"weights %d" % epoch)
    store, disk = DynamicsStore(uri), DynamicsStore(str(tmp_path))
    for epoch, low, high in ((0, 0, 300), (1, 3, 9), (1, 299, 300)):
        read, expected = (one.read(epoch, low, high, list(disk.columns)) for one in (store, disk))
        for name in disk.columns:
            np.testing.assert_array_equal(read[name], expected[name])
    assert [store.read(1, 5, 5, ["probs"])["probs"].shape, EpochLog(uri).read_checkpoint(store.commits[1])] == [
        (0, 5),
        b"weights 1",
    ]
    with pytest.raises(UserError, match="epoch 1 is already committed"):
        DynamicsWriter(uri, 300, 0, 2).commit_epoch(1, flush(_again(uri), 1))


def _again(uri: str) -> list[DynamicsWriter]:
    writers = [DynamicsWriter(uri, 300, rank, 2, probs=True) for rank in range(2)]
    record(writers, *random_epoch(300, seed=7))
    return writers


def test_other_tools_read_the_same_numbers_from_the_files(tmp_path: Path) -> None:
    import duckdb
    import polars
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, logits, labels = random_epoch(5000)
    writers = [DynamicsWriter(str(tmp_path), 5000, rank, 2, probs=True) for rank in range(2)]
    record(writers, ids, logits, labels, embeddings=logits[:, :3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "BLOCK_ROWS", 512)
        parts = flush(writers, 0)
    writers[0].commit_epoch(0, parts)
    store = DynamicsStore(str(tmp_path))
    expected = store.read(0, 0, 5000, list(store.columns))
    named = [file.name for part in parts for file in part.files]
    assert [name.rsplit("-", 1)[0] for name in named] == ["epoch-00000-rank-0", "epoch-00000-rank-1"]
    for name in named:  # sorted, without nulls, several row groups
        file = pq.ParquetFile(tmp_path / name)
        assert file.schema_arrow.names == ["sample_id", *PLAIN, "probs", "embedding"]
        assert not any(field.nullable for field in file.schema_arrow)
        assert file.num_row_groups == 5  # of 1024 ids, of which each rank has about half
        assert (np.diff(file.read()["sample_id"].to_numpy()) > 0).all()
    files = f"{tmp_path}/epoch-00000-rank-*.parquet"
    for table in (
        pa.concat_tables([pq.read_table(tmp_path / name) for name in named]),
        duckdb.sql(f"select * from read_parquet('{files}')").to_arrow_table(),
        polars.read_parquet(files).to_arrow(),
    ):
        ordered = table.sort_by("sample_id")
        assert ordered["sample_id"].to_pylist() == list(range(5000))
        for name, column in expected.items():
            np.testing.assert_array_equal(np.array(ordered[name].to_pylist(), dtype=column.dtype), column)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_record_takes_at_most_16_bytes_manifests_included(tmp_path: Path, ranks: int) -> None:
    n, epochs = 200_000, (0, 8)
    for number, epoch in enumerate(epochs):
        writers = [DynamicsWriter(str(tmp_path), n, rank, ranks) for rank in range(ranks)]
        ids = np.random.default_rng(epoch).permutation(n)
        record(writers, ids, *plausible(ids, epoch))
        writers[0].commit_epoch(number, flush(writers, number))
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert total / (n * len(epochs)) <= 16


def test_probabilities_are_kept_on_demand_to_16_bits_in_3_bytes_each(tmp_path: Path) -> None:
    n, classes = 50_000, 10
    ids = np.random.default_rng(0).permutation(n)
    logits, labels = plausible(ids, 4, classes)
    sizes = []
    for probs in (False, True):
        folder = tmp_path / str(probs)
        writer = DynamicsWriter(str(folder), n, probs=probs)
        writer.observe(ids, logits, labels)
        writer.commit_epoch(0)
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
    assert (sizes[1] - sizes[0]) / (n * classes) <= 3
    store = DynamicsStore(str(tmp_path / "True"))
    assert store.columns["probs"] == store.num_classes == classes
    read = store.read(0, 0, n, ["probs", "p_label", "p_other"])
    exact = np.empty((n, classes))
    exact[ids] = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    exact /= exact.sum(1, keepdims=True)
    np.testing.assert_allclose(read["probs"], exact, rtol=2**-16 + 1e-5)
    assert (read["probs"].view(np.uint32) & 0xFF == 0).all()
    np.testing.assert_allclose(read["probs"][np.arange(n), np.arange(n) % classes], read["p_label"], rtol=2**-15)
    assert "probs" not in DynamicsStore(str(tmp_path / "False")).columns
    with pytest.raises(
        ChoiceError, match="has no column 'probs': choose from p_label, p_other, el2n, entropy, correct"
    ):
        DynamicsStore(str(tmp_path / "False")).read(0, 0, 1, ["probs"])


def test_embeddings_come_back_as_they_were(tmp_path: Path) -> None:
    ids, logits, labels = random_epoch(100)
    embeddings = torch.randn(100, 7, requires_grad=True)
    writer = DynamicsWriter(str(tmp_path), 100)
    for rows in (slice(0, 60), slice(60, 100)):
        writer.observe(ids[rows], logits[rows], labels[rows], embeddings[rows])
    writer.commit_epoch(0)
    store = DynamicsStore(str(tmp_path))
    assert store.columns["embedding"] == 7
    np.testing.assert_array_equal(store.read(0, 0, 100, ["embedding"])["embedding"][ids], embeddings.detach().numpy())


def test_batches_of_other_shapes_and_ranks_of_other_columns_are_refused(tmp_path: Path) -> None:
    ids, logits, labels = random_epoch(6)
    writer = DynamicsWriter(str(tmp_path), 6)
    writer.observe(ids[:2], logits[:2], labels[:2])
    with pytest.raises(UserError, match="4 classes and embeddings of 0 numbers, but 5 and 0 in an earlier batch"):
        writer.observe(ids[2:4], logits[2:4, :4], labels[2:4] % 4)
    with pytest.raises(UserError, match="5 classes and embeddings of 3 numbers, but 5 and 0 in an earlier batch"):
        writer.observe(ids[2:4], logits[2:4], labels[2:4], logits[2:4, :3])
    with pytest.raises(UserError, match=r"embeddings \[B, d\] for ids \[2\], not \[1, 3\]"):
        writer.observe(ids[2:4], logits[2:4], labels[2:4], logits[:1, :3])
    writer.observe(ids[2:], logits[2:], labels[2:])
    writer.commit_epoch(0)
    for others in ({"probs": True}, {}):
        writers = [DynamicsWriter(str(tmp_path), 6, 0, 2), DynamicsWriter(str(tmp_path), 6, 1, 2, **others)]
        record(writers, ids, logits, labels)
        if not others:
            writers[1].flush(1)
            writers[1].observe(ids[1::2], logits[1::2, :4], labels[1::2] % 4)
        with pytest.raises(UserError, match="epoch 1 has other classes or vectors on some ranks"):
            writers[0].commit_epoch(1, flush(writers, 1))
    assert len(DynamicsStore(str(tmp_path)).commits) == 1


def test_a_rank_without_a_sample_is_part_of_an_epoch(tmp_path: Path) -> None:
    writers = [DynamicsWriter(str(tmp_path), 2, rank, 3, probs=True) for rank in range(3)]
    ids, logits, labels = random_epoch(2)
    record(writers[:2], ids, logits, labels)
    writers[2].observe(ids[:0], logits[:0], labels[:0])  # as a rank has it whose rows are all padding
    for epoch in range(2):
        commit = writers[0].commit_epoch(epoch, flush(writers, epoch))
        assert [file.rows for file in commit.files] == [1, 1]
        record(writers[:2], ids, logits, labels)  # and then it is never called at all
    store = DynamicsStore(str(tmp_path))
    assert store.read(0, 0, 2, ["probs"])["probs"].shape == (2, 5)
    assert compute_scores(str(tmp_path), ["aum"]).num_rows == 2


def test_parts_of_another_epoch_are_refused(tmp_path: Path) -> None:
    writer = DynamicsWriter(str(tmp_path), 4)
    writer.observe(*random_epoch(4))
    part = writer.flush(0)
    writer.commit_epoch(0, [part])
    with pytest.raises(UserError, match=r"epoch 1 cannot have 'epoch-00000-rank-0-.*': give the parts that flush\(1\)"):
        writer.commit_epoch(1, [part])


@pytest.mark.parametrize("arguments", [(0,), (-1,), (4, 2, 2), (4, -1, 2), (4, 0, 0)])
def test_a_writer_without_samples_or_with_a_rank_that_is_none_is_refused(tmp_path: Path, arguments: Any) -> None:
    with pytest.raises(UserError, match="give it 1 sample or more, and ranks from 0 to world_size - 1"):
        DynamicsWriter(str(tmp_path), *arguments)


class KilledError(Exception):
    """Stands for a crash."""


def train(uri: str, epochs: int, world: int) -> None:
    """A training of `world` ranks that goes on from the last commit: logistic regression, exact for any world size."""
    n, classes = 40, 3
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(n, 4)), rng.integers(0, classes, n)
    log = EpochLog(uri)
    last = log.latest()
    weights = np.zeros((4, classes)) if last is None else np.frombuffer(log.read_checkpoint(last)).reshape(4, classes)
    writers = [DynamicsWriter(uri, n, rank, world) for rank in range(world)]
    for epoch in range(last.epoch + 1 if last else 0, epochs):
        logits = features @ weights
        order = rng.permutation(n)
        record(writers, order, logits[order], labels[order])
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        weights = weights - 0.1 * features.T @ (p - np.eye(classes)[labels])
        writers[0].commit_epoch(epoch, flush(writers, epoch), checkpoint=weights.tobytes())


def result(uri: str) -> tuple[Any, bytes]:
    """What a training leaves: all records, scores, and the checkpoint to go on from."""
    store, log = DynamicsStore(uri), EpochLog(uri)
    records = [store.read(epoch, 0, store.num_samples, PLAIN) for epoch in store.epochs]
    scores = compute_scores(uri, ["aum", "forgetting", "el2n"], el2n={"num_epochs": 3})
    told = [column.tolist() for epoch in records for column in epoch.values()]
    return (told, scores.to_pydict()), log.read_checkpoint(store.commits[-1])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_write_two_ranks_go_on_to_the_same_store_with_any_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Each rank's file, checkpoint, manifest, deletion of an old checkpoint: the rows of the table of epochs.py."""
    epochs = 3
    train(str(tmp_path / "reference"), epochs, world=2)
    reference = result(str(tmp_path / "reference"))
    calls: list[str] = []

    def dying(name: str, at: int) -> Any:
        real = getattr(storage, name)

        def call(uri: str, *data: Any) -> Any:
            calls.append(f"{name} {uri.rsplit('/', 1)[1].rsplit('-', 1)[0]}")
            if len(calls) == at and not after:
                raise KilledError
            done = real(uri, *data)
            if len(calls) == at:
                raise KilledError
            return done

        return call

    at, killed = 0, []
    while len(killed) == at:
        at += 1
        uri = str(tmp_path / str(at))
        calls.clear()
        with monkeypatch.context() as patch:
            for name in ("write", "create", "delete"):
                patch.setattr(storage, name, dying(name, at))
            try:
                train(uri, epochs, world=2)
            except KilledError:
                killed.append(calls[at - 1])
        committed = EpochLog(uri).commits()
        expected = [call for call in calls if call == "create epoch"]
        if calls[-1] == "create epoch" and not after and len(killed) == at:
            expected.pop()
        assert len(committed) == len(expected)  # a commit counts from its manifest on
        if committed:
            assert DynamicsStore(uri).coverage == 1
        train(uri, epochs, world=1 + at % 3)
        assert result(uri) == reference
    writes = [
        [f"write epoch-{e:05d}-rank-0", f"write epoch-{e:05d}-rank-1", f"write checkpoint-{e:05d}", "create epoch"]
        + ([f"delete checkpoint-{e - 2:05d}"] if e >= 2 else [])
        for e in range(epochs)
    ]
    assert killed == [write for epoch in writes for write in epoch]


def test_of_two_attempts_alive_at_once_one_is_recorded_and_the_other_stops(tmp_path: Path) -> None:
    """What a zombie wrote is read by nobody, also where it trained on from the epoch that it lost."""
    attempts = [[DynamicsWriter(str(tmp_path), 8, rank, 2) for rank in range(2)] for _ in range(2)]
    ids, logits, labels = random_epoch(8)
    zombie, ours = attempts
    for writers in attempts:
        record(writers, ids, logits * (1 + attempts.index(writers)), labels)
    parts = [flush(writers, 0) for writers in attempts]
    won = ours[0].commit_epoch(0, parts[1], checkpoint=b"ours")
    with pytest.raises(UserError, match="epoch 0 is already committed"):
        zombie[0].commit_epoch(0, parts[0], checkpoint=b"zombie")
    record(zombie, ids, logits, labels)
    with pytest.raises(UserError, match=r"epoch 1 .* does not go on from what this training committed"):
        zombie[0].commit_epoch(1, flush(zombie, 1), checkpoint=b"zombie")
    record(ours, ids, logits, labels)
    ours[0].commit_epoch(1, flush(ours, 1), checkpoint=b"ours")
    store = DynamicsStore(str(tmp_path))
    assert store.commits[0] == won and len(store.commits) == 2
    named = {file.name for commit in store.commits for file in commit.files}
    assert named < {path.name for path in tmp_path.glob("*.parquet")}
    p = store.read(0, 0, 8, ["p_label"])["p_label"][ids]
    assert p.tolist() == pytest.approx([by_hand(z * 2, y)["p_label"] for z, y in zip(logits, labels, strict=True)])
