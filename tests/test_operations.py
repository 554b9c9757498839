"""docs/operations.md: its commands are commands."""

import re
import shlex
from typing import Any

import boto3
import pytest
from botocore import xform_name
from ray.scripts.scripts import cli as ray_cli
from typer.main import get_command

from jobs.cli import app
from tests.running import REPOSITORY

PAGE = (REPOSITORY / "docs/operations.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
AWS_CLI = {"--query", "--output", "--max-items"}
"""Options of the AWS command line itself."""


def commands(program: str) -> list[list[str]]:
    """The arguments of every call of a program, in the page's order."""
    lines = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
    start = r"(?:^\s*|&& |\$\(|&& \.venv/bin/|RAY_AUTH_MODE=token )"
    return [
        shlex.split(call, comments=True)[1:]
        for line in lines
        for call in re.findall(rf"{start}({program} [^>|)]*)", line)
    ]


def find(command: Any, arguments: list[str]) -> tuple[Any, list[str]]:
    """The command at the end of the names, and what is left of the arguments."""
    while hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, name
        command = command.commands[name]
    return command, arguments


@pytest.mark.parametrize("arguments", commands("semiprune"), ids=" ".join)
def test_our_commands_parse(arguments: list[str]) -> None:
    command, rest = find(get_command(app), arguments)
    command.make_context("", list(rest))


@pytest.mark.parametrize("arguments", commands("ray"), ids=" ".join)
def test_rays_commands_parse(arguments: list[str]) -> None:
    command, rest = find(ray_cli, arguments)
    command.make_context("", list(rest))


def test_what_its_sentences_name_exists() -> None:
    named = re.findall(r"`(semiprune|ray) ([^`\n]+)`", PAGE)
    assert len(named) >= 5
    for program, text in named:
        find(get_command(app) if program == "semiprune" else ray_cli, text.split())


@pytest.mark.parametrize("arguments", commands("aws"), ids=" ".join)
def test_the_clouds_commands_and_options_exist(arguments: list[str]) -> None:
    service, operation, *rest = arguments
    model = boto3.client("s3" if service == "s3api" else service, "us-west-2").meta.service_model
    names = {xform_name(name, "-"): name for name in model.operation_names}
    members = model.operation_model(names[operation]).input_shape.members
    options = [word for word in rest if word.startswith("--")]
    assert set(options) - AWS_CLI <= {f"--{xform_name(member, '-')}" for member in members}
    required = model.operation_model(names[operation]).input_shape.required_members
    assert {f"--{xform_name(member, '-')}" for member in required} <= set(options)


def test_there_are_commands_of_each_kind_and_files_exist() -> None:
    assert {words[0] for words in commands("semiprune")} >= {"doctor", "plan", "submit", "job", "status", "fsck"}
    assert {words[0] for words in commands("ray")} >= {"up", "down", "dashboard", "job", "get-auth-token"}
    assert len(commands("aws")) >= 10
    for path in re.findall(r"(?:deploy|jobs|docs)/[\w/.-]+\.(?:yaml|json|md)", PAGE.replace("$role", "head")):
        assert (REPOSITORY / path).exists(), path


def test_the_policies_are_complete_once_filled_in() -> None:
    (fill,) = re.findall(r'sed "(.*?)"', PAGE)
    names = dict(part.strip().split("/")[1:3] for part in fill.split(";"))
    assert set(names) == {"ACCOUNT", "REGION", "DATA_BUCKET", "RUNS_BUCKET"}
    for path in (REPOSITORY / "deploy").glob("iam-*.json"):
        text = path.read_text()
        for line in text.splitlines():
            for name in names:
                assert line.count(name) <= 1, "sed fills in the first of a line"
        assert not re.search(r"[A-Z]{3,}", re.sub("|".join(names), "", text)), path
