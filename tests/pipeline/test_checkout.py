import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import checkout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with the three packages, committed."""
    for package in checkout.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "code.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(checkout, "_FOLDER", tmp_path)
    checkout.code.cache_clear()
    yield tmp_path
    checkout.code.cache_clear()


def again() -> dict[str, object]:
    checkout.code.cache_clear()
    return checkout.code()


def test_code_is_clean_while_its_packages_are_as_committed(folder: Path) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()
    assert again() == {"commit": commit, "is_clean": True}
    (folder / "notes.txt").write_text("no code")
    assert again() == {"commit": commit, "is_clean": True}
    (folder / "models" / "new.py").write_text("2")
    assert again() == {"commit": commit, "is_clean": False}


def test_what_was_noted_at_shipping_holds_where_it_is_shipped_to(folder: Path) -> None:
    checkout.note(folder)
    shutil.rmtree(folder / ".git")
    noted = again()
    assert noted["commit"] and noted["is_clean"] is True
    (folder / checkout.NOTE).unlink()
    assert again() == {"commit": None, "is_clean": None}


def test_a_project_around_an_installed_package_is_not_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = folder / ".venv" / "lib" / "site-packages"
    for package in checkout.PACKAGES:
        shutil.copytree(folder / package, installed / package)
    monkeypatch.setattr(checkout, "_FOLDER", installed)
    assert again() == {"commit": None, "is_clean": None}


def test_a_checkout_is_ours_by_a_link_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "link").symlink_to(folder)
    monkeypatch.setattr(checkout, "_FOLDER", folder / "link")
    assert again()["commit"]
