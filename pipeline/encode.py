"""Stage `encode`: a vector for every image, from a frozen encoder trained elsewhere or from a table of the user's."""

import difflib
import hashlib
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from models.encoder import PIXELS, Encoder, encoders, published_weights, read_weights
from models.precision import Precision
from pipeline import embedding_table, ingest, storage
from pipeline.config import Config
from pipeline.embeddings import Vectors, write_embeddings
from pipeline.epoch_order import Ids
from pipeline.epoch_plan import in_order
from pipeline.errors import DataError, UserError
from pipeline.index import load_config, load_index
from pipeline.parallel import map_items
from pipeline.predictor import ROWS_AT_A_TIME, ROWS_PER_TASK
from pipeline.resources import Resources
from pipeline.shards import Uri
from pipeline.stage import Artifact, Output, Part, Progress

_PIECE = 1 << 24
Channels = tuple[float, float, float]


class EncodeConfig(Config):
    """The `encode` section of a recipe: an encoder with its weights, or a table."""

    encoder: str | None = Field(
        default=None,
        description="a classification network of torchvision, whose penultimate features are taken, or pixels, which "
        "needs no weights",
    )
    weights: str | None = Field(
        default=None,
        description="a file of torch.save or safetensors with the network's tensors by name, or the name of weights "
        "that torchvision publishes and that lie in this machine's torch hub cache",
    )
    size: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="side to which images are resized for the encoder; null: data.image_size"
    )
    mean: Channels = Field(default=(0.485, 0.456, 0.406), description="of the channels, in 0..1; ImageNet's")
    std: Channels = Field(default=(0.229, 0.224, 0.225), description="of the channels, in 0..1; ImageNet's")
    precision: Precision = "auto"
    table: Uri | None = Field(
        default=None, description="Parquet with a column key or sample_id and a column of lists of floats"
    )
    column: str = Field(default="embedding", description="of the table: the lists")
    dtype: Literal["float32", "float16"] = Field(default="float32", description="of what is kept")

    @model_validator(mode="after")
    def _one_source(self) -> "EncodeConfig":
        if (self.encoder is None) == (self.table is None):
            number = "neither" if self.table is None else "both"
            raise ValueError(f"{number} of encoder and table are given: name one, as the source of the embeddings")
        if self.encoder is not None:
            self._check_encoder(self.encoder)
        return self

    def _check_encoder(self, name: str) -> None:
        if name == PIXELS:
            if self.weights is not None:
                raise ValueError("the encoder 'pixels' has no weights: leave weights out, or name a network")
            return
        if name not in encoders():
            close = " or ".join(map(repr, difflib.get_close_matches(name, encoders(), n=3)))
            hint = f"did you mean {close}? " if close else ""
            raise ValueError(
                f"unknown encoder {name!r}; {hint}choose pixels or a classification network of torchvision"
            )
        if self.weights is None:
            raise ValueError(
                f"the encoder {name!r} needs weights: name a file, or weights that torchvision publishes for it "
                f"({_published(name)})"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std {list(self.std)} is not above 0 in every channel")


class EncodeStageConfig(Config):
    """The settings with the SHA-256 of the file that they name, None for pixels. Another file is another stage."""

    settings: EncodeConfig
    sha256: str | None

    @classmethod
    def of(cls, settings: EncodeConfig) -> Self:
        """The settings with the file as it is now; UserError if there is none."""
        place = settings.table if settings.encoder is None else _weights_file(settings)
        what = "table" if settings.encoder is None else "weights"
        if place is None:
            return cls(settings=settings, sha256=None)
        try:
            with storage.open_input(place) as file:
                checksum = hashlib.sha256()
                while piece := file.read(_PIECE):
                    checksum.update(piece)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise UserError(f"there is no file at encode.{what}={place!r}: check the path") from error
        return cls(settings=settings, sha256=checksum.hexdigest())


def _published(name: str) -> str:
    return ", ".join(published_weights(name)) or "none"


def _weights_file(settings: EncodeConfig) -> str | None:
    """Where the weights are: a file as given, or in torch's hub cache, where nothing is downloaded to."""
    if settings.encoder in (None, PIXELS):
        return None
    from torch import hub

    assert settings.encoder is not None and settings.weights is not None
    url = published_weights(settings.encoder).get(settings.weights)
    if url is None:
        return settings.weights
    place = Path(hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not place.exists():
        raise UserError(
            f"encode.weights={settings.weights!r} of {settings.encoder!r} are not in torch's hub cache: download {url} "
            f"to {str(place)!r}, or name a file"
        )
    return str(place)


def run(
    inputs: Mapping[str, Artifact], config: EncodeStageConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Embed the pool; parts: sample_id ascending, embedding [d], as `pipeline.embeddings` writes them; `encoder`, the
    weights, which so reach every machine.

    inputs: index. UserError for weights that are not safe to load or not of this network, and for a table that misses
    samples, differs in width, or holds NaN.
    """
    settings, index = config.settings, inputs["index"]
    if EncodeStageConfig.of(settings) != config:
        raise DataError("the file that encode names changed as the run began: run the same command again")
    num_samples = index.metrics["num_samples"]
    starts = range(0, num_samples, ROWS_PER_TASK)
    spans = [(low, min(low + ROWS_PER_TASK, num_samples)) for low in starts]
    cpus, gpus = 1, 0.0
    if settings.table is not None:
        rows = embedding_table.locate(settings.table, settings.column, load_index(index, ["key"])["key"])
        items = [(low, rows[low:high]) for low, high in spans]
        task = partial(_copy, settings=settings, uri=out.uri)
    else:
        cpus, gpus = resources.cpus_per_worker, resources.gpus_per_worker
        weights = _write_weights(settings, load_config(index).data.image_size, out)
        items = [(low, np.arange(low, high)) for low, high in spans]
        task = partial(_encode, settings=settings, weights=weights, index=index, uri=out.uri, resources=resources)
    found = map_items(items, task, resources=resources, progress=progress, unit="parts", cpus=cpus, gpus=gpus)
    widths = [(low, width) for (low, _), (_, width) in zip(items, found, strict=True)]
    embedding_table.check_widths(widths, settings.table or "")
    for part, _ in found:
        out.add(part)
    return {"num_samples": num_samples, "width": widths[0][1], "dtype": settings.dtype}


def _write_weights(settings: EncodeConfig, side: int, out: Output) -> tuple[str, str] | None:
    """Where the weights now are and their SHA-256; UserError before any task if they cannot be used on the images."""
    place = _weights_file(settings)
    if place is None:
        return None
    data = storage.read(place)
    try:
        encoder = build(settings, read_weights(data), use_gpu=False)
    except UserError as error:
        raise UserError(f"encode.weights={settings.weights!r} cannot be used: {error}") from error
    try:
        encoder.check(side)
    except UserError as error:
        raise UserError(f"encode.encoder={settings.encoder!r}: {error}: set encode.size to what it takes") from error
    part = out.write("encoder", ".pt", data)
    return storage.join(out.uri, part.name), part.sha256


def build(settings: EncodeConfig, weights: Mapping[str, Any], use_gpu: bool) -> Encoder:
    """The encoder of these settings; UserError if the weights do not fit."""
    import torch

    assert settings.encoder is not None
    pixels = settings.encoder == PIXELS
    mean, std = ((0.0,) * 3, (1.0,) * 3) if pixels else (settings.mean, settings.std)
    device = torch.device("cuda" if use_gpu else "cpu")
    return Encoder(settings.encoder, weights, settings.size, mean, std, settings.precision, device)


@lru_cache(maxsize=1)
def _load(settings: EncodeConfig, weights: tuple[str, str] | None, use_gpu: bool) -> Encoder:
    """Once per process."""
    return build(settings, read_weights(storage.read_verified(*weights)) if weights else {}, use_gpu)


def _encode(
    item: tuple[int, Ids],
    settings: EncodeConfig,
    weights: tuple[str, str] | None,
    index: Artifact,
    uri: str,
    resources: Resources,
) -> tuple[Part, int]:
    """One task: the images of these ids."""
    import torch

    torch.set_num_threads(resources.cpus_per_worker)
    low, ids = item
    images = ingest.open_images(index, resources)
    encoder = _load(settings, weights, resources.gpus_per_worker > 0)
    steps = images.steps(in_order(images.samples, ids, ROWS_AT_A_TIME))
    return _write(np.concatenate([encoder(step.images).numpy() for step in steps]), low, settings, uri)


def _copy(item: tuple[int, Ids], settings: EncodeConfig, uri: str) -> tuple[Part, int]:
    """One task: these rows of the table."""
    low, rows = item
    assert settings.table is not None
    return _write(embedding_table.read_vectors(settings.table, settings.column, rows, low), low, settings, uri)


def _write(vectors: Vectors, low: int, settings: EncodeConfig, uri: str) -> tuple[Part, int]:
    with np.errstate(over="ignore"):
        vectors = vectors.astype(settings.dtype)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise UserError(
            f"the embeddings of {len(bad)} of {len(vectors)} images from sample_id {low} on, the first is that of "
            f"{low + bad[0]}, are not finite in {settings.dtype}: check the encoder's weights, or set encode.dtype to "
            "float32"
        )
    return write_embeddings(uri, low, vectors), vectors.shape[1]
