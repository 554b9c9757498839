"""What the numbers in `.cls` stand for, where `semiprune import` has written it beside the shards: `classes.json`."""

import json
from collections.abc import Iterable

from pipeline import storage
from pipeline.errors import UserError
from pipeline.index import DataConfig

FILE = "classes.json"


def beside(shards: Iterable[str]) -> dict[str, list[str]]:
    """The names by class number of every such file, by its place; shards: as a recipe names them."""
    folders = {place.rpartition("/")[0] for place in shards}
    places = sorted(storage.join(folder, FILE) for folder in folders if not any(sign in folder for sign in "*?[{"))
    found = {place: read(place) for place in places}
    return {place: names for place, names in found.items() if names is not None}


def check(data: DataConfig, test_shards: Iterable[str] = ()) -> None:
    """UserError if train and test shards, or the recipe, number the same classes differently.

    Names of the recipe's own are nothing to compare with.
    """
    numbered_here = data.labels is None and data.label_field is None
    found = beside([*(data.shards if numbered_here else ()), *test_shards])
    first = next(iter(found), "")
    for place, names in found.items():
        if names != found[first]:
            raise UserError(
                f"{place!r} numbers the classes {_said(names)}, but {first!r} {_said(found[first])}: import the images "
                f"again with --classes {first}"
            )
        if data.classes and names != list(data.classes) and sorted(names) == sorted(data.classes):
            raise UserError(
                f"{place!r} numbers the classes {_said(names)}, but data.classes has {_said(data.classes)}: name them "
                "in the order of the file"
            )


def read(place: str) -> list[str] | None:
    """The names by class number; None where there is none, or something else of this name."""
    try:
        names = json.loads(storage.read(place))
    except (FileNotFoundError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _said(names: Iterable[str]) -> str:
    some = list(names)
    return ", ".join(some[:5]) + (f" .. ({len(some)} of them)" if len(some) > 5 else "")
