"""`semiprune prepare`: a dataset resized once to training size, in new shards of equal numbers of samples.

Every source shard becomes a resized one under `OUT/_prepare`; these are then cut into OUT/shard-000000.tar and on. What
is finished is committed as a stage of its own and not done again after a kill; `_MANIFEST.json` in OUT comes last, then
`_prepare` goes. All of it is a function of the settings and the source shards: equal bytes for any number of tasks.
"""

import contextlib
import glob
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from pipeline import quarantine, shards, sidecar, storage, tar
from pipeline.cluster import connected
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.index_shard import reach
from pipeline.parallel import map_items
from pipeline.resize import ImageConfig, Resized, resize_shard
from pipeline.resources import Resources
from pipeline.shards import Piece, Source
from pipeline.stage import MANIFEST, Artifact, Output, Part, Progress, Stage

WORK = "_prepare"
"""The folder in OUT of what is not finished; with it OUT takes twice its space."""
LIST = "index.json"
"""The new shards as a list of shards, which `data.shards` may name."""
QUARANTINE = "quarantine.parquet"

_CLAIM = "_CLAIM.json"


class PrepareConfig(Config):
    """What decides the new shards."""

    image: ImageConfig
    samples_per_shard: Annotated[int, Field(ge=1)] = 1000


class _Preparing(Config):
    """The whole result. sources: fields of a Source each."""

    settings: PrepareConfig
    sources: tuple[dict[str, Any], ...]


class _Cutting(Config):
    """What decides a new shard. pieces: SHA-256 of a resized shard, the offset of the first sample, how many."""

    number: int
    pieces: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Prepared:
    """What was written. reasons: how many samples were left out, by reason; OUT/quarantine.parquet names them."""

    shards: tuple[str, ...]
    num_samples: int
    num_bytes: int
    source_bytes: int
    reasons: dict[str, int]


def prepare(
    patterns: Sequence[str],
    out: str,
    config: PrepareConfig,
    quarantine_limit: float,
    *,
    resources: Resources,
    progress: Progress,
) -> Prepared:
    """Resize and reshard; found done, or taken up where it stopped, if the same was begun in `out` before.

    Images whose shorter side is above `size` are resized and encoded again, upright; the others, and all other
    members, keep their bytes. Keys and their order stay. Samples that an index would not take are left out and listed.
    UserError for shards that cannot be read or an `out` that holds something else; DataError if more than
    `quarantine_limit` of the data is left out.
    """
    out = shards.absolute(out)
    sources = shards.find(tuple(map(shards.absolute, patterns)))
    whole = _Preparing(settings=config, sources=tuple(map(vars, sources)))
    stage = Stage("prepare", 1, whole, {}, _prepare)
    if not _is_done(out, stage.key):
        output = Output(out)
        with connected(resources):
            metrics = _prepare(sources, config, quarantine_limit, output, resources, progress)
        manifest = {
            "stage": stage.name,
            "title": stage.title,
            "version": stage.version,
            "key": stage.key,
            "config": {"settings": config.model_dump(), "quarantine_limit": quarantine_limit},
            "inputs": {},
            "parts": [asdict(part) for part in output.parts],
            "metrics": metrics,
        }
        storage.write(storage.join(out, MANIFEST), json.dumps(manifest, indent=1, allow_nan=False).encode())
    _remove(storage.join(out, WORK))
    manifest = storage.read_json(storage.join(out, MANIFEST))
    parts = [Part(**part) for part in manifest["parts"]]
    tars = [part for part in parts if part.name.endswith(".tar")]
    return Prepared(
        shards=tuple(storage.join(out, part.name) for part in tars),
        num_samples=sum(part.rows for part in tars),
        num_bytes=sum(part.bytes for part in tars),
        source_bytes=sum(source.size for source in sources),
        reasons=manifest["metrics"]["quarantined"],
    )


def _prepare(
    sources: list[Source],
    config: PrepareConfig,
    quarantine_limit: float,
    out: Output,
    resources: Resources,
    progress: Progress,
) -> dict[str, Any]:
    work = storage.join(out.uri, WORK)
    task = partial(resize_shard, config=config.image, folder=work)
    resized = map_items(list(enumerate(sources)), task, resources=resources, progress=progress, unit="shards resized")
    rows, bad = _join(resized, [source.uri for source in sources])
    quarantine.admit(bad, rows.num_rows, len(sources), quarantine_limit, Output(work))
    items = shards.plan(rows, [one.shard for one in resized], config.samples_per_shard)
    cut = partial(_cut_shard, uri=out.uri, folder=work)
    for parts in map_items(items, cut, resources=resources, progress=progress, unit="shards written"):
        for part in parts:
            out.add(part)
    listed = [sidecar.Listed(part.name, part.bytes, part.rows) for part in out.parts if part.name.endswith(".tar")]
    out.publish(LIST, sidecar.dump_list(listed, out.uri.rstrip("/").rpartition("/")[2]))
    sink = io.BytesIO()
    pq.write_table(bad.combine_chunks(), sink, compression="zstd")
    out.publish(QUARANTINE, sink.getbuffer(), bad.num_rows)
    return {"num_samples": rows.num_rows, "num_shards": len(listed), "quarantined": quarantine.count_reasons(bad)}


def _is_done(out: str, key: str) -> bool:
    """Whether this is there already; else the folder is marked as begun. UserError if it holds something else."""
    names = storage.names(out)
    if MANIFEST in names:
        if storage.read_json(storage.join(out, MANIFEST), mend="name a new folder").get("key") == key:
            return True
        raise UserError(f"{out!r} was made with other settings or shards: name a new folder, or delete this one")
    if names and WORK not in names:
        raise UserError(f"{out!r} is not empty: name a new folder, or empty this one")
    claim = storage.join(out, WORK, _CLAIM)
    storage.create(claim, json.dumps({"key": key}).encode())
    if storage.read_json(claim, mend="delete the folder and begin again").get("key") != key:
        raise UserError(
            f"{out!r} was begun with other settings or shards: finish that, name a new folder, or delete this one"
        )
    return False


def _remove(folder: str) -> None:
    fs, path = storage.resolve(folder)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path if storage.is_local(folder) else glob.escape(path), recursive=True)


def _join(resized: Sequence[Resized], uris: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """All samples as shard, offset, length, and all that is left out.

    Samples of two shards that would stand side by side with one key would become one sample: the later one goes.
    """
    columns: dict[str, list[NDArray[np.int64]]] = {"shard": [], "offset": [], "length": []}
    bad = [quarantine.SCHEMA.empty_table()]
    last = None
    for number, one in enumerate(resized):
        lengths = one.lengths
        offsets = np.cumsum(lengths) - lengths
        bad.append(one.bad)
        if len(lengths) and one.first_key == last:
            row = quarantine.entry(uris[number], one.first_row, last, "duplicate key", "an earlier shard has it")
            bad.append(pa.Table.from_pylist([row], quarantine.SCHEMA))
            offsets, lengths = offsets[1:], lengths[1:]
        if len(lengths):
            last = one.last_key
        for name, values in (("shard", np.full(len(lengths), number)), ("offset", offsets), ("length", lengths)):
            columns[name].append(values)
    return pa.table({name: np.concatenate(values) for name, values in columns.items()}), pa.concat_tables(bad)


def _cut_shard(item: tuple[int, list[Piece]], uri: str, folder: str) -> tuple[Part, ...]:
    """One task: a new shard and its sidecar at `uri`."""
    number, pieces = item
    spans = tuple((piece.source.sha256, int(piece.offsets[0]), len(piece.offsets)) for piece in pieces)
    cut = partial(_cut, pieces=pieces, uri=uri)
    stage = Stage("written", 1, _Cutting(number=number, pieces=spans), {}, cut)
    artifact, found = reach(stage, folder)
    parts = tuple(Part(**part) for part in artifact.metrics["written"])
    if found and not all(_is_there(uri, part) for part in parts):
        cut({}, _Cutting(number=number, pieces=spans), Output(artifact.uri))
    return parts


def _cut(
    inputs: Mapping[str, Artifact], config: _Cutting, out: Output, *, pieces: list[Piece], uri: str
) -> dict[str, Any]:
    content = shards.gather(pieces)
    name = f"shard-{config.number:06d}.tar"
    written = Output(uri)
    written.publish(name, content, sum(len(piece.offsets) for piece in pieces))
    written.publish(sidecar.place(name), sidecar.dump(tar.scan(content)))
    return {"written": [asdict(part) for part in written.parts]}


def _is_there(uri: str, part: Part) -> bool:
    try:
        return bool(storage.info(storage.join(uri, part.name))["size"] == part.bytes)
    except FileNotFoundError:
        return False
