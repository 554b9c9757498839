"""docs/operations.md: its commands are commands."""

import json
import re
import shlex
import shutil
import subprocess
from functools import cache
from typing import Any

import boto3
import pytest
import yaml
from botocore import xform_name
from ray.dashboard.modules.metrics.templates import PROMETHEUS_YML_TEMPLATE
from ray.scripts.scripts import cli as ray_cli
from typer.main import get_command

from jobs.cli import app
from tests.running import REPOSITORY

PAGE = (REPOSITORY / "docs/operations.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
AWS_CLI = {"--query", "--output", "--max-items"}
"""Options of the AWS command line itself."""
AWS_CLI_COMMANDS: dict[str, set[str]] = {"s3 rb": {"--force"}, "ecr get-login-password": set()}
"""Its commands that are no operation of the service, with their options."""


def commands(program: str) -> list[list[str]]:
    """The arguments of every call of a program, in the page's order."""
    lines = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
    start = r"(?:^\s*|&& |\| |\$\(|&& \.venv/bin/|RAY_AUTH_MODE=token )"
    return [
        shlex.split(call, comments=True)[1:]
        for line in lines
        for call in re.findall(rf"""{start}({program} (?:'[^']*'|"[^"]*"|[^>|)'"])*)""", line)
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
    if f"{service} {operation}" in AWS_CLI_COMMANDS:
        assert {word for word in rest if word.startswith("--")} <= AWS_CLI_COMMANDS[f"{service} {operation}"]
        return
    model = boto3.client("s3" if service == "s3api" else service, "us-west-2").meta.service_model
    names = {xform_name(name, "-"): name for name in model.operation_names}
    members = model.operation_model(names[operation]).input_shape.members
    options = [word for word in rest if word.startswith("--")]
    assert set(options) - AWS_CLI <= {f"--{xform_name(member, '-')}" for member in members}
    required = model.operation_model(names[operation]).input_shape.required_members
    assert {f"--{xform_name(member, '-')}" for member in required} <= set(options)


@cache
def kubectl_help(*names: str) -> str:
    return subprocess.run(["kubectl", *names], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, no cluster")
@pytest.mark.parametrize("arguments", commands("kubectl"), ids=" ".join)
def test_the_commands_and_options_of_kubernetes_exist(arguments: list[str]) -> None:
    arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    names = arguments[: {"secret": 3}.get(arguments[1], 2) if arguments[0] == "create" else 1]
    known = kubectl_help(*names, "--help") + kubectl_help("options")
    assert f"kubectl {' '.join(names)}" in known
    for word in arguments:
        option = word.partition("=")[0]
        if re.fullmatch(r"--[\w-]+", option):
            assert f"{option}=" in known, option
        elif re.fullmatch(r"-\w", option):
            assert f"{option}, --" in known, option


def test_what_is_patched_and_overridden_is_json() -> None:
    values = [
        value
        for arguments in commands("kubectl")
        for option, value in zip(arguments, [*arguments[1:], ""], strict=True)
        if option == "--patch"
    ]
    values += [word.split("=", 1)[1] for arguments in commands("kubectl") for word in arguments if "overrides=" in word]
    assert len(values) >= 3
    for value in values:
        json.loads(value)


def test_the_operator_is_of_the_version_that_the_manifests_are_checked_for() -> None:
    schema = json.loads((REPOSITORY / "tests/schemas/kuberay.json").read_text())["$comment"]
    (install,) = [arguments for arguments in commands("helm") if arguments[:2] == ["install", "kuberay-operator"]]
    version = install[install.index("--version") + 1]
    assert f"in KubeRay {version.rpartition('.')[0]}," in schema and f"API reference of v{version}" in schema
    key, _, gates = install[install.index("--set-json") + 1].partition("=")
    assert key == "featureGates"
    assert {gate["name"]: gate["enabled"] for gate in json.loads(gates)} == {
        "RayCronJob": True,  # deploy/raycronjob.yaml
        "RayJobDeletionPolicy": True,  # deletionStrategy; the list replaces the chart's own
    }


def test_alarms_become_a_rule_of_the_prometheus_operator() -> None:
    ((command,),) = [re.findall(r"^\{ printf.*?\n.*?\| kubectl apply -f -$", PAGE, re.MULTILINE)]
    made = subprocess.run(
        ["bash", "-c", command.replace("kubectl apply -f -", "cat")], cwd=REPOSITORY, capture_output=True, check=True
    )
    rule = yaml.safe_load(made.stdout)
    assert (rule["kind"], rule["metadata"]) == ("PrometheusRule", {"name": "semiprune"})
    assert rule["spec"] == yaml.safe_load((REPOSITORY / "deploy/alerts.yaml").read_text())
    for alert in rule["spec"]["groups"][0]["rules"]:
        assert f"| {alert['alert']}: " in PAGE, "what to do then"


def test_prometheus_takes_rays_configuration_and_the_alarms() -> None:
    (added,) = re.findall(r"""'echo "(.*?)" >> prometheus/ray.yml'""", PAGE)
    configuration = yaml.safe_load(PROMETHEUS_YML_TEMPLATE.format(prom_metrics_service_discovery_file_path="x") + added)
    assert configuration["rule_files"] == ["alerts.yaml"] and configuration["scrape_configs"]


def test_what_was_imported_is_what_runs_read() -> None:
    (out,) = [arguments[-1] for arguments in commands("semiprune") if arguments[:2] == ["import", "torchvision"]]
    read = re.findall(r"data\.shards=(\S+)/train-\{000000\.\.000019\}\.tar", PAGE)
    assert len(read) >= 2 and set(read) == {out}


def test_what_is_made_is_taken_down() -> None:
    roles: dict[str, set[str]] = {"create-role": set(), "delete-role": set()}
    for words in commands("aws"):
        if words[1] in roles:
            roles[words[1]].add(words[words.index("--role-name") + 1])
    assert roles["create-role"] == roles["delete-role"] == {"semiprune-$role", "semiprune-eks"}
    installed = {words[1] for words in commands("helm") if words[0] == "install"}
    assert installed == {words[1] for words in commands("helm") if words[0] == "uninstall"}


def test_there_are_commands_of_each_kind_and_files_exist() -> None:
    assert {words[0] for words in commands("semiprune")} >= {"doctor", "plan", "submit", "job", "status", "fsck"}
    assert {words[0] for words in commands("ray")} >= {"up", "down", "dashboard", "job", "get-auth-token"}
    assert len(commands("aws")) >= 10
    for path in re.findall(r"(?:deploy|jobs|docs)/[\w/.-]+\.(?:yaml|json|md|sh)", PAGE.replace("$role", "head")):
        assert (REPOSITORY / path).exists(), path


def test_the_policies_are_complete_once_filled_in() -> None:
    fill, pods = [fill for fill in re.findall(r'sed "(.*?)"', PAGE) if "BUCKET" in fill]
    names = dict(part.strip().split("/")[1:3] for part in fill.split(";"))
    for name in re.findall(r"\b[A-Z]+_BUCKET\b", (REPOSITORY / "deploy/iam-worker.json").read_text()):
        assert f"s/{name}/${name}/" in pods
    assert set(names) == {"ACCOUNT", "REGION", "DATA_BUCKET", "RUNS_BUCKET"}
    for path in (REPOSITORY / "deploy").glob("iam-*.json"):
        text = path.read_text()
        for line in text.splitlines():
            for name in names:
                assert line.count(name) <= 1, "sed fills in the first of a line"
        assert not re.search(r"[A-Z]{3,}", re.sub("|".join(names), "", text)), path
