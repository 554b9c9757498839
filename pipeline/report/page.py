"""The page: the template and how numbers are written in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import units
from pipeline.report.svg import SERIES

THIN = "\N{NARROW NO-BREAK SPACE}"


def count(value: int) -> str:
    """1797 -> 1,797."""
    return f"{value:,}"


def percent(fraction: float, digits: int = 1) -> str:
    """0.9312 -> 93.1 %."""
    return f"{100 * fraction:.{digits}f}{THIN}%"


def share(part: int, whole: int) -> str:
    """The part as percent of the whole."""
    return percent(part / max(whole, 1))


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign: 0.021 -> +2.1."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def size(num_bytes: float) -> str:
    """Bytes in the unit a person would say, on one line."""
    return units.size(num_bytes).replace(" ", THIN)


def duration(seconds: float) -> str:
    """Seconds in the units a person would say, on one line."""
    return units.duration(seconds).replace(" ", THIN)


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def settings(config: Mapping[str, Any]) -> str:
    """A stage's config as YAML, as it could stand in a recipe."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=60).strip() if config else "defaults"


def render(report: Mapping[str, Any], figures: Mapping[str, Any], pictures: Mapping[int, str]) -> str:
    """The HTML of a report: whatever comes from data is escaped, and nothing is loaded from anywhere."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (count, percent, share, points, size, duration, number, settings):
        environment.filters[write.__name__] = write
    template = environment.get_template("template.html.j2")
    return template.render(report=report, figures=figures, pictures=pictures, series=SERIES)
