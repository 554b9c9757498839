"""What is printed when a run ends."""

from collections.abc import Mapping
from typing import Any

import pytest

from jobs.results import show
from pipeline.stage import Artifact

Out = pytest.CaptureFixture[str]


def artifact(stage: str, metrics: Mapping[str, Any] | None = None, title: str = "") -> Artifact:
    return Artifact(f"run/{stage}/key", {"stage": stage, "title": title or stage, "metrics": metrics or {}})


def evaluation(*rows: tuple[str, float, int, float, float]) -> Artifact:
    names = ("subset", "keep_fraction", "num_samples", "mean", "std")
    return artifact("evaluate", {"test_size": 10_000, "rows": [dict(zip(names, row, strict=True)) for row in rows]})


def held_out(correct: int, total: int) -> Artifact:
    accuracy = correct / total if total else None
    metrics = {"holdout_correct": correct, "num_holdout": total, "holdout_accuracy": accuracy}
    return artifact("pseudo_label", metrics)


def test_the_pseudo_labels_are_said_with_their_count(capsys: Out) -> None:
    show([held_out(583, 800)])
    assert capsys.readouterr().out == "Pseudo-labels: 583 of 800 held-out labels predicted right (72.9%)\n"


def test_without_a_held_out_label_nothing_is_said_of_them(capsys: Out) -> None:
    show([held_out(0, 0)])
    assert capsys.readouterr() == ("", "")


def test_a_coreset_is_said_with_its_size_and_its_whole_bill(capsys: Out) -> None:
    facts = {"budget": 15_000, "num_samples": 50_000, "annotation_bill": 17_830}
    show([artifact("select", {"name": "cutoff", **facts}), artifact("select", {"name": "beta", **facts})])
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title == "Coresets" and " ".join(header.split()) == "selection images labels to pay for in all"
    assert [row.split() for row in rows] == [
        ["cutoff", "15,000", "of", "50,000", "17,830"],
        ["beta", "15,000", "of", "50,000", "17,830"],
    ]


def test_each_accuracy_stands_beside_its_distance_from_random_of_the_same_size(capsys: Out) -> None:
    show(
        [
            evaluation(
                ("full", 1.0, 50_000, 0.8427, 0.0023),
                ("random", 0.3, 15_000, 0.7875, 0.0027),
                ("beta", 0.3, 15_000, 0.7705, 0.003),
                ("random", 0.1, 5_000, 0.7180, 0.0085),
                ("beta", 0.1, 5_000, 0.7420, 0.0045),
            )
        ]
    )
    title, _, *rows = capsys.readouterr().out.splitlines()
    assert title == "Test accuracy, trained from scratch (10,000 test images)"
    assert [row.split() for row in rows] == [
        ["full", "50,000", "84.27", "±", "0.23"],
        ["random", "30%", "15,000", "78.75", "±", "0.27"],
        ["beta", "30%", "15,000", "77.05", "±", "0.30", "-1.70"],
        ["random", "10%", "5,000", "71.80", "±", "0.85"],
        ["beta", "10%", "5,000", "74.20", "±", "0.45", "+2.40"],
    ]


def test_without_a_random_baseline_there_is_no_distance(capsys: Out) -> None:
    show([evaluation(("beta", 0.3, 300, 0.5, 0.0))])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["beta", "30%", "300", "50.00", "±", "0.00"]


def test_places_come_last_the_report_at_the_very_end(capsys: Out) -> None:
    show(
        [
            artifact("report"),
            artifact("export", title="export cutoff"),
            evaluation(("full", 1.0, 10, 0.5, 0.0)),
            held_out(1, 2),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Pseudo-labels") and lines[1].startswith("Test accuracy")
    assert lines[-2:] == ["Coreset cutoff: run/export/key", "Report:  run/report/key/report.html"]


def test_stages_without_a_result_for_people_are_silent(capsys: Out) -> None:
    show([artifact(stage) for stage in ("index", "pixels", "split", "ssl", "proxy", "score")])
    assert capsys.readouterr() == ("", "")


def test_the_reference_run_is_told_as_its_manifests_have_it(done: dict[str, Artifact], capsys: Out) -> None:
    show(list(done.values()))
    out = capsys.readouterr().out
    best = max(done["evaluate"].metrics["rows"], key=lambda row: row["mean"])
    assert f"{100 * best['mean']:.2f} ±" in out
    assert f"{done['select beta'].metrics['annotation_bill']}\n" in out
    assert out.endswith(f"Report:  {done['report'].uri}/report.html\n")
