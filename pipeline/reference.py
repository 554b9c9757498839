"""What a recipe may hold, from its own definition: every key with its values, its default and its meaning."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from models.ssl import algorithms
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.scores import SCORES
from pipeline.selectors import SELECTORS

KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Key:
    """name: as in `ssl.lr`, with [] behind a list; default: as one writes it, "" where there is none to write."""

    name: str
    values: str
    default: str
    meaning: str


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe, for editors: what it refuses is no recipe, but not all that it
    accepts is one."""
    return Recipe.model_json_schema()


def keys(place: str | None = None) -> list[Key]:
    """The sections of a recipe, or a place in it with all below; UserError if there is no such place.

    place: such as "ssl", "ssl.lr", "select.options".
    """
    found = list(_below(schema(), "", schema()["$defs"]))
    if place is None:
        return [key for key in found if "." not in key.name]
    wanted = [key for key in found if f"{key.name.replace('[]', '')}.".startswith(f"{place.replace('[]', '')}.")]
    if not wanted:
        names = [key.name.replace("[]", "") for key in found]
        close = get_close_matches(place, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        sections = ", ".join(name for name in names if "." not in name)
        raise UserError(f"a recipe has no key {place!r}: {hint}sections are {sections}")
    return wanted


def _below(node: dict[str, Any], prefix: str, types: dict[str, Any], defaults: Any = None) -> Iterator[Key]:
    """The keys of a mapping; defaults: of the mapping as a whole, where those of its keys are others."""
    for name, value in node.get("properties", {}).items():
        nested = _nested(value, types)
        place = f"{prefix}{name}{'[]' if value.get('type') == 'array' and nested else ''}"
        default = defaults[name] if isinstance(defaults, dict) and name in defaults else value.get("default", {})
        said = "required" if name in node.get("required", ()) else _said(default)
        yield Key(place, _values(value, types), said, value.get("description", ""))
        if nested:
            yield from _below(nested, f"{place}.", types, default)
        yield from _choices(place)


def _nested(value: dict[str, Any], types: dict[str, Any]) -> dict[str, Any] | None:
    """The mapping with keys of its own that stands there, or may."""
    for case in (value, value.get("items", {}), *value.get("anyOf", ()), *value.get("oneOf", ())):
        if "$ref" in case:
            found: dict[str, Any] = types[case["$ref"].rpartition("/")[2]]
            return found
    return None


def _said(default: Any) -> str:
    """As one writes it; nothing of a mapping, whose keys have defaults of their own."""
    if isinstance(default, dict):
        return ""
    return default if isinstance(default, str) else json.dumps(default)


def _values(value: dict[str, Any], types: dict[str, Any]) -> str:
    """What may stand there, in words."""
    cases = value.get("anyOf") or value.get("oneOf")
    if cases:
        return " or ".join(_values(case, types) for case in cases)
    if "enum" in value:
        *others, last = value["enum"]
        return f"{', '.join(others)} or {last}" if others else str(last)
    if value.get("type") == "array":
        members = value.get("prefixItems")
        many = f"{len(members)} times" if members else "list of"
        return f"{many} {_values(members[0] if members else value['items'], types)}"
    if "type" not in value or value["type"] == "object":
        return "mapping"
    bounds = ", ".join(f"{sign} {value[bound]:,}" for bound, sign in BOUNDS.items() if bound in value)
    return f"{KINDS[value['type']]} {bounds}".strip()


def _choices(place: str) -> Iterator[Key]:
    """What may stand at a place whose keys go by a name: of an algorithm, a score, a selector."""
    if place == "ssl.options":
        for name, algorithm in algorithms().items():
            for key in _below(algorithm.Options.model_json_schema(), f"{place}.", {}):
                yield Key(key.name, key.values, key.default, f"of {name}: {key.meaning}")
    elif place == "score":
        for entry in SCORES.entries():
            yield Key(f"score.{entry.name}", "mapping", entry.options, f"{entry.what} {entry.meaning}".strip())
    elif place == "select[].options":
        for entry in SELECTORS.entries():
            yield Key(place, f"of {entry.name}", entry.options, f"{entry.what} {entry.meaning}".strip())
