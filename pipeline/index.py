"""Stage `index`: every sample of the shards gets its sample_id; what cannot be used is quarantined.

One task per shard reads it once, decodes every image to prove that it decodes, and writes its rows; a shard whose rows
an earlier index of the same root has is not read again. Only 8-byte hashes of the keys come back, to find keys that
several shards share.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, model_validator

from pipeline import images, labels, quarantine, shards, storage
from pipeline.config import Config
from pipeline.errors import DataError
from pipeline.index_shard import IndexedShard, Item, index_shards, is_kept
from pipeline.parallel import stream_items
from pipeline.resources import Resources
from pipeline.shards import Patterns, Shard, Source, Uri
from pipeline.shared_keys import SharedKeys
from pipeline.stage import MANIFEST, Artifact, Output, Part, Progress, write_table_part

SHARDS_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("mtime_or_etag", pa.string()),
        ("num_rows", pa.int64()),
        ("first_id", pa.int64()),
    ]
)


_GROUP = 16


class DataConfig(Config):
    """The `data` section of a recipe.

    Shards added after those of an earlier index of the same root leave its sample_ids as they are.
    """

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["required"].remove("num_classes"))

    shards: Patterns = Field(
        description="paths or URIs with {000..019} and wildcards, or lists of shards (NAME.json), one or several"
    )
    num_classes: int = Field(ge=2, description="how many there are; not needed where classes names them")
    classes: tuple[str, ...] = Field(default=(), description="names of the classes, in the order of their numbers")
    image_size: int = Field(ge=8, le=1024, description="side of the square that every later stage sees")
    label_field: str | None = Field(
        default=None, description="the field of .json that holds the label; null: the label is in .cls"
    )
    labels: Uri | None = Field(
        default=None, description="a CSV or Parquet table key,label, used instead of what the shards say"
    )
    quarantine_limit: float = Field(default=0.01, ge=0, le=1, description="fraction of the data that may be unusable")
    max_pixels: int = Field(
        default=50_000_000, ge=1, le=images.MAX_PIXELS, description="images that are larger are not decoded"
    )

    @model_validator(mode="before")
    @classmethod
    def _count_classes(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        # What a validator has touched counts as Python, where strict settings want tuples.
        content = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
        if "num_classes" not in content and isinstance(content.get("classes"), tuple):
            content["num_classes"] = len(content["classes"])
        return content

    @model_validator(mode="after")
    def _agree(self) -> "DataConfig":
        for pattern in self.shards:
            if pattern.rpartition(".")[2].lower() in images.EXTENSIONS:
                raise ValueError(f"shards: {pattern!r} names images: make shards of them by `semiprune import images`")
        if self.classes and len(set(self.classes)) != self.num_classes:
            raise ValueError(f"classes must be {self.num_classes} different names, the number in num_classes")
        if self.label_field is not None and self.labels is not None:
            raise ValueError("labels and label_field are two sources of the same label: name one")
        return self


@lru_cache(maxsize=8)
def _check_labels(uri: str, sha256: str | None, num_classes: int, classes: tuple[str, ...]) -> None:
    """UserError for a wrong table of labels; a right one of these bytes is read no second time."""
    labels.load_label_table(uri, num_classes, classes)


class IndexConfig(Config):
    """The `data` section with the SHA-256 of its table of labels and of the names that its wildcards match now.

    Other labels, or one more shard behind a wildcard, are another index.
    """

    data: DataConfig
    labels_sha256: str | None
    names_sha256: str | None

    @classmethod
    def of(cls, data: DataConfig) -> Self:
        """The settings with the table and the names as they are now; UserError if there is none, or a wrong table."""
        labels_sha256 = labels.checksum(data.labels, "data.labels")
        if data.labels is not None:  # a wrong table is told before any shard is read
            _check_labels(data.labels, labels_sha256, data.num_classes, data.classes)
        return cls(
            data=data,
            labels_sha256=labels_sha256,
            names_sha256=shards.checksum(data.shards),
        )


def run(
    inputs: Mapping[str, Artifact], config: IndexConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Index the shards; parts: rows, `shards`, `quarantine`.

    Raises UserError before any work for shards or labels that are not there, DataError for a shard that an earlier
    index of the same root knows otherwise, and if more is unusable than `quarantine_limit` allows; the table of what it
    was is written all the same.
    """
    data = config.data
    if (now := IndexConfig.of(data)) != config:
        what = (
            f"the table of labels {data.labels!r}" if now.names_sha256 == config.names_sha256 else "the set of shards"
        )
        raise DataError(f"{what} changed as the run began: run the same command again")
    sources = shards.find(data.shards)
    folder = out.uri.rpartition("/")[0]
    items = _expecting(sources, data, folder)
    known = labels.load_label_table(data.labels, data.num_classes, data.classes) if data.labels else None
    index = partial(index_shards, config=config, known=known, folder=folder, uri=out.uri)
    indexed: list[IndexedShard] = []
    keys = SharedKeys()
    for unit, groups in _grouped(items, config, folder).items():
        found = stream_items(groups, index, resources=resources, progress=progress, unit=unit) if groups else ()
        for item in (item for _, group in found for item in group):
            keys.add(item.number, item.hashes)
            indexed.append(replace(item, hashes=b""))
    indexed.sort(key=lambda item: item.number)
    num_reused = sum(item.reused for item in indexed)
    indexed = _drop_repeated(indexed, keys.earlier(), out.uri, resources, progress)

    num_rows = [item.part.rows if item.part else 0 for item in indexed]
    first_ids = np.concatenate([[0], np.cumsum(num_rows)]).tolist()
    for item in indexed:
        if item.part:
            out.add(item.part)
    rows = [
        Shard(number, item.source.uri, item.source.size, item.sha256, item.source.stamp, num_rows[number], first_id)
        for number, (item, first_id) in enumerate(zip(indexed, first_ids, strict=False))
    ]
    out.write_table(pa.Table.from_pylist([vars(row) for row in rows], SHARDS_SCHEMA), "shards")
    bad = pa.concat_tables([item.bad for item in indexed])
    quarantine.admit(bad, first_ids[-1], len(sources), data.quarantine_limit, out)
    num_labelled = sum(item.num_labelled for item in indexed)
    return {
        "num_samples": first_ids[-1],
        "num_shards": len(sources),
        "num_shards_read": len(sources) - num_reused,
        "num_shards_reused": num_reused,
        "num_classes": data.num_classes,
        "num_labelled_rows": num_labelled,
        "labels_unmatched": known.num_rows - num_labelled if known is not None else 0,
        "num_quarantined": bad.num_rows,
        "quarantined": quarantine.count_reasons(bad),
        "bytes": sum(source.size for source in sources),
    }


def load_config(artifact: Artifact) -> IndexConfig:
    """The settings with which it was indexed."""
    return IndexConfig.model_validate_json(json.dumps(artifact.manifest["config"]))


def load_index(artifact: Artifact, columns: list[str] | None = None) -> pa.Table:
    """The rows by sample_id, which is the first column; columns: those wanted besides, default all.

    Keys are large_string: in one array, all of a pool's may be above the 2 GiB that string can address.
    """
    table = artifact.table(columns=columns)
    if "key" in table.column_names:
        place = table.schema.get_field_index("key")
        table = table.set_column(place, "key", table["key"].cast(pa.large_string()))
    return table.add_column(0, "sample_id", pa.array(np.arange(table.num_rows, dtype=np.int64)))


def load_shards(artifact: Artifact) -> list[Shard]:
    """All shards in order, also those without a row."""
    return [Shard(**row) for row in artifact.table("shards").to_pylist()]


def check_unchanged(artifact: Artifact) -> None:
    """DataError if the shards are not those that were indexed: other files, or other bytes in them."""
    known = load_shards(artifact)
    found = {source.uri for source in shards.find(load_config(artifact).data.shards)}
    _refuse_lost(known, found)
    for uri in sorted(found - {shard.uri for shard in known}):
        raise DataError(f"the shard {uri!r} was not there when the run began: run the same command again")
    shards.check_all(known)


def _refuse_lost(known: list[Shard], found: set[str]) -> None:
    for shard in known:
        if shard.uri not in found:
            raise DataError(
                f"the shard {shard.uri!r} is not matched any more, though it was when data.shards was indexed: put it "
                "back, or index the others under another root"
            )


@dataclass(frozen=True)
class _Committed:
    """What is needed of the manifest of another index."""

    config: dict[str, Any]
    parts: list[Part]


def _expecting(sources: list[Source], data: DataConfig, folder: str) -> list[Item]:
    """The shards with their SHA-256 in earlier indexes of this root; DataError where one is another or lost."""
    earlier: dict[str, Shard] = {}
    found = {source.uri for source in sources}
    for artifact in _committed(folder):
        known = load_shards(artifact)
        if artifact.manifest["config"]["data"]["shards"] == list(data.shards):
            _refuse_lost(known, found)
        earlier |= {shard.uri: shard for shard in known}
    items = []
    for number, source in enumerate(sources):
        shard = earlier.get(source.uri)
        if shard is not None and shard.size != source.size:
            raise shards.changed(source.uri)
        items.append(Item(number, source, shard.sha256 if shard else None))
    return items


def _grouped(items: list[Item], config: IndexConfig, folder: str) -> dict[str, list[list[Item]]]:
    """Shards to read one by one, and those whose rows are there in groups: a task of their own would cost more."""
    with ThreadPoolExecutor(_GROUP) as pool:
        kept = list(pool.map(partial(is_kept, config=config, folder=folder), items))
    there = [item for item, known in zip(items, kept, strict=True) if known]
    new = [[item] for item, known in zip(items, kept, strict=True) if not known]
    return {
        "groups of known shards": [there[start : start + _GROUP] for start in range(0, len(there), _GROUP)],
        "shards": new,
    }


def _committed(folder: str) -> Iterator[Artifact]:
    """The finished indexes in a folder of them."""
    for name in storage.names(folder):
        if re.fullmatch("[0-9a-f]{16}", name):
            uri = storage.join(folder, name)
            try:
                manifest = storage.read_json(storage.join(uri, MANIFEST), _Committed)
            except FileNotFoundError:
                continue
            yield Artifact(uri, asdict(manifest))


def _drop_repeated(
    indexed: list[IndexedShard], earlier: dict[int, set[int]], uri: str, resources: Resources, progress: Progress
) -> list[IndexedShard]:
    """Keys that several shards share stay in the first one; the later rows move to the quarantine.

    earlier: for every shard that may share a key with earlier ones, those.
    """
    items = [
        (indexed[later], [part for number in sorted(numbers) if (part := indexed[number].part)])
        for later, numbers in sorted(earlier.items())
    ]
    if not items:
        return indexed
    task = partial(_without_repeated, uri=uri)
    found = stream_items(items, task, resources=resources, progress=progress, unit="shards")
    mended = {shard.number: shard for _, shard in found}
    return [mended.get(item.number, item) for item in indexed]


def _without_repeated(item: tuple[IndexedShard, list[Part]], uri: str) -> IndexedShard:
    """One task: the shard's rows without the keys of the given parts of earlier shards."""
    shard, earlier = item
    assert shard.part is not None
    rows = _read_part(uri, shard.part)
    keys = pa.concat_arrays([_read_part(uri, part)["key"].combine_chunks() for part in earlier])
    repeated = pc.is_in(rows["key"], keys)
    kept, dropped = rows.filter(pc.invert(repeated)), rows.filter(repeated)
    bad = [
        quarantine.entry(shard.source.uri, row["row"], row["key"], "duplicate key", "an earlier shard has it")
        for row in dropped.select(["row", "key"]).to_pylist()
    ]
    table = pa.concat_tables([shard.bad, pa.Table.from_pylist(bad, quarantine.SCHEMA)]).sort_by("row")
    part = write_table_part(uri, shard.part.name.rsplit("-", 1)[0], kept) if kept.num_rows else None
    return replace(shard, part=part, num_labelled=kept.num_rows - kept["label"].null_count, bad=table)


def _read_part(uri: str, part: Part) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_verified(storage.join(uri, part.name), part.sha256)))
