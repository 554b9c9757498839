from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import geometry, split
from pipeline.errors import UserError
from pipeline.index import DataConfig, IndexConfig
from pipeline.split import SplitConfig, SplitStageConfig
from pipeline.stage import Artifact
from tests.pipeline.making import run_stage, table_artifact
from tests.pipeline.test_neighbours import encoded

LABELS = [None if n % 5 == 4 else n % 3 for n in range(120)]


def make_index(root, labels, num_classes=3, parts=1, table=None) -> Artifact:
    tables = [
        pa.table({"key": [f"k{n}" for n in ids], "label": pa.array([labels[n] for n in ids], pa.int64())})
        for ids in np.array_split(np.arange(len(labels)), parts)
    ]
    artifact = table_artifact(root, "index", tables)
    data = DataConfig(shards="/x.tar", num_classes=num_classes, image_size=8, labels=table)
    config = IndexConfig.of(data).model_dump()
    return Artifact(artifact.uri, {**artifact.manifest, "config": config, "metrics": {"num_classes": num_classes}})


def run(root, labels=LABELS, seed=0, num_classes=3, parts=1, table=None, **choices):
    config = SplitStageConfig(seed=seed, settings=SplitConfig(**choices))
    index = make_index(root, labels, num_classes, parts, table)
    artifact = run_stage(root, "split", split.run, config, {"index": index})
    return artifact, artifact.table().to_pylist()


def test_only_drawn_labels_leave(tmp_path):
    artifact, rows = run(tmp_path, num_labelled=30)
    assert len(rows) == 30
    assert [row["sample_id"] for row in rows] == sorted({row["sample_id"] for row in rows})
    assert all(row["label"] == LABELS[row["sample_id"]] for row in rows)
    assert sum(row["role"] == "holdout" for row in rows) == 6
    assert {row["role"] for row in rows} == {"train", "holdout"}
    assert artifact.table().schema.types == [pa.int64(), pa.int64(), pa.string()]
    metrics = artifact.metrics
    assert (metrics["num_train"], metrics["num_holdout"]) == (24, 6)
    counts = np.bincount([row["label"] for row in rows if row["role"] == "train"])
    assert metrics["class_counts"] == {str(label): int(count) for label, count in enumerate(counts)}


def test_without_a_number_every_label_is_visible(tmp_path):
    _, rows = run(tmp_path, holdout_fraction=0.0)
    assert [row["sample_id"] for row in rows] == [n for n in range(120) if LABELS[n] is not None]
    assert {row["role"] for row in rows} == {"train"}


def test_the_draw_depends_on_the_seed_and_not_on_parts(tmp_path):
    def table(name, **kw):
        return run(tmp_path / name, num_labelled=30, **kw)[1]

    assert table("a") == table("b", parts=7)
    assert table("a") != table("c", seed=1)


def test_an_image_is_drawn_whatever_else_is_in_the_data(tmp_path):
    _, few = run(tmp_path / "a", num_labelled=20)
    _, more = run(tmp_path / "b", num_labelled=40)
    assert {row["sample_id"] for row in few} < {row["sample_id"] for row in more}


@pytest.mark.parametrize(("wanted", "counts"), [(30, [10, 10, 10]), (31, [10, 10, 11]), (32, [10, 11, 11])])
def test_per_class_takes_as_many_of_each(tmp_path, wanted, counts):
    _, rows = run(tmp_path, num_labelled=wanted, draw="per_class")
    assert sorted(np.bincount([row["label"] for row in rows])) == counts


def test_uniform_draws_every_row_equally_often(tmp_path):
    ids, labels = np.arange(60), np.arange(60) % 3
    none, settings = np.zeros(60, bool), SplitConfig(num_labelled=20)
    counts = sum(split._draw(ids, labels, 3, seed, settings, none).astype(int) for seed in range(600))
    assert counts.sum() == 600 * 20
    assert 150 < counts.min() <= counts.max() < 250


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.sampled_from([0.0, 0.1, 0.2, 0.29, 0.5, 0.99]),
    seed=st.integers(0, 2**40),
)
def test_the_holdout_never_takes_the_last_label_of_a_class(labels, fraction, seed):
    ids, labels = np.arange(len(labels)) * 3, np.array(labels)
    held = split._hold_out(ids, labels, seed, fraction)
    assert set(labels[~held]) == set(labels)
    assert held.sum() == min(int(round(fraction * 100) * len(labels) // 100), len(labels) - len(set(labels)))


def test_without_labels_the_split_is_empty(tmp_path):
    for labels in (LABELS, [None] * 5):
        artifact, rows = run(tmp_path / str(len(labels)), labels=labels, num_labelled=0)
        assert rows == [] and artifact.table().schema.types == [pa.int64(), pa.int64(), pa.string()]
        assert artifact.metrics == {"num_train": 0, "num_holdout": 0, "class_counts": {"0": 0, "1": 0, "2": 0}}


def typical(root, labels, vectors, **choices):
    config = SplitStageConfig(seed=0, settings=SplitConfig(draw="typiclust", **choices))
    inputs = {"index": make_index(root, labels), "encode": encoded(root / "encode", vectors)}
    return run_stage(root, "split", split.run, config, inputs).table()


def test_typical_images_are_drawn_by_their_embeddings_of_the_whole_pool(tmp_path):
    rng = np.random.default_rng(0)
    labels = [n % 3 for n in range(60)]
    vectors = (9 * np.eye(3, 5)[np.arange(60) % 3] + rng.standard_normal((60, 5))).astype(np.float32)
    table = typical(tmp_path / "all", labels, vectors, num_labelled=3, holdout_fraction=0.0)
    assert sorted(table["label"].to_pylist()) == [0, 1, 2]  # one of each cloud, the most typical
    for sample_id in table["sample_id"].to_pylist():
        own = geometry.unit(vectors[sample_id % 3 :: 3])
        spread = np.linalg.norm(own - own.mean(axis=0), axis=1)
        assert spread[sample_id // 3] < np.median(spread)
    first = table["sample_id"].to_pylist()[0]
    some = [None if n == first else label for n, label in enumerate(labels)]
    with pytest.raises(UserError, match=r"chose 3 images, and 1 of them have no label: label those in '(.*)', na") as e:
        typical(tmp_path / "some", some, vectors, num_labelled=3)
    assert Path(str(e.value).split("'")[3]).read_text().replace('"', "").split() == ["key", f"k{first}"]
    with pytest.raises(UserError, match=r"split.num_labelled=61 but the pool has 60 images"):
        typical(tmp_path / "many", labels, vectors, num_labelled=61)
    with pytest.raises(ValueError, match="'typiclust' needs a number of images to choose: set num_labelled"):
        SplitConfig(draw="typiclust")


def test_what_came_back_for_typical_images_counts_as_drawn(tmp_path):
    """And may be held out, while what came back for others is not."""
    vectors = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    labels = [n % 3 for n in range(60)]
    drawn = typical(tmp_path / "all", labels, vectors, num_labelled=20)
    returned = [*drawn["sample_id"].to_pylist(), *np.setdiff1d(range(60), drawn["sample_id"])[:4].tolist()]
    table = tmp_path / "back.csv"
    table.write_text("\n".join(["key,label", *(f"k{n},{labels[n]}" for n in returned), "k60,0"]))
    chosen = SplitConfig(draw="typiclust", num_labelled=20, labels=str(table))
    inputs = {"index": make_index(tmp_path, [None] * 60), "encode": encoded(tmp_path / "encode", vectors)}
    artifact = run_stage(tmp_path, "split", split.run, SplitStageConfig.of(0, chosen), inputs)
    rows = artifact.table()
    assert rows["sample_id"].to_pylist() == sorted(returned)
    assert rows["label"].to_pylist() == [labels[n] for n in sorted(returned)]
    others = artifact.table("annotated")["sample_id"].to_pylist()
    assert others == sorted(returned[20:])
    assert rows.filter(np.isin(rows["sample_id"], drawn["sample_id"])).equals(drawn)
    told = ("num_annotated", "annotations_matched", "annotations_unmatched")
    assert [artifact.metrics[name] for name in told] == [4, 24, 1]


def test_what_the_version_before_learned_judges_in_no_fold(tmp_path):
    """Also where more images are drawn later, and those that came back are among them."""
    vectors = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    labels = [n % 3 for n in range(60)]
    inputs = {"index": make_index(tmp_path, labels), "encode": encoded(tmp_path / "encode", vectors)}
    drawn = {
        number: typical(tmp_path / str(number), labels, vectors, num_labelled=number)["sample_id"].to_pylist()
        for number in (20, 40)
    }
    later = np.setdiff1d(drawn[40], drawn[20])[:5].tolist()
    assert later
    table = tmp_path / "back.csv"
    table.write_text("\n".join(["key,label", *(f"k{n},{labels[n]}" for n in later)]))

    def version(name, num_labelled, **before):
        chosen = SplitConfig(draw="typiclust", num_labelled=num_labelled, folds=2, labels=str(table))
        return run_stage(tmp_path / name, "split", split.run, SplitStageConfig.of(0, chosen), {**inputs, **before})

    first = version("first", 20)
    assert first.table("annotated")["sample_id"].to_pylist() == later
    second = version("second", 40, earlier=first, earlier_pool=Artifact("", {"metrics": {"num_samples": 60}}))
    assert second.table().num_rows == 40, "they are drawn now"
    assert second.table("annotated")["sample_id"].to_pylist() == later


def test_too_few_labels(tmp_path):
    with pytest.raises(UserError, match=r"split\.num_labelled=97 but the data has 96 labels"):
        run(tmp_path, num_labelled=97)
    with pytest.raises(UserError, match="takes 5 labels of class 2 but the data has 3"):
        run(tmp_path, labels=[0, 1] * 20 + [2] * 3, num_labelled=15, draw="per_class")


def test_a_class_without_a_label_is_named_with_the_next_step(tmp_path):
    with pytest.raises(UserError, match=r"class 3 has no training label .* label at least one image of class 3$"):
        run(tmp_path, num_classes=4)
    with pytest.raises(UserError, match=r"class 0 \(and 2 more\) has no training label among the 0 drawn"):
        run(tmp_path, labels=[None] * 5)
    advice = r"has no training label among the 2 drawn: raise split\.num_labelled"
    with pytest.raises(UserError, match=rf"{advice} or set split\.draw=per_class$"):
        run(tmp_path, num_labelled=2)
    with pytest.raises(UserError, match=rf"{advice}$"):
        run(tmp_path, num_labelled=2, draw="per_class")


@pytest.mark.parametrize(
    ("labels", "keys", "choices", "sentence"),
    [
        ([0, None, 1], ["k0", "1.png", "k2"], {}, "class 2 has no training label among the 2 drawn"),
        ([0, None, 1], ["1.png", "k0", "k2"], {"num_labelled": 3}, "split.num_labelled=3 but the data has 2 labels"),
    ],
)
def test_a_label_table_of_other_images_is_told(tmp_path, labels, keys, choices, sentence):
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["key,label", *(f"{key},{number % 2}" for number, key in enumerate(keys))]))
    with pytest.raises(UserError) as caught:
        run(tmp_path, labels=labels, table=str(table), **choices)
    matched, unknown = sum(key.startswith("k") for key in keys), next(key for key in keys if not key.startswith("k"))
    assert str(caught.value).startswith(
        f"only {matched} of the {len(keys)} keys in data.labels={str(table)!r} are in the shards, whose keys look like "
        f"'k0' and not like {unknown!r}; as it is, {sentence}"
    )


def test_a_label_table_of_other_images_alone_is_told(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("key,label\n0.png,0\n1.png,1\n")
    sentence = (
        rf"^none of the 2 keys in data.labels='{table}' is in the shards, "
        "whose keys look like 'k0' and not like '0.png': correct"
    )
    with pytest.raises(UserError, match=sentence):
        run(tmp_path, labels=[None] * 3, table=str(table))


def test_a_label_table_that_fits_is_not_blamed(tmp_path):
    (tmp_path / "labels.csv").write_text("key,label\nk0,0\n")
    with pytest.raises(UserError, match=r"^class 1 \(and 1 more\) has no"):
        run(tmp_path, labels=[0, None], table=str(tmp_path / "labels.csv"))
