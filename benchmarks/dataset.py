"""Shards for the benchmarks of ingest and training, and their index, made by the stage itself."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import index, tar
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Stage


def write_shards(folder: Path, contents: Sequence[bytes], extension: str, per_shard: int) -> list[str]:
    """Samples 000000, 000001, .. with an image and the label 0 or 1 each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, len(contents), per_shard):
        path = folder / f"train-{start // per_shard:06d}.tar"
        members = []
        for number in range(start, min(start + per_shard, len(contents))):
            members += [(f"{number:06d}.{extension}", contents[number]), (f"{number:06d}.cls", b"%d" % (number % 2))]
        path.write_bytes(tar.pack(members) + tar.END)
        paths.append(str(path))
    return paths


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a file."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def indexed(root: str, paths: Sequence[str], image_size: int) -> Artifact:
    """The finished stage `index` of these shards; Ray must be there."""
    config = index.IndexConfig.of(index.DataConfig(shards=tuple(paths), num_classes=2, image_size=image_size))
    stage = Stage("index", 1, config, {}, index.run)
    out = Output(stage.uri(root))
    metrics = index.run({}, config, out, resources=Resources(), progress=lambda *_: None)
    return stage.commit(root, out, metrics, {})
