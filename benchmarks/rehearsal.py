"""ImageNet's shape through everything but the pixels: `python -m benchmarks.rehearsal FOLDER`; 10 GB of disk.

1,281,167 samples of 1,000 classes in 1,282 shards, 60 epochs: the product's own stages, by the product's own `execute`,
but for those that train. In their place: pseudo-labels drawn at random, and dynamics that 8 processes write with
DynamicsWriter and one commits, as 8 ranks would. The images are PNGs of 8x8 pixels, so that they can be indexed as all
images are, decoded once each. Then all scores, ten selections at five budgets, and the lists of each coreset.

Of every stage: seconds, the largest memory that one process had meanwhile, and bytes written.

    python -m benchmarks.rehearsal FOLDER --store    # the same in an object store on loopback

counts what each stage asks of the store instead: requests by kind, and bytes. How long it takes then is not told: the
store works on the same cores.
"""

import argparse
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa

from benchmarks.counted_store import COUNTED, KINDS, counted
from benchmarks.dataset import png
from benchmarks.synthetic import write_epoch
from jobs.display import Display, table
from pipeline import plan, tar
from pipeline.dynamics import DynamicsWriter
from pipeline.recipe import Recipe
from pipeline.run import environment, execute
from pipeline.stage import Artifact, Output, Stage, write_part
from pipeline.units import duration, size

PER_SHARD, CLASSES, EPOCHS, WRITERS = 1000, 1000, 60, 8
BUDGETS = (0.9, 0.7, 0.5, 0.3, 0.1)


def write_shard(number: int, folder: Path, num_samples: int) -> None:
    """One shard of as many as there are; one that is there already stays."""
    path = folder / f"train-{number:06d}.tar"
    if path.exists():
        return
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    members = []
    for sample in range(number * PER_SHARD, min((number + 1) * PER_SHARD, num_samples)):
        pixels[0, 0] = sample % 251
        members += [(f"{sample:08d}.png", png(pixels)), (f"{sample:08d}.cls", b"%d" % (sample % CLASSES))]
    part = path.with_suffix(".part")
    part.write_bytes(tar.pack(members) + tar.END)
    part.rename(path)


def no_model(inputs: Mapping[str, Artifact], config: Any, out: Output, **_: Any) -> dict[str, Any]:
    """In place of `ssl`."""
    out.add(write_part(out.uri, "model", ".pt", b""))
    return {"steps": 0, "algorithm": "none", "world_sizes": [WRITERS]}


def random_labels(inputs: Mapping[str, Artifact], config: Any, out: Output, **_: Any) -> dict[str, Any]:
    """In place of `pseudo_label`."""
    num_samples = inputs["index"].metrics["num_samples"]
    for low in range(0, num_samples, 8192):
        ids = np.arange(low, min(low + 8192, num_samples))
        rng = np.random.default_rng(low)
        labels, confidence = rng.integers(0, CLASSES, len(ids)), rng.random(len(ids), dtype=np.float32)
        columns = {"sample_id": ids, "pseudo_label": labels, "confidence": confidence, "margin": confidence}
        out.write_table(pa.table({**columns, "train_label": labels}))
    return {"num_samples": num_samples, "mean_confidence": 0.5}


def recorded(inputs: Mapping[str, Artifact], config: Any, out: Output, *, progress: Any, **_: Any) -> dict[str, Any]:
    """In place of `proxy`."""
    uri, num_samples = f"{out.uri}/dynamics", inputs["index"].metrics["num_samples"]
    writer = DynamicsWriter(uri, num_samples, world_size=WRITERS)
    start = len(writer.log.commits())
    with ProcessPoolExecutor(WRITERS, mp_context=get_context("spawn")) as pool:
        written = pool.map(partial(write_epoch, uri=uri, n=num_samples, ranks=WRITERS), range(start, EPOCHS))
        for epoch, parts in zip(range(start, EPOCHS), written, strict=True):
            writer.commit_epoch(epoch, parts)
            progress(epoch + 1, EPOCHS, "epochs")
    return {"epochs": EPOCHS, "accuracy": 0.0, "world_sizes": [WRITERS]}


REPLACED: dict[str, Callable[..., dict[str, Any]]] = {
    "ssl": no_model,
    "pseudo_label": random_labels,
    "proxy": recorded,
}


def recipe(place: str) -> Recipe:
    """place: what holds `runs` and `data`."""
    selections = [
        {"name": f"{selector}-{100 * keep:g}", "selector": selector, "keep_fraction": keep, "options": options}
        for keep in BUDGETS
        for selector, options in (("double_end", {"mislabel_fraction": 0.1 * (1 - keep)}), ("dual_beta", {}))
    ]
    return Recipe.model_validate(
        {
            "root": f"{place}runs/one",
            "data": {"shards": (f"{place}data/train-*.tar",), "num_classes": CLASSES, "image_size": 8},
            "split": {"num_labelled": 12_811, "holdout_fraction": 0.0},
            "ssl": {"steps": 1},
            "proxy": {"epochs": EPOCHS},
            "score": {name: {} for name in ("aum", "aum_logit", "forgetting", "correctness", "el2n", "confidence")}
            | {name: {} for name in ("variability", "entropy", "dyn_unc", "dual")},
            "select": tuple(selections),
            "export": {"shards": False},
            "resources": {"num_workers": 1, "cpus_per_worker": 1},
        }
    )


@contextmanager
def memory() -> Iterator[dict[str, float]]:
    """Most resident bytes of one process below this one, or of this one, by the second in which they were seen."""
    seen: dict[str, float] = {}
    ended = threading.Event()

    def look() -> None:
        me = psutil.Process()
        while not ended.wait(0.2):
            now = time.monotonic()
            for process in [me, *me.children(recursive=True)]:
                try:
                    if "ray::" in process.name() or "python" in process.name():
                        seen[f"{now:.3f}"] = max(seen.get(f"{now:.3f}", 0), process.memory_info().rss)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


class Watched(Display):
    """The display of a run that remembers when each stage began and ended, and what was counted until then.

    counts: of a store, as COUNTED has them. What the run asks before a stage is counted with it, what it asks after
    the last with none.
    """

    def __init__(self, counts: Any = None) -> None:
        super().__init__()
        self.spans: dict[str, tuple[float, float]] = {}
        self.asked: dict[str, list[int]] = {}
        self._counts = counts
        self._before = [0] * len(COUNTED)

    @contextmanager
    def stage(self, title: str) -> Iterator[Any]:
        begin = time.monotonic()
        with super().stage(title) as progress:
            yield progress
        self.spans[title] = (begin, time.monotonic())
        if self._counts is not None:
            now = list(self._counts)
            self.asked[title] = [here - before for here, before in zip(now, self._before, strict=True)]
            self._before = now


def written(artifact: Artifact) -> int:
    return sum(path.stat().st_size for path in Path(artifact.uri).rglob("*") if path.is_file())


def show_times(display: Watched, stages: list[Stage], done: list[Artifact], seen: dict[str, float], what: str) -> None:
    rows, total = [], 0.0
    for stage, artifact in zip(stages, done, strict=True):
        seconds = artifact.manifest["seconds"]
        total += seconds
        begin, end = display.spans.get(stage.title, (0.0, 0.0))
        most = max((rss for at, rss in seen.items() if begin <= float(at) <= end), default=0)
        rows.append([stage.title, duration(seconds), size(most) if most else "", size(written(artifact))])
    rows.append(["all", duration(total), size(max(seen.values(), default=0)), ""])
    table(what, ("stage", "seconds", "largest process", "written"), rows)


def show_counts(display: Watched, what: str) -> None:
    asked = display.asked | {"all": [sum(column) for column in zip(*display.asked.values(), strict=True)]}
    rows = [
        [title, *(f"{count:,}" for count in counts[: len(KINDS)]), *map(size, counts[len(KINDS) :])]
        for title, counts in asked.items()
    ]
    table(what, ("stage", *COUNTED), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--store", action="store_true", help="count what is asked of an object store")
    options = parser.parse_args()
    folder = options.folder.resolve()
    facts = environment()
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, Python {facts['python']}, {libraries}, commit {facts['commit']}", flush=True)
    for bucket in ("data", "runs"):
        (folder / bucket).mkdir(parents=True, exist_ok=True)
    numbers = range(-(-options.samples // PER_SHARD))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(write_shard, folder=folder / "data", num_samples=options.samples), numbers, chunksize=16))

    wanted = recipe("s3://" if options.store else f"{folder}/")
    wanted = wanted.model_copy(update={"resources": wanted.resources.model_copy(update={"tasks": cores})})
    with counted(folder) if options.store else nullcontext(({}, None)) as (found_by, counts):
        os.environ.update(found_by)
        stages: list[Stage] = [
            replace(stage, run=REPLACED[stage.name], images=()) if stage.name in REPLACED else stage
            for stage in plan.needed(plan.build(wanted), "export")
        ]
        with memory() as seen, Watched(counts) as display:
            done = execute(stages, wanted.root, wanted.resources, display, wanted.model_dump(mode="json"))
    what = f"{options.samples:,} samples, {EPOCHS} epochs"
    if options.store:
        show_counts(display, what)
    else:
        show_times(display, stages, done, seen, what)


if __name__ == "__main__":
    main()
