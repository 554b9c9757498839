"""deploy/: policies, manifests and the image, each as far as it can be checked without a cloud."""

import json
import re
import shlex
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from jsonschema import Draft202012Validator
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from typer.main import get_command

from jobs.cli import app
from pipeline.metrics import METRICS, TAGS
from tests.running import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
POLICIES = sorted(DEPLOY.glob("iam-*.json"))
MANIFESTS = ("rayjob.yaml", "raycronjob.yaml")
SCHEMA = json.loads((REPOSITORY / "tests/schemas/kuberay.json").read_text())
LOCKED = dict(re.findall(r"^([\w-]+)==([\w.]+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE))


def policy(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / f"iam-{name}.json").read_text())
    return found


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowed(name: str, action: str, resource: str) -> bool:
    """Whether a policy allows it when its conditions hold."""
    return any(
        fnmatchcase(action, pattern) and fnmatchcase(resource, where)
        for statement in policy(name)["Statement"]
        for pattern in as_list(statement["Action"])
        for where in as_list(statement["Resource"])
    )


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_a_policy_has_the_grammar_of_one(path: Path) -> None:
    content = json.loads(path.read_text())
    assert content["Version"] == "2012-10-17" and set(content) == {"Version", "Statement"}
    names = [statement["Sid"] for statement in content["Statement"]]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[A-Za-z0-9]+", name) for name in names)
    for statement in content["Statement"]:
        assert statement["Effect"] == "Allow"
        assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Principal", "Condition"}
        for action in as_list(statement["Action"]):
            service, _, operation = action.partition(":")
            assert service in ("ec2", "iam", "s3", "ssm", "sts")
            if service != "s3" and operation not in ("PassRole", "TagSession"):  # not called like their requests
                assert operation in boto3.client(service, "us-west-2").meta.service_model.operation_names
        for resource in as_list(statement.get("Resource", [])):
            assert resource == "*" or re.fullmatch(r"arn:aws:(ec2|iam|s3|ssm):(REGION)?:(ACCOUNT|\*)?:\S+", resource)
            assert resource != "*" or all(a.startswith("ec2:Describe") for a in as_list(statement["Action"]))
    assert not re.search(r"\d{12}", path.read_text())


def test_a_worker_reaches_the_buckets_and_nothing_else() -> None:
    actions = {action for statement in policy("worker")["Statement"] for action in as_list(statement["Action"])}
    assert {action.partition(":")[0] for action in actions} == {"s3"}
    data, runs = "arn:aws:s3:::DATA_BUCKET", "arn:aws:s3:::RUNS_BUCKET"
    for name in ("worker", "head"):
        assert all(allowed(name, "s3:ListBucket", bucket) for bucket in (data, runs))
        assert allowed(name, "s3:GetObject", f"{data}/a/train-000000.tar")
        assert not allowed(name, "s3:PutObject", f"{data}/a") and not allowed(name, "s3:DeleteObject", f"{data}/a")
        assert all(allowed(name, f"s3:{verb}Object", f"{runs}/run/x") for verb in ("Get", "Put", "Delete"))
        assert not allowed(name, "s3:GetObject", "arn:aws:s3:::another/x")


def test_pods_of_one_account_take_the_workers_role() -> None:
    (statement,) = policy("trust-eks")["Statement"]
    assert statement["Principal"] == {"Service": "pods.eks.amazonaws.com"}
    assert set(statement["Action"]) == {"sts:AssumeRole", "sts:TagSession"}
    (account,) = statement["Condition"]["StringEquals"].values()
    text = (DEPLOY / "rayjob.yaml").read_text()
    assert set(re.findall(r"serviceAccountName: (?:&account )?(\w+)", text)) == {account}


def test_the_head_starts_machines_of_its_own_cluster_alone() -> None:
    config = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    tag = {"ray-cluster-name": config["cluster_name"]}
    for statement in policy("head")["Statement"]:
        for action in as_list(statement["Action"]):
            on_instances = any(
                fnmatchcase("instance/", where.split(":")[-1]) for where in as_list(statement["Resource"])
            )
            if action == "ec2:RunInstances" and on_instances:
                assert statement["Condition"] == {"StringEquals": {f"aws:RequestTag/{k}": v for k, v in tag.items()}}
            if action == "ec2:TerminateInstances":
                assert statement["Condition"] == {"StringEquals": {f"aws:ResourceTag/{k}": v for k, v in tag.items()}}
            if action == "iam:PassRole":
                assert as_list(statement["Resource"]) == ["arn:aws:iam::ACCOUNT:role/semiprune-worker"]
    kinds = config["available_node_types"]
    profiles = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in kinds.items()}
    assert profiles.pop("head") == "semiprune-head" and set(profiles.values()) == {"semiprune-worker"}
    image = kinds["head"]["node_config"]["ImageId"].removeprefix("resolve:ssm:")
    assert allowed("head", "ssm:GetParameters", f"arn:aws:ssm:REGION::parameter{image}")


def launch(name: str) -> None:
    """What Ray's autoscaler does on the head with the actions of a policy: start a worker, tag it, see it, end it.

    moto knows neither resources nor conditions of EC2, so the policy is taken without them.
    """
    actions = [action for statement in policy(name)["Statement"] for action in as_list(statement["Action"])]
    document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
    iam = boto3.client("iam")
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    credentials = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    config = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    subnets = [subnet.id for subnet in boto3.resource("ec2", config["provider"]["region"]).subnets.all()]
    kind = {"InstanceType": "c7i.4xlarge", "ImageId": "ami-12c6146b", "SubnetIds": subnets}

    @set_initial_no_auth_action_count(0)
    def authorized() -> None:
        provider = AWSNodeProvider({**config["provider"], "aws_credentials": credentials}, config["cluster_name"])
        provider.create_node(kind, {"ray-node-kind": "worker"}, 1)
        (node,) = provider.non_terminated_nodes({})
        provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
        provider.terminate_node(node)

    authorized()


def test_the_heads_actions_are_those_that_the_autoscaler_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        launch("head")
        with pytest.raises(NodeLaunchException, match="not authorized to perform: ec2:RunInstances"):
            launch("worker")


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_knows_every_field(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(yaml.safe_load((DEPLOY / name).read_text()))


def test_the_schema_would_notice() -> None:
    good = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    for path, value in [
        (("spec", "concurrencyPolicy"), "Forbid"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "on"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replica"), 1),
        (("spec", "backoffLimit"), "2"),
        (("spec", "shutdownAfterJobFinishes"), True),
        (("spec", "idleTimeoutSeconds"), 300),
        (("spec", "rayClusterSpec", "autoscalerOptions", "securityContext", "runAsRoot"), False),
    ]:
        wrong = deepcopy(good)
        node = wrong
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
        assert not Draft202012Validator(SCHEMA).is_valid(wrong), path


def test_every_night_refreshes_by_the_same_job() -> None:
    job, nightly = (yaml.safe_load((DEPLOY / name).read_text()) for name in MANIFESTS)
    refresh = job["spec"]["entrypoint"].replace(" run ", " refresh ")
    deadline = nightly["spec"]["jobTemplate"]["activeDeadlineSeconds"]
    assert nightly["spec"]["jobTemplate"] == {**job["spec"], "entrypoint": refresh, "activeDeadlineSeconds": deadline}
    assert 12 * 3600 < deadline < 24 * 3600 < job["spec"]["activeDeadlineSeconds"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_cluster_and_then_its_job_go_however_it_ends(name: str) -> None:
    spec = yaml.safe_load((DEPLOY / name).read_text())["spec"]
    rules = spec.get("jobTemplate", spec)["deletionStrategy"]["deletionRules"]
    after: dict[tuple[str, str], dict[str, int]] = {}
    for rule in rules:
        seconds = rule["condition"].pop("ttlSeconds")
        (end,) = rule["condition"].items()
        after.setdefault(end, {})[rule["policy"]] = seconds
    # jobDeploymentStatus, not jobStatus: a job that reached its deadline or was never submitted has not FAILED.
    assert set(after) == {("jobStatus", "SUCCEEDED"), ("jobDeploymentStatus", "Failed")}
    for seconds in after.values():
        assert 0 < seconds["DeleteCluster"] <= 3600 < seconds["DeleteSelf"], "the job's end can be read for a while"


def gib(quantity: str) -> float:
    assert quantity.endswith(("Gi", "Mi"))
    return float(quantity[:-2]) / (1 if quantity.endswith("Gi") else 1024)


def test_a_pod_fits_the_node_of_cluster_yaml_and_leaves_the_node_its_own() -> None:
    """32 GiB each, of which a node keeps up to 4, and 200 GB of disk, of which it keeps a tenth."""
    kinds = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["available_node_types"]
    cluster = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] == 300
    for group in cluster["workerGroupSpecs"]:
        node = kinds[group["groupName"].replace("-", "_")]
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert 1 <= node["resources"]["CPU"] - int(limits["cpu"]) <= 2
        assert gib(limits["memory"]) <= 28
        assert int(limits.get("nvidia.com/gpu", 0)) == node["resources"].get("GPU", 0)
        assert gib(limits["ephemeral-storage"]) * 1.074 <= 0.9 * disk["Ebs"]["VolumeSize"]
        assert group["maxReplicas"] == node["max_workers"]


def test_a_pods_scratch_space_is_bounded_below_its_limit() -> None:
    cluster = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (size,) = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == "tmp"]
        (container,) = pod["containers"]
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
        assert gib(size) < gib(container["resources"]["limits"]["ephemeral-storage"])
        # In the recipe, as the manifest and the page advise: below what the pod may have.
        (advice,) = {int(gb) for gb in re.findall(r"cache_gb\D{1,40}(\d+)", (DEPLOY / "rayjob.yaml").read_text())}
        assert container["name"] == "ray-head" or advice < gib(size)


def test_the_job_is_the_commands_and_the_cluster_the_locks() -> None:
    spec = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())["spec"]
    program, command, recipe = shlex.split(spec["entrypoint"])
    assert program == "semiprune" and command in get_command(app).commands
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == LOCKED["ray"]
    assert cluster["authOptions"]["mode"] == "token"
    head = cluster["headGroupSpec"]["template"]["spec"]
    (mount,) = [mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == "recipe"]
    assert Path(recipe).parent == Path(mount["mountPath"])
    submitter = spec["submitterPodTemplate"]["spec"]
    assert submitter["restartPolicy"] == "Never" and submitter["automountServiceAccountToken"] is False
    assert submitter["containers"][0]["name"] == "ray-job-submitter" and "command" not in submitter["containers"][0]
    pods = [submitter, head, *(group["template"]["spec"] for group in cluster["workerGroupSpecs"])]
    assert cluster["autoscalerOptions"]["securityContext"] == head["containers"][0]["securityContext"]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"] == "semiprune"
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["image"] == "IMAGE"
        assert "env" not in container, "credentials come from the account"
    assert {"nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"] for pod in pods[2:]} == {True, False}


def test_alerts_ask_for_what_is_told() -> None:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    assert set(group) == {"name", "rules"} and len(group["rules"]) >= 2
    for rule in group["rules"]:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[mh]", rule["for"]) and set(rule["annotations"]) == {"summary"}
        told = set(re.findall(r"\bray_(\w+)", rule["expr"]))
        if rule["alert"] == "SemiPruneJobFailed":  # the operator's
            assert set(re.findall(r"(\w+)=", rule["expr"])) == {"name", "deployment_status"} and not told
            continue
        ours = {name + "_total" * (metric.kind == "counter") for name, metric in METRICS.items()}
        assert told - {"tasks"} <= ours and told & ours, "ray_tasks is Ray's own"
        by = set(re.findall(r"[\w]+", " ".join(re.findall(r"by \((.*?)\)", rule["expr"]))))
        assert by <= set(TAGS) and set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= by


def test_prometheus_finds_every_pod_and_no_gauge_is_gone_before() -> None:
    monitor = yaml.safe_load((DEPLOY / "podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"]["selector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert set(endpoint) == {"port", "interval"} and endpoint["port"] == "metrics"
    assert int(endpoint["interval"].removesuffix("s")) < 20


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_image_is_pinned_and_nobodys_root() -> None:
    steps = instructions()
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}
    assert {name for name, _ in steps} <= known, "no ADD, no ARG, no secrets"
    bases = {value.split()[0] for name, value in steps if name == "FROM"}
    assert len(bases) == 1 and re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases.pop())
    users = [value for name, value in steps if name == "USER"]
    assert users and users[-1].isdecimal() and int(users[-1]) > 0
    runs = " ".join(value for name, value in steps if name == "RUN")
    (version,) = re.findall(r"\buv==([\d.]+)", runs)
    assert f"UV_VERSION := {version}\n" in (REPOSITORY / "Makefile").read_text()
    assert "--constraint requirements.lock" in runs and "://" not in runs and "sudo" not in runs
    assert "--no-install-recommends" in runs and "rm -rf /var/lib/apt/lists" in runs


def test_the_image_holds_what_the_package_is_made_of() -> None:
    copied = [value.split()[:-1] for name, value in instructions() if name == "COPY" and "--from" not in value]
    sources = {source for line in copied for source in line}
    assert sources == {"pyproject.toml", "requirements.lock", "README.md", "pipeline", "models", "jobs"}
    assert all((REPOSITORY / source).exists() for source in sources)
    last = [name for name, _ in instructions()][::-1].index("FROM")
    assert all("--from" in value for name, value in instructions()[-last:] if name == "COPY")
