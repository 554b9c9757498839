"""Which code this is: the commit of the checkout that it runs from; in a job, of the one that it was shipped from."""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import storage

PACKAGES = ("pipeline", "models", "jobs")
"""All code of ours that runs."""

NOTE = "commit.json"
"""Beside the packages where they were shipped, since no version control travels with them."""

_FOLDER = Path(__file__).resolve().parent.parent


@cache
def code() -> dict[str, Any]:
    """commit: None for an installed package or without git; is_clean: whether the packages are just as committed.

    As this process found them first, which is what it runs. A repository that our folder is only a part of is another
    project's, with an environment in it that we are installed in.
    """
    try:
        noted: dict[str, Any] = storage.read_json(str(_FOLDER / NOTE))
        return noted
    except FileNotFoundError:
        pass
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != _FOLDER.resolve():
        return {"commit": None, "is_clean": None}
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", *PACKAGES)
    return {"commit": commit, "is_clean": None if commit is None or changes is None else not changes}


def note(folder: Path) -> None:
    """Leave word of it beside a copy of the packages in that folder."""
    (folder / NOTE).write_text(json.dumps(code()))


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(["git", *arguments], cwd=_FOLDER, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
