"""Stage `export`: the coreset as files that other tools read, and as pruned shards with the original bytes."""

import io
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from pipeline import shards, storage
from pipeline.cluster_labels import are_clusters
from pipeline.config import Config
from pipeline.index import load_index, load_shards
from pipeline.parallel import map_items
from pipeline.resources import Resources
from pipeline.shards import Piece
from pipeline.stage import Artifact, Output, Part, Progress


class ExportConfig(Config):
    """The `export` section of a recipe."""

    shards: bool = Field(default=True, description="whether shards of the coreset are written too")
    samples_per_shard: int = Field(default=1000, ge=1, description="samples of such a shard")


def run(
    inputs: Mapping[str, Artifact], config: ExportConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Write one coreset, in the order of sample_id; equal selections give equal bytes for any number of workers.

    inputs: index, split, pseudo_label, score, select. Files: coreset.parquet (sample_id, key, shard, row, labelled,
    train_label, scores, pseudo_label, pseudo_label_confidence, rank; without labels cluster and cluster_confidence in
    the place of the three with label in their names), to_annotate.csv (those that are not labelled, as `listed` has
    them), keys.txt, indices.npy (int64), shards/coreset-000000.tar and on. labelled: whether the split has its label,
    to train on or to check with. A reader should look for `_MANIFEST.json` beside them: without it they are what a
    killed export left. DataError if a source shard is not the one that was indexed.
    """
    selected = inputs["select"].table().sort_by("sample_id")
    ids = selected["sample_id"].to_numpy()
    rows = load_index(inputs["index"], ["key", "shard", "row", "offset", "length"]).take(ids)
    scores = _rows_of(inputs["score"], ids)
    predicted = _rows_of(inputs["pseudo_label"], ids, ["sample_id", "pseudo_label", "confidence"])
    columns = {name: rows[name] for name in ("sample_id", "key", "shard", "row")}
    columns["labelled"] = pa.array(np.isin(ids, inputs["split"].table()["sample_id"].to_numpy()))
    columns |= {name: scores[name] for name in scores.column_names if name != "sample_id"}
    label = "pseudo_label"
    if are_clusters(inputs["pseudo_label"]):
        label = "cluster"
        del columns["train_label"]
    columns |= {label: predicted["pseudo_label"], f"{label}_confidence": predicted["confidence"]}
    if config.shards:
        items = shards.plan(rows, load_shards(inputs["index"]), config.samples_per_shard)
        task = partial(_write_shard, uri=out.uri)
        for part in map_items(items, task, resources=resources, progress=progress, unit="shards"):
            out.add(part)
    if "rank" in selected.column_names:
        columns["rank"] = selected["rank"]
    # Last: what a killed export leaves should not look like a result.
    coreset = pa.table(columns)
    left = to_annotate(coreset, inputs["select"].metrics["name"])
    out.publish("coreset.parquet", _parquet(coreset), len(ids))
    out.publish("to_annotate.csv", _csv(left), left.num_rows)
    out.publish("keys.txt", "".join(f"{key}\n" for key in rows["key"].to_pylist()).encode(), len(ids))
    out.publish("indices.npy", _npy(ids), len(ids))
    return {
        "num_shards": sum(part.name.startswith("shards/") for part in out.parts),
        "bytes": sum(part.bytes for part in out.parts),
        "files": [part.name for part in out.parts],
    }


def listed(coreset: pa.Table, selection: str) -> pa.Table:
    """Images of an exported coreset, the one to annotate first on top: selection, sample_id, key, rank.

    rank: null in coresets that are not ranked, which are in the order of sample_id.
    """
    rank = coreset["rank"] if "rank" in coreset.column_names else pa.nulls(coreset.num_rows, pa.int64())
    names = pa.repeat(pa.scalar(selection), coreset.num_rows)
    table = pa.table({"selection": names, "sample_id": coreset["sample_id"], "key": coreset["key"], "rank": rank})
    return table.sort_by([("rank", "ascending"), ("sample_id", "ascending")])


def to_annotate(coreset: pa.Table, selection: str) -> pa.Table:
    """The images of an exported coreset whose label the pipeline has not seen, as `listed` has them."""
    return listed(coreset.filter(pc.invert(coreset["labelled"])), selection)


def _rows_of(artifact: Artifact, ids: NDArray[np.int64], columns: list[str] | None = None) -> pa.Table:
    """The rows of a table with exactly these ids, in their ascending order."""
    wanted = pa.array(ids)
    table = pa.concat_tables(
        [part.filter(pc.is_in(part["sample_id"], wanted)) for part in artifact.tables(columns=columns)]
    )
    table = table.sort_by("sample_id")
    assert np.array_equal(table["sample_id"].to_numpy(), ids), f"{artifact.uri} misses samples of the coreset"
    return table


def _parquet(table: pa.Table) -> memoryview:
    sink = io.BytesIO()
    # One chunk: how the inputs were cut into parts must not show in the bytes.
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    return sink.getbuffer()


def _csv(table: pa.Table) -> memoryview:
    sink = io.BytesIO()
    pyarrow.csv.write_csv(table, sink)
    return sink.getbuffer()


def _npy(ids: NDArray[np.int64]) -> memoryview:
    sink = io.BytesIO()
    np.save(sink, ids, allow_pickle=False)
    return sink.getbuffer()


def _write_shard(item: tuple[int, list[Piece]], uri: str) -> Part:
    """One task: an output shard from the bytes of its samples."""
    number, pieces = item
    content = shards.gather(pieces)
    name = f"shards/coreset-{number:06d}.tar"
    storage.write(storage.join(uri, name), content)
    samples = sum(len(piece.offsets) for piece in pieces)
    return Part(name, samples, len(content), storage.sha256(content))
