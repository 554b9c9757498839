"""Stage `evaluate`: is the coreset worth more than a random one? Trains from scratch on each and tests."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pipeline import counter, storage
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.final import FinalConfig, Images, train_and_test
from pipeline.index import DataConfig, load_index, load_shards
from pipeline.labels import checksum, labels_of, load_label_table
from pipeline.random_crop import CroppedTraining
from pipeline.resources import Resources
from pipeline.shards import Patterns, Uri
from pipeline.stage import Artifact, Output, Progress

Ids = NDArray[np.int64]


class EvaluateSettings(Config):
    """The `evaluate` section of a recipe."""

    test_shards: Patterns = Field(description="labelled shards that nothing else reads, as data.shards names them")
    labels: Uri | None = Field(
        default=None, description="table key,label of annotated images, for pools whose shards carry no labels"
    )
    seeds: int = Field(default=3, ge=1, le=100, description="trainings per subset")
    baselines: tuple[Literal["random", "full"], ...] = Field(
        default=("random", "full"), description="what the coresets are compared with"
    )
    min_steps: int = Field(default=1, ge=1, description="small subsets train for more epochs, at least this many steps")
    training: CroppedTraining = Field(description="from scratch, the same for every subset")


class EvaluateConfig(Config):
    """The settings with what the rest of the recipe decides. labels_sha256: of the table `settings.labels`."""

    seed: int
    num_classes: int
    classes: tuple[str, ...]
    labels_sha256: str | None
    settings: EvaluateSettings

    @classmethod
    def of(cls, settings: EvaluateSettings, seed: int, data: DataConfig) -> "EvaluateConfig":
        """The table of labels enters by its content: more annotations are another evaluation."""
        return cls(
            seed=seed,
            num_classes=data.num_classes,
            classes=data.classes,
            labels_sha256=checksum(settings.labels, "evaluate.labels"),
            settings=settings,
        )


@dataclass(frozen=True)
class Subset:
    """What a training trains on. name: "random", "full" or that of a selection."""

    name: str
    keep_fraction: float
    ids: Ids


def run(
    inputs: Mapping[str, Artifact], config: EvaluateConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Train and test; part: subset, keep_fraction, num_samples, seed, accuracy. Metrics: mean and spread per subset.

    inputs: index, test_index, and `select:<name>` for every selection. The spread is the sample
    standard deviation over seeds (ddof=1; 0 for one seed). Each random training draws its own random coreset.
    """
    _check_apart(inputs["index"], inputs["test_index"])
    labels = _labels(inputs["index"], config)
    test_labels = load_index(inputs["test_index"], ["label"])["label"].fill_null(-1).to_numpy()
    if (test_labels < 0).any():
        raise UserError(
            f"evaluate.test_shards: {int((test_labels < 0).sum())} test images have no label: label all of them"
        )
    selections = {name.removeprefix("select:"): art for name, art in inputs.items() if name.startswith("select:")}
    jobs = _subsets(selections, len(labels), config)
    _check_labels([subset for subset, _ in jobs], labels)
    accuracies = train_and_test(
        [(subset.ids, seed) for subset, seed in jobs],
        Images(inputs["index"], labels),
        Images(inputs["test_index"], test_labels),
        FinalConfig(
            seed=config.seed,
            num_classes=config.num_classes,
            min_steps=config.settings.min_steps,
            training=config.settings.training,
        ),
        storage.join(out.uri.rsplit("/", 1)[0], "trainings"),
        resources=resources,
        progress=progress,
    )
    rows = [
        {
            "subset": subset.name,
            "keep_fraction": subset.keep_fraction,
            "num_samples": len(subset.ids),
            "seed": seed,
            "accuracy": accuracy,
        }
        for (subset, seed), accuracy in zip(jobs, accuracies, strict=True)
    ]
    out.write_table(pa.Table.from_pylist(rows))
    return {"test_size": len(test_labels), "rows": _summary(rows)}


def _check_apart(index: Artifact, test_index: Artifact) -> None:
    """A test on images that were trained on proves nothing."""
    known = {shard.sha256: shard.uri for shard in load_shards(index)}
    for shard in load_shards(test_index):
        if shard.sha256 in known:
            raise UserError(
                f"evaluate.test_shards: {shard.uri!r} holds the same bytes as {known[shard.sha256]!r} of data.shards: "
                "name shards that nothing is trained on"
            )


def _labels(index: Artifact, config: EvaluateConfig) -> NDArray[np.int64]:
    """Label by sample_id, -1 where none is known; the table of annotations overrides the shards."""
    table = config.settings.labels
    if table is None:
        labels: NDArray[np.int64] = load_index(index, ["label"])["label"].fill_null(-1).to_numpy()
        return labels
    rows, known = load_index(index, ["key", "label"]), load_label_table(table, config.num_classes, config.classes)
    given = labels_of(rows["key"], known)
    found: NDArray[np.int64] = pc.coalesce(given, rows["label"], pa.scalar(-1, pa.int64())).to_numpy()
    return found


def _check_labels(subsets: Iterable[Subset], labels: NDArray[np.int64]) -> None:
    for subset in subsets:
        if len(subset.ids) < 2:
            raise UserError(f"evaluate: {subset.name!r} has one image, too few to train on: raise its keep_fraction")
        missing = int((labels[subset.ids] < 0).sum())
        if missing:
            raise UserError(
                f"evaluate: {missing} of {len(subset.ids)} images of {subset.name!r} have no label: annotate them and "
                "name the table in evaluate.labels, leave the subset out of evaluate.baselines, or remove `evaluate`"
            )


def _subsets(selections: Mapping[str, Artifact], num_samples: int, config: EvaluateConfig) -> list[tuple[Subset, int]]:
    """Every (subset, training seed) of the comparison, in the order of the report."""
    everything = np.arange(num_samples, dtype=np.int64)
    seeds = range(config.settings.seeds)
    jobs = []
    if "full" in config.settings.baselines:
        jobs += [(Subset("full", 1.0, everything), seed) for seed in seeds]
    budgets = sorted(
        {(art.metrics["keep_fraction"], art.metrics["budget"]) for art in selections.values()}, reverse=True
    )
    for fraction, budget in budgets:
        if "random" in config.settings.baselines:
            for seed in seeds:
                order = counter.permutation(config.seed, "evaluate-random", seed, everything)
                jobs.append((Subset("random", fraction, np.sort(order[:budget])), seed))
        for name, artifact in selections.items():
            if artifact.metrics["keep_fraction"] == fraction:
                ids = artifact.table()["sample_id"].to_numpy()
                jobs += [(Subset(name, fraction, ids), seed) for seed in seeds]
    return jobs


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread per (subset, keep_fraction), in the order of `rows`."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["subset"], row["keep_fraction"]), []).append(row)
    summary = []
    for (subset, fraction), members in groups.items():
        accuracies = np.array([member["accuracy"] for member in members])
        summary.append(
            {
                "subset": subset,
                "keep_fraction": fraction,
                "num_samples": members[0]["num_samples"],
                "mean": float(accuracies.mean()),
                "std": float(accuracies.std(ddof=1)) if len(members) > 1 else 0.0,
                "seeds": len(members),
            }
        )
    return summary
