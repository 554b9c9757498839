"""One shard with its images resized to training size: what a task of `semiprune prepare` does."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from pipeline import images, quarantine, shards, storage, tar
from pipeline.config import Config
from pipeline.index_shard import only_image, reach, scan
from pipeline.quarantine import DefectError
from pipeline.shards import Shard, Source
from pipeline.stage import Artifact, Output, Stage

_SAMPLES = pa.schema([("key", pa.string()), ("row", pa.int32()), ("length", pa.int64())])
_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112


class ImageConfig(Config):
    """size: of the shorter side, in pixels; form: what a resized image becomes, quality: of a JPEG."""

    size: Annotated[int, Field(ge=8, le=4096)]
    form: Literal["jpg", "png"] = "jpg"
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    max_pixels: Annotated[int, Field(ge=1, le=images.MAX_PIXELS)] = 50_000_000


class _Resizing(Config):
    """What decides a resized shard. source: fields of a Source."""

    source: dict[str, Any]
    image: ImageConfig


@dataclass(frozen=True)
class Resized:
    """A shard whose images were resized.

    shard: where it is now; lengths: int64 [n], bytes of each sample, one after the other; first_key, first_row,
    last_key: of its samples; bad: what was left out.
    """

    shard: Shard
    lengths: NDArray[np.int64]
    first_key: str
    first_row: int
    last_key: str
    bad: pa.Table


def resize_shard(item: tuple[int, Source], config: ImageConfig, folder: str) -> Resized:
    """One task: the resized shard under `folder`, found there if it was made before. Raises as `shards.read` does."""
    number, source = item
    artifact, _ = reach(Stage("resized", 1, _Resizing(source=vars(source), image=config), {}, _run), folder)
    (part,) = artifact.parts("images")
    place = shards.look(storage.join(artifact.uri, part.name))
    samples = pa.concat_tables(artifact.tables("samples"))
    keys, rows = samples["key"].to_pylist() or [""], samples["row"].to_pylist() or [0]
    return Resized(
        shard=Shard(number, place.uri, place.size, part.sha256, place.stamp, part.rows, 0),
        lengths=samples["length"].to_numpy(),
        first_key=keys[0],
        first_row=rows[0],
        last_key=keys[-1],
        bad=pa.concat_tables([quarantine.SCHEMA.empty_table(), *artifact.tables("bad")]),
    )


def _run(inputs: Mapping[str, Artifact], config: _Resizing, out: Output) -> dict[str, Any]:
    """Parts: `images`, the resized shard; `samples`, what is in it; `bad`, what is not."""
    source = Source(**config.source)
    data = shards.read(source.uri, source.size)
    samples, bad = scan(source.uri, data)
    blocks: list[bytes] = []
    kept: list[dict[str, Any]] = []
    seen: set[str] = set()
    for sample in samples:
        try:
            block = tar.pack(_members(sample, memoryview(data), seen, config.image))
        except DefectError as defect:
            bad.append(quarantine.entry(source.uri, sample.row, sample.key, defect.reason, defect.detail))
        else:
            seen.add(sample.key)
            blocks.append(block)
            kept.append({"key": sample.key, "row": sample.row, "length": len(block)})
    out.write("images", ".tar", b"".join([*blocks, tar.END]), len(kept))
    out.write_table(pa.Table.from_pylist(kept, _SAMPLES), "samples")
    if bad:
        out.write_table(pa.Table.from_pylist(bad, quarantine.SCHEMA), "bad")
    return {"num_samples": len(kept)}


def _members(
    sample: tar.Sample, data: memoryview, seen: set[str], config: ImageConfig
) -> list[tuple[str, bytes | memoryview]]:
    """The sample's files, with another image; DefectError if it cannot be used."""
    image = only_image(sample, seen)
    members: list[tuple[str, bytes | memoryview]] = []
    for member in sample.members:
        name, payload = member.name, data[member.offset : member.offset + member.size]
        if member is image:
            try:
                smaller = resize(payload, config)
            except images.UndecodableImageError as error:
                raise DefectError("undecodable image", str(error)) from error
            if smaller is not None:
                name, payload = f"{sample.key}.{config.form}", memoryview(smaller)
        members.append((name, payload))
    return members


def resize(data: bytes | memoryview, config: ImageConfig) -> bytes | None:
    """The image with a shorter side of `config.size`, in its new form; None if it is no larger than that already.

    Upright, without alpha and metadata; grey stays grey, all else becomes RGB. UndecodableImageError for what
    `images.decode` refuses.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _resize(data, config)
    except (images.UndecodableImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise images.UndecodableImageError("not a JPEG, PNG or WebP image") from error
    except Exception as error:  # Pillow raises almost anything on damaged bytes
        raise images.UndecodableImageError(f"{type(error).__name__}: {error}"[:200]) from error


def _resize(data: bytes | memoryview, config: ImageConfig) -> bytes | None:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        width, height = image.size
        if width * height > config.max_pixels:
            raise images.UndecodableImageError(f"{width}x{height} pixels are more than max_pixels={config.max_pixels}")
        side = min(width, height)
        if side <= config.size:
            image.load()
            return None
        # JPEG alone: decode at 1/2, 1/4 or 1/8 while that leaves twice the pixels that the resize needs.
        image.draft(None, (2 * config.size, 2 * config.size))
        image.load()
        size = (max(1, round(width * config.size / side)), max(1, round(height * config.size / side)))
        pixels = _plain(image).resize(size, Image.Resampling.BILINEAR)
        orientation = image.getexif().get(_ORIENTATION, 1)
    pixels.info.clear()
    pixels.getexif()[_ORIENTATION] = orientation
    pixels = ImageOps.exif_transpose(pixels)
    sink = io.BytesIO()
    if config.form == "png":
        pixels.save(sink, "PNG")
    else:
        pixels.save(sink, "JPEG", quality=config.quality)
    return sink.getvalue()


def _plain(image: Image.Image) -> Image.Image:
    """Grey or RGB of 8 bits."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip at 255 instead of scaling.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("L" if image.mode in ("L", "LA") else "RGB")
