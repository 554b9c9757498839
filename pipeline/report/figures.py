"""Charts of the JSON twin as inline SVG: text stays text, colours are the page's CSS variables, bytes repeat."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

# matplotlib knows no CSS: it draws in these marker colours, and each is then replaced by its variable, so that one
# drawing serves the light, the dark and the printed page.
COLOURS = {
    name: f"#0a0b{number:02x}"
    for number, name in enumerate(("ink", "muted", "line", "pool", "kept", "cut", "series-2", "series-3", "series-4"))
}
SERIES = ("kept", "series-2", "series-3", "cut", "series-4")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "semiprune",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.7,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.left": False,
    "lines.linewidth": 1.6,
}
MANY_CLASSES = 30
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}" if value == int(value) else f"{value:g}")


def _draw(size: tuple[float, float], description: str, paint: Callable[[Axes], None]) -> Markup:
    """One chart of `size` inches as an SVG element that scales with the page and carries its own description."""
    buffer = io.StringIO()
    with style.context(["default", STYLE]):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # Group ids repeat from chart to chart; only what is referred to (clip paths, markers: named by content) keeps one.
    referred = set(re.findall(r"[#]([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", svg)
    svg = re.sub(r'<svg( width="[^"]*")?( height="[^"]*")?', "<svg", svg, count=1)
    for name, marker in COLOURS.items():
        svg = svg.replace(marker, f"var(--{name})")
    label = Markup('role="img" aria-label="{}"').format(description)
    return Markup(svg.replace("<svg", f"<svg {label}", 1))


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

    return _draw((5.2, 0.8 + 0.3 * len(rows)), "Accuracy per subset", paint)


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

    return _draw((5.4, 2.6), f"Histogram of {selection['column']}: the pool and what {selection['name']} kept", paint)


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
            axes.set_xlabel("classes, the largest of the pool first")
        else:
            names = [_shorten(balance["classes"][label]) for label in order]
            long = len(names) * max(map(len, names)) > 90
            axes.set_xticks(range(len(order)), names, rotation=40 if long else 0, ha="right" if long else "center")
            axes.tick_params(axis="x", length=0)

    return _draw((9.0, 3.0), "Class balance of the pool and the coresets", paint)


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

    return _draw((5.0, 2.6), "Histogram of pseudo-label confidence", paint)


def losses(history: Mapping[str, Sequence[float | None]], x: str, names: Sequence[str]) -> Markup:
    """Losses over training, from zero."""

    def paint(axes: Axes) -> None:
        _lines(axes, history, x, names)
        axes.set_ylim(bottom=0)

    return _draw((5.0, 2.4), f"{' and '.join(names)} over {x}", paint)


def fraction(history: Mapping[str, Sequence[float | None]], x: str, name: str) -> Markup:
    """A fraction over training, on the whole scale from 0 to 100%."""

    def paint(axes: Axes) -> None:
        _lines(axes, history, x, [name])
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return _draw((5.0, 2.4), f"{name} over {x}", paint)


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
    ssl, proxy = report["history"]["ssl"], report["history"]["proxy"]
    return {
        "accuracy": accuracy(report) if report["accuracy"] else None,
        "selections": [score_histogram(row) if row["histogram"] else None for row in report["selections"]],
        "class_balance": class_balance(report),
        "confidence": confidence(report),
        "ssl_loss": losses(ssl, "step", ["loss_labelled", "loss_unlabelled"]),
        "ssl_mask": fraction(ssl, "step", "mask_rate"),
        "proxy_loss": losses(proxy, "epoch", ["loss"]),
        "proxy_accuracy": fraction(proxy, "epoch", "accuracy"),
    }
