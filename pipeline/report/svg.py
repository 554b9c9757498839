"""Inline SVG of a chart: text stays text, colours are the page's CSS variables, bytes repeat."""

import io
import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def chart(size: tuple[float, float], description: str, paint: Callable[[Axes], None]) -> Markup:
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
