"""Small shards and finished stages for tests."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipeline import index, tar
from pipeline.config import Config
from pipeline.disk_cache import DiskCache
from pipeline.epoch_plan import in_order
from pipeline.resources import Resources
from pipeline.samples import Samples
from pipeline.stage import Artifact, Output, Run, Stage
from pipeline.stream import Stream

Files = Mapping[str, bytes]


def encoded(pixels: NDArray[np.uint8], form: str = "PNG", **save: Any) -> bytes:
    """An RGB image [H, W, 3] as a file."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form, **save)
    return sink.getvalue()


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
    root: Path, name: str, run: Run, config: Config, inputs: Mapping[str, Artifact], workers: int = 2, **facts: Any
) -> Artifact:
    """A stage, run and committed under `root`."""
    stage = Stage(name, 1, config, {}, run)
    out = Output(stage.uri(str(root)))
    metrics = run(inputs, config, out, resources=Resources(num_workers=workers), progress=silent)
    return stage.commit(str(root), out, metrics, facts)


def run_index(root: Path, shards: Any, facts: Mapping[str, Any] | None = None, **settings: Any) -> Artifact:
    """An index with a tolerant quarantine, if nothing else is said."""
    settings = {"num_classes": 2, "image_size": 8, "quarantine_limit": 1.0} | settings
    config = index.IndexConfig.of(index.DataConfig(shards=shards, **settings))
    return run_stage(root, "index", index.run, config, {}, **(facts or {}))


def table_artifact(root: Path, name: str, tables: Iterable[Any]) -> Artifact:
    """A committed artifact with these tables as its parts."""
    out = Output(str(root / name))
    for table in tables:
        out.write_table(table)
    return Artifact(out.uri, {"parts": [vars(part) for part in out.parts], "metrics": {}, "inputs": {}})


def open_samples(index: Artifact) -> Samples:
    """As all tests of a machine share them."""
    return Samples.open(index, DiskCache.at(None, None))


def take(index: Artifact, ids: Iterable[int]) -> NDArray[np.uint8]:
    """The images of these sample_ids, from the shards: uint8 [n, size, size, 3]."""
    samples = open_samples(index)
    steps = Stream(samples).steps(in_order(samples, np.array(list(ids), dtype=np.int64), 1024))
    return np.concatenate([step.images for step in steps])


def laid_out(rows_per_shard: list[int], seed: int = 0, mean_bytes: int = 2048) -> Samples:
    """Where samples of random sizes would be, with gaps as quarantined ones leave them; there are no shards."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, mean_bytes // 256, sum(rows_per_shard)) * 512
    gap = np.where(rng.random(len(length)) < 0.1, 2048, 0)
    end = np.cumsum(length + gap)
    start, starts = end - length, np.cumsum([0, *rows_per_shard])
    keys = pa.array(map(str, range(len(length))), pa.large_string())
    return Samples([], starts, start, length, start + 512, length - 512, keys, size=8, max_pixels=10**6)
