"""Variants of a labelled dataset of WebDataset shards: long-tailed, and with damaged images. A function of the ids."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pipeline import counter, tar

SHARE = 0.06
"""Of the images, for each corruption: 30% in all."""


def read(paths: list[str]) -> Iterator[tuple[str, bytes, int]]:
    """(key, image, label) of every sample, in order."""
    for path in paths:
        content = Path(path).read_bytes()
        for sample in tar.scan(content):
            members = {one.extension: content[one.offset : one.offset + one.size] for one in sample.members}
            yield sample.key, next(members[name] for name in ("jpg", "png") if name in members), int(members["cls"])


def long_tailed(paths: list[str], imbalance: float) -> Iterator[tuple[str, bytes, int]]:
    """Of class c of C, as many as imbalance^(c / (C - 1)) of the largest class."""
    samples = list(read(paths))
    labels = np.array([label for _, _, label in samples])
    counts = np.bincount(labels)
    keep = (counts.max() * imbalance ** (np.arange(len(counts)) / (len(counts) - 1))).astype(int)
    chosen = set()
    for label, most in enumerate(keep.tolist()):
        chosen.update(counter.permutation(0, "long-tailed", 0, np.flatnonzero(labels == label))[:most].tolist())
    return (sample for number, sample in enumerate(samples) if number in chosen)


def corrupted(paths: list[str]) -> Iterator[tuple[str, bytes, int]]:
    """Five kinds of damage, SHARE of the images each."""
    kinds = (motion_blur, fog, low_resolution, occlusion, noise)
    for number, (key, image, label) in enumerate(read(paths)):
        draw = counter.uniform(0, "corrupted", 0, np.array([number]))[0]
        kind = int(draw / SHARE)
        if kind < len(kinds):
            with Image.open(io.BytesIO(image)) as opened:
                damaged = kinds[kind](opened.convert("RGB"), np.random.default_rng(number))
            sink = io.BytesIO()
            damaged.save(sink, "JPEG", quality=95)
            image = sink.getvalue()
        yield key, image, label


def motion_blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Along a row or a column."""
    kernel = np.zeros((5, 5))
    kernel[(slice(None), 2) if rng.random() < 0.5 else (2, slice(None))] = 1
    return image.filter(ImageFilter.Kernel((5, 5), kernel.ravel().tolist()))


def fog(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A white veil, denser here than there."""
    veil = Image.fromarray(rng.integers(90, 200, (3, 3), dtype=np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", image.size, (230, 230, 235)), image, veil)


def low_resolution(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """A quarter of the pixels of a side."""
    small = image.resize((max(1, image.width // 4), max(1, image.height // 4)), Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


def occlusion(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A grey square of half the sides."""
    width, height = image.width // 2, image.height // 2
    place = (int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1)))
    hidden = image.copy()
    hidden.paste((128, 128, 128), (*place, place[0] + width, place[1] + height))
    return hidden


def noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gaussian, of standard deviation 40 of 255."""
    pixels = np.asarray(image) + rng.normal(0, 40, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
