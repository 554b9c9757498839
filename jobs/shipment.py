"""What travels with a job: the code as it is installed here, its commit, the recipe as it is meant, and no more.

A folder of three packages instead of a checkout without what must stay: data, environments, runs and keys beside the
code cannot slip in, an installed package is shipped like a checkout, and a node needs the locked dependencies alone.
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from pipeline import checkout
from pipeline.checkout import PACKAGES
from pipeline.errors import UserError
from pipeline.recipe import Recipe

RECIPE = "recipe.json"
LIMIT = 512 * 1024**2
"""Bytes. Ray keeps a job's files in the memory of the head and takes no more."""
_LEFT_OUT = ("__pycache__", ".*")


def pack(recipe: Recipe, folder: Path) -> None:
    """Write the packages, their commit and the recipe with its overrides into an empty folder.

    Equal runs of equal code make equal folders.
    UserError before anything is copied if it would be more than Ray takes.
    """
    sources = {package: _source(package) for package in PACKAGES}
    sizes = {file: file.stat().st_size for source in sources.values() for file in _files(source)}
    if (total := sum(sizes.values())) > LIMIT:
        largest = max(sizes, key=lambda file: sizes[file])
        raise UserError(
            f"the code to ship has {total / 1024**2:,.0f} MiB, and Ray takes {LIMIT / 1024**2:,.0f}: move data out of "
            f"it, such as {str(largest)!r} with {sizes[largest] / 1024**2:,.0f} MiB"
        )
    for package, source in sources.items():
        shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    checkout.note(folder)
    (folder / RECIPE).write_text(json.dumps(recipe.model_dump(mode="json"), indent=1))


def _source(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _files(source: Path) -> list[Path]:
    def is_left_out(file: Path) -> bool:
        return any(part == "__pycache__" or part.startswith(".") for part in file.relative_to(source).parts)

    return [file for file in source.rglob("*") if file.is_file() and not is_left_out(file)]
