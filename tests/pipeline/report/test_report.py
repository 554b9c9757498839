import dataclasses
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from pipeline import report
from pipeline.intervals import wilson
from pipeline.report import page
from pipeline.report.costs import ESTIMATE, Estimate, Estimates
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output
from pipeline.verdict import of_rounds, verdict

EVIL = "<script>alert('key')</script>"
PROBE = """<script>
addEventListener("load", () => {
  const resources = performance.getEntriesByType("resource").map((entry) => entry.name);
  const charts = [...document.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect().height);
  document.body.dataset.probe = JSON.stringify({
    broken: [...document.images].filter((image) => !image.naturalWidth).length,
    loaded: resources.filter((name) => !name.startsWith("data:")),
    wide: document.documentElement.scrollWidth > innerWidth,
    charts: charts.filter((height) => height > 80).length,
  });
});
</script>"""
Inputs = dict[str, Artifact]


def make(inputs: Inputs, root: Path, **settings: Any) -> tuple[str, dict[str, Any]]:
    """The page and its twin."""
    out = Output(str(root))
    report.run(
        inputs, report.ReportConfig(**settings), out, resources=Resources(), progress=lambda done, total, unit: None
    )
    assert [part.name for part in out.parts] == ["report.json", "report.html"]
    return (root / "report.html").read_text(), json.loads((root / "report.json").read_text())


def changed(artifact: Artifact, **metrics: Any) -> Artifact:
    return dataclasses.replace(artifact, manifest={**artifact.manifest, "metrics": {**artifact.metrics, **metrics}})


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are painted but empty in the page: matplotlib takes most of the time that a page takes."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, buffer, **settings: buffer.write("<svg></svg>"))


class Page(HTMLParser):
    """What a reader sees, and every place from which a browser would load something."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words).replace(page.THIN, " "))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loading = ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background")
        self.loads += [value or "" for name, value in attributes if name in loading]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] != "style":
            self.words.append(data)


def test_loads_nothing_from_anywhere_and_runs_nothing(inputs: Inputs, tmp_path: Path) -> None:
    source, _ = make(inputs, tmp_path / "report")
    seen = Page(source)
    assert len(seen.loads) > 30
    assert [load for load in seen.loads if not load.startswith(("data:", "#"))] == []
    assert re.findall(r"@import|url\((?!#)|https?:", source) == []
    assert not {"script", "link rel=stylesheet", "iframe", "object", "embed"} & set(seen.tags)
    assert re.findall(r"<[^>]* on\w+=", source) == []


@pytest.mark.usefixtures("undrawn")
def test_what_comes_from_data_is_text(inputs: Inputs, tmp_path: Path) -> None:
    classes = ("<b>zero</b>", "$one$", "two & a half", *"3456789")
    index = inputs["index"]
    config = index.manifest["config"]
    config = {**config, "data": {**config["data"], "classes": classes}}
    inputs = {**inputs, "index": dataclasses.replace(index, manifest={**index.manifest, "config": config})}
    source, twin = make(inputs, tmp_path / "report", title="<i>title</i>")
    assert twin["selections"][0]["beyond"][0]["key"] == EVIL
    for raw in (EVIL, "<b>zero", "<i>title", "digit-<b>bold"):
        assert raw not in source and raw in html.unescape(source)
    assert "two &amp; a half" in source and "$one$" in source


def test_equal_inputs_give_equal_bytes(inputs: Inputs, tmp_path: Path) -> None:
    assert make(inputs, tmp_path / "one") == make(inputs, tmp_path / "two")


@pytest.mark.usefixtures("undrawn")
def test_the_twin_holds_what_the_page_shows(inputs: Inputs, tmp_path: Path) -> None:
    source, twin = make(inputs, tmp_path / "report")
    text = Page(source).text
    shown = [twin["headline"], f"{twin['num_samples']:,}", f"{twin['labels_paid']:,}"]
    for row in twin["accuracy"]["rows"]:
        shown.append(f"{row['subset']} {100 * row['mean']:.1f} ± {100 * row['std']:.1f} %")
        if row["is_coreset"]:
            shown += [f"{page.points(row['difference'])} {row['verdict']}"]
    for selection in twin["selections"]:
        shown.append(f"{selection['budget']} of {twin['num_samples']} (30.0 %)")
        inside, paid = selection["labelled_in_coreset"], twin["labels_paid"]
        left = selection["budget"] - inside
        shown.append(f"{selection['budget']} images (30.0 %): {left} to annotate, {inside} labelled already")
        shown.append(f"To annotate {left} images Labelled already {inside} in it, {paid} in all")
        shown.append(f"Annotation bill {left + paid} labels")
        for example in selection["examples"] + selection["beyond"]:
            fate = ("kept" if example["kept"] else "pruned") + "*" * example["label_paid"]
            shown.append(f"{example['label']} {fate} {page.number(example['score'])} {example['key']}")
    balance = twin["class_balance"]
    for place, name in enumerate(balance["classes"]):
        counts = [balance["pool"][place], *(coreset["counts"][place] for coreset in balance["coresets"])]
        shown.append(" ".join(map(str, [name, *counts])))
    trust = twin["trust"]
    low, high = trust["interval"]
    between = f"{100 * low:.1f} to {100 * high:.1f} % with 95 % confidence"
    shown.append(f"{100 * trust['accuracy']:.1f} % {trust['verdict']['level']} {between}")
    shown.append(f"{trust['verdict']['level']} {trust['verdict']['why']}.")
    shown += [f"{row['class']} {row['correct']} {row['total']}" for row in trust["per_class"]]
    shown += [f"{name} {found['rho']:.3f}" for name, found in trust["rank_correlation"].items()]
    shown.append(f"{100 * trust['more_labels']['doubled']['accuracy']:.1f} % right")
    for name, wrong in (("pool", trust["pool"]), *((row["name"], row["wrong"]) for row in twin["selections"])):
        low, high = (round(end) for end in wrong["interval"])
        shown.append(f"{name} {wrong['wrong']} of {wrong['seen']} {wrong['unknown']}")
        shown.append(f"{wrong['unknown']} {round(wrong['expected'])} ({low} to {high})")
    for row in twin["selections"][0]["choice"]["evidence"]["cuts"]:
        counts = [row[name] for name in ("cut_wrong", "cut_right", "kept_wrong", "kept_right")]
        shown.append(f"{100 * row['fraction']:.0f} % {' '.join(map(str, counts))} {row['worth']:.3f}")
    for row in twin["selections"][1]["choice"]["evidence"]["choices"]:
        shown.append(f"{page.number(row['c_d'])} {100 * row['wrong']:.1f} % {row['worth']:.3f}")
    shown += [f"{stage['title']} {page.duration(stage['seconds'])}".replace(page.THIN, " ") for stage in twin["stages"]]
    shown += [stage["key"] for stage in twin["stages"]]
    shown += [f"{row['reason']} {row['key']}".strip() for row in twin["data"]["quarantine"]]
    assert [words for words in shown if re.sub(r"\s+", " ", words) not in text] == []


@pytest.mark.usefixtures("undrawn")
def test_the_twin_counts_right(inputs: Inputs, tmp_path: Path) -> None:
    _, twin = make(inputs, tmp_path / "report", examples=5)
    cutoff, beta = twin["selections"]
    assert (cutoff["num_beyond"], len(cutoff["beyond"]), beta["num_beyond"]) == (60, 5, 0)
    assert cutoff["histogram"]["cuts"] and beta["histogram"]["cuts"] is None
    for selection in (cutoff, beta):
        assert (sum(selection["histogram"]["pool"]), sum(selection["histogram"]["kept"])) == (600, 180)
        assert len(selection["examples"]) == 5
    assert [sum(coreset["counts"]) for coreset in twin["class_balance"]["coresets"]] == [180, 180]
    assert [row["verdict"] for row in twin["accuracy"]["rows"] if row["is_coreset"]] == ["better", "within spread"]
    assert [stage["stage"] for stage in twin["stages"]][-5:] == ["select", "export", "select", "export", "evaluate"]


def worse(inputs: Inputs) -> Inputs:
    rows = inputs["evaluate"].metrics["rows"]
    rows = [{**row, "mean": 0.5} if row["subset"].startswith("semi") else row for row in rows]
    return inputs | {"evaluate": changed(inputs["evaluate"], rows=rows)}


def unmeasured(inputs: Inputs) -> Inputs:
    nothing = dict.fromkeys(("accuracy", "interval", "calibration", "pool", "more_labels"))
    nothing |= {"num_holdout": 0, "num_wrong": 0, "per_class": [], "by_confidence": [], "along": {}}
    trust = changed(inputs["trust"], **nothing, rank_correlation={}, verdict=verdict(0, 0))
    chosen = {
        name: changed(
            artifact,
            wrong=None,
            choice=artifact.metrics["choice"] and {**artifact.metrics["choice"], "evidence": None},
        )
        for name, artifact in inputs.items()
        if "select:" in name
    }
    return {name: artifact for name, artifact in inputs.items() if name != "evaluate"} | {"trust": trust, **chosen}


def label_free(inputs: Inputs) -> Inputs:
    history = inputs["proxy"].table("history").rename_columns(["epoch", "loss", "best_loss"])
    out = Output(inputs["ssl"].uri.replace("ssl", "cluster"))
    part = out.write_table(history, "history")
    manifest = {**inputs["ssl"].manifest, "stage": "cluster", "title": "cluster", "parts": [dataclasses.asdict(part)]}
    inputs = {name: artifact for name, artifact in unmeasured(inputs).items() if name != "ssl"}
    return inputs | {"cluster": Artifact(out.uri, manifest)}


def came_back(inputs: Inputs) -> Inputs:
    return inputs | {"trust": changed(inputs["trust"], verdict=verdict(46, 50, num_annotated=30))}


def wrong_in_a_class(inputs: Inputs) -> Inputs:
    row = {"label": 3, "correct": 1, "total": 20, "interval": [0.01, 0.24]}
    return inputs | {"trust": changed(inputs["trust"], per_class=[row])}


def second_round(inputs: Inputs) -> Inputs:
    """The first round with 40 of 50 held-out labels right, of which the second mended 7 and broke 1."""
    held_out = {
        "rounds": [{"correct": n, "total": 50, "interval": list(wilson(n, 50))} for n in (40, 46)],
        "confident": {"correct": 0, "total": 0, "interval": None},
        **{"mended": 7, "broken": 1, "verdict": of_rounds(7, 1)},
    }
    found = {"confident": 0.9, "joined": 45, "joined_by_class": list(range(10)), "held_out": held_out}
    trust = changed(inputs["trust"], second_round=found)
    return inputs | {"trust": trust, "first_ssl": inputs["ssl"], "first_round": inputs["pseudo_label"]}


def second_round_unmeasured(inputs: Inputs) -> Inputs:
    inputs = unmeasured(second_round(inputs))
    found = {**inputs["trust"].metrics["second_round"], "held_out": None}
    return inputs | {"trust": changed(inputs["trust"], second_round=found)}


def folds(inputs: Inputs) -> Inputs:
    trust = changed(inputs["trust"], folds=5, more_labels=None)
    return inputs | {"trust": trust, "fold:ssl fold 1": inputs["ssl"], "fold:proxy fold 1": inputs["proxy"]}


def chosen_here(inputs: Inputs) -> Inputs:
    chosen = {name: artifact for name, artifact in inputs.items() if name.startswith("select:")}
    for name, artifact in chosen.items():
        found = artifact.metrics["choice"]
        chosen[name] = changed(artifact, choice={**found, "auto": True, "used": found["evidence"]["value"]})
    return inputs | chosen


def unmatched(inputs: Inputs) -> Inputs:
    index = changed(inputs["index"], labels_unmatched=2, num_labelled_rows=1434)
    return inputs | {"index": index, "split": changed(inputs["split"], annotations_unmatched=1, annotations_matched=9)}


def one_seed(inputs: Inputs) -> Inputs:
    rows = [{**row, "std": 0.0, "seeds": 1} for row in inputs["evaluate"].metrics["rows"]]
    return inputs | {"evaluate": changed(inputs["evaluate"], rows=rows)}


def without_a_score(inputs: Inputs) -> Inputs:
    return inputs | {
        name: changed(artifact, score=None, cuts=None) for name, artifact in inputs.items() if "select:" in name
    }


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (worse, ["semi_aum_cutoff and semi_dual_beta are worse than random of the same size by 40.2 points."]),
        (
            unmeasured,
            [
                "The coresets were not compared with random ones: what they are worth has not been measured.",
                "no labels were held out",
                "not measured No held-out label checks the pseudo-labels, so how many are right is not known.",
            ],
        ),
        (label_free, ["The clustering heads that made the pseudo-labels"]),
        (chosen_here, ["from the hard end, chosen here (95 %: "]),
        (
            came_back,
            [
                "Mind that of the labels 30 came back for images that were chosen",
                "unlabelled images are like its held-out ones, which is not certain here",
            ],
        ),
        (
            wrong_in_a_class,
            ["Mind that of 1 of 1 classes with held-out labels surely most pseudo-labels are wrong (3): label more"],
        ),
        (
            second_round,
            [
                "first round 40 50 80.0 % 67.0 to 88.8 % those that joined 0 0 not known second round 46 50 92.0 %",
                "with a confidence of 90.0 % or more joined the 50 labels",
                "Most are of the class 9 (9), fewest of 0 (0); ssl.class_balanced",
                "has 7 right that the first had wrong, and 1 wrong that the first had right: it may be chance",
                "Semi-supervised, round 1: loss",
                "Semi-supervised, round 2: mask rate",
            ],
        ),
        (second_round_unmeasured, ["with a confidence of 90.0 % or more joined the 50 labels"]),
        (
            folds,
            [
                "Each label was held out once, from trainings of its own that knew 4 of 5 parts of the labels.",
                "a probe needs the features of one network",
                "A held-out image counts where the same cut would keep it in the pool of its fold",
                "of it by the 2 stages of the 5 folds, which have the settings of the others",
            ],
        ),
        (
            unmatched,
            [
                "undecodable image 1. 2 of 1,436 keys of data.labels name no sample of the pool. "
                "1 of 10 keys of split.labels names no sample of the pool."
            ],
        ),
        (one_seed, ["One seed only, so no verdict"]),
        (without_a_score, ["This selector uses no score."]),
    ],
)
def test_says_so_when(change: Callable[[Inputs], Inputs], sentences: list[str], inputs: Inputs, tmp_path: Path) -> None:
    source, _ = make(change(inputs), tmp_path / "report")
    text = Page(source).text
    assert [said for said in sentences if said not in text] == []


def test_clusters_have_numbers_and_never_the_name_of_a_class(inputs: Inputs, tmp_path: Path) -> None:
    manifest = inputs["index"].manifest
    data = {**manifest["config"]["data"], "classes": [f"species {number}" for number in range(10)]}
    named = {**manifest, "config": {**manifest["config"], "data": data}}
    inputs = inputs | {"index": dataclasses.replace(inputs["index"], manifest=named)}
    assert "species 2" in make(inputs, tmp_path / "named")[0].partition('<section id="settings">')[0]
    source, twin = make(label_free(inputs), tmp_path / "free")
    said = Page(source.partition('<section id="settings">')[0]).text
    assert "cluster 2" in said and "Cluster balance" in said
    assert "species" not in said and "class" not in said.lower().replace("which class", "")
    assert twin["class_balance"]["classes"] == [f"cluster {number}" for number in range(10)]
    shown = [example for selection in twin["selections"] for example in selection["examples"] + selection["beyond"]]
    assert {example[name].split()[0] for example in shown for name in ("label", "pseudo_label")} == {"cluster"}


@pytest.mark.usefixtures("undrawn")
def test_a_class_that_was_never_predicted_has_its_row(inputs: Inputs, tmp_path: Path) -> None:
    never_right = {"label": 9, "correct": 0, "total": 7, "interval": [0, 0.5]}
    per_class = [row for row in inputs["trust"].metrics["per_class"] if row["label"] != 9] + [never_right]
    paid = inputs["pseudo_label"].table()
    never = np.where(paid["pseudo_label"].to_numpy() == 9, 3, paid["pseudo_label"].to_numpy())
    out = Output(str(tmp_path / "pseudo_label"))
    part = out.write_table(paid.set_column(1, "pseudo_label", pa.array(never)))
    manifest = {**inputs["pseudo_label"].manifest, "parts": [dataclasses.asdict(part)]}
    changes = {"pseudo_label": Artifact(out.uri, manifest), "trust": changed(inputs["trust"], per_class=per_class)}
    _, twin = make(inputs | changes, tmp_path / "report")
    assert (len(twin["class_balance"]["pool"]), twin["class_balance"]["pool"][9]) == (10, 0)
    assert twin["trust"]["per_class"][-1] == {"class": "9", **never_right}


@pytest.mark.usefixtures("undrawn")
def test_what_was_estimated_stands_beside_what_it_took(inputs: Inputs, tmp_path: Path) -> None:
    run = Path(inputs["index"].uri).parents[1]
    assert make(inputs, tmp_path / "before")[1]["costs"] is None
    proxy, index = (inputs[name].manifest for name in ("proxy", "index"))
    found = {
        proxy["key"]: Estimate(seconds=20.0, images=24_000, speed=600.0, written=300_000),
        index["key"]: Estimate(seconds=5.0, images=0, speed=None, written=50 * 600),
        "of another recipe": Estimate(seconds=1.0, images=0, speed=None, written=0),
    }
    Estimates(found, {"proxy": 600.0}).write(str(run))
    try:
        source, twin = make(inputs, tmp_path / "report")
    finally:
        (run / ESTIMATE).unlink()
    rows = {row["title"]: row for row in twin["costs"]}
    assert list(rows) == ["index", "proxy"]
    assert (rows["proxy"]["estimated"], rows["proxy"]["took"]) == (20.0, proxy["seconds"])
    assert rows["proxy"]["reached"] == pytest.approx(24_000 / proxy["seconds"] / 2)
    assert rows["index"]["reached"] is None
    assert rows["index"]["is_written"] == sum(part["bytes"] for part in index["parts"])
    assert page.duration(20.0) in source and "Estimated and taken" in source
    assert rows["proxy"]["ratio"] == proxy["seconds"] / 20 and f">{proxy['seconds'] / 20:.2f}<" in source


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("estimated", "took"), [(0.02, 10.7), (20.0, 0.4), (0.0, 0.0)])
def test_of_less_than_a_second_no_ratio_is_told(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, estimated: float, took: float
) -> None:
    run, proxy = Path(inputs["index"].uri).parents[1], inputs["proxy"]
    monkeypatch.setitem(proxy.manifest, "seconds", took)
    Estimates({proxy.manifest["key"]: Estimate(estimated, 0, None, 0)}, {}).write(str(run))
    try:
        source, twin = make(inputs, tmp_path / "report")
    finally:
        (run / ESTIMATE).unlink()
    assert twin["costs"][0]["ratio"] is None and ">\N{EN DASH}<" in source.partition("Estimated and taken")[2]


@pytest.mark.usefixtures("undrawn")
def test_sentences_are_apart(inputs: Inputs, tmp_path: Path) -> None:
    source, twin = make(inputs, tmp_path / "report")
    text, trust = Page(source).text, inputs["trust"].metrics
    right = trust["num_holdout"] - trust["num_wrong"]
    assert re.search(rf"confidence is \d+\.\d %\. {right} of {trust['num_holdout']} held-out labels were", text)
    assert f" · {' and '.join(map(str, twin['cores']))} cores" in text


def test_a_browser_shows_it(inputs: Inputs, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH: the page was checked as text only")
    source, twin = make(inputs, tmp_path / "report")
    probed = tmp_path / "probed.html"
    probed.write_text(source.replace("</body>", f"{PROBE}</body>"))
    quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
    options = [*quiet.split(), "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [chromium, "--headless", *options, "--window-size=500,900", "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found
    assert json.loads(html.unescape(found[1])) == {"broken": 0, "loaded": [], "wide": False, "charts": 13}
    text = Page(dom).text
    assert twin["headline"] in text
    assert all(page.points(row["difference"]) in text for row in twin["accuracy"]["rows"] if row["is_coreset"])
