"""Submission: what goes over the wire, against a server that writes it down; the rest against a real Ray head."""

import io
import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import pytest
import yaml

from jobs import cluster
from jobs.cluster import Cluster, Job, Told, exit_status
from jobs.submit import local_places, run_id, submit
from pipeline import checkout, plan, refresh, storage, versions
from pipeline.errors import SemiPruneError, UserError
from pipeline.recipe import Recipe, load_recipe
from pipeline.stage import MANIFEST
from pipeline.versions import Version
from pipeline.warm_start import Learned
from tests.running import REPOSITORY, finish, kill_tree, run, start, tiny_recipe, wait_for


def loaded(**changes: object) -> Recipe:
    overrides = [f"{key}={json.dumps(value)}" for key, value in {"root": "s3://bucket/run", **changes}.items()]
    return load_recipe(str(REPOSITORY / "jobs/recipes/cifar10.yaml"), tuple(overrides))


@dataclass
class Recorder:
    """The Jobs API as far as a submission needs it; keeps every request: method, path, headers, body."""

    address: str = ""
    requests: list[tuple[str, str, str, bytes]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)

    def submitted(self) -> dict[str, Any]:
        (body,) = [body for method, path, _, body in self.requests if (method, path) == ("POST", "/api/jobs/")]
        sent: dict[str, Any] = json.loads(body)
        return sent

    def add(self, name: str, status: str, root: str = "s3://bucket/run") -> None:
        self.jobs.append(
            {
                "type": "SUBMISSION",
                "submission_id": name,
                "status": status,
                "entrypoint": "",
                "start_time": len(self.jobs) + 1,
                "metadata": {"root": root},
            }
        )


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorded = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            recorded.requests.append((self.command, self.path, str(self.headers), body))
            status, answer = 200, b"{}"
            if self.path == "/api/version":
                answer = json.dumps({"version": "4", "ray_version": "2.60.0"}).encode()
            elif self.command == "GET" and self.path.startswith("/api/packages/"):
                status = 404
            elif self.command == "GET":
                answer = json.dumps(recorded.jobs).encode()
            elif self.command == "POST":
                sent = json.loads(body)
                name = sent["submission_id"]
                recorded.add(name, "RUNNING", sent["metadata"]["root"])
                answer = json.dumps({"job_id": name, "submission_id": name}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        recorded.address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield recorded
        server.shutdown()


def test_the_same_run_has_the_same_id() -> None:
    assert run_id(loaded()) == run_id(loaded()) == run_id(loaded(**{"resources.num_workers": 8}))
    others = [loaded(root="s3://bucket/other"), loaded(seed=1), loaded(**{"evaluate": None})]
    assert len({run_id(recipe) for recipe in [loaded(), *others]}) == 4


def test_no_value_of_the_environment_travels(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "b9a1c6c8f1d94fd0"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "FSSPEC_S3_SECRET", "HF_TOKEN", "ANY_OTHER"):
        monkeypatch.setenv(name, secret)
    submit(Cluster(recorder.address), loaded(), "cifar10.yaml", str)
    sent = recorder.submitted()
    assert set(sent["runtime_env"]) <= {"working_dir", "_ray_commit"}
    assert sent["entrypoint"] == "python -m jobs.cli run recipe.json"
    (package,) = [body for method, _, _, body in recorder.requests if method == "PUT"]
    members = zipfile.ZipFile(io.BytesIO(package))
    assert "jobs/cli.py" in members.namelist() and "recipe.json" in members.namelist()
    read = [members.read(name) for name in members.namelist()]
    for content in [*read, *(part for _, path, head, body in recorder.requests for part in (path, head, body))]:
        assert secret.encode() not in (content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("before", "attempt", "is_new"),
    [
        ([], "", True),
        (["PENDING"], "", False),
        (["RUNNING"], "", False),
        (["FAILED"], "-2", True),
        (["STOPPED", "FAILED"], "-3", True),
        (["FAILED", "RUNNING"], "-2", False),
    ],
)
def test_a_run_has_one_live_job(recorder: Recorder, before: list[str], attempt: str, is_new: bool) -> None:
    base = run_id(loaded())
    recorder.add("semiprune-0000000000000000", "RUNNING")
    for number, status in enumerate(before, 1):
        recorder.add(base if number == 1 else f"{base}-{number}", status)
    job, submitted = submit(Cluster(recorder.address), loaded(), "cifar10.yaml", str)
    assert (job.id, submitted) == (base + attempt, is_new)


def commit(recipe: Recipe) -> list[Path]:
    """Manifests of all its stages; returns the stages' folders."""
    folders = [Path(stage.uri(recipe.root)) for stage in plan.build(recipe)]
    for folder in folders:
        storage.write(str(folder / MANIFEST), b"{}")
    return folders


def test_a_success_counts_while_its_results_are_there(recorder: Recorder, tmp_path: Path) -> None:
    recipe = loaded(root=str(tmp_path / "run"))
    name, there = run_id(recipe), Cluster(recorder.address)
    recorder.add(name, "SUCCEEDED")
    folders = commit(recipe)
    assert submit(there, recipe, "cifar10.yaml", str) == (there.find(name), False)
    shutil.rmtree(folders[2])
    job, is_new = submit(there, recipe, "cifar10.yaml", str)
    assert is_new and job.id == f"{name}-2"
    assert submit(there, recipe, "cifar10.yaml", str) == (job, False)
    recorder.jobs[-1]["status"] = "SUCCEEDED"
    shutil.rmtree(recipe.root)
    job, is_new = submit(there, recipe, "cifar10.yaml", str)
    assert is_new and job.id == f"{name}-3"


def test_a_refresh_that_succeeded_counts_while_its_version_is_the_last(recorder: Recorder, tmp_path: Path) -> None:
    recipe = loaded(root=str(tmp_path / "run"))
    name, there = run_id(recipe, "refresh"), Cluster(recorder.address)
    folders = commit(recipe)

    def make_version(number: int, of: Recipe) -> None:
        state = refresh._state(plan.build(of), of)
        learned = Learned(version=1, learner="", num_samples=1, num_labels=1)
        version = Version(number, f"{number:06d}", "", state, 1, 1, 1, learned, None, "", [], [], [])
        assert versions.create(recipe.root, version)

    def is_new() -> bool:
        recorder.jobs[:] = []
        recorder.add(name, "SUCCEEDED")
        return submit(there, recipe, "cifar10.yaml", str, "refresh")[1]

    assert is_new()
    make_version(1, recipe)
    assert not is_new()
    shutil.rmtree(folders[-1])
    assert is_new()
    commit(recipe)
    make_version(2, loaded(root=recipe.root, seed=1))
    assert is_new()


def test_a_success_is_believed_where_nobody_can_look(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> None:
        raise UserError(f"no permission for {uri!r}: allow it")

    for ask in ("exists", "names"):
        monkeypatch.setattr(storage, ask, refuse)
    for command in ("run", "refresh"):
        recorder.add(run_id(loaded(), command), "SUCCEEDED")
        told: list[str] = []
        _, is_new = submit(Cluster(recorder.address), loaded(), "cifar10.yaml", told.append, command)
        assert not is_new
        (note,) = told
        assert note.startswith("the root cannot be read from this machine") and "no permission for 's3://buck" in note


def test_a_refresh_is_another_job(recorder: Recorder) -> None:
    recorder.add(run_id(loaded()), "SUCCEEDED")
    job, is_new = submit(Cluster(recorder.address), loaded(), "cifar10.yaml", str, "refresh")
    assert is_new and job.id == run_id(loaded(), "refresh")
    assert recorder.submitted()["entrypoint"] == "python -m jobs.cli refresh recipe.json"


def test_a_refresh_of_the_root_that_lives_is_joined_though_shards_came(recorder: Recorder, tmp_path: Path) -> None:
    there, told = Cluster(recorder.address), []

    def submitted(root: str = "s3://bucket/run") -> tuple[Job, bool]:
        recipe = loaded(root=root, **{"data.shards": f"{tmp_path}/*.tar"})
        return submit(there, recipe, "cifar10.yaml", told.append, "refresh")

    (tmp_path / "train-000000.tar").touch()
    recorder.add(run_id(loaded()), "RUNNING")
    first, is_new = submitted()
    assert is_new and told == []
    (tmp_path / "train-000001.tar").touch()
    assert submitted("s3://bucket/run/") == (first, False)
    assert told == [f"{first.id} refreshes this root: what came since it began, such as shards, is for the next one"]
    assert submitted("s3://bucket/other")[1]
    recorder.jobs[1]["status"] = "FAILED"
    second, is_new = submitted()
    assert is_new and second.id != first.id and len(told) == 1


def test_the_address_given_is_the_one_used(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert Cluster(recorder.address + "/").jobs() == []


def test_an_address_that_is_none_is_a_sentence() -> None:
    for address in ("127.0.0.1:8265", "ray://head:10001", "auto", "http://", "http://me:secret@head:8265"):
        with pytest.raises(UserError, match=r"no address|must not carry credentials") as raised:
            Cluster(address)
        assert "secret" not in str(raised.value)


def test_a_cluster_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"no cluster answers at http://127\.0\.0\.1:1: .*refused"):
        Cluster("http://127.0.0.1:1")


def test_an_unknown_job_is_a_sentence(recorder: Recorder) -> None:
    with pytest.raises(UserError, match="has no job or run 's3://bucket/elsewhere'"):
        Cluster(recorder.address).find("s3://bucket/elsewhere")


def test_places_on_local_disks_are_named() -> None:
    shards = {"data.shards": "s3://bucket/{000..019}.tar", "evaluate.test_shards": "s3://bucket/test.tar"}
    assert local_places(loaded(**shards)) == []
    assert local_places(loaded(**shards, root="/runs/1", **{"data.labels": "/l.csv"})) == ["/runs/1", "/l.csv"]
    assert local_places(loaded(**shards, **{"split.labels": "/annotated.csv"})) == ["/annotated.csv"]


def test_the_exit_status_is_the_drivers() -> None:
    for status, code, expected in [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 1), ("STOPPED", None, 1)]:
        assert exit_status(Job("", status, "", "", 0, code)) == expected


def test_following_outlives_lost_connections_but_not_a_lost_cluster(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorder has no socket for logs, so that each of these connections is lost."""
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(cluster, "PATIENCE", 0.05)
    recorder.add("semiprune-1", "RUNNING")
    there = Cluster(recorder.address)
    (job,) = there.jobs()
    Timer(0.2, recorder.jobs[0].update, kwargs={"status": "SUCCEEDED"}).start()
    assert there.follow(job, str).status == "SUCCEEDED"
    recorder.jobs.clear()
    with pytest.raises(SemiPruneError, match=r"cannot be followed any more: .* `semiprune job follow semiprune-1 "):
        there.follow(job, str)


def test_a_log_is_told_once_over_several_connections() -> None:
    told: list[str] = []
    log = Told(told.append)
    for connection in (["one\n", "two"], ["one\ntwo\nth"], ["o", "ne\ntwo\nthree\n"]):
        log.begin()
        for text in connection:
            log(text)
    assert "".join(told) == "one\ntwo\nthree\n"


@dataclass
class Head:
    """A Ray of its own with a token, and what a submitter needs to know of it."""

    address: str
    environment: dict[str, str]

    def semiprune(self, *arguments: str) -> tuple[int, str, str]:
        return finish(self.start(*arguments), timeout=400)

    def start(self, *arguments: str) -> subprocess.Popen:
        return start(*arguments, "--address", self.address, **self.environment)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="h-", ignore_cleanup_errors=True) as folder:
        token = Path(folder, "token")
        token.write_text(secrets.token_hex(32))
        binaries = Path(sys.executable).parent
        dashboard, agent, client = _free_ports(3)
        command = f"""{binaries}/ray start --head --block --num-cpus=2 --port=0 --ray-client-server-port={client}
            --node-ip-address=127.0.0.1 --include-dashboard=true --dashboard-host=127.0.0.1
            --dashboard-port={dashboard} --dashboard-agent-listen-port={agent} --temp-dir={folder}/r
            --object-store-memory=100000000"""
        authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        process = subprocess.Popen(
            command.split(),
            env={"HOME": folder, "PATH": f"{binaries}:/usr/bin:/bin", "RAY_USAGE_STATS_ENABLED": "0", **authentication},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for(lambda: _answers(address, token.read_text()), process, "an answer of the head")
            yield Head(address, {"RAY_AUTH_TOKEN_PATH": str(token)})
        finally:
            kill_tree(process)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _answers(address: str, token: str) -> bool:
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_on_a_cluster(head: Head, digits: Path, tmp_path: Path) -> None:
    """Submitted, followed to its end and done; submitted again, it is done already."""
    root = tmp_path / "run"
    top = [{"name": "top", "selector": "top_k", "keep_fraction": 0.3, "options": {"score": "aum"}}]
    short = {"ssl.steps": 5, "proxy.epochs": 2, "score": {"aum": {}}, "select": top}
    recipe = str(tiny_recipe(digits, root, evaluate=None, **short))
    status, out, err = head.semiprune("submit", recipe, "--set", "seed=3")
    assert status == 0, (out, err)
    assert "report  done in" in out and "Report:" in out
    assert "is a place on local disks" in err
    assert json.loads((root / "_PLAN.json").read_text())["recipe"]["seed"] == 3
    [manifest] = (root / "index").glob("*/_MANIFEST.json")
    assert json.loads(manifest.read_text())["commit"] == checkout.code()["commit"]  # no version control travels
    status, out, _ = head.semiprune("submit", recipe, "--set", "seed=3")
    assert status == 0 and "succeeded before" in out
    status, out, err = head.semiprune("submit", recipe, "--set", "seed=3", "--refresh")
    assert status == 0 and "report  found done" in out and "Version 1" in out, (out, err)


@pytest.mark.slow
def test_a_job_is_joined_left_and_cancelled(head: Head, digits: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    recipe = str(tiny_recipe(digits, root, evaluate=None, **{"ssl.steps": 1_000_000}))
    status, first, err = head.semiprune("submit", recipe, "--no-wait")
    assert status == 0 and "submitted" in first, (first, err)
    name = first.split()[1]

    second = head.start("submit", recipe)
    log = second.stdout
    assert log is not None
    lines: list[str] = []
    while "started" not in "".join(lines):
        lines.append(log.readline())
        assert lines[-1], finish(second)
    second.send_signal(signal.SIGINT)
    status, _, err = finish(second)
    assert status == 130
    assert f"Job {name} is there already" in err
    assert "the job goes on" in err and f"semiprune job cancel {name}" in err
    assert head.semiprune("job", "status", str(root))[1].count("running") == 1

    status, out, _ = head.semiprune("job", "cancel", str(root))
    assert (status, out) == (0, f"Job {name} is stopped\n")
    status, out, err = head.semiprune("job", "follow", name)
    assert status == 1 and "stopped" in err


@pytest.mark.slow
def test_a_mistake_in_the_run_is_the_commands_too(head: Head, digits: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(digits, tmp_path / "run", evaluate=None)
    content = yaml.safe_load(recipe.read_text())
    content["data"]["shards"] = f"{tmp_path}/absent.tar"
    recipe.write_text(yaml.safe_dump(content))
    status, out, err = head.semiprune("submit", str(recipe))
    assert status == 2 and "absent.tar" in out and "failed: Job entrypoint command failed with exit code 2" in err


@pytest.mark.slow
def test_the_token_decides(head: Head, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text(secrets.token_hex(32))
    for environment, sentence in [
        ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, "does not accept the token"),
        ({"HOME": str(tmp_path)}, "wants a token"),
    ]:
        status, out, err = run("job", "status", "--address", head.address, **environment)
        assert (status, out) == (2, "") and sentence in err and err.count("\n") == 1, err
