"""One shard from its bytes to its rows of the index: what a task of the stage `index` does."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import images, labels, quarantine, shards, storage, tar
from pipeline.quarantine import DefectError
from pipeline.shards import Source
from pipeline.stage import Part, write_table_part

if TYPE_CHECKING:
    from pipeline.index import DataConfig

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("label", pa.int64()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
    ]
)


@dataclass(frozen=True)
class IndexedShard:
    """What a task says of its shard. part: its rows, or None; hashes: 8 bytes per row; bad: its quarantine."""

    source: Source
    sha256: str
    part: Part | None
    hashes: bytes
    num_labelled: int
    bad: pa.Table


def index_shard(item: tuple[int, Source], config: "DataConfig", known: pa.Table | None, uri: str) -> IndexedShard:
    """One task: a shard from its bytes to its rows."""
    number, source = item
    data = shards.read(source.uri, source.size)
    rows: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    samples: list[tar.Sample] = []
    try:
        samples = tar.scan(data)
        if not samples:
            bad.append(quarantine.entry(source.uri, tar.WHOLE, "", "empty shard", ""))
    except tar.NotATarError as error:
        bad.append(quarantine.entry(source.uri, tar.WHOLE, "", "not a tar", str(error)))
    given = _look_up(known, [sample.key for sample in samples])
    seen: set[str] = set()
    for sample in samples:
        try:
            row = _row(sample, data, given, seen, config)
        except DefectError as defect:
            bad.append(quarantine.entry(source.uri, sample.row, sample.key, defect.reason, defect.detail))
        else:
            seen.add(sample.key)
            rows.append({"shard": number, **row})
    part = write_table_part(uri, f"part-{number:05d}", pa.Table.from_pylist(rows, SCHEMA)) if rows else None
    return IndexedShard(
        source=source,
        sha256=storage.sha256(data),
        part=part,
        hashes=b"".join(hashlib.blake2b(row["key"].encode(), digest_size=8).digest() for row in rows),
        num_labelled=sum(row["label"] is not None for row in rows),
        bad=pa.Table.from_pylist(bad, quarantine.SCHEMA),
    )


def _look_up(known: pa.Table | None, keys: list[str]) -> dict[str, int] | None:
    """The label table's part for these keys; None without a table."""
    if known is None:
        return None
    found = known.filter(pc.is_in(known["key"], pa.array(keys, pa.string())))
    return dict(zip(found["key"].to_pylist(), found["label"].to_pylist(), strict=True))


def _row(
    sample: tar.Sample, data: bytes, given: dict[str, int] | None, seen: set[str], config: "DataConfig"
) -> dict[str, Any]:
    """The sample's row of the index; DefectError if it cannot be used."""
    if sample.defect:
        raise DefectError(sample.defect, sample.detail)
    if sample.key in seen:
        raise DefectError("duplicate key", "an earlier sample of this shard has it")
    found = [member for member in sample.members if member.extension in images.EXTENSIONS]
    if len(found) != 1:
        names = ", ".join(member.extension for member in sample.members)
        raise DefectError("several images" if found else "no image", f"members: {names}"[:200])
    payloads = memoryview(data)
    try:
        label = given.get(sample.key) if given is not None else _label(sample, payloads, config)
    except labels.LabelError as error:
        raise DefectError("unreadable label", str(error)) from error
    if label is not None and not 0 <= label < config.num_classes:
        raise DefectError("label out of range", f"label {label} outside 0..{config.num_classes - 1}")
    (image,) = found
    try:
        images.decode(payloads[image.offset : image.offset + image.size], config.image_size, config.max_pixels)
    except images.UndecodableImageError as error:
        raise DefectError("undecodable image", str(error)) from error
    return {
        "key": sample.key,
        "row": sample.row,
        "label": label,
        "offset": sample.offset,
        "length": sample.length,
        "image_offset": image.offset,
        "image_size": image.size,
    }


def _label(sample: tar.Sample, payloads: memoryview, config: "DataConfig") -> int | None:
    wanted = "cls" if config.label_field is None else "json"
    for member in sample.members:
        if member.extension == wanted:
            payload = bytes(payloads[member.offset : member.offset + member.size])
            if config.label_field is None:
                return labels.label_from_cls(payload, config.classes)
            return labels.label_from_json(payload, config.label_field, config.classes)
    return None
