"""The JSON twin: every number that the report shows, from artifacts alone. The HTML is rendered from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.report import tables
from pipeline.report.costs import compare as compare_costs
from pipeline.report.selections import Scored, histogram
from pipeline.report.verdict import compare, headline
from pipeline.stage import Artifact
from pipeline.verdict import of_classes

QUARANTINE_ROWS = 20
SSL_HISTORY = ["step", "loss_labelled", "loss_unlabelled", "mask_rate"]
HISTORY = {
    "first_ssl": SSL_HISTORY,
    "ssl": SSL_HISTORY,
    "cluster": ["epoch", "loss", "best_loss"],
    "proxy": ["epoch", "loss", "accuracy"],
}
"""What is shown of a training; first_ssl is there where a second round follows, and cluster takes the place of both."""
Inputs = Mapping[str, Artifact]


def gather(inputs: Inputs, title: str, examples: int) -> dict[str, Any]:
    """Everything as JSON values; fractions, never percent. Sections that a run lacks are None."""
    num_samples = inputs["index"].metrics["num_samples"]
    pool = tables.by_id(inputs["pseudo_label"], ["pseudo_label", "confidence", "train_label"], num_samples)
    clusters = "cluster" in inputs
    names = _class_names(inputs["index"], clusters)
    chosen = {name.removeprefix("select:"): artifact for name, artifact in inputs.items() if name.startswith("select:")}
    kept = {name: _kept(artifact, num_samples) for name, artifact in chosen.items()}
    accuracy = _accuracy(inputs.get("evaluate"), chosen)
    split = inputs["split"].metrics
    return {
        "title": title,
        "headline": headline([row for row in accuracy["rows"] if row["is_coreset"]] if accuracy else []),
        "num_samples": num_samples,
        "num_classes": len(names),
        "clusters": clusters,
        "labels_paid": split["num_train"] + split["num_holdout"],
        "labels_train": split["num_train"],
        "labels_holdout": split["num_holdout"],
        "accuracy": accuracy,
        "selections": _selections(inputs, chosen, kept, pool, names, examples),
        "class_balance": {
            "classes": names,
            "pool": _counts(pool["pseudo_label"], len(names)),
            "coresets": [
                {"name": name, "counts": _counts(pool["pseudo_label"][rows], len(names))} for name, rows in kept.items()
            ],
        },
        "pseudo_labels": _pseudo_labels(inputs["pseudo_label"], pool["confidence"]),
        "trust": _trust(inputs["trust"], names),
        "history": {
            name: tables.history(inputs[name], columns) if name in inputs else None for name, columns in HISTORY.items()
        },
        "data": {
            **{name: inputs["index"].metrics[name] for name in ("num_samples", "num_shards", "bytes")},
            "num_quarantined": inputs["index"].metrics["num_quarantined"],
            "reasons": inputs["index"].metrics["quarantined"],
            "quarantine": tables.head(inputs["index"], "quarantine", QUARANTINE_ROWS),
            "unmatched": _unmatched(inputs["index"].metrics, split),
        },
        "costs": compare_costs(inputs),
        **_provenance(inputs),
    }


def _class_names(index: Artifact, clusters: bool) -> list[str]:
    """Of pseudo-labels; which class a cluster is, if it is one, nobody has said."""
    config = index.manifest["config"]["data"]
    numbers = [str(label) for label in range(config["num_classes"])]
    return [f"cluster {number}" for number in numbers] if clusters else list(config["classes"]) or numbers


def _unmatched(index: Mapping[str, Any], split: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of labels with keys of no sample: how many those are, and of how many."""
    found = [("data.labels", index["labels_unmatched"], index["num_labelled_rows"])]
    if "annotations_unmatched" in split:
        found.append(("split.labels", split["annotations_unmatched"], split["annotations_matched"]))
    return [
        {"table": table, "num_unmatched": unmatched, "num_keys": unmatched + matched}
        for table, unmatched, matched in found
        if unmatched
    ]


def _kept(select: Artifact, num_samples: int) -> NDArray[np.bool_]:
    kept = np.zeros(num_samples, dtype=bool)
    for table in select.tables(columns=["sample_id"]):
        kept[table["sample_id"].to_numpy()] = True
    return kept


def _counts(labels: NDArray[np.int64], num_classes: int) -> list[int]:
    return [int(count) for count in np.bincount(labels, minlength=num_classes)]


def _accuracy(evaluate: Artifact | None, chosen: Mapping[str, Artifact]) -> dict[str, Any] | None:
    """Each subset's accuracy over seeds, next to the random subset of the same size."""
    if evaluate is None:
        return None
    seeds: dict[tuple[str, float], list[float]] = {}
    for row in evaluate.table().to_pylist():
        seeds.setdefault((row["subset"], row["keep_fraction"]), []).append(row["accuracy"])
    rows = [
        {
            "subset": row["subset"],
            "is_coreset": row["subset"] in chosen,
            "keep_fraction": row["keep_fraction"],
            "num_samples": row["num_samples"],
            "mean": row["mean"],
            "std": row["std"],
            "num_seeds": row["seeds"],
            "accuracies": seeds[row["subset"], row["keep_fraction"]],
        }
        for row in evaluate.metrics["rows"]
    ]
    random = {row["num_samples"]: row for row in rows if row["subset"] == "random"}
    full = next((row["mean"] for row in rows if row["subset"] == "full"), None)
    for row in rows:
        if row["is_coreset"]:
            row |= {"name": row["subset"], **compare(row, random.get(row["num_samples"]))}
    return {"test_size": evaluate.metrics["test_size"], "full": full, "rows": rows}


def _selections(
    inputs: Inputs,
    chosen: Mapping[str, Artifact],
    kept: Mapping[str, NDArray[np.bool_]],
    pool: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    count: int,
) -> list[dict[str, Any]]:
    """Per selection its facts, and where it uses a score the histogram and examples along it."""
    columns = {name: _score_column(artifact) for name, artifact in chosen.items()}
    used = sorted({column for column in columns.values() if column is not None})
    scores = tables.by_id(inputs["score"], used, len(pool["pseudo_label"])) if used else {}
    described: list[dict[str, Any]] = []
    for name, artifact in chosen.items():
        export = inputs.get(f"export:{name}")
        metrics = artifact.metrics
        facts = ("name", "selector", "score", "method", "keep_fraction", "budget", "num_samples")
        described.append(
            {key: metrics[key] for key in (*facts, "labelled_in_coreset", "annotation_bill", "wrong", "choice")}
            | {"key": artifact.manifest["key"], "export": export.metrics if export else None}
            | {
                "column": columns[name],
                "harder": None,
                "histogram": None,
                "examples": [],
                "beyond": [],
                "num_beyond": 0,
            }
        )
        column = columns[name]
        if column is None:
            continue
        scored = Scored(scores[column], inputs["score"].metrics["harder"][column], kept[name])
        beyond = scored.beyond_the_hard_cut()
        described[-1] |= {
            "harder": scored.harder,
            "histogram": histogram(scored, metrics["cuts"]),
            "examples": _examples(*scored.along_the_score(count), scored, pool, names),
            "beyond": _examples(beyond[:count], np.arange(len(beyond))[:count] / len(kept[name]), scored, pool, names),
            "num_beyond": len(beyond),
        }
    _name_examples(inputs, described)
    return described


def _score_column(select: Artifact) -> str | None:
    cuts = select.metrics["cuts"]
    column: str | None = cuts["column"] if cuts else select.metrics["score"]
    return column


def _examples(
    ids: NDArray[np.int64],
    quantiles: NDArray[np.float64],
    scored: Scored,
    pool: Mapping[str, NDArray[Any]],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": int(sample),
            "harder_share": float(quantile),
            "score": float(scored.values[sample]),
            "kept": bool(scored.kept[sample]),
            "label": names[pool["train_label"][sample]],
            "pseudo_label": names[pool["pseudo_label"][sample]],
            "confidence": float(pool["confidence"][sample]),
        }
        for sample, quantile in zip(ids, quantiles, strict=True)
    ]


def _name_examples(inputs: Inputs, described: Sequence[dict[str, Any]]) -> None:
    """Give every example its key and whether its label was paid: looked up once, for the few that are shown."""
    examples = [example for selection in described for row in ("examples", "beyond") for example in selection[row]]
    ids = np.array([example["sample_id"] for example in examples], dtype=np.int64)
    keys = tables.keys(inputs["index"], ids)
    paid = set(inputs["split"].table()["sample_id"].to_pylist())
    for example in examples:
        example |= {"key": keys[example["sample_id"]], "label_paid": example["sample_id"] in paid}


def _pseudo_labels(artifact: Artifact, confidence: NDArray[np.float32]) -> dict[str, Any]:
    counts, edges = np.histogram(confidence, bins=50, range=(0, 1))
    return {
        "mean_confidence": artifact.metrics["mean_confidence"],
        "confidence": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _trust(artifact: Artifact, names: Sequence[str]) -> dict[str, Any]:
    """What the held-out labels say, classes by name."""
    metrics = artifact.metrics
    per_class = [{"class": names[row["label"]], **row} for row in metrics["per_class"]]
    return {
        **metrics,
        "per_class": per_class,
        "mostly_wrong": of_classes(per_class),
        "second_round": _second_round(metrics["second_round"], names) if "second_round" in metrics else None,
        "folds": metrics.get("folds"),
    }


def _second_round(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """With the classes of which most and fewest pseudo-labels joined."""
    joined = found["joined_by_class"]
    ends = {"most": int(np.argmax(joined)), "least": int(np.argmin(joined))}
    return {**found, **{end: {"class": names[label], "count": joined[label]} for end, label in ends.items()}}


def _provenance(inputs: Inputs) -> dict[str, Any]:
    """What is needed to do it again: config, key and seconds of every stage, in the inputs' order; what it ran with.

    Of the folds' stages, which have the settings of the others, the seconds of all together.
    """
    folds = [artifact.manifest for name, artifact in inputs.items() if name.startswith("fold:")]
    manifests = [artifact.manifest for name, artifact in inputs.items() if not name.startswith("fold:")]
    libraries = [*manifests[0]["libraries"], "python"]
    return {
        "stages": [
            {name: manifest[name] for name in ("stage", "title", "version", "key", "config", "seconds", "resources")}
            for manifest in manifests
        ],
        "folds": {"stages": len(folds), "seconds": sum(manifest["seconds"] for manifest in folds)} if folds else None,
        "libraries": {
            name: sorted({{**manifest["libraries"], "python": manifest["python"]}[name] for manifest in manifests})
            for name in libraries
        },
        "cores": sorted({manifest["cores"] for manifest in manifests}),
        "commits": sorted(
            {
                manifest["commit"] + (" with changes" if manifest.get("is_clean") is False else "")
                for manifest in manifests
                if manifest["commit"]
            }
        ),
    }
