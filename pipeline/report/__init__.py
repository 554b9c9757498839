"""Stage `report`: what a run found, as one self-contained HTML page and its JSON twin."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from pipeline.config import Config
from pipeline.report.gather import gather
from pipeline.resources import Resources
from pipeline.stage import Artifact, Output, Progress


class ReportConfig(Config):
    """The `report` section of a recipe."""

    title: str = Field(default="SemiPrune", min_length=1, description="of the page")
    examples: int = Field(default=12, ge=1, le=100, description="pictures in a row")


def run(
    inputs: Mapping[str, Artifact], config: ReportConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Publish report.html and report.json; metrics: headline and, per coreset, its difference to random.

    inputs: index, split, ssl or cluster, pseudo_label, proxy, score, trust, `select:<name>` and `export:<name>` for
    every selection, evaluate if the recipe has it. Every number of the page stands in the JSON, which holds fractions,
    never percent.
    """
    # Drawing libraries take most of a second to import, and planning a run must not wait for them.
    from pipeline.report.figures import draw
    from pipeline.report.page import render
    from pipeline.report.pictures import thumbnails

    report = gather(inputs, config.title, config.examples)
    progress(1, 3, "steps")
    html = render(report, draw(report), thumbnails(report, inputs["index"], resources))
    progress(2, 3, "steps")
    out.publish("report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode())
    out.publish("report.html", html.encode())
    progress(3, 3, "steps")
    rows = report["accuracy"]["rows"] if report["accuracy"] else []
    return {
        "headline": report["headline"],
        "coresets": [
            {name: row[name] for name in ("name", "difference", "spread", "verdict")}
            for row in rows
            if row["is_coreset"]
        ],
    }
