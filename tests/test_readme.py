"""What the README shows is what there is."""

import re

from typer.main import get_command

from jobs.cli import app
from tests.running import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def test_the_score_it_shows_is_the_one_in_use() -> None:
    assert (REPOSITORY / "pipeline/scores/aum.py").read_text().strip() in README


def test_its_commands_and_files_exist() -> None:
    commands = get_command(app).commands
    for name in set(re.findall(r"semiprune ([a-z]+)", README)):
        assert name in commands, name
    for path in re.findall(r"jobs/recipes/\w+\.yaml|docs/\w+\.png|cluster\.yaml", README):
        assert (REPOSITORY / path).exists(), path
