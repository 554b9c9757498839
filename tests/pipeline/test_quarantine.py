"""How much may be unusable, and the sentence when it is more."""

from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import tar
from pipeline.errors import DataError
from pipeline.quarantine import SCHEMA, admit, count_reasons, entry
from pipeline.stage import Output


def table(bad_samples: int = 0, bad_shards: int = 0, empty_shards: int = 0) -> pa.Table:
    """So many defects of each kind."""
    rows = [entry("a.tar", row, f"s{row}", "no image", "") for row in range(bad_samples)]
    rows += [entry(f"b{n}.tar", tar.WHOLE, "", "not a tar", "") for n in range(bad_shards)]
    rows += [entry(f"c{n}.tar", tar.WHOLE, "", "empty shard", "") for n in range(empty_shards)]
    return pa.Table.from_pylist(rows, SCHEMA)


def passes(folder: Path, bad: pa.Table, num_samples: int, num_shards: int, limit: float) -> bool:
    try:
        admit(bad, num_samples, num_shards, limit, Output(str(folder)))
    except DataError:
        return False
    return True


def test_reasons_are_counted_by_name() -> None:
    assert list(count_reasons(table(2, 1, 3)).items()) == [("empty shard", 3), ("no image", 2), ("not a tar", 1)]
    assert count_reasons(table()) == {}


def test_nothing_unusable_passes_the_strictest_limit(tmp_path: Path) -> None:
    assert passes(tmp_path, table(), num_samples=1, num_shards=1, limit=0.0)


@pytest.mark.parametrize("percent", [1, 3, 7, 29, 57, 58, 100])
def test_as_much_as_the_limit_passes_and_one_sample_more_does_not(tmp_path: Path, percent: int) -> None:
    limit = float(f"{percent / 100:.2f}")
    assert passes(tmp_path, table(percent), 100 - percent or 1, 1, limit)
    if percent < 100:
        assert not passes(tmp_path, table(percent + 1), 99 - percent or 1, 1, limit)


def test_the_fraction_is_of_all_samples_not_of_the_usable_ones(tmp_path: Path) -> None:
    assert passes(tmp_path, table(bad_samples=1), num_samples=9, num_shards=1, limit=0.1)
    assert not passes(tmp_path, table(bad_samples=1), num_samples=8, num_shards=1, limit=0.1)


def test_a_shard_that_cannot_be_read_counts_among_the_shards(tmp_path: Path) -> None:
    assert passes(tmp_path, table(bad_shards=1), num_samples=2, num_shards=4, limit=0.25)
    assert not passes(tmp_path, table(bad_shards=1), num_samples=10**6, num_shards=4, limit=0.24)


def test_a_truncated_shard_counts_among_the_shards_whatever_sample_it_breaks_off_in(tmp_path: Path) -> None:
    rows = [entry(f"a{n}.tar", 1250, "cat", tar.TRUNCATED, "at byte 9") for n in range(2)]
    bad = pa.concat_tables([table(bad_shards=1), pa.Table.from_pylist(rows, SCHEMA)])
    assert passes(tmp_path, bad, num_samples=2500, num_shards=4, limit=0.75)
    assert not passes(tmp_path, bad, num_samples=10**6, num_shards=4, limit=0.74)
    assert passes(tmp_path, bad.slice(1), num_samples=1, num_shards=100, limit=0.02), "they are not samples as well"


def test_samples_and_shards_are_not_added_up_the_worse_counts(tmp_path: Path) -> None:
    assert passes(tmp_path, table(bad_samples=1, bad_shards=1), num_samples=3, num_shards=4, limit=0.25)
    assert not passes(tmp_path, table(bad_samples=2, bad_shards=1), num_samples=3, num_shards=4, limit=0.25)
    assert not passes(tmp_path, table(bad_samples=1, bad_shards=2), num_samples=3, num_shards=4, limit=0.25)


def test_an_empty_shard_hides_no_sample(tmp_path: Path) -> None:
    assert passes(tmp_path, table(empty_shards=3), num_samples=1, num_shards=4, limit=0.0)


def test_no_limit_admits_a_pool_without_a_sample(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"and nothing is left: mend the shards; first s0 in a\.tar: no image; all in"):
        admit(table(bad_samples=1), 0, 1, 1.0, Output(str(tmp_path)))


def test_the_sentence_counts_the_reasons_and_names_the_first_three_and_the_table(tmp_path: Path) -> None:
    rows = [
        entry("d/a.tar", 4, "cat", "undecodable image", "no JPEG"),
        entry("d/a.tar", 9, "dog", "no image", ""),
        entry("d/b.tar", tar.WHOLE, "", "not a tar", ""),
        entry("d/c.tar", 0, "owl", "no image", ""),
    ]
    out = Output(str(tmp_path))
    with pytest.raises(DataError) as caught:
        admit(pa.Table.from_pylist(rows, SCHEMA), 6, 10, 0.05, out)
    assert str(caught.value) == (
        "33.33% of the samples cannot be used (2 no image, 1 not a tar, 1 undecodable image), over "
        "data.quarantine_limit=0.05: mend the shards or raise the limit; first cat in d/a.tar: undecodable image "
        "(no JPEG); dog in d/a.tar: no image; the whole shard in d/b.tar: not a tar; all in "
        f"{tmp_path}/{out.parts[0].name}"
    )


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_the_table_is_written_whether_or_not_it_is_too_much(tmp_path: Path, limit: float) -> None:
    out, bad = Output(str(tmp_path)), table(2, 1, 1)
    with nullcontext() if limit else pytest.raises(DataError):
        admit(bad, 5, 5, limit, out)
    (part,) = out.parts
    assert part.name.startswith("quarantine-") and part.rows == 4
    assert pq.read_table(tmp_path / part.name).equals(bad)
