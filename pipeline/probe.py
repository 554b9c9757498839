"""How fast this machine is at what a recipe asks of it: each of `cost.SPEEDS`, in some seconds each."""

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline import images, shards, tar
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from models.batch import Batch
    from models.supervised import SupervisedConfig, SupervisedTrainer

SECONDS = 5.0
"""Of each measurement, after a first step that does not count."""

IMAGES = 256
"""Of the first shard, decoded again and again."""


def measure(
    recipe: Recipe, names: Sequence[str], tell: Callable[[int], None], duration: float = SECONDS
) -> dict[str, float]:
    """images/s by name: `decode` of one core, the others of one worker; tell: how many of `names` are measured.

    A worker here has the cores of `resources.cpus_per_worker`, and a GPU where the recipe gives it one.
    """
    import torch

    ways = {"decode": _decoding, "ssl": _semi_supervised, "predict": _predicting}
    found = {}
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.resources.cpus_per_worker)
    try:
        for done, name in enumerate(names):
            tell(done)
            step, rows = ways.get(name, partial(_supervised, final=name == "final"))(recipe)
            found[name] = _rate(step, rows, duration)
    finally:
        torch.set_num_threads(before)
    tell(len(names))
    return found


Step = tuple[Callable[[], object], int]
"""What to do again and again, and how many images it is for."""


def _batch(recipe: Recipe, batch_size: int) -> "Batch":
    """Noise: one worker's rows of a global batch."""
    import torch

    from models.batch import Batch

    rows, size = max(-(-batch_size // recipe.resources.min_workers), 2), recipe.data.image_size
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, recipe.data.num_classes, rows))
    return Batch(np.arange(rows), np.zeros(rows, np.int64), pixels, labels, torch.ones(rows, dtype=torch.bool), rows)


def _device(recipe: Recipe) -> "torch.device":
    import torch

    return torch.device("cuda" if recipe.resources.gpus_per_worker else "cpu")


def _semi_supervised(recipe: Recipe) -> Step:
    from models.semi_supervised import SemiSupervisedTrainer

    assert recipe.ssl is not None
    labelled = _batch(recipe, recipe.ssl.batch_size)
    unlabelled = _batch(recipe, recipe.ssl.batch_size * recipe.ssl.unlabelled_ratio)
    if recipe.ssl.algorithm == "supervised":
        unlabelled = unlabelled.none()
    rows = len(labelled.sample_ids) + len(unlabelled.sample_ids)
    classes = recipe.data.num_classes
    trainer = SemiSupervisedTrainer(recipe.ssl, classes, 0, _device(recipe), rows, np.ones(classes, np.int64))
    return lambda: trainer.train_steps(range(1), [(labelled, unlabelled)]), rows


def _supervised(recipe: Recipe, final: bool) -> Step:
    batch, trainer = _trainer(recipe, final)
    return lambda: trainer.train_epoch(0, [batch]), len(batch.sample_ids)


def _predicting(recipe: Recipe) -> Step:
    batch, trainer = _trainer(recipe, final=False)
    return lambda: trainer.predict(batch.images), len(batch.sample_ids)


def _trainer(recipe: Recipe, final: bool) -> "tuple[Batch, SupervisedTrainer]":
    from models.supervised import SupervisedTrainer

    training: SupervisedConfig = recipe.proxy
    if final:
        assert recipe.evaluate is not None
        training = recipe.evaluate.training
    return (
        _batch(recipe, training.batch_size),
        SupervisedTrainer(training, recipe.data.num_classes, 1, 0, _device(recipe)),
    )


def _decoding(recipe: Recipe) -> Step:
    first = shards.find(recipe.data.shards)[0]
    data = shards.read(first.uri, first.size)
    samples = tar.scan(data)
    members = [member for sample in samples[:IMAGES] for member in sample.members]
    spans = [(member.offset, member.size) for member in members if member.extension in images.EXTENSIONS]
    size, most, content = recipe.data.image_size, recipe.data.max_pixels, memoryview(data)

    def step() -> None:
        for offset, length in spans:
            with contextlib.suppress(images.UndecodableImageError):  # to be quarantined
                images.decode(content[offset : offset + length], size, most)

    return step, len(spans)


def _rate(step: Callable[[], object], rows: int, duration: float) -> float:
    """rows/s of steps that each use as many; the first, which makes what later ones reuse, is left out."""
    step()
    start, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < duration or not steps:
        step()
        steps += 1
    return rows * steps / passed
