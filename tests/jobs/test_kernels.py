"""`semiprune score` and `select` on files of the user's own: what they do, and one sentence for each mistake."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.kernels import describe_scores, describe_selectors, parse_options, score_store, select_from_files
from pipeline import score_files
from pipeline.dynamics import DynamicsWriter
from pipeline.errors import UserError
from pipeline.scores import SCORES
from pipeline.selectors import SELECTORS
from pipeline.stage import Progress


@contextmanager
def stage(title: str) -> Iterator[Progress]:
    """A display that nobody looks at."""
    assert title in ("score", "select")
    yield lambda done, total, unit: None


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Eight epochs of 50 examples."""
    rng = np.random.default_rng(0)
    writer = DynamicsWriter(str(tmp_path / "dynamics"), num_samples=50)
    for epoch in range(8):
        writer.observe(np.arange(50), rng.normal(size=(50, 3)).astype(np.float32), np.arange(50) % 3)
        writer.commit_epoch(epoch)
    return str(tmp_path / "dynamics")


def test_options_are_yaml_values() -> None:
    assert parse_options(["T=30", "m=1e-1", "harder=high", "x=", "y=a=b"]) == {
        "T": 30,
        "m": 0.1,
        "harder": "high",
        "x": None,
        "y": "a=b",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x={", "x={ is not valid YAML"),
        ("x=*y", r"x=\*y is not valid YAML in line 1: found undefined alias 'y'"),
        ("x=2024-01-01", "cannot be used"),
        ("x", "'x' is not of the form name=value"),
        ("=1", "'=1' is not of the form name=value"),
    ],
)
def test_a_wrong_option_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_options([text])
    assert "\n" not in str(caught.value)


def test_an_option_or_a_score_that_is_given_twice_is_refused(store: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="option 'T' is given twice"):
        parse_options(["T=1", "T=2"])
    with pytest.raises(UserError, match="score 'dual' is named twice"):
        score_store(store, str(tmp_path / "out"), ["dual", "dual:T=4,J=2"], stage)


def test_without_a_name_all_that_fit_are_computed_and_the_others_said(store: str, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    rows, left_out = score_store(store, str(out), [], stage)
    fit = ["aum", "aum_logit", "confidence", "correctness", "entropy", "forgetting", "variability"]
    columns = pq.read_table(out).column_names
    assert columns[0] == "sample_id" and set(fit) <= set(columns) and not {"dual", "grand"} & set(columns)
    assert [row[0] for row in rows] == columns[1:] and {len(row) for row in rows} == {5}
    assert {row[0]: row[1] for row in rows}["forgetting"] == "high"
    assert len(left_out) == sum(not SCORES.get(name).harder.keys() <= set(columns) for name in SCORES.names())
    assert "dual needs 30 epochs (T=30) but 8 are recorded: lower T, or record more" in left_out
    assert any(why.startswith("grand needs the column 'embedding', which was not recorded") for why in left_out)


def test_a_score_that_is_named_is_never_left_out(store: str, tmp_path: Path) -> None:
    rows, left_out = score_store(store, str(tmp_path / "scores.parquet"), ["aum", "dual:T=4,J=2"], stage)
    assert left_out == [] and [row[0] for row in rows] == ["aum", "dual", "dual_mean"]
    with pytest.raises(UserError, match=r"^dual needs 30 epochs \(T=30\) but 8 are recorded: lower T"):
        score_store(store, str(tmp_path / "none.parquet"), ["aum", "dual"], stage)
    with pytest.raises(UserError, match=r"T=\{ is not valid YAML"):
        score_store(store, str(tmp_path / "none.parquet"), ["dual:T={"], stage)
    with pytest.raises(UserError, match="has no committed epoch"):
        score_store(str(tmp_path / "nowhere"), str(tmp_path / "none.parquet"), [], stage)
    assert not (tmp_path / "none.parquet").exists()


def test_one_score_with_several_settings_is_named_by_the_user(store: str, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    rows, _ = score_store(store, str(out), ["dual:T=4,J=2", "dual@8:T=8,J=2"], stage)
    assert pq.read_table(out).column_names == ["sample_id", "dual", "dual_mean", "dual@8", "dual_mean@8"]
    assert [row[:2] for row in rows][2:] == [("dual@8", "high"), ("dual_mean@8", "low")]


WHOLE = {"sample_id": [4, 2, 9, 7], "aum": [0.1, 0.4, 0.2, 0.3]}


def choose(scores: Path, *options: str) -> list[tuple[str, int, int]]:
    out = str(scores.parent / "coreset.parquet")
    return select_from_files(str(scores), "top_k", [0.5], 0, options, out, stage)


def test_select_from_a_table(tmp_path: Path) -> None:
    pq.write_table(pa.table(WHOLE), tmp_path / "scores.parquet")
    assert choose(tmp_path / "scores.parquet") == [(f"{tmp_path}/coreset.parquet", 2, 4)]
    assert pq.read_table(tmp_path / "coreset.parquet").to_pydict() == {"sample_id": [4, 9]}


def test_several_budgets_at_once_each_to_a_file_of_its_own(tmp_path: Path) -> None:
    pq.write_table(pa.table(WHOLE), tmp_path / "scores.parquet")
    arguments = (str(tmp_path / "scores.parquet"), "top_k", [0.25, 0.75], 0, [])
    with pytest.raises(UserError, match=r"is one file for 2 keep fractions: write \{keep\} where theirs should stand"):
        select_from_files(*arguments, str(tmp_path / "out.parquet"), stage)
    rows = select_from_files(*arguments, str(tmp_path / "out-{keep}.parquet"), stage)
    assert [row[1:] for row in rows] == [(1, 4), (3, 4)]
    kept = [pq.read_table(tmp_path / f"out-{keep}.parquet")["sample_id"].to_pylist() for keep in (0.25, 0.75)]
    assert kept == [[4], [4, 7, 9]]


def test_of_more_scores_than_are_held_at_once_the_same_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"sample_id": np.arange(500), "aum": np.round(rng.normal(size=500), 1)})
    pq.write_table(table, tmp_path / "scores.parquet", row_group_size=64)
    choose(tmp_path / "scores.parquet")
    together = (tmp_path / "coreset.parquet").read_bytes()
    monkeypatch.setattr(score_files, "TOGETHER", 100)
    choose(tmp_path / "scores.parquet")
    assert (tmp_path / "coreset.parquet").read_bytes() == together


@pytest.mark.parametrize("out", ["scores.parquet", "link.parquet", "folder/../scores.parquet", "scores-{keep}.parquet"])
def test_what_is_read_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    source = "scores-0.5.parquet" if "{keep}" in out else "scores.parquet"
    pq.write_table(pa.table(WHOLE), source)
    (tmp_path / "link.parquet").symlink_to("scores.parquet")
    for scores in (source, f"file://{tmp_path}/{source}"):
        with pytest.raises(UserError, match="is what is read: name another file to write"):
            select_from_files(scores, "top_k", [0.5], 0, [], out, stage)
    with pytest.raises(UserError, match=r" lies in '\.', which is read: name a file outside of it"):
        select_from_files(".", "top_k", [0.5], 0, [], out, stage)
    assert pq.read_table(source).to_pydict() == WHOLE and (tmp_path / "link.parquet").is_symlink()


def test_nothing_is_written_into_a_store(store: str, tmp_path: Path) -> None:
    epoch = Path(store) / "epoch-00000.json"
    before = epoch.read_bytes()
    (tmp_path / "link").symlink_to(store)
    for out in (str(epoch), f"{tmp_path}/link/epoch-00000.json", f"{store}/new/scores.parquet"):
        with pytest.raises(UserError, match=r"lies in .*dynamics', which is read: name a file outside of it to write"):
            score_store(store, out, ["aum"], stage)
    assert epoch.read_bytes() == before and not (Path(store) / "new").exists()
    score_store(store, f"{store}-scores.parquet", ["aum"], stage)
    with pytest.raises(UserError, match="'s3://a/dynamics/x' lies in 's3://a/dynamics/', which is read"):
        score_store("s3://a/dynamics/", "s3://a/dynamics/x", ["aum"], stage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_id": None}, "has no column 'sample_id'"),
        ({"aum": None}, "has no column 'aum': it has sample_id"),
        ({"sample_id": [4, 2, 4, 7]}, "sample_id 4 is in the table more than once"),
        ({"sample_id": [4, 2, None, 7]}, "1 of 4 rows have no sample_id"),
        ({"sample_id": ["a", "b", "c", "d"]}, "'sample_id' is of type string"),
        ({"aum": [0.1, np.nan, 0.2, 0.3]}, "'aum' is NaN in 1 of 4 rows"),
        ({"aum": [None] * 4}, "4 of 4 rows have no 'aum'"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(tmp_path: Path, change: dict, message: str) -> None:
    columns = {name: values for name, values in {**WHOLE, **change}.items() if values is not None}
    pq.write_table(pa.table(columns), tmp_path / "scores.parquet")
    with pytest.raises(UserError, match=message):
        choose(tmp_path / "scores.parquet")
    assert not (tmp_path / "coreset.parquet").exists()


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "scores.parquet"
    pq.write_table(pa.table(WHOLE), file)
    whole = file.read_bytes()
    with pytest.raises(UserError, match="there is no file"):
        choose(tmp_path / "none")
    damaged = [b"", b"sample_id,aum\n1,2\n", whole[:-20], whole[100:], whole.replace(b"aum", b"a\xd7m")]
    for data in (*damaged, *(whole[:at] + b"\xff" * 8 + whole[at + 8 :] for at in range(0, len(whole), 31))):
        file.write_bytes(data)
        try:
            choose(file)
        except UserError as error:
            assert "\n" not in str(error)
    file.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(UserError, match="is no whole Parquet file: write it again"):
        choose(file)


def test_the_commands_own_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'keep_fraction' is no option of a selector: give it as --keep-fraction"):
        choose(tmp_path, "keep_fraction=0.5")


def test_every_method_is_described_with_its_source() -> None:
    for text, registry in ((describe_scores(), SCORES), (describe_selectors(), SELECTORS)):
        for name, paragraph in zip(registry.names(), text.split("\n\n"), strict=True):
            assert paragraph.startswith(f"{name} - ") and paragraph.endswith(f"Source: {registry.get(name).source}")
            assert "\n" not in paragraph


def test_describing_imports_nothing_heavy() -> None:
    program = (
        "import sys, jobs.kernels as k; k.describe_scores(); k.describe_selectors();"
        "print({'torch', 'ray', 'pyarrow', 'fsspec', 'scipy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
