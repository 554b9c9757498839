"""What pseudo-labels and coresets are worth: `python -m benchmarks.quality DATA RUNS`; hours.

DATA holds train-*.tar and test-*.tar, samples KEY.jpg + KEY.cls; RUNS gets the variants made from them and one run
directory, so that a stopped study goes on and no training is done twice. For every variant, number of labels and
algorithm: accuracy of the pseudo-labels on the whole pool, whose labels only this benchmark sees; then, for the first
algorithm named, rank correlation of every score with that of a proxy which learned the true labels, and test accuracy
of models trained on coresets of several sizes, chosen in several ways, against random ones, against the same ways with
true labels and without any, and against everything; `auto` beside a grid of mislabel fractions and of c_d.

Networks: `small` for CPU cores; `paper` as published (2605.23198, 2001.07685), for GPUs.
"""

import argparse
import json
import os
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr

from benchmarks.corrupt import corrupted, long_tailed, read
from jobs.display import Display, table
from pipeline import mislabel, plan, tar
from pipeline.index import load_index
from pipeline.recipe import Recipe
from pipeline.run import environment, execute
from pipeline.stage import Artifact
from pipeline.units import duration

VARIANTS = ("plain", "long_tailed_0.1", "long_tailed_0.01", "corrupted")
GRID = {"mislabel_fraction": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), "c_d": (0.5, 1.0, 2.0, 4.0)}
"""What `auto` is compared with, of the options that held-out labels choose."""
LABEL_FREE = "label_free"
PER_SHARD = 2500

NETWORKS: dict[str, dict[str, Any]] = {
    "small": {
        "ssl": {"model": {"name": "resnet9", "width": 16}, "steps": 8000, "lr": 0.03, "unlabelled_ratio": 1},
        "options": {name: {"momentum": 0.99} for name in ("freematch", "softmatch")},  # .999 is slow for so few steps
        "cluster": {"heads": 8, "epochs": 100, "warmup_epochs": 10},
        "proxy": {"model": {"name": "resnet9", "width": 16}, "epochs": 20, "lr": 0.1},
        "final": {"model": {"name": "resnet9", "width": 16}, "epochs": 12, "lr": 0.1},
        "min_steps": 2000,
        "T": 20,
    },
    "paper": {
        "ssl": {"model": {"name": "wrn_28_2"}, "steps": 2**17},
        "options": {},
        "cluster": {},
        "proxy": {"model": {"name": "resnet18"}, "epochs": 200, "lr": 0.1},
        "final": {"model": {"name": "resnet18"}, "epochs": 200, "lr": 0.1},
        "min_steps": 30_000,
        "T": 30,
    },
}


def make(data: Path, out: Path, variant: str, images: int | None) -> Path:
    """The shards of a variant, made once."""
    folder = out / f"{variant}{'' if images is None else f'-{images}'}"
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted(str(path) for path in data.glob("train-*.tar"))
    kind, _, amount = variant.rpartition("_")
    samples = long_tailed(paths, float(amount)) if kind else corrupted(paths) if variant == "corrupted" else read(paths)
    content = list(islice(samples, images))
    for start in range(0, len(content), PER_SHARD):
        members = []
        for key, image, label in content[start : start + PER_SHARD]:
            members += [(f"{key}.jpg", image), (f"{key}.cls", str(label).encode())]
        (folder / f"train-{start // PER_SHARD:06d}.tar").write_bytes(tar.pack(members) + tar.END)
    (folder / "done").touch()
    return folder


def selections(fractions: list[float], *, judged: bool, grid: bool) -> list[dict[str, Any]]:
    """Of every size: the two methods of SemiPrune, CCS and EL2N; their names end in the size.

    judged: whether held-out labels choose options; without them, nothing is cut, or the least that `auto` cuts. c_d is
    the published 3, too.
    """

    def tried(option: str, usual: list[float | str]) -> list[float | str]:
        return [*usual, *(value for value in GRID[option] if grid and value not in usual)]

    autos: list[float | str] = ["auto"] if judged else []
    found: list[dict[str, Any]] = []
    for keep in fractions:
        fixed: list[float | str] = [0.0, float(mislabel.least(Fraction(str(keep))))]
        cuts = [m for m in tried("mislabel_fraction", autos or fixed) if m == "auto" or float(m) + keep <= 1]
        ways: dict[str, tuple[str, dict[str, Any]]] = {
            f"aum-{m}": ("double_end", {"score": "aum", "mislabel_fraction": m}) for m in cuts
        }
        ways |= {f"dual_beta-{c_d}": ("dual_beta", {"c_d": c_d}) for c_d in tried("c_d", [*autos, 3.0])}
        ways |= {"ccs": ("ccs", {}), "el2n": ("top_k", {"score": "el2n"})}
        for way, (selector, options) in ways.items():
            name = f"{way}-{100 * keep:g}"
            found.append({"name": name, "selector": selector, "keep_fraction": keep, "options": options})
    return found


def recipe(options: argparse.Namespace, shards: Path, algorithm: str, labels: int | None, coresets: bool) -> Recipe:
    """labels: how many are visible; None, all of them, which makes every pseudo-label a true one."""
    network = NETWORKS[options.network]
    label_free = algorithm == LABEL_FREE
    judged = labels is not None and not label_free
    content: dict[str, Any] = {
        "root": str(options.runs / "run"),
        "data": {"shards": str(shards / "train-*.tar"), "num_classes": options.num_classes, "image_size": 32},
        "split": {"num_labelled": 0 if label_free else labels, "holdout_fraction": 0.2 if judged else 0.0},
        "proxy": {**network["proxy"], "batch_size": 128},
        "score": {"aum": {}, "forgetting": {}, "el2n": {"num_epochs": 10}, "dual": {"T": network["T"], "J": 10}},
        "select": selections(options.keep, judged=judged, grid=options.grid and labels is not None),
        "resources": {"num_workers": options.workers, "cpus_per_worker": options.threads},
    }
    if label_free:
        content |= {"encode": options.label_free, "cluster": network["cluster"]}
    else:
        steps = 1 if labels is None else options.steps or network["ssl"]["steps"]  # labels replace what it predicts
        content["ssl"] = {
            **network["ssl"],
            "steps": steps,
            "algorithm": algorithm,
            "options": network["options"].get(algorithm, {}),
            "batch_size": 64,
            "checkpoint_every": 250,
        }
    if coresets:
        content["evaluate"] = {
            "test_shards": str(options.data / "test-*.tar"),
            "seeds": options.seeds,
            "baselines": ["random", "full"] if judged else [],  # the same for every source
            "min_steps": network["min_steps"],
            "training": {**network["final"], "batch_size": 128},
        }
    return Recipe.model_validate_json(json.dumps(content))


def run(wanted: Recipe, until: str | None = None) -> dict[str, Artifact]:
    """The finished stages by title."""
    stages = plan.build(wanted)
    if until:
        stages = plan.needed(stages, until)
    with Display() as display:
        done = execute(stages, wanted.root, wanted.resources, display, wanted.model_dump(mode="json"))
    return {stage.title: artifact for stage, artifact in zip(stages, done, strict=True)}


def pool_accuracy(done: dict[str, Artifact]) -> float:
    """Of the pseudo-labels, over all rows whose label the algorithm has not seen."""
    truth = load_index(done["index"], ["label"])["label"].fill_null(-1).to_numpy()
    found: pa.Table = done["pseudo_label"].table()
    unseen = ~np.isin(found["sample_id"].to_numpy(), done["split"].table()["sample_id"].to_numpy())
    right = found["pseudo_label"].to_numpy() == truth[found["sample_id"].to_numpy()]
    return float(right[unseen & (truth >= 0)].mean())


def correlations(done: dict[str, Artifact], truth: dict[str, Artifact]) -> list[list[str]]:
    """Spearman's rho of each score with the same one by true labels, each by a proxy of its own: of the whole pool, of
    the rows whose pseudo-label is right, and of the others.
    """
    ours, theirs = (stages["score"].table() for stages in (done, truth))
    label = load_index(done["index"], ["label"])["label"].to_numpy()
    right = done["pseudo_label"].table(columns=["train_label"])["train_label"].to_numpy() == label
    rows = []
    for name in done["score"].metrics["harder"]:
        pairs = [stages[name].to_numpy() for stages in (ours, theirs)]
        found = [spearmanr(*(values[here] for values in pairs)).statistic for here in (right | True, right, ~right)]
        rows.append([name, *(f"{rho:.3f}" for rho in found)])
    return rows


def accuracies(dynamics: str, rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line per way to choose, a column per size, the largest first."""
    sizes = sorted({row["keep_fraction"] for row in rows}, reverse=True)
    ways: dict[str, dict[float, str]] = {}
    for row in rows:
        way = row["subset"].removesuffix(f"-{100 * row['keep_fraction']:g}")
        found = f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f}"
        ways.setdefault(way, {})[row["keep_fraction"]] = found
    return [[dynamics, way, *(cells.get(size, "") for size in sizes)] for way, cells in ways.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--network", choices=tuple(NETWORKS), default="small")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain"])
    parser.add_argument("--algorithms", nargs="+", default=["fixmatch", "supervised"])
    parser.add_argument("--labels", nargs="+", type=int, default=[4000])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.3, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", action="store_true", help="mislabel fractions and c_d besides the automatic ones")
    parser.add_argument("--no-coresets", action="store_true", help="pseudo-labels alone")
    parser.add_argument(
        "--label-free", type=json.loads, metavar="JSON", help="the `encode` of a recipe: coresets by clusters, too"
    )
    parser.add_argument("--images", type=int, help="of the variant; all of them otherwise")
    parser.add_argument("--steps", type=int, help="of the semi-supervised training")
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.data, options.runs = options.data.resolve(), options.runs.resolve()
    facts = environment()
    versions = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    print(f"{facts['cores']} cores, {versions}, commit {facts['commit']}")
    print(f"{options.workers} workers of {options.threads} threads")
    pseudo_labels, correlated, tested, times = [], [], {}, []
    for variant in options.variants:
        shards = make(options.data, options.runs / "data", variant, options.images)
        for labels in options.labels:
            for place, algorithm in enumerate(options.algorithms):
                coresets = not options.no_coresets and place == 0
                wanted = recipe(options, shards, algorithm, labels, coresets)
                done = run(wanted, None if coresets else "pseudo_label")
                pseudo_labels.append([variant, f"{labels:,}", algorithm, f"{pool_accuracy(done):.2%}"])
                sources = {f"{labels:,} labels, {algorithm}": done}
                if coresets:
                    sources["true labels"] = run(recipe(options, shards, "supervised", None, True))
                    found = correlations(done, sources["true labels"])
                    correlated += [[variant, f"{labels:,}", algorithm, *row] for row in found]
                if coresets and options.label_free:
                    sources["no label"] = run(recipe(options, shards, LABEL_FREE, 0, True))
                for source, stages in sources.items():
                    took = [[title, duration(artifact.manifest["seconds"])] for title, artifact in stages.items()]
                    times += [[variant, source, *row] for row in took]
                    if "evaluate" in stages:
                        rows = accuracies(source, stages["evaluate"].metrics["rows"])
                        tested.setdefault(variant, []).extend(rows)
    table("Pseudo-labels that are right", ["variant", "labels", "algorithm", "of the unlabelled, %"], pseudo_labels)
    columns = ["variant", "labels", "algorithm", "score", "all", "right", "wrong"]
    table("Rank correlation with the score by true labels", columns, correlated)
    for variant, rows in tested.items():
        sizes = sorted({1.0, *options.keep}, reverse=True)
        columns = ["dynamics from", "chosen by", *(f"{100 * keep:g}%" for keep in sizes)]
        table(f"{variant}: test accuracy, %, {options.seeds} seeds", columns, rows)
    table("Time", ["variant", "labels", "stage", "took"], times)


if __name__ == "__main__":
    main()
