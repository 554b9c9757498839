"""A small finished run in a real run directory: handwritten digits with drawn-up training results."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ConfigDict
from sklearn.datasets import load_digits

from pipeline import auto, trust
from pipeline.config import Config
from pipeline.dynamics import DynamicsWriter
from pipeline.pool import TablePool
from pipeline.select import SelectConfig
from pipeline.stage import Artifact, Output, Stage
from pipeline.true_dynamics import store_uri
from pipeline.trust import HeldOut, TrustConfig, expected_wrong
from tests.pipeline.making import encoded, run_index, run_stage, write_shard

N = 600
HARDER = {"aum": "low", "dual": "high", "dual_mean": "low"}
EVIL = "<script>alert('key')</script>"
FACTS = {
    "resources": {"num_workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0.0, "max_failures": 3},
    "libraries": {"semiprune": "0.1.0", "torch": "2.13.0", "numpy": "2.4.1"},
    "python": "3.11.9",
    "cores": 4,
    "commit": "0123456789abcdef0123456789abcdef01234567",
}


class AnyConfig(Config):
    model_config = ConfigDict(extra="allow")


class Run:
    """Commits stages under a root; `inputs` is what the report stage receives."""

    def __init__(self, root: str):
        self.root = root
        self.inputs: dict[str, Artifact] = {}

    def commit(self, name: str, metrics: dict[str, Any], tables: Mapping[str, Any], **settings: Any) -> None:
        """`name` as in the report's inputs; tables: columns, per stem of parts."""
        stage = Stage(name.partition(":")[0], 1, AnyConfig(**settings), {}, dict, name.replace(":", " "))
        out = Output(stage.uri(self.root))
        for stem, columns in tables.items():
            out.write_table(pa.table(columns), stem)
        self.inputs[name] = stage.commit(self.root, out, metrics, facts(name))


def facts(name: str) -> dict[str, Any]:
    """What a run notes of a stage."""
    return {"seconds": zlib.crc32(name.encode()) % 400 / 10, **FACTS}


def index(root: str, keys: list[str]) -> Artifact:
    """The real stage, on shards of 200 digits each, with an image and a whole shard that cannot be used."""
    folder = Path(root) / "data"
    folder.mkdir()
    digits = np.kron(load_digits().images[:N] * (255 / 16), np.ones((1, 4, 4))).astype(np.uint8)
    for shard in range(3):
        here = range(shard * 200, shard * 200 + 200)
        samples = [(keys[n], {"png": encoded(np.repeat(digits[n][..., None], 3, axis=2))}) for n in here]
        bad = [("digit-<b>bold</b>", {"png": b"no image"})] if shard == 1 else []
        write_shard(folder / f"train-{shard:06d}.tar", samples[:17] + bad + samples[17:])
    (folder / "train-000003.tar").write_bytes((folder / "train-000000.tar").read_bytes()[:700])
    shards = f"{folder}/train-{{000000..000003}}.tar"
    return run_index(Path(root), shards, num_classes=10, image_size=32, facts=facts("index"))


def select(run: Run, name: str, scores: dict[str, Any], kept: Any, labelled: Any, cuts: Any, **facts: Any) -> None:
    in_coreset = len(np.intersect1d(kept, labelled))
    facts |= {"name": name, "keep_fraction": len(kept) / N, "budget": len(kept), "num_samples": N, "cuts": cuts}
    facts |= {"labelled_in_coreset": in_coreset, "annotation_bill": len(kept) - in_coreset + len(labelled)}
    held = HeldOut.load(run.inputs["trust"])
    own = held.wrong[np.isin(held.sample_ids, kept)]
    facts["wrong"] = expected_wrong(int(own.sum()), len(own), len(kept) - in_coreset)
    settings = SelectConfig(name=name, selector=facts["selector"], keep_fraction=facts["keep_fraction"], seed=0)
    selector = settings.build()
    pool = TablePool(pa.table(scores), selector.columns)
    facts["choice"] = auto.choose(selector, pool, len(kept), held, HARDER, 0)
    table = {"sample_id": np.sort(kept), "rank": np.arange(len(kept))}
    run.commit(f"select:{name}", facts, {"part": table}, selector=facts["selector"], seed=0)
    export = {"num_shards": 1, "bytes": 1_234_567, "files": ["coreset.parquet"]}
    run.commit(f"export:{name}", export, {}, of=name, shard_bytes=100_000_000)


def build(root: str) -> Run:
    """Index to evaluate for N digits: 8% of the pseudo-labels are wrong, and those digits are hard."""
    run, rng, ids = Run(root), np.random.default_rng(0), np.arange(N)
    truth = load_digits().target[:N].astype(np.int64)
    wrong = rng.random(N) < 0.08
    pseudo = np.where(wrong, (truth + rng.integers(1, 10, N)) % 10, truth)
    hard = np.clip(rng.gamma(2.0, 0.12, N) + rng.uniform(0.6, 1.0, N) * wrong, 0, 1.6)
    labelled = np.sort(rng.choice(N, 100, replace=False))
    train, holdout = labelled[::2], labelled[1::2]

    keys = [EVIL if i == int(np.argmax(hard)) else f"digit-{i:05d}" for i in ids]
    run.inputs["index"] = index(root, keys)
    roles = ["train"] * len(train) + ["holdout"] * len(holdout)
    split = {"sample_id": np.concatenate([train, holdout]), "role": roles}
    split["label"] = truth[split["sample_id"]]
    counts = {str(label): int(count) for label, count in enumerate(np.bincount(truth[train], minlength=10))}
    labels = {"num_train": 50, "num_holdout": 50, "class_counts": counts}
    run.commit("split", labels, {"part": split}, settings={"draw": "uniform"}, seed=0)

    step = np.arange(0, 3000, 10)
    ssl = {
        "step": step,
        "loss_labelled": 2.3 * np.exp(-step / 400) + 0.02 * rng.random(len(step)),
        "loss_unlabelled": 0.5 * np.exp(-(((step - 500) / 900) ** 2)) + 0.05 * rng.random(len(step)),
        "mask_rate": 0.97 * (1 - np.exp(-step / 500)),
    }
    run.commit("ssl", {}, {"history-0": ssl}, algorithm="fixmatch", model={"name": "wrn-16-2"}, optimizer={"lr": 0.03})
    confidence = np.where(wrong, rng.uniform(0.3, 0.95, N), 1 - rng.gamma(1, 0.03, N).clip(0, 0.6))
    labels = {
        "sample_id": ids[::-1],  # no reader may rely on the order of rows
        "pseudo_label": pseudo[::-1],
        "confidence": confidence.astype(np.float32)[::-1],
        "train_label": np.where(np.isin(ids, labelled), truth, pseudo)[::-1],
    }
    logits = np.log(np.full((50, 10), 0.01))
    logits[np.arange(50), pseudo[holdout]] = np.log(confidence[holdout])
    features = np.eye(10)[truth[holdout]] + 0.5 * rng.standard_normal((50, 10))
    rows = {"sample_id": holdout, "label": truth[holdout], "logits": list(logits), "features": list(features)}
    parts = {"part-0": labels, "holdout-0": rows}
    run.commit("pseudo_label", {"mean_confidence": float(confidence.mean())}, parts, labelled_rows="ground_truth")
    epoch = np.arange(40)
    proxy = {"epoch": epoch, "loss": 2.2 * np.exp(-epoch / 8), "accuracy": 0.98 - 0.88 * np.exp(-epoch / 6)}
    run.commit("proxy", {}, {"history-0": proxy}, model={"name": "resnet-9"}, epochs=40)
    writer = DynamicsWriter(store_uri(f"{run.inputs['proxy'].uri}/dynamics"), num_samples=50)
    for number in range(8):
        seen = np.eye(10)[pseudo[holdout]] * (number / 2 - 3 * hard[holdout, None]) + rng.normal(0, 0.2, (50, 10))
        writer.observe(np.arange(50), seen, truth[holdout])
        writer.commit_epoch(number)

    aum = (38 - 40 * hard).astype(np.float32)
    dual = (hard * rng.uniform(0.4, 1, N)).astype(np.float32)
    scores = {"sample_id": ids, "aum": aum, "dual": dual, "dual_mean": (1 - hard / 1.7).astype(np.float32)}
    harder = {"harder": HARDER, "columns": {}, "num_epochs": 40, "num_samples": N}
    run.commit("score", harder, {"part-0": scores}, scores={"aum": {}, "dual": {"T": 8, "J": 4, "ddof": 1}})
    run.inputs["trust"] = run_stage(Path(root), "trust", trust.run, TrustConfig(seed=0), run.inputs, **FACTS, seconds=1)
    order = np.argsort(aum, kind="stable")
    middle = order[60 : 60 + 180]
    cuts = {"column": "aum", "low": float(aum[middle].min()), "high": float(aum[middle].max())}
    method = "Semi-AUM-cutoff: double-end pruning (arXiv:2406.04273, arXiv:2605.23198)"
    facts = {"selector": "double_end", "score": "aum", "method": method}
    select(run, "semi_aum_cutoff", scores, middle, labelled, cuts, **facts)
    beta = np.argsort(-(dual * rng.random(N)), kind="stable")[:180]
    method = "Semi-DUAL-beta: beta sampling (arXiv:2502.06905, arXiv:2605.23198)"
    facts = {"selector": "dual_beta", "score": "dual", "method": method}
    select(run, "semi_dual_beta", scores, beta, labelled, None, **facts)

    subsets = [("full", 1.0, N, 0.958), ("random", 0.3, 180, 0.902)]
    subsets += [("semi_aum_cutoff", 0.3, 180, 0.931), ("semi_dual_beta", 0.3, 180, 0.906)]
    rows, summary = [], []
    for subset, fraction, size, mean in subsets:
        accuracies = mean + 0.008 * np.array([-1.0, 0.25, 0.75])
        row = {"subset": subset, "keep_fraction": fraction, "num_samples": size}
        rows += [{**row, "seed": seed, "accuracy": float(value)} for seed, value in enumerate(accuracies)]
        summary.append({**row, "mean": float(accuracies.mean()), "std": float(accuracies.std(ddof=1)), "seeds": 3})
    part = {name: [row[name] for row in rows] for name in rows[0]}
    run.commit("evaluate", {"test_size": 360, "rows": summary}, {"part": part}, seeds=3, baselines=["random", "full"])
    return run


@pytest.fixture(scope="session")
def committed(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return build(str(tmp_path_factory.mktemp("run"))).inputs


@pytest.fixture
def inputs(committed: dict[str, Artifact]) -> dict[str, Artifact]:
    """The finished run, as the report stage receives it."""
    return dict(committed)
