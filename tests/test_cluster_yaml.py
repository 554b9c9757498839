"""cluster.yaml against Ray's own schema and Ray's own code, on a simulated AWS."""

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.client import BaseClient
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "cluster.yaml").read_text()
OPERATIONS = (REPOSITORY / "docs/operations.md").read_text()


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXT)
    return loaded


@pytest.fixture
def prepared(config: dict[str, Any]) -> dict[str, Any]:
    ready: dict[str, Any] = prepare_config(config)
    return ready


def workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


def commands(config: dict[str, Any]) -> list[str]:
    return [command for name, value in config.items() if name.endswith("_commands") for command in value]


def test_ray_accepts_it(prepared: dict[str, Any]) -> None:
    validate_config(prepared)


def test_the_check_would_notice(config: dict[str, Any]) -> None:
    for wrong in ({"max_worker": 1}, {"head_node_type": "none"}, {"max_workers": -1}):
        with pytest.raises(Exception, match=r"max_worker|head_node_type|minimum"):
            validate_config(prepare_config(copy.deepcopy(config) | wrong))


def test_ray_can_launch_it(prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray fills in subnets, security groups and keys, and keeps our images and profiles."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    called = set()
    with mock_aws():
        call = BaseClient._make_api_call

        def recorded(client: BaseClient, operation: str, values: dict[str, Any]) -> Any:
            called.add(operation)
            return call(client, operation, values)

        monkeypatch.setattr(BaseClient, "_make_api_call", recorded)
        ready = bootstrap_aws(prepared)
    (rights,) = re.findall(r"^- `ec2:` (.*?)\n- ", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert {"CreateKeyPair", "CreateSecurityGroup"} < called <= set(re.findall(r"\w+", rights))
    for name, kind in ready["available_node_types"].items():
        asked = prepared["available_node_types"][name]["node_config"]
        got = kind["node_config"]
        assert {"SubnetIds", "SecurityGroupIds", "KeyName"} <= set(got)
        for ours in ("InstanceType", "IamInstanceProfile", "ImageId", "MetadataOptions"):
            assert got[ours] == asked[ours]


def test_both_kinds_of_workers_are_spot_and_go_when_idle(prepared: dict[str, Any]) -> None:
    kinds = workers(prepared)
    assert {"GPU" in kind["resources"] for kind in kinds.values()} == {True, False}
    for kind in kinds.values():
        assert kind["min_workers"] == 0 < kind["max_workers"]
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(kind["max_workers"] for kind in kinds.values()) <= prepared["max_workers"]
    assert 0 < prepared["idle_timeout_minutes"] <= 10
    assert prepared["provider"]["cache_stopped_nodes"] is False


def test_the_head_neither_trains_nor_goes_away(prepared: dict[str, Any]) -> None:
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert any("--head --num-cpus=0" in command for command in prepared["head_start_ray_commands"])


def test_there_are_no_secrets(config: dict[str, Any]) -> None:
    for secret in (
        r"(AKIA|ASIA)[A-Z0-9]{16}",
        r"\b\d{12}\b",
        r"\b(ami|subnet|sg|vpc)-[0-9a-f]{8,}",
        r"(?i)secret_?access|aws_access|password\s*[:=]",
        r"RAY_AUTH_TOKEN=",
        r"PRIVATE KEY",
        r"[0-9a-f]{32,}",
    ):
        assert not re.search(secret, TEXT), secret
    for kind in config["available_node_types"].values():
        assert set(kind["node_config"]["IamInstanceProfile"]) == {"Name"}
    assert "ssh_private_key" not in config["auth"]


def test_nodes_get_the_lock_and_no_data(config: dict[str, Any]) -> None:
    mounts = {remote: Path(local).expanduser() for remote, local in config["file_mounts"].items()}
    assert set(mounts) == {"/home/ubuntu/semiprune/requirements.lock", "/home/ubuntu/.ray/auth_token"}
    lock = (REPOSITORY / config["file_mounts"]["/home/ubuntu/semiprune/requirements.lock"]).read_text()
    assert re.search(r"^ray==2\.", lock, re.MULTILINE)
    assert re.search(r"^boto3==", lock, re.MULTILINE), "the autoscaler on the head needs it"
    assert any("uv pip sync" in command and "requirements.lock" in command for command in config["setup_commands"])
    assert any(re.search(r"uv==\d", command) for command in config["setup_commands"])
    assert {"/.venv", "/.git", "/data", "/runs"} <= set(config["rsync_exclude"])


def test_token_authentication_is_on_everywhere(config: dict[str, Any]) -> None:
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token" in command
        assert command.index("RAY_AUTH_MODE=token") < command.index("ray start")
    assert all("--dashboard-host=0.0.0.0" not in command for command in starts)


def test_a_job_finds_our_python(config: dict[str, Any]) -> None:
    """A job has the PATH of the Ray that runs it, and this image has no `python` of its own."""
    starts = [command for command in commands(config) if "ray start" in command]
    for command in starts:
        assert command.index("export PATH=$HOME/semiprune/.venv/bin:$PATH;") < command.index("ray start")
    assert any(command.endswith("~/semiprune/.venv") for command in config["setup_commands"])


def test_commands_are_shell(prepared: dict[str, Any]) -> None:
    for command in commands(prepared):
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert "| sh" not in command
