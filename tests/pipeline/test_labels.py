import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.labels import LabelError, checksum, label_from_cls, label_from_json, load_label_table, parse_label

PETS = ("cat", "dog", "7")


@pytest.mark.parametrize(
    ("value", "classes", "label"),
    [(3, (), 3), ("3", (), 3), (" 12\n", (), 12), ("-1", (), -1), ("dog", PETS, 1), ("0", PETS, 0), ("7", PETS, 2)],
)
def test_integers_and_class_names(value, classes, label):
    assert parse_label(value, classes) == label


@pytest.mark.parametrize("value", ["", "cat", "1.0", "1_0", "٣", 1.0, True, None, [1], "9" * 5000, 10**30])
def test_anything_else_is_an_error_of_one_short_line(value):
    with pytest.raises(LabelError) as caught:
        parse_label(value)
    assert "is not an integer" in str(caught.value)
    assert len(str(caught.value)) < 100


def test_members():
    assert label_from_cls(b"4\n") == 4
    assert label_from_cls(b"dog", PETS) == 1
    with pytest.raises(LabelError, match="UTF-8"):
        label_from_cls(b"\xff\xfe")
    assert label_from_json(b'{"y": 4}', "y") == 4
    assert label_from_json(b'{"y": "dog"}', "y", PETS) == 1
    assert label_from_json(b'{"x": 4}', "y") is None
    assert label_from_json(b'{"y": null}', "y") is None
    for payload in (b"", b"[4]", b"{", b"[" * 100_000):
        with pytest.raises(LabelError):
            label_from_json(payload, "y")


def read_label_table(path: str, classes: Sequence[str] = ()) -> dict[str, int]:
    table = load_label_table(path, 4, classes)
    return dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_csv_keys_stay_text(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('note,key,label\nx,0001,3\ny,"a,b",0\nz,ü/1,2\nz,ü/1,2\n', encoding="utf-8-sig")
    assert read_label_table(str(path)) == {"0001": 3, "a,b": 0, "ü/1": 2}


@pytest.mark.parametrize(
    "labels", [[3, 0], ["3", "0"], pa.array(["3", "0"]).dictionary_encode(), pa.array([3, 0], "u1")]
)
def test_parquet_of_any_type(tmp_path, labels):
    path = str(tmp_path / "labels.parquet")
    pq.write_table(pa.table({"key": ["a", "b"], "label": labels}), path)
    assert read_label_table(path) == {"a": 3, "b": 0}


def test_class_names_in_a_table(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("key,label\na,dog\nb,0\n")
    assert read_label_table(str(path), PETS) == {"a": 1, "b": 0}


def test_words_that_other_tools_take_for_an_empty_cell_are_text(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("key,label\nNaN,NA\nnull,null\n")
    assert read_label_table(str(path), ("null", "NA")) == {"NaN": 1, "null": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,y\na,1\n", "has no column 'label' but key, y"),
        ("id,label\na,1\n", "has no column 'key'"),
        ("key,label\na,1\na,2\n", "gives the key 'a' the labels 1 and 2"),
        ("key,label\na,cat\n", "label 'cat' is not an integer: name the classes in data.classes, or correct"),
        ("key,label\na,4\n", r"gives the key 'a' the label 4, outside 0\.\.3: correct the table; classes count from 0"),
        ("key,label\na,3\nb,-1\nc,-1\n", r"the key 'b' \(and 1 more\) the label -1, outside 0\.\.3"),
        ("key,label\na,\nb,1\nc,\n", "has an empty label in 2 rows: leave those rows out"),
        ('key,label\na,1\n"",1\n', "has an empty key in 1 rows"),
        ("", "cannot be read as csv"),
        ("key,label\na,1,2\n", "cannot be read as csv"),
    ],
)
def test_mistakes_in_a_csv(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_label_table(str(path))


@pytest.mark.parametrize("labels", [[1, None], ["1", None], ["1", ""]])
def test_empty_cells_of_parquet(tmp_path, labels):
    path = str(tmp_path / "labels.parquet")
    pq.write_table(pa.table({"key": ["a", "b"], "label": labels}), path)
    with pytest.raises(UserError, match="empty label in 1 rows"):
        read_label_table(path)


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"")
    assert checksum(str(tmp_path / "a.csv"), "data.labels") == hashlib.sha256(b"").hexdigest()
    assert checksum(None, "data.labels") is None
    for place in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match=r"^data\.labels: there is no table of labels at"):
            checksum(str(place), "data.labels")


def test_paths_that_are_no_table(tmp_path):
    with pytest.raises(UserError, match="there is no table of labels at"):
        read_label_table(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match=r"choose a \.csv or \.parquet"):
        read_label_table(str(tmp_path / "labels.xlsx"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read_label_table(str(tmp_path / "bad.parquet"))
