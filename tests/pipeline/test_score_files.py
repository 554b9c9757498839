"""Score tables of other people: a file, a folder, a stage, an object store; many row groups as partitions."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import score_files, storage
from pipeline.errors import UserError
from pipeline.pool import Pool
from pipeline.score_files import ScoreFiles, open_scores
from pipeline.stage import Output, Stage

TABLE = pa.table({"sample_id": [4, 2, 9, 7], "aum": pa.array([0.1, 0.4, 0.2, 0.3], pa.float32()), "note": list("abcd")})


def contents(pool: Pool) -> dict[int, float]:
    rows = pool.gather(["aum"])
    return dict(zip(rows.sample_ids.tolist(), rows["aum"].tolist(), strict=True))


EXPECTED = dict(zip(TABLE["sample_id"].to_pylist(), TABLE["aum"].to_pylist(), strict=True))


def test_a_file_and_a_folder_of_files_are_one_pool(root: str) -> None:
    for name, table in (("one/a.parquet", TABLE), ("two/a.parquet", TABLE[:1]), ("two/b.parquet", TABLE[1:])):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        storage.write(f"{root}/{name}", memoryview(sink.getvalue()))
    storage.write(f"{root}/two/readme.txt", b"no table")
    for place in (f"{root}/one/a.parquet", f"{root}/one", f"{root}/two", f"{root}/two/"):
        pool = open_scores(place, ["aum"])
        assert pool.num_samples == 4 and contents(pool) == EXPECTED


def test_of_a_finished_stage_the_parts_count_that_its_manifest_names(tmp_path: Path, any_stage: Stage) -> None:
    out = Output(any_stage.uri(str(tmp_path)))
    out.write_table(TABLE)
    any_stage.commit(str(tmp_path), out, {}, {})
    pq.write_table(TABLE, f"{out.uri}/left-by-a-killed-attempt.parquet")
    assert contents(open_scores(out.uri, ["aum"])) == EXPECTED


@pytest.fixture
def any_stage() -> Stage:
    from pipeline.config import Config

    return Stage("score", 1, Config(), {}, lambda *_, **__: {})


def test_of_many_samples_every_row_group_is_a_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"sample_id": np.arange(100), "aum": rng.random(100)})
    pq.write_table(table[:60], tmp_path / "a.parquet", row_group_size=25)
    pq.write_table(table[60:], tmp_path / "b.parquet", row_group_size=25)
    together = contents(open_scores(str(tmp_path), ["aum"]))
    monkeypatch.setattr(score_files, "TOGETHER", 99)
    told: list[Any] = []
    pool = open_scores(str(tmp_path), ["aum"])
    assert isinstance(pool, ScoreFiles)
    pool.progress = lambda *progress: told.append(progress)
    assert sorted(pool.map(len)) == [10, 15, 25, 25, 25]
    assert told[-1] == (5, 5, "row groups")
    assert contents(pool) == together == dict(enumerate(table["aum"].to_pylist()))


@pytest.mark.parametrize("together", [99, 100])
def test_a_row_group_without_rows_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    table = pa.table({"sample_id": np.arange(100), "aum": np.arange(100.0)})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for part in (table[:0], table[:50], table[:0], table[50:]):
            writer.write_table(part)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 4
    monkeypatch.setattr(score_files, "TOGETHER", together)
    assert contents(open_scores(str(tmp_path), ["aum"])) == dict(enumerate(range(100)))


def test_a_sample_that_is_twice_in_many_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"sample_id": [0, 1, 2, 2, 3], "aum": [0.0] * 5}), tmp_path / "a.parquet", row_group_size=3)
    monkeypatch.setattr(score_files, "TOGETHER", 4)
    with pytest.raises(UserError, match="sample_ids 2 to 2 are in two row groups: sort files of more than 4 rows"):
        next(open_scores(str(tmp_path), ["aum"]).map(len))


def test_what_is_no_score_table_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file '.*none': write one with `semiprune score`"):
        open_scores(str(tmp_path / "none"), ["aum"])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.txt").write_text("x")
    with pytest.raises(UserError, match="holds no Parquet file: name one"):
        open_scores(str(tmp_path / "folder"), ["aum"])
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(UserError, match="is no whole Parquet file: write it again"):
        open_scores(str(tmp_path / "x.parquet"), ["aum"])
    pq.write_table(TABLE[:0], tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="has no rows: give every sample one"):
        open_scores(str(tmp_path / "empty.parquet"), ["aum"])
    pq.write_table(TABLE, tmp_path / "whole.parquet")
    with pytest.raises(UserError, match=r"whole.parquet' has no column 'dual': it has sample_id, aum, note"):
        open_scores(str(tmp_path / "whole.parquet"), ["dual"])
    with pytest.raises(UserError, match="column 'note' is of type string: it must hold numbers"):
        open_scores(str(tmp_path / "whole.parquet"), ["note"])


def test_a_byte_that_changed_is_found_or_changes_nothing(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet", write_page_checksum=True)
    whole = (tmp_path / "a.parquet").read_bytes()
    for at in range(0, len(whole), 37):
        (tmp_path / "a.parquet").write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        try:
            open_scores(str(tmp_path / "a.parquet"), ["aum"])
        except UserError as error:
            assert "\n" not in str(error)
