"""Small shards and finished stages for tests."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import index, tar
from pipeline.config import Config
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Run, Stage

Files = Mapping[str, bytes]


def image(seed: int = 0, size: tuple[int, int] = (8, 8), form: str = "PNG", mode: str = "RGB", **save: Any) -> bytes:
    """A smooth picture that depends on `seed`."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    picture.convert(mode).save(sink, form, **save)
    return sink.getvalue()


def write_shard(path: Path, samples: Iterable[tuple[str, Files]]) -> Path:
    """Samples as (key, payload by extension)."""
    members = [(f"{key}.{extension}", data) for key, files in samples for extension, data in files.items()]
    path.write_bytes(tar.pack(members) + tar.END)
    return path


def write_dataset(folder: Path, num_shards: int = 3, per_shard: int = 4, num_classes: int = 2) -> str:
    """Whole shards of PNGs with labels; returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        numbers = range(shard * per_shard, (shard + 1) * per_shard)
        samples = [(f"s{n:03d}", {"png": image(n), "cls": str(n % num_classes).encode()}) for n in numbers]
        write_shard(folder / f"train-{shard:06d}.tar", samples)
    return f"{folder}/train-{{000000..{num_shards - 1:06d}}}.tar"


def foreign_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int) -> Path:
    """An archive as the standard library writes it."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def silent(done: int, total: int, unit: str) -> None:
    """A progress that nobody watches."""


def run_stage(
    root: Path, name: str, run: Run, config: Config, inputs: Mapping[str, Artifact], workers: int = 2
) -> Artifact:
    """A stage, run and committed under `root`."""
    stage = Stage(name, 1, config, {}, run)
    out = Output(stage.uri(str(root)))
    metrics = run(inputs, config, out, resources=Resources(num_workers=workers), progress=silent)
    return stage.commit(str(root), out, metrics, {})


def run_index(root: Path, shards: Any, **settings: Any) -> Artifact:
    """An index with a tolerant quarantine, if nothing else is said."""
    settings = {"num_classes": 2, "image_size": 8, "quarantine_limit": 1.0} | settings
    config = index.IndexConfig.of(index.DataConfig(shards=shards, **settings))
    return run_stage(root, "index", index.run, config, {})


def table_artifact(root: Path, name: str, tables: Iterable[Any]) -> Artifact:
    """A committed artifact with these tables as its parts."""
    out = Output(str(root / name))
    for table in tables:
        out.write_table(table)
    return Artifact(out.uri, {"parts": [vars(part) for part in out.parts], "metrics": {}})
