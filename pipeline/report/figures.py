"""Charts of the JSON twin; those of its trust section are in trust_figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from pipeline.report import trust_figures
from pipeline.report.svg import COLOURS, SERIES, chart

MANY_CLASSES = 30
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}" if value == int(value) else f"{value:g}")


def accuracy(report: Mapping[str, Any]) -> Markup:
    """Mean and standard deviation over seeds per subset, a faint dot per seed."""
    rows = report["accuracy"]["rows"]

    def paint(axes: Axes) -> None:
        for place, row in enumerate(rows):
            colour = COLOURS["kept" if row["is_coreset"] else "muted"]
            dots = [100 * value for value in row["accuracies"]]
            axes.plot(dots, [place] * len(dots), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
            mean, std = 100 * row["mean"], 100 * row["std"]
            axes.errorbar(mean, place, xerr=std, fmt="o", color=colour, markersize=6, capsize=3, elinewidth=1.6)
        axes.set_yticks(range(len(rows)), [f"{row['subset']}, {100 * row['keep_fraction']:g}%" for row in rows])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("accuracy on the test set, %")

    return chart((5.2, 0.8 + 0.3 * len(rows)), "Accuracy per subset", paint)


def score_histogram(selection: Mapping[str, Any]) -> Markup:
    """Pool and kept rows along the score, the cuts as lines."""
    histogram = selection["histogram"]

    def paint(axes: Axes) -> None:
        edges = histogram["edges"]
        axes.stairs(histogram["pool"], edges, fill=True, color=COLOURS["pool"])
        axes.stairs(histogram["kept"], edges, fill=True, color=COLOURS["kept"])
        for cut in histogram["cuts"] or ():
            axes.axvline(cut, color=COLOURS["cut"], linewidth=1.2, linestyle=(0, (4, 2)))
            axes.annotate(
                f"{cut:.4g}",
                (cut, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right" if cut == histogram["cuts"][0] else "left",
                color=COLOURS["cut"],
                annotation_clip=False,
            )
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(THOUSANDS)
        hint = "harder \N{RIGHTWARDS ARROW}" if selection["harder"] == "high" else "\N{LEFTWARDS ARROW} harder"
        axes.set_xlabel(f"{selection['column']}   ({hint})")
        axes.set_ylabel("images")

    return chart((5.4, 2.6), f"Histogram of {selection['column']}: the pool and what {selection['name']} kept", paint)


def class_balance(report: Mapping[str, Any]) -> Markup:
    """Share of each pseudo-label class in the pool and in every coreset; many classes are ordered by the pool."""
    balance = report["class_balance"]
    order = list(range(len(balance["classes"])))
    many = len(order) > MANY_CLASSES
    if many:
        order.sort(key=lambda label: -balance["pool"][label])
    groups = [balance["pool"], *(coreset["counts"] for coreset in balance["coresets"])]
    colours = ["pool", *(SERIES[number % len(SERIES)] for number in range(len(groups) - 1))]

    def paint(axes: Axes) -> None:
        width = 0.8 / len(groups)
        for number, (counts, colour) in enumerate(zip(groups, colours, strict=True)):
            shares = [100 * counts[label] / max(sum(counts), 1) for label in order]
            if many:
                axes.plot(shares, color=COLOURS[colour])
            else:
                places = [place - 0.4 + width * (number + 0.5) for place in range(len(order))]
                axes.bar(places, shares, width * 0.92, color=COLOURS[colour])
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel("share of images, %")
        axes.margins(x=0.01)
        if many:
            axes.set_xlabel(f"{'clusters' if report['clusters'] else 'classes'}, the largest of the pool first")
        else:
            names = [_shorten(balance["classes"][label]) for label in order]
            long = len(names) * max(map(len, names)) > 90
            axes.set_xticks(range(len(order)), names, rotation=40 if long else 0, ha="right" if long else "center")
            axes.tick_params(axis="x", length=0)

    return chart((9.0, 3.0), "Class balance of the pool and the coresets", paint)


def confidence(report: Mapping[str, Any]) -> Markup:
    """Confidence of the pseudo-labels on a logarithmic count: most of them pile up at 1."""
    histogram = report["pseudo_labels"]["confidence"]

    def paint(axes: Axes) -> None:
        axes.stairs(histogram["counts"], histogram["edges"], fill=True, color=COLOURS["kept"], baseline=0.5)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
        axes.yaxis.set_major_formatter(THOUSANDS)
        axes.minorticks_off()
        axes.set_xlabel("confidence of the pseudo-label")
        axes.set_ylabel("images (log)")

    return chart((5.0, 2.6), "Histogram of pseudo-label confidence", paint)


def losses(history: Mapping[str, Sequence[float | None]], x: str, names: Sequence[str]) -> Markup:
    """Losses over training, from zero."""

    def paint(axes: Axes) -> None:
        _lines(axes, history, x, names)
        axes.set_ylim(bottom=0)

    return chart((5.0, 2.4), f"{' and '.join(names)} over {x}", paint)


def fraction(history: Mapping[str, Sequence[float | None]], x: str, name: str) -> Markup:
    """A fraction over training, on the whole scale from 0 to 100%."""

    def paint(axes: Axes) -> None:
        _lines(axes, history, x, [name])
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return chart((5.0, 2.4), f"{name} over {x}", paint)


def _lines(axes: Axes, history: Mapping[str, Sequence[float | None]], x: str, names: Sequence[str]) -> None:
    for name, colour in zip(names, SERIES, strict=False):
        places, values = np.array(history[x], dtype=float), np.array(history[name], dtype=float)  # None becomes nan
        axes.plot(places, values, color=COLOURS[colour], marker="o" if len(values) < 3 else None, markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_xlabel(x)


def _shorten(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}\N{HORIZONTAL ELLIPSIS}"


def draw(report: Mapping[str, Any]) -> dict[str, Any]:
    """Every chart of the report by name; `selections` is a list, None where a selection uses no score."""
    cluster, proxy = (report["history"][name] for name in ("cluster", "proxy"))
    rounds = [ssl for name in ("first_ssl", "ssl") if (ssl := report["history"][name])]
    return {
        "accuracy": accuracy(report) if report["accuracy"] else None,
        "selections": [score_histogram(row) if row["histogram"] else None for row in report["selections"]],
        "class_balance": class_balance(report),
        "confidence": confidence(report),
        "trust": trust_figures.draw(report),
        "ssl": [
            {
                "loss": losses(ssl, "step", ["loss_labelled", "loss_unlabelled"]),
                "mask": fraction(ssl, "step", "mask_rate"),
            }
            for ssl in rounds
        ],
        "cluster_loss": losses(cluster, "epoch", ["loss", "best_loss"]) if cluster else None,
        "proxy_loss": losses(proxy, "epoch", ["loss"]),
        "proxy_accuracy": fraction(proxy, "epoch", "accuracy"),
    }
