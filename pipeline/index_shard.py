"""One shard from its bytes to its rows of the index: what a task of the stage `index` does.

The rows of a shard, as they are before other shards are known, are a stage of their own, `{root}/index/shards/{key}`,
committed as soon as they are there. So every later index under the same root takes them over without reading the shard,
also after an interruption: the key holds what the shard is and all that decides a row.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import images, labels, quarantine, shards, sidecar, storage, tar
from pipeline.config import Config
from pipeline.quarantine import DefectError
from pipeline.shards import Source
from pipeline.stage import MANIFEST, Artifact, Output, Part, Stage, write_table_part

if TYPE_CHECKING:
    from pipeline.index import IndexConfig

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
_ROWS = SCHEMA.remove(1)

_VERSION = 1
"""Raised when the code reads other rows from the same shard: those on disk are then no longer taken over."""


class ShardConfig(Config):
    """Which bytes, and what decides the rows that are read from them.

    source: fields of a Source; labelled: whether their labels are read too, as they are without a table of labels.
    """

    source: dict[str, Any]
    data: dict[str, Any]
    labelled: bool

    @classmethod
    def of(cls, source: Source, config: "IndexConfig") -> Self:
        """Everything in the `data` section but what concerns all shards together, and the table of labels."""
        data = config.data.model_dump(exclude={"shards", "quarantine_limit", "labels"})
        return cls(source=vars(source), data=data, labelled=config.data.labels is None)


@dataclass(frozen=True)
class Item:
    """A shard to index. number: its place; expected: its SHA-256 in an earlier index of the same root, if there is."""

    number: int
    source: Source
    expected: str | None = None


@dataclass(frozen=True)
class IndexedShard:
    """What a task says of a shard.

    part: its rows, or None; hashes: 8 bytes per row; bad: its quarantine; reused: whether its rows were there already.
    """

    number: int
    source: Source
    sha256: str
    part: Part | None
    hashes: bytes
    num_labelled: int
    bad: pa.Table
    reused: bool


def is_kept(item: Item, config: "IndexConfig", folder: str) -> bool:
    """Whether the rows of the shard are there, so that it will not be read."""
    return storage.exists(storage.join(_stage(item, config).uri(folder), MANIFEST))


def index_shards(
    items: list[Item], config: "IndexConfig", known: pa.Table | None, folder: str, uri: str
) -> list[IndexedShard]:
    """One task: the rows of each shard as a part of the index at `uri`; folder: where shards are kept, by `reach`;
    known: the table of labels, if there is one.

    DataError if a shard has to be read and is not the expected one, or has a sidecar that describes another.
    """
    return [_index_shard(item, config, known, folder, uri) for item in items]


def _stage(item: Item, config: "IndexConfig") -> Stage:
    read = partial(_read, item=item, settings=config)
    return Stage("shards", _VERSION, ShardConfig.of(item.source, config), {}, read)


def _index_shard(item: Item, config: "IndexConfig", known: pa.Table | None, folder: str, uri: str) -> IndexedShard:
    artifact, reused = reach(_stage(item, config), folder)
    rows = pa.concat_tables([_ROWS.empty_table(), *artifact.tables("rows")])
    if known is not None:
        here = known.filter(pc.is_in(known["key"], rows["key"].combine_chunks()))
        rows = rows.set_column(_ROWS.get_field_index("label"), "label", labels.labels_of(rows["key"], here))
    number = pa.repeat(pa.scalar(item.number, pa.int32()), rows.num_rows)
    table = rows.add_column(1, SCHEMA.field("shard"), number).combine_chunks()
    return IndexedShard(
        number=item.number,
        source=item.source,
        sha256=artifact.metrics["sha256"],
        part=write_table_part(uri, f"part-{item.number:05d}", table) if table.num_rows else None,
        hashes=b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in table["key"].to_pylist()),
        num_labelled=table.num_rows - table["label"].null_count,
        bad=pa.concat_tables([quarantine.SCHEMA.empty_table(), *artifact.tables("bad")]),
        reused=reused,
    )


def reach(stage: Stage, root: str) -> tuple[Artifact, bool]:
    """The artifact of a stage without inputs, and whether it was there already; else it is run here and committed."""
    artifact = stage.load(root)
    if artifact is not None:
        return artifact, True
    out = Output(stage.uri(root))
    return stage.commit(root, out, stage.run({}, stage.config, out), {}), False


def _read(
    inputs: Mapping[str, Artifact],
    config: ShardConfig,
    out: Output,
    *,
    item: Item,
    settings: "IndexConfig",
) -> dict[str, Any]:
    """Read the shard; parts `rows` and `bad` where there are any."""
    source = item.source
    data = shards.read(source.uri, source.size)
    checksum = storage.sha256(data)
    if item.expected not in (None, checksum):
        raise shards.changed(source.uri)
    samples, bad = scan(source.uri, data)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for sample in samples:
        try:
            rows.append(_row(sample, data, seen, settings))
        except DefectError as defect:
            bad.append(quarantine.entry(source.uri, sample.row, sample.key, defect.reason, defect.detail))
        else:
            seen.add(sample.key)
    if rows:
        out.write_table(pa.Table.from_pylist(rows, _ROWS), "rows")
    if bad:
        out.write_table(pa.Table.from_pylist(bad, quarantine.SCHEMA), "bad")
    return {"sha256": checksum, "num_samples": len(rows), "num_quarantined": len(bad)}


def scan(uri: str, data: bytes) -> tuple[list[tar.Sample], list[dict[str, Any]]]:
    """The samples of a shard, and the entry of the quarantine if it holds none; DataError for a wrong sidecar."""
    try:
        samples = tar.scan(data)
    except tar.NotATarError as error:
        return [], [quarantine.entry(uri, tar.WHOLE, "", "not a tar" if data else "no bytes", str(error))]
    sidecar.check(uri, samples)
    return samples, [] if samples else [quarantine.entry(uri, tar.WHOLE, "", "empty shard", "")]


def _row(sample: tar.Sample, data: bytes, seen: set[str], settings: "IndexConfig") -> dict[str, Any]:
    """The sample's row of the index, without a label where a table has those; DefectError if it cannot be used."""
    config = settings.data
    image = only_image(sample, seen)
    payloads = memoryview(data)
    try:
        label = _label(sample, payloads, settings) if config.labels is None else None
    except labels.LabelError as error:
        raise DefectError("unreadable label", str(error)) from error
    if label is not None and not 0 <= label < config.num_classes:
        raise DefectError("label out of range", f"label {label} outside 0..{config.num_classes - 1}")
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


def only_image(sample: tar.Sample, seen: set[str]) -> tar.Member:
    """The sample's one image; DefectError if the sample is broken, its key among those seen, or has not one image."""
    if sample.defect:
        raise DefectError(sample.defect, sample.detail)
    if sample.key in seen:
        raise DefectError("duplicate key", "an earlier sample of this shard has it")
    found = [member for member in sample.members if member.extension in images.EXTENSIONS]
    if len(found) != 1:
        names = ", ".join(member.extension for member in sample.members)
        raise DefectError("several images" if found else "no image", f"members: {names}"[:200])
    return found[0]


def _label(sample: tar.Sample, payloads: memoryview, settings: "IndexConfig") -> int | None:
    config = settings.data
    wanted = "cls" if config.label_field is None else "json"
    for member in sample.members:
        if member.extension == wanted:
            payload = bytes(payloads[member.offset : member.offset + member.size])
            if config.label_field is None:
                return labels.label_from_cls(payload, config.classes)
            return labels.label_from_json(payload, config.label_field, config.classes)
    return None
