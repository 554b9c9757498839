"""What is printed when a run ends."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from jobs.results import show
from pipeline.stage import Artifact
from pipeline.trust import expected_wrong
from pipeline.verdict import verdict

Out = pytest.CaptureFixture[str]


def artifact(stage: str, metrics: Mapping[str, Any] | None = None, title: str = "") -> Artifact:
    return Artifact(f"run/{stage}/key", {"stage": stage, "title": title or stage, "metrics": metrics or {}})


def evaluation(*rows: tuple[str, float, int, float, float]) -> Artifact:
    names = ("subset", "keep_fraction", "num_samples", "mean", "std")
    return artifact("evaluate", {"test_size": 10_000, "rows": [dict(zip(names, row, strict=True)) for row in rows]})


def trusted(
    correct: int, total: int, more: float | None = None, draw: str = "uniform", per_class: Any = ()
) -> Artifact:
    doubled = None if more is None else {"doubled": {"accuracy": more}}
    metrics = {"num_samples": 50_000, "num_train": 3200, "more_labels": doubled, "per_class": per_class}
    metrics |= {"verdict": verdict(correct, total, draw)}
    return artifact("trust", metrics | {"pool": expected_wrong(total - correct, total, 50_000 - 3200 - total)})


def test_trust_is_said_with_its_numbers(capsys: Out) -> None:
    show([trusted(583, 800, more=0.76)])
    assert capsys.readouterr().out.splitlines() == [
        "Verdict: label more; 583 of 800 held-out pseudo-labels are right, so 70% to 76% of all (95%), less than the "
        "80% that trust asks for",
        "Wrong pseudo-labels: 12,694 (11,318 to 14,173) of 46,800 expected; twice the labels: 76% right or more, by a "
        "probe",
    ]


def test_without_a_probe_nothing_is_said_of_more_labels_and_a_caveat_is(capsys: Out) -> None:
    show([trusted(790, 800, draw="per_class")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Verdict: trust; 790 of 800")
    assert lines[1].startswith("Mind that the held-out labels were")
    assert lines[2].endswith(" of 46,800 expected")


def test_classes_that_are_mostly_wrong_are_named(capsys: Out) -> None:
    classes = [{"label": 0, "interval": [0.9, 1.0]}, {"label": 1, "interval": [0.1, 0.3]}]
    show([trusted(790, 800, per_class=classes)])
    said = "Mind that of 1 of 2 classes with held-out labels surely most pseudo-labels are wrong (1): label more"
    assert said in capsys.readouterr().out


def test_without_a_held_out_label_that_is_what_is_said(capsys: Out) -> None:
    show([trusted(0, 0)])
    said = "no held-out label checks the pseudo-labels, so how many are right is not known"
    assert capsys.readouterr().out == f"Verdict: not measured; {said}\n"


def test_a_coreset_is_said_with_its_size_and_what_of_it_is_labelled(capsys: Out) -> None:
    facts = {"budget": 15_000, "num_samples": 50_000, "labelled_in_coreset": 1_170, "annotation_bill": 17_830}
    wrong = {"expected": 2811.6, "interval": [2203, 3518]}
    known, unknown = ({"name": name, "wrong": number, **facts} for name, number in (("cutoff", wrong), ("beta", None)))
    show([artifact("select", known), artifact("select", unknown)])
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title == "Coresets" and " ".join(header.split()) == (
        "selection images to annotate labelled already wrong pseudo-labels (95%)"
    )
    assert [re.split("  +", row.strip()) for row in rows] == [
        ["cutoff", "15,000 of 50,000", "13,830", "1,170 in it, 4,000 in all", "2,812 (2,203 to 3,518)"],
        ["beta", "15,000 of 50,000", "13,830", "1,170 in it, 4,000 in all", "not known"],
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
            trusted(1, 2),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Verdict") and lines[2].startswith("Test accuracy")
    assert lines[-2:] == ["Coreset cutoff: run/export/key", "Report:  run/report/key/report.html"]


def indexed(title: str = "index", unmatched: int = 0, **quarantined: int) -> Artifact:
    metrics = {"num_samples": 1434, "num_labelled_rows": 1100, "labels_unmatched": unmatched}
    reasons = {reason.replace("_", " "): count for reason, count in quarantined.items()}
    found = artifact("index", metrics | {"num_quarantined": sum(reasons.values()), "quarantined": reasons}, title)
    found.manifest["parts"] = [{"name": "quarantine-1f.parquet", "sha256": "", "bytes": 1, "rows": 3}]
    return found


def test_what_was_left_out_is_said_first_with_its_reasons_and_where_all_of_it_is(capsys: Out) -> None:
    show([indexed(undecodable_image=1200, no_bytes=1), indexed("index test", no_image=1), trusted(1, 2)])
    *first, trust, _ = capsys.readouterr().out.splitlines()
    assert first == [
        "Left out of the pool (1,434 samples without them): 1,200 undecodable image, 1 no bytes; all in "
        "run/index/key/quarantine-1f.parquet",
        "Left out of the test images (1,434 samples without them): 1 no image; all in "
        "run/index/key/quarantine-1f.parquet",
    ]
    assert trust.startswith("Verdict: ")


def test_keys_of_a_table_that_name_no_sample_are_counted(capsys: Out) -> None:
    show([indexed(unmatched=2), artifact("split", {"annotations_matched": 1030, "annotations_unmatched": 1})])
    assert capsys.readouterr().out.splitlines() == [
        "Keys of data.labels that name no sample of the pool: 2 of 1,102",
        "Keys of split.labels that name no sample of the pool: 1 of 1,031",
    ]
    show([indexed(), artifact("split", {"annotations_matched": 30, "annotations_unmatched": 0})])
    assert capsys.readouterr() == ("", "")


def test_stages_without_a_result_for_people_are_silent(capsys: Out) -> None:
    show([indexed(), *(artifact(stage) for stage in ("split", "ssl", "proxy", "score"))])
    assert capsys.readouterr() == ("", "")


def test_the_reference_run_is_told_as_its_manifests_have_it(done: dict[str, Artifact], capsys: Out) -> None:
    show(list(done.values()))
    out = capsys.readouterr().out
    best = max(done["evaluate"].metrics["rows"], key=lambda row: row["mean"])
    assert f"{100 * best['mean']:.2f} ±" in out
    metrics = done["select beta"].metrics
    inside = metrics["labelled_in_coreset"]
    assert f"  {metrics['budget'] - inside}  {inside} in it, 100 in all  " in re.sub("  +", "  ", out)
    assert f"Coreset beta: {done['export beta'].uri}\n" in out
    assert f"Verdict: {done['trust'].metrics['verdict']['level']}; " in out
    assert out.endswith(f"Report:  {done['report'].uri}/report.html\n")
