"""The encode stage: vectors of the pool from an encoder in a file, from pixels, and from a table; and its mistakes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from pipeline import encode
from pipeline.embeddings import embedding_blocks, read_all, read_range, write_embeddings
from pipeline.encode import EncodeConfig, EncodeStageConfig
from pipeline.errors import DataError, UserError
from pipeline.index import load_index
from pipeline.stage import Artifact
from tests.pipeline.making import run_index, run_stage, take, write_dataset

N = 12
NAME = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, ray_local: Any) -> Artifact:
    folder = tmp_path_factory.mktemp("encode")
    return run_index(folder / "run", write_dataset(folder / "data"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small network's weights, drawn at random."""
    from torchvision import models

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("weights") / "encoder.pt"
    torch.save(models.get_model(NAME, weights=None, num_classes=3).state_dict(), place)
    return str(place)


@pytest.fixture(autouse=True)
def _several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "ROWS_PER_TASK", 5)


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run in this process: in another one, importing torchvision would take seconds."""
    monkeypatch.setattr(encode, "map_items", lambda items, task, **_: [task(item) for item in items])


def run(root: Path, index: Artifact, **settings: Any) -> Artifact:
    config = EncodeStageConfig.of(EncodeConfig(**settings))
    return run_stage(root, "encode", encode.run, config, {"index": index})


@pytest.mark.usefixtures("_here")
def test_an_encoder_looks_at_every_image_once(tmp_path: Path, index: Artifact, weights: str) -> None:
    done = run(tmp_path, index, encoder=NAME, weights=weights, size=32, precision="fp32")
    assert done.metrics == {"num_samples": N, "width": 1024, "dtype": "float32"}
    assert [part.rows for part in done.parts()] == [5, 5, 2]
    assert [part.name.rsplit(".", 1)[1] for part in done.parts()] == ["arrow"] * 3
    settings = EncodeConfig(encoder=NAME, weights=weights, size=32, precision="fp32")
    encoder = encode.build(settings, torch.load(weights, weights_only=True), use_gpu=False)
    np.testing.assert_allclose(read_all(done), encoder(take(index, range(N))).numpy(), rtol=1e-3, atol=1e-5)
    (kept,) = done.parts("encoder")
    assert done.read(kept) == Path(weights).read_bytes()


@pytest.mark.usefixtures("_here")
def test_pixels_need_no_weights_and_half_precision_halves_them(tmp_path: Path, index: Artifact) -> None:
    done = run(tmp_path, index, encoder="pixels", dtype="float16")
    expected = take(index, range(N)).transpose(0, 3, 1, 2).reshape(N, -1) / 255
    found = read_all(done)
    assert found.dtype == np.float16 and done.metrics["width"] == 192
    np.testing.assert_allclose(found, expected, atol=1e-3)


def table(folder: Path, vectors: np.ndarray, keys: list[str]) -> str:
    place = folder / "table.parquet"
    pq.write_table(pa.table({"key": keys, "clip": pa.array(list(vectors))}), place)
    return str(place)


def test_a_table_of_the_users_is_taken_by_key(tmp_path: Path, index: Artifact) -> None:
    vectors = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
    keys = load_index(index, ["key"])["key"].to_pylist()
    done = run(tmp_path, index, table=table(tmp_path, vectors[::-1], keys[::-1]), column="clip")
    assert np.array_equal(read_all(done), vectors)
    assert np.array_equal(read_range(done, 3, 11), vectors[3:11])
    assert [low for low, _ in embedding_blocks(done)] == [0, 5, 10]
    with pytest.raises(UserError, match="lacks 1 of the 12 samples, the first is sample_id 0, key 's000'"):
        run(tmp_path / "b", index, table=table(tmp_path, vectors[1:], keys[1:]), column="clip")
    with pytest.raises(UserError, match=r"of 1 of 5 images from .* 5 on, the first is that of 7, are not finite"):
        vectors[7, 0] = 1e6
        run(tmp_path / "c", index, table=table(tmp_path, vectors, keys), column="clip", dtype="float16")


def test_another_file_is_another_stage(tmp_path: Path, index: Artifact, weights: str) -> None:
    place = table(tmp_path, np.ones((N, 2)), [f"{n}" for n in range(N)])
    one = EncodeStageConfig.of(EncodeConfig(table=place))
    table(tmp_path, np.zeros((N, 2)), [f"{n}" for n in range(N)])
    assert EncodeStageConfig.of(EncodeConfig(table=place)).sha256 != one.sha256
    with pytest.raises(DataError, match="changed as the run began"):
        run_stage(tmp_path, "encode", encode.run, one, {"index": index})


def test_weights_that_cannot_be_used_are_told_before_any_image_is_read(
    tmp_path: Path, index: Artifact, weights: str
) -> None:
    with pytest.raises(UserError, match=r"encode.weights='.*' cannot be used: these are no weights of 'resnet18'"):
        run(tmp_path, index, encoder="resnet18", weights=weights)
    whole = tmp_path / "network.pt"
    torch.save(torch.nn.Linear(1, 1), whole)
    with pytest.raises(UserError, match=r"network.pt' cannot be used: .* not safe to load"):
        run(tmp_path, index, encoder=NAME, weights=str(whole))
    with pytest.raises(UserError, match=r"there is no file at encode.weights='/absent.pt': check the path"):
        EncodeStageConfig.of(EncodeConfig(encoder=NAME, weights="/absent.pt"))
    with pytest.raises(UserError, match=r"there is no file at encode.table='/absent.parquet'"):
        EncodeStageConfig.of(EncodeConfig(table="/absent.parquet"))


def test_images_that_a_network_cannot_take_are_told_before_any_is_read(tmp_path: Path, index: Artifact) -> None:
    from torchvision import models

    weights = tmp_path / "densenet.pt"
    torch.save(models.densenet121(weights=None).state_dict(), weights)
    sentence = r"encode.encoder='densenet121': the network takes no images of 16 pixels \(.*\): set encode.size to"
    with pytest.raises(UserError, match=sentence):
        run(tmp_path, index, encoder="densenet121", weights=str(weights), size=16)


def test_published_weights_come_from_the_hub_cache_and_nothing_is_downloaded(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    settings = EncodeConfig(encoder=NAME, weights="IMAGENET1K_V1")
    with pytest.raises(UserError, match=r"are not in torch's hub cache: download https://.*\.pth to '"):
        EncodeStageConfig.of(settings)
    (tmp_path / "checkpoints").mkdir()
    from models.encoder import published_weights

    name = published_weights(NAME)["IMAGENET1K_V1"].rsplit("/", 1)[1]
    (tmp_path / "checkpoints" / name).write_bytes(Path(weights).read_bytes())
    assert EncodeStageConfig.of(settings).sha256 is not None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "neither of encoder and table are given"),
        ({"encoder": "pixels", "table": "/t.parquet"}, "both of encoder and table are given"),
        ({"encoder": "pixels", "weights": "x"}, "'pixels' has no weights"),
        ({"encoder": "resnet1"}, "unknown encoder 'resnet1'; did you mean 'resnet18' or "),
        ({"encoder": "resnet50"}, "needs weights: name a file, or weights that torchvision publishes for it (IMAGENET"),
        ({"encoder": "resnet50", "weights": "x", "std": (0.0, 1.0, 1.0)}, "is not above 0 in every channel"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EncodeConfig(**settings)
    assert sentence in str(caught.value)


def test_an_embedding_file_is_plain_arrow(tmp_path: Path) -> None:
    part = write_embeddings(str(tmp_path), 7, np.ones((2, 3), np.float16))
    read = pa.ipc.open_file(io.BytesIO((tmp_path / part.name).read_bytes())).read_all()
    assert read.to_pydict() == {"sample_id": [7, 8], "embedding": [[1.0] * 3] * 2}
