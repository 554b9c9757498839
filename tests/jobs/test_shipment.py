import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import shipment
from jobs.shipment import RECIPE, pack
from pipeline.checkout import NOTE, PACKAGES, code
from pipeline.errors import UserError
from pipeline.recipe import load_recipe
from tests.running import REPOSITORY

RECIPES = sorted((REPOSITORY / "jobs/recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_job_reads_the_recipe_that_was_meant(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(path), ("root=s3://bucket/run", "seed=7", "proxy.lr=1e-5"))
    pack(recipe, tmp_path)
    assert load_recipe(str(tmp_path / RECIPE)) == recipe


def test_the_job_knows_of_which_commit_its_code_is(tmp_path: Path) -> None:
    pack(load_recipe(str(RECIPES[0])), tmp_path)
    say = "from pipeline.run import environment; e = environment(); print(e['commit'], e['is_clean'])"
    there = subprocess.run(
        [sys.executable, "-c", say], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert there.stdout.split() == [str(code()["commit"]), str(code()["is_clean"])], there.stderr


def test_the_code_is_whole_and_nothing_else_travels(tmp_path: Path) -> None:
    pack(load_recipe(str(RECIPES[0])), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*PACKAGES, RECIPE, NOTE}
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if "__pycache__" in path.parts or path.name.startswith(".")]
    for package in PACKAGES:
        sources = {path.relative_to(REPOSITORY) for path in (REPOSITORY / package).rglob("*.py")}
        assert sources <= set(files)
    assert Path("pipeline/report/template.html.j2") in files
    assert sum((tmp_path / path).stat().st_size for path in files) < 2_000_000


def test_what_ray_would_not_take_is_refused_before_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "installed" / "models"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "weights.bin").touch()
    os.truncate(package / "weights.bin", shipment.LIMIT + 1)
    monkeypatch.setattr(shipment, "_source", lambda name: package)
    folder = tmp_path / "folder"
    with pytest.raises(UserError, match=r"has 512 MiB.*weights\.bin"):
        pack(load_recipe(str(RECIPES[0])), folder)
    assert not folder.exists()
