"""Example images as data: URIs, so that the report stays one file."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.epoch_plan import in_order
from pipeline.ingest import open_samples
from pipeline.resources import Resources
from pipeline.stage import Artifact
from pipeline.stream import Stream

EXACT = 64
"""Images up to this edge are embedded exactly as the models saw them; larger ones as JPEG of edge LARGEST."""
LARGEST = 128


def thumbnails(report: Mapping[str, Any], index: Artifact, resources: Resources) -> dict[int, str]:
    """A data: URI for every sample_id among the examples of the selections."""
    examples = (row for selection in report["selections"] for row in (*selection["examples"], *selection["beyond"]))
    ids = np.array(sorted({example["sample_id"] for example in examples}), dtype=np.int64)
    if not len(ids):
        return {}
    samples = open_samples(index, resources)
    steps = Stream(samples).steps(in_order(samples, ids, len(ids)))  # a few: no reason to decode shards
    return {int(one): data_uri(image) for step in steps for one, image in zip(step.ids, step.images, strict=True)}


def data_uri(image: NDArray[np.uint8]) -> str:
    """An RGB image [H, W, 3] as PNG or, above EXACT pixels, as a JPEG thumbnail."""
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    if max(picture.size) <= EXACT:
        kind = "png"
        picture.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
