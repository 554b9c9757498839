"""Charts of what the held-out labels say."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from pipeline.report.svg import COLOURS, chart


def reliability(report: Mapping[str, Any]) -> Markup:
    """Accuracy against mean confidence in bins of equally many held-out rows; calibrated ones lie on the diagonal."""
    bins = report["trust"]["by_confidence"]

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        x = [100 * row["mean"] for row in bins]
        _with_intervals(axes, x, [row["correct"] / row["total"] for row in bins], [row["interval"] for row in bins])
        axes.plot(x, [100 * row["correct"] / row["total"] for row in bins], color=COLOURS["kept"], alpha=0.45)
        axes.set_xlim(min(*x, 50) - 3, 101.5)
        axes.set_ylim(0, 103)
        axes.set_xlabel("confidence of the pseudo-label, %")
        axes.set_ylabel("right, %")

    return chart((5.0, 2.8), "Accuracy of held-out pseudo-labels by confidence", paint)


def wrong_along(report: Mapping[str, Any], selection: Mapping[str, Any]) -> Markup | None:
    """Rate of wrong pseudo-labels along the order a selection looks at, hardest first, and what of it is kept.

    The order is its score's, or the one along which an option is chosen.
    """
    found = selection["choice"]
    evidence = found["evidence"] if found else None
    column = found["column"] if found else selection["column"]
    bins = report["trust"]["along"].get(column)
    if bins is None:
        return None

    def paint(axes: Axes) -> None:
        if found and found["option"] == "mislabel_fraction":
            cut, until = 100 * found["used"], 100 * (found["used"] + selection["keep_fraction"])
            axes.axvspan(0, cut, color=COLOURS["cut"], alpha=0.14, linewidth=0)
            axes.axvspan(cut, until, color=COLOURS["kept"], alpha=0.18, linewidth=0)
        edges = [100 * row["low"] for row in bins] + [100]
        axes.stairs(
            [100 * row["wrong"] / row["total"] if row["total"] else 0 for row in bins],
            edges,
            fill=True,
            color=COLOURS["pool"],
        )
        seen = [row for row in bins if row["total"]]
        _with_intervals(
            axes,
            [50 * (row["low"] + row["high"]) for row in seen],
            [row["wrong"] / row["total"] for row in seen],
            [row["interval"] for row in seen],
            colour="ink",
        )
        if evidence:
            curve = evidence["curve"]
            _line(axes, curve["rates"], [100 * edge for edge in curve["edges"]], "cut")
        if evidence and found["option"] == "c_d":
            _line(axes, [row["chance"] or 0.0 for row in evidence["bins"]], edges, "kept")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 103)
        axes.set_xlabel(f"images in order of {column}, the hardest first, % of the pool")
        axes.set_ylabel("of the images there, %")

    return chart((5.4, 3.4), f"Wrong held-out pseudo-labels along {column}", paint)


def learning_curve(report: Mapping[str, Any]) -> Markup:
    """The probe's error by the rows it learned, both logarithmic, and the power law through it."""
    curve = report["trust"]["more_labels"]

    def paint(axes: Axes) -> None:
        rows, errors = ([point[name] for point in curve["points"]] for name in ("rows", "error"))
        middle = np.exp(np.mean(np.log(np.maximum(errors, 1e-4))))
        ends = np.array([rows[0] / 1.2, 2 * rows[-1]])
        slope = np.log2(curve["left"])
        axes.plot(ends, 100 * middle * (ends / np.exp(np.mean(np.log(rows)))) ** slope, color=COLOURS["pool"])
        axes.plot(rows, [100 * error for error in errors], "o", color=COLOURS["kept"], markersize=6)
        axes.set_xscale("log")
        axes.set_xticks([*rows, 2 * rows[-1]], [f"{row:,.0f}" for row in (*rows, 2 * rows[-1])])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("held-out labels that the probe learned")
        axes.set_ylabel("wrong, %")

    return chart((5.0, 2.8), "Learning curve of the probe", paint)


def _line(axes: Axes, shares: Sequence[float], edges: Sequence[float], colour: str) -> None:
    """Shares in percent as steps between these edges."""
    axes.stairs([100 * share for share in shares], edges, baseline=None, color=COLOURS[colour], linewidth=1.6)


def _with_intervals(
    axes: Axes, x: Sequence[float], shares: Sequence[float], intervals: Sequence[Sequence[float]], colour: str = "kept"
) -> None:
    """Shares in percent with their intervals."""
    y = 100 * np.array(shares)
    low, high = 100 * np.array(intervals).T
    axes.errorbar(
        x,
        y,
        yerr=[y - low, high - y],
        fmt="o",
        color=COLOURS[colour],
        markersize=4.5,
        elinewidth=1.2,
        capsize=0,
        alpha=0.9,
        clip_on=False,
    )


def draw(report: Mapping[str, Any]) -> dict[str, Any]:
    """By name, None where there is nothing to show; `along` is a list, one of every selection."""
    trust = report["trust"]
    return {
        "reliability": reliability(report) if trust["num_holdout"] else None,
        "learning_curve": learning_curve(report) if trust["more_labels"] else None,
        "along": [wrong_along(report, selection) for selection in report["selections"]],
    }
