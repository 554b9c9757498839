"""Labels from a shard (`.cls`, a field of `.json`) or from a table `key,label`: integers or class names."""

import io
import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import SemiPruneError, UserError

_INTEGER = re.compile(r"-?[0-9]{1,18}")


class LabelError(SemiPruneError):
    """The value is neither an integer nor a class name; the message says what it is."""


def parse_label(value: Any, classes: Sequence[str] = ()) -> int:
    """The class number of an integer, its digits, or a name in `classes`; not checked against the number of classes."""
    if isinstance(value, str):
        text = value.strip()
        if text in classes:
            return classes.index(text)
        if _INTEGER.fullmatch(text):
            return int(text)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62:
        return value
    shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
    raise LabelError(f"label {shown} is not an integer" + (" nor one of data.classes" if classes else ""))


def label_from_cls(payload: bytes, classes: Sequence[str] = ()) -> int:
    """The label in a `.cls` member."""
    try:
        return parse_label(payload.decode("utf-8"), classes)
    except UnicodeDecodeError as error:
        raise LabelError("the .cls member is not UTF-8 text") from error


def label_from_json(payload: bytes, field: str, classes: Sequence[str] = ()) -> int | None:
    """The label in a field of a `.json` member; None where the field is missing or null."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise LabelError("the .json member is not valid JSON") from error
    if not isinstance(content, dict):
        raise LabelError("the .json member is not an object")
    value = content.get(field)
    return None if value is None else parse_label(value, classes)


def checksum(uri: str | None, field: str) -> str | None:
    """SHA-256 of the table that `field` of a recipe names, None if it names none; UserError if it cannot be read."""
    try:
        return None if uri is None else storage.sha256(_bytes(uri))
    except UserError as error:
        raise UserError(f"{field}: {error}") from error


def load_label_table(uri: str, num_classes: int, classes: Sequence[str] = ()) -> pa.Table:
    """A CSV or Parquet file as key: string, every key once, label: int64, 0 .. num_classes - 1; UserError says what is
    wrong with it.
    """
    table = _read(uri)
    for name in ("key", "label"):
        if name not in table.column_names:
            raise UserError(
                f"{uri!r} has no column {name!r} but {', '.join(table.column_names)}: it needs key and label"
            )
    try:
        keys, values = (_text(table[name]) for name in ("key", "label"))
    except pa.ArrowException as error:
        raise UserError(f"{uri!r}: key and label must be text or numbers: {error}") from error
    for name, cells in (("key", keys), ("label", values)):
        # An empty cell is null in Parquet, and text of no length in CSV.
        if empty := cells.null_count + (pc.sum(pc.equal(cells, "")).as_py() or 0):
            raise UserError(f"{uri!r} has an empty {name} in {empty} rows: leave those rows out")
    encoded = values.dictionary_encode()
    try:
        numbers = pa.array([parse_label(value, classes) for value in encoded.dictionary.to_pylist()], pa.int64())
    except LabelError as error:
        advice = "correct the table" if classes else "name the classes in data.classes, or correct the table"
        raise UserError(f"{uri!r}: {error}: {advice}") from error
    labels = pa.table({"key": keys, "label": numbers.take(encoded.indices)})
    groups = labels.group_by("key", use_threads=False).aggregate([("label", "min"), ("label", "max")])
    torn = groups.filter(pc.not_equal(groups["label_min"], groups["label_max"]))
    if torn.num_rows:
        row = torn.slice(0, 1).to_pylist()[0]
        raise UserError(
            f"{uri!r} gives the key {row['key']!r} the labels {row['label_min']} and {row['label_max']}: keep one"
        )
    label = groups["label_min"]
    outside = groups.filter(pc.or_(pc.less(label, 0), pc.greater_equal(label, num_classes)))
    if outside.num_rows:
        row = outside.slice(0, 1).to_pylist()[0]
        others = f" (and {outside.num_rows - 1:,} more)" if outside.num_rows > 1 else ""
        raise UserError(
            f"{uri!r} gives the key {row['key']!r}{others} the label {row['label_min']}, outside "
            f"0..{num_classes - 1}: correct the table; classes count from 0, and rows without a label are left out"
        )
    return pa.table({"key": groups["key"], "label": label})


def labels_of(keys: pa.ChunkedArray, table: pa.Table) -> pa.ChunkedArray:
    """Of each key its label in a table of `load_label_table`, null where it has none: int64, as long as `keys`."""
    place = pc.index_in(keys, value_set=table["key"].combine_chunks().cast(keys.type))
    return table["label"].combine_chunks().take(place)


def _read(uri: str) -> pa.Table:
    suffix = uri.rsplit(".", 1)[-1].lower()
    if suffix not in ("csv", "parquet"):
        raise UserError(f"{uri!r} is no table of labels: choose a .csv or .parquet file with the columns key and label")
    data = io.BytesIO(_bytes(uri))
    text = {"key": pa.string(), "label": pa.string()}  # "0001" is a key, not a number
    try:
        if suffix == "parquet":
            return pq.read_table(data)
        return pyarrow.csv.read_csv(data, convert_options=pyarrow.csv.ConvertOptions(column_types=text))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{uri!r} cannot be read as {suffix}: {error}; write it again") from error


def _bytes(uri: str) -> bytes:
    try:
        return storage.read(uri)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"there is no table of labels at {uri!r}: check the path") from error


def _text(column: pa.ChunkedArray) -> pa.Array:
    return pc.cast(column.combine_chunks(), pa.string())
