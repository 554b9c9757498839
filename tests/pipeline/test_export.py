import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import export
from pipeline.errors import DataError
from pipeline.export import ExportConfig
from pipeline.index import load_config
from pipeline.labels import load_label_table
from tests.pipeline.making import foreign_tar, image, run_index, run_stage, table_artifact, write_shard

LONG = "l" * 150 + "ä"
KEPT = [0, 2, 3, 5, 6, 8, 9]
SPLIT = {1: "train", 3: "train", 5: "holdout", 9: "train"}


def ids_table(ids, **columns) -> pa.Table:
    ids = np.array(ids, np.int64)
    return pa.table({"sample_id": ids, **{name: make(ids) for name, make in columns.items()}})


def selected(root, table):
    found = table_artifact(root, "select", [table])
    return dataclasses.replace(found, manifest={**found.manifest, "metrics": {"name": "beta"}})


def make_inputs(root, parts=1, kept=KEPT):
    """Ten samples in three shards, one of them with long and foreign names; some cannot be used."""
    data = root / "data"
    data.mkdir(parents=True)
    first = [(f"a{n}", {"png": image(n), "cls": b"1", "txt": b"t" * n}) for n in range(4)]
    write_shard(data / "0.tar", [first[0], ("broken", {"png": b"x"}), *first[1:]])
    photos = {n: image(n, form="JPEG") for n in (4, 5, 6)}
    members = [(f"d/{LONG}.jpg", photos[4]), ("b5.v1.png", b"?"), ("b5.jpg", photos[5]), ("b6.jpg", photos[6])]
    foreign_tar(data / "1.tar", members, tarfile.GNU_FORMAT)
    write_shard(data / "2.tar", [(f"c{n}", {"cls": b"0", "webp": image(n, form="WEBP")}) for n in (7, 8, 9)])
    chunks = np.array_split(np.arange(10), parts)[::-1]
    scores = {"aum": lambda ids: ids / np.float32(4), "confidence": lambda ids: 1 - ids.astype("f4")}
    predicted = {
        "pseudo_label": lambda ids: ids % 3,
        "confidence": lambda ids: 1 / (ids + 1).astype("f4"),
        "margin": lambda ids: ids.astype("f4"),
        "train_label": lambda ids: ids % 2,
    }
    return {
        "index": run_index(root, f"{data}/*.tar"),
        "split": table_artifact(root, "split", [ids_table(list(SPLIT), role=lambda _: list(SPLIT.values()))]),
        "select": selected(root, ids_table(kept, rank=lambda ids: np.argsort(-ids))),
        "score": table_artifact(root, "score", [ids_table(ids, **scores) for ids in chunks]),
        "pseudo_label": table_artifact(root, "pseudo", [ids_table(ids, **predicted) for ids in chunks]),
    }


def run(root, inputs, workers=2, **choices):
    return run_stage(root, "export", export.run, ExportConfig(**choices), inputs, workers)


def files(artifact) -> dict[str, bytes]:
    return {name: (Path(artifact.uri) / name).read_bytes() for name in artifact.metrics["files"]}


def members(tars) -> list[tuple[str, bytes]]:
    found = []
    for data in tars:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            found += [(info.name, archive.extractfile(info).read()) for info in archive]
    return found


@pytest.fixture(scope="module")
def exported(ray_local, tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    inputs = make_inputs(root)
    return inputs, run(root, inputs, samples_per_shard=3)


def test_the_table_the_keys_and_the_ids(exported):
    _, artifact = exported
    folder = Path(artifact.uri)
    rows = pq.read_table(folder / "coreset.parquet")
    assert rows.column_names == [
        "sample_id", "key", "shard", "row", "labelled", "aum", "confidence", "pseudo_label", "pseudo_label_confidence",
        "rank",
    ]  # fmt: skip
    assert rows["sample_id"].to_pylist() == KEPT
    keys = ["a0", "a2", "a3", "b5", "b6", "c8", "c9"]
    assert rows["key"].to_pylist() == keys
    assert rows["row"].to_pylist() == [0, 3, 4, 1, 2, 1, 2]
    assert rows["labelled"].to_pylist() == [False, False, True, True, False, False, True]
    assert rows["aum"].to_pylist() == [n / 4 for n in KEPT]
    assert rows["confidence"].to_pylist() == [1 - n for n in KEPT]
    assert rows["pseudo_label"].to_pylist() == [n % 3 for n in KEPT]
    assert rows["pseudo_label_confidence"].to_pylist() == [1 / np.float32(n + 1) for n in KEPT]
    assert rows["rank"].to_pylist() == [6, 5, 4, 3, 2, 1, 0]
    assert (folder / "keys.txt").read_text().splitlines() == keys
    ids = np.load(folder / "indices.npy", allow_pickle=False)
    assert ids.dtype == np.int64
    assert ids.tolist() == KEPT


def test_what_is_left_to_annotate_is_listed_in_the_order_in_which_to_do_it(exported):
    _, artifact = exported
    assert (Path(artifact.uri) / "to_annotate.csv").read_text().splitlines() == [
        '"selection","sample_id","key","rank"',
        '"beta",8,"c8",1',
        '"beta",6,"b6",2',
        '"beta",2,"a2",5',
        '"beta",0,"a0",6',
    ]
    (part,) = artifact.parts("to_annotate.csv")
    assert part.rows == 4


def test_with_a_column_of_labels_the_list_is_a_table_of_labels(exported, tmp_path):
    _, artifact = exported
    header, *rows = (Path(artifact.uri) / "to_annotate.csv").read_text().splitlines()
    (tmp_path / "back.csv").write_text("\n".join([f"{header},label", *(f"{row},1" for row in rows)]))
    labels = load_label_table(str(tmp_path / "back.csv"), num_classes=2)
    assert sorted(labels["key"].to_pylist()) == ["a0", "a2", "b6", "c8"]


def test_without_ranks_the_list_is_in_the_order_of_sample_id(ray_local, tmp_path):
    inputs = {**make_inputs(tmp_path), "select": selected(tmp_path, ids_table(KEPT))}
    folder = Path(run(tmp_path, inputs, shards=False).uri)
    assert "rank" not in pq.read_schema(folder / "coreset.parquet").names
    assert (folder / "to_annotate.csv").read_text().splitlines()[1:] == [
        f'"beta",{n},"{key}",' for n, key in ((0, "a0"), (2, "a2"), (6, "b6"), (8, "c8"))
    ]


def test_clusters_are_called_so_and_no_label_is_told(exported, ray_local, tmp_path):
    inputs, artifact = exported
    free = dataclasses.replace(
        inputs["pseudo_label"], manifest={**inputs["pseudo_label"].manifest, "inputs": {"cluster": ""}}
    )
    scores = [inputs["score"].table().append_column("train_label", pa.array(np.arange(10) % 3))]
    inputs = {**inputs, "pseudo_label": free, "score": table_artifact(tmp_path, "score", scores)}
    rows = pq.read_table(Path(run(tmp_path, inputs, shards=False).uri) / "coreset.parquet")
    labelled = pq.read_table(Path(artifact.uri) / "coreset.parquet")
    names = [name.replace("pseudo_label", "cluster") for name in labelled.column_names]
    assert rows.equals(labelled.rename_columns(names))


def test_the_shards_hold_the_original_members_byte_for_byte(exported):
    inputs, artifact = exported
    shards = {name: data for name, data in files(artifact).items() if name.startswith("shards/")}
    assert sorted(shards) == [f"shards/coreset-{n:06d}.tar" for n in range(3)]
    assert [len({name.split(".")[0] for name, _ in members([data])}) for data in shards.values()] == [3, 3, 1]
    (pattern,) = load_config(inputs["index"]).data.shards
    sources = sorted(Path(pattern).parent.glob("*.tar"))
    originals = members(path.read_bytes() for path in sources)
    keys = tuple(f"{key}." for key in ("a0", "a2", "a3", "b5", "b6", "c8", "c9"))
    assert members(shards.values()) == [(name, data) for name, data in originals if name.startswith(keys)]
    assert artifact.metrics["num_shards"] == 3
    assert artifact.metrics["bytes"] == sum(map(len, files(artifact).values()))
    assert all(data.endswith(bytes(1024)) and len(data) % 512 == 0 for data in shards.values())


def test_webdataset_reads_them(exported):
    import webdataset

    _, artifact = exported
    urls = [str(path) for path in sorted(Path(artifact.uri, "shards").iterdir())]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["a0", "a2", "a3", "b5", "b6", "c8", "c9"]
    assert samples[1]["png"] == image(2)
    assert samples[1]["txt"] == b"tt"
    assert samples[3]["v1.png"] == b"?"
    assert samples[6]["webp"] == image(9, form="WEBP")


def test_ray_reads_them(exported):
    import ray.data

    _, artifact = exported
    rows = ray.data.read_webdataset(f"{artifact.uri}/shards", decoder=None).take_all()
    found = {row["__key__"]: row for row in rows}
    assert set(found) == {"a0", "a2", "a3", "b5", "b6", "c8", "c9"}
    assert found["a3"]["png"] == image(3)
    assert found["b5"]["jpg"] == image(5, form="JPEG")


def test_the_bytes_do_not_depend_on_workers_or_parts(exported, ray_local, tmp_path):
    _, artifact = exported
    again = run(tmp_path, make_inputs(tmp_path, parts=4), workers=1, samples_per_shard=3)
    assert files(again) == files(artifact)


def test_long_and_foreign_names_survive(ray_local, tmp_path):
    artifact = run(tmp_path, make_inputs(tmp_path, kept=[4]))
    ((name, data),) = members([files(artifact)["shards/coreset-000000.tar"]])
    assert (name, data) == (f"d/{LONG}.jpg", image(4, form="JPEG"))
    assert (Path(artifact.uri) / "keys.txt").read_text(encoding="utf-8") == f"d/{LONG}\n"


def test_without_shards(ray_local, tmp_path):
    artifact = run(tmp_path, make_inputs(tmp_path), shards=False)
    assert artifact.metrics["files"] == ["coreset.parquet", "to_annotate.csv", "keys.txt", "indices.npy"]
    assert artifact.metrics["num_shards"] == 0


def test_lists_appear_after_the_shards(ray_local, tmp_path, monkeypatch):
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    inputs = make_inputs(tmp_path)
    monkeypatch.setattr(export, "map_items", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, inputs)
    assert not list((tmp_path / "export").rglob("*"))
    monkeypatch.undo()
    names = run(tmp_path, inputs).metrics["files"]
    assert names == ["shards/coreset-000000.tar", "coreset.parquet", "to_annotate.csv", "keys.txt", "indices.npy"]


def test_a_shard_that_changed_is_an_error(ray_local, tmp_path):
    inputs = make_inputs(tmp_path)
    shard = tmp_path / "data/1.tar"
    shard.write_bytes(shard.read_bytes().replace(b"b6", b"b7"))
    with pytest.raises(DataError, match=r"1\.tar' has changed since indexing"):
        run(tmp_path, inputs)
