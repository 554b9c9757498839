"""What a run shows when it ends: what it left out, the accuracy table, the coresets and where the report is."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from jobs.display import table
from pipeline import storage
from pipeline.stage import Artifact
from pipeline.verdict import of_classes


def show(artifacts: Sequence[Artifact]) -> None:
    """Print what the artifacts have to tell; stages that did not run are left out."""
    for artifact in artifacts:
        if artifact.manifest["stage"] == "index":
            _show_index(artifact)
        elif artifact.manifest["stage"] == "split":
            _show_split(artifact)
    for artifact in artifacts:
        if artifact.manifest["stage"] == "trust":
            _show_trust(artifact)
    coresets = [artifact for artifact in artifacts if artifact.manifest["stage"] == "select"]
    if coresets:
        rows = [
            (
                artifact.metrics["name"],
                f"{artifact.metrics['budget']:,} of {artifact.metrics['num_samples']:,}",
                *_labels(artifact.metrics),
                _expected(artifact.metrics["wrong"]),
            )
            for artifact in coresets
        ]
        table("Coresets", ("selection", "images", "to annotate", "labelled already", "wrong pseudo-labels (95%)"), rows)
    for artifact in artifacts:
        if artifact.manifest["stage"] == "evaluate":
            _show_evaluation(artifact)
    for artifact in artifacts:
        if artifact.manifest["stage"] == "export":
            name = artifact.manifest["title"].removeprefix("export ")
            typer.echo(f"Coreset {name}: {artifact.uri}")
    for artifact in artifacts:
        if artifact.manifest["stage"] == "report":
            typer.echo(f"Report:  {storage.join(artifact.uri, 'report.html')}")


def _show_index(artifact: Artifact) -> None:
    metrics = artifact.metrics
    if metrics["num_quarantined"]:
        what = "test images" if artifact.manifest["title"] == "index test" else "pool"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in metrics["quarantined"].items())
        places = ", ".join(storage.join(artifact.uri, part.name) for part in artifact.parts("quarantine"))
        typer.echo(
            f"Left out of the {what} ({metrics['num_samples']:,} samples without them): {reasons}; all in {places}"
        )
    _show_unmatched("data.labels", metrics["labels_unmatched"], metrics["num_labelled_rows"])


def _show_split(artifact: Artifact) -> None:
    if "annotations_unmatched" in artifact.metrics:
        _show_unmatched(
            "split.labels", artifact.metrics["annotations_unmatched"], artifact.metrics["annotations_matched"]
        )


def _show_unmatched(field: str, unmatched: int, matched: int) -> None:
    if unmatched:
        typer.echo(f"Keys of {field} that name no sample of the pool: {unmatched:,} of {unmatched + matched:,}")


def _show_trust(artifact: Artifact) -> None:
    metrics = artifact.metrics
    verdict, pool, more = (metrics[name] for name in ("verdict", "pool", "more_labels"))
    typer.echo(f"Verdict: {verdict['level']}; {verdict['why']}")
    for caveat in filter(None, (verdict["caveat"], of_classes(metrics["per_class"]))):
        typer.echo(f"Mind that {caveat}")
    if pool:
        doubled = f"; twice the labels: {more['doubled']['accuracy']:.0%} right or more, by a probe" if more else ""
        total = metrics["num_samples"] - metrics["num_train"]
        typer.echo(f"Wrong pseudo-labels: {_expected(pool)} of {total:,} expected{doubled}")


def _labels(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """How many labels a coreset lacks and has; the second names also those paid for that are not of its images."""
    inside = metrics["labelled_in_coreset"]
    left = metrics["budget"] - inside
    return f"{left:,}", f"{inside:,} in it, {metrics['annotation_bill'] - left:,} in all"


def _expected(wrong: Mapping[str, Any] | None) -> str:
    """A number with its interval."""
    if wrong is None:
        return "not known"
    low, high = wrong["interval"]
    return f"{wrong['expected']:,.0f} ({low:,.0f} to {high:,.0f})"


def _show_evaluation(artifact: Artifact) -> None:
    rows = artifact.metrics["rows"]
    random = {row["keep_fraction"]: row["mean"] for row in rows if row["subset"] == "random"}
    table(
        f"Test accuracy, trained from scratch ({artifact.metrics['test_size']:,} test images)",
        ("trained on", "images", "accuracy %", "vs random"),
        [
            (
                row["subset"] if row["subset"] == "full" else f"{row['subset']} {row['keep_fraction']:.0%}",
                f"{row['num_samples']:,}",
                f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f}",
                ""
                if row["subset"] in ("full", "random") or row["keep_fraction"] not in random
                else f"{100 * (row['mean'] - random[row['keep_fraction']]):+.2f}",
            )
            for row in rows
        ],
    )
