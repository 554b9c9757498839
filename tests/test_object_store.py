"""Shards and runs in a real object store: a whole run, the ways in which a store refuses, and the ways it breaks."""

import contextlib
import pickle
import random
import re
import shutil
import subprocess
import tempfile
import time
import traceback
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import fsspec.config
import psutil
import pytest
import s3fs

from jobs.cli import main
from pipeline import storage
from pipeline.errors import StorageError, UserError
from tests.object_store import SECRET_KEY, Fault, Proxy, Request, environment, proxied, reached, serve
from tests.running import finish, run, start, tiny_recipe

DATA, ROOT = "s3://data", "s3://runs/one"

CANARY = "c4n4ryQ7vM2kLw"
SECRETS = {
    "HF_TOKEN": f"hf-{CANARY}",  # nothing of ours asks for it
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": f"ray-{CANARY}-0123456789abcdef",
}
"""With the store's own, what an environment holds that nobody may find again; each names itself."""


@pytest.fixture(scope="module")
def folder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store's two buckets: the digits in `data`, and `runs`."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copytree(digits, folder / "data")
    (folder / "runs").mkdir()
    return folder


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Iterator[str]:
    with serve(folder) as endpoint:
        yield endpoint


@pytest.fixture
def store(endpoint: str) -> Iterator[Proxy]:
    """The store behind a proxy, found by this process; nothing goes wrong yet."""
    with proxied(endpoint) as proxy, reached(proxy.endpoint):
        yield proxy


def content(folder: Path, *stages: str) -> Counter[tuple[str, bytes]]:
    """What these stages of a run wrote, without what is of an attempt's own in the names; parts are alike."""
    found: Counter[tuple[str, bytes]] = Counter()
    for stage in stages:
        for path in (folder / stage).rglob("*"):
            if path.is_file() and path.name != "_MANIFEST.json":
                name = re.sub(r"-[0-9a-f]{8}\.", ".", path.name)
                found[stage if name.startswith("part-") else name, path.read_bytes()] += 1
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def semiprune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and all output of the command, in this process."""
    monkeypatch.setattr("sys.argv", ["semiprune", *arguments])
    try:
        main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def served_metrics(process: subprocess.Popen) -> str:
    """All that Ray's agents below the process served to Prometheus until it ended."""
    told = []
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # some end while they are looked at
            agents = [
                agent for agent in psutil.Process(process.pid).children(recursive=True) if "Agent" in agent.name()
            ]
            for port in {at.laddr.port for agent in agents for at in agent.net_connections("tcp") if not at.raddr}:
                with contextlib.suppress(OSError, HTTPException):  # that port speaks of other things
                    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
                    told.append(page.read().decode())
        time.sleep(0.5)
    return "".join(told)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_in_the_store_is_the_run_on_disk(
    digits: Path,
    reference_run: Path,
    folder: Path,
    endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through broken connections and tokens that expire in the middle of the trainings; the same command goes on.

    No secret of the environment is in anything that it writes, logs, serves or says.
    """
    recipe = tiny_recipe(
        digits,
        tmp_path / "run",
        **{
            "data.shards": f"{DATA}/train-{{000000..000005}}.tar",
            "evaluate.test_shards": f"{DATA}/test-000000.tar",
        },
    )
    arguments = (str(recipe), "--set", f"root={ROOT}")

    def plan(request: Request) -> Fault | None:
        token = request.headers["x-amz-security-token"]
        if re.search(rf"^/runs/one/{token.partition('-')[0]}/.*/epoch-00002\.json$", request.path):
            expired.add(token)
        if token in expired:
            return Fault(403, "ExpiredToken")
        return Fault(cut=100, reset=True) if len(proxy.requests) % 40 == 0 else None

    expired: set[str] = set()
    said: list[str] = []
    committed: dict[Path, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="s3-") as scratch, proxied(endpoint) as proxy:  # Ray wants a short path
        proxy.plan = plan
        for stage, log in (("ssl", "text"), ("proxy", "json")):
            tokens = {"AWS_SESSION_TOKEN": f"{stage}-{CANARY}", "SEMIPRUNE_LOG": log, **SECRETS}
            status, *stopped = run("run", *arguments, **environment(proxy.endpoint), **tokens, TMPDIR=scratch)
            assert status == 2, stopped
            sentences = " ".join("".join(stopped).split())
            assert "the session token has expired; get new credentials, then run the same command again" in sentences
            assert "Traceback" not in sentences
            commits = {path: path.read_bytes() for path in (folder / "runs" / "one" / stage).rglob("epoch-?????.json")}
            assert {path.stem for path in commits} == {"epoch-00000", "epoch-00001"}
            committed |= commits
            said += stopped
        assert expired == {f"ssl-{CANARY}", f"proxy-{CANARY}"} and len(proxy.requests) > 100
        proxy.plan = lambda request: None
        tokens = {"AWS_SESSION_TOKEN": f"last-{CANARY}", **SECRETS}
        process = start("run", *arguments, **environment(proxy.endpoint), **tokens, TMPDIR=scratch)
        with ThreadPoolExecutor() as pool:
            metrics = pool.submit(served_metrics, process)
            status, *finished = finish(process)
        assert status == 0, finished
        assert "ssl  found done" in finished[1]
        assert f'run="{ROOT}"' in metrics.result()
        assert list(Path(scratch).glob("semiprune-*/*.arrow"))
        assert {path: path.read_bytes() for path in committed} == committed
        written = {**files(folder), **files(Path(scratch))}
        assert any("/logs/" in name for name in written), "Ray's logs are elsewhere"
        for name, text in [*enumerate([*said, *finished, metrics.result()]), *written.items()]:
            data = text.encode() if isinstance(text, str) else text
            assert SECRET_KEY.encode() not in data and CANARY.encode() not in data, name

    stages = ("export", "select", "score", "pseudo_label", "split")
    ours, theirs = content(folder / "runs" / "one", *stages), content(reference_run, *stages)
    assert ours == theirs
    assert sum(name == "coreset.parquet" for name, _ in ours) == 2
    assert not list((folder / "runs").rglob("*ray-train*")) + list((folder / "runs").rglob("*.tmp"))
    for place in (reference_run, folder / "runs" / "one"):
        [report] = place.glob("report/*/report.html")
        assert report.read_text().count("data:image/") > 10

    with reached(endpoint):
        before = files(folder / "runs")
        for command in (("run", *arguments), ("plan", *arguments), ("status", ROOT), ("fsck", ROOT)):
            status, said = semiprune(monkeypatch, capsys, *command)
            assert status == 0, said
            assert "to run" not in said
            assert "started" not in said or command[0] == "fsck"
        assert {name: data for name, data in files(folder / "runs").items() if name != "one/_PLAN.json"} == {
            name: data for name, data in before.items() if name != "one/_PLAN.json"
        }
        [dynamics] = (folder / "runs" / "one" / "proxy").glob("*/dynamics")
        uri = f"{ROOT}/proxy/{dynamics.parent.name}/dynamics"
        assert semiprune(monkeypatch, capsys, "score", uri, "-o", f"{ROOT}/s.parquet", "-s", "aum")[0] == 0
        chosen = ("select", f"{ROOT}/s.parquet", "top_k", "--keep-fraction", "0.3", "-o", f"{ROOT}/c.parquet")
        assert semiprune(monkeypatch, capsys, *chosen)[0] == 0
        assert (folder / "runs" / "one" / "c.parquet").stat().st_size > 0


REFUSALS = {
    "wrong secret key": "the secret key is not that of the access key; check the credentials",
    "wrong access key": "the store does not know this access key; check the credentials",
    "missing bucket": "its bucket does not exist; create it first",
    "denied prefix": "no permission for",
    "expired token": "the session token has expired; get new credentials, then run the same command again",
    "no endpoint": "cannot reach",
}


@pytest.mark.parametrize("place", ["data", "root"])
@pytest.mark.parametrize("trouble", REFUSALS)
@pytest.mark.usefixtures("ray_local")
def test_a_refusal_is_one_sentence_and_costs_nothing(
    place: str,
    trouble: str,
    digits: Path,
    folder: Path,
    store: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = uuid.uuid4().hex
    bucket = "no-such-bucket" if trouble == "missing bucket" else "runs" if place == "root" else "data"
    shards = (
        f"s3://{bucket}/train-{{000000..000005}}.tar" if place == "data" else f"{digits}/train-{{000000..000005}}.tar"
    )
    root = f"s3://{bucket}/{name}" if place == "root" else str(tmp_path / "run")
    recipe = tiny_recipe(digits, tmp_path / "run", **{"data.shards": shards, "evaluate": None})
    if trouble == "wrong secret key":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-" + SECRET_KEY)
    elif trouble == "wrong access key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    elif trouble == "denied prefix":
        store.plan = lambda request: Fault(403, "AccessDenied") if request.path.startswith(f"/{bucket}/") else None
    elif trouble == "expired token":
        store.plan = lambda request: Fault(400, "ExpiredToken")
    elif trouble == "no endpoint":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's five take seconds
    before = files(folder)
    status, said = semiprune(monkeypatch, capsys, "run", str(recipe), "--set", f"root={root}")
    sentences = [line for line in said.splitlines() if "s3://" in line]
    assert status == 2, said
    assert "Traceback" not in said
    assert REFUSALS[trouble] in " ".join(said.split())
    assert f"s3://{bucket}/" in said
    assert SECRET_KEY not in said
    assert len(sentences) == 1, said
    assert files(folder) == before


def test_an_endpoint_that_carries_a_password_is_quoted_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a signature, HTTP clients take it from there, and botocore quotes the whole address when it fails."""
    settings: dict[str, dict[str, object]] = {"s3": {"anon": True}}
    monkeypatch.setattr(fsspec.config, "conf", settings)
    with reached("http://127.0.0.1:9") as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://somebody:{CANARY}@127.0.0.1:9")
        patched.setenv("AWS_MAX_ATTEMPTS", "1")
        for ask in (storage.read, storage.names, storage.exists, lambda uri: storage.create(uri, b"1")):
            with pytest.raises(UserError, match=r"cannot reach 's3://data/x': .*//\*\*\*@127\.0\.0\.1:9") as caught:
                ask("s3://data/x")
            assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_nothing_that_is_sent_to_workers_holds_credentials(store: Proxy) -> None:
    storage.write(f"{ROOT}-pickled/x", b"1")
    filesystem, _ = storage.resolve(f"{ROOT}-pickled")
    assert SECRET_KEY.encode() not in pickle.dumps(filesystem)


@pytest.mark.parametrize("status", [400, 403])
def test_a_token_that_expires_between_two_requests_is_called_by_its_name(store: Proxy, status: int) -> None:
    """After the bytes comes a HEAD for their number, which is refused without a word."""
    storage.write("s3://runs/expiring", b"0123456789")
    for look in (storage.read, lambda uri: storage.read_range(uri, 5, 10)):
        before = len(store.requests)
        store.plan = lambda request, n=before: Fault(status, "ExpiredToken") if len(store.requests) > n + 1 else None
        with pytest.raises(UserError, match=r"'s3://runs/expiring': the session token has expired"):
            look("s3://runs/expiring")
        first, *heads, last = (request.method for request in store.requests[before:])
        assert (first, set(heads), last) == ("GET", {"HEAD"}, "GET")


def test_the_requester_pays_for_every_request(store: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As fsspec's own configuration says, which it reads when it is imported."""
    settings: dict[str, dict[str, object]] = {}
    fsspec.config.set_conf_env(settings, {"FSSPEC_S3_REQUESTER_PAYS": "true"})
    monkeypatch.setattr(fsspec.config, "conf", settings)
    s3fs.S3FileSystem.clear_instance_cache()
    uri, data = "s3://runs/paid/object", b"0123456789"
    assert storage.create(uri, data) and storage.exists(uri) and storage.info(uri)["size"] == 10
    storage.write(uri, data)
    assert storage.read(uri) == storage.read_verified(uri, storage.sha256(data)) == data
    assert storage.read_range(uri, 2, 3) == b"234"
    with storage.open_input(uri) as file:
        assert file.read() == data
    assert storage.names("s3://runs/paid") == ["object"]
    storage.delete(uri)
    assert {request.method for request in store.requests} == {"GET", "HEAD", "PUT", "DELETE"}
    assert {request.headers.get("x-amz-request-payer") for request in store.requests} == {"requester"}


@pytest.mark.slow
def test_reads_are_right_at_200_random_faults(store: Proxy) -> None:
    """One to three faults in a row, of every kind, at any byte: the bytes come, all and right."""
    chance = random.Random(0)
    data = chance.randbytes(200_000)
    checksum = storage.sha256(data)
    plans: dict[str, list[Fault]] = {}

    def plan(request: Request) -> Fault | None:
        faults = plans.get(request.path)
        return faults.pop() if faults and request.method == "GET" else None

    def a_fault() -> Fault:
        kind, cut = chance.choice(["cut", "reset", "shortened", "lost", "delay", 500, 503]), chance.randrange(200_000)
        if isinstance(kind, int):
            return Fault(status=kind, code={500: "InternalError", 503: "SlowDown"}[kind])
        if kind in ("lost", "delay"):
            return Fault(lost=kind == "lost", delay=0.05)
        return Fault(cut=cut, reset=kind == "reset", shortened=kind == "shortened")

    def look(number: int) -> None:
        uri, start = f"s3://runs/{number}", starts[number]
        if number % 3 == 0:
            assert storage.read_verified(uri, checksum) == data
        elif number % 3 == 1:
            assert storage.read(uri) == data
        else:
            assert storage.read_range(uri, start, lengths[number]) == data[start : start + lengths[number]]
        assert len(plans[f"/runs/{number}"]) < planned[number], "nothing went wrong"

    starts = [chance.randrange(200_000) for _ in range(200)]
    lengths = [chance.randrange(1, 220_000) for _ in range(200)]
    for number in range(200):
        storage.write(f"s3://runs/{number}", data)
        plans[f"/runs/{number}"] = [a_fault() for _ in range(chance.choice([1, 1, 1, 2, 3]))]
    planned = [len(plans[f"/runs/{number}"]) for number in range(200)]
    store.plan = plan
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(look, range(200)))


def test_a_body_that_never_comes_whole_is_an_error_that_may_pass(store: Proxy) -> None:
    data = b"0123456789" * 1000
    faults = [Fault(cut=1000), Fault(cut=1000, reset=True), Fault(cut=0, shortened=True)]
    reads = [
        storage.read,
        lambda uri: storage.read_range(uri, 10, 5000),
        lambda uri: storage.read_verified(uri, storage.sha256(data)),
    ]
    for number in range(len(faults)):
        storage.write(f"s3://runs/never-{number}", data)
    store.plan = lambda request: faults[int(request.path[-1])] if request.method == "GET" else None

    def look(number: int) -> None:
        with pytest.raises(StorageError, match=r"'s3://runs/never-\d' failed: .*; run the same command again"):
            reads[number % 3](f"s3://runs/never-{number // 3}")

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(look, range(9)))


def test_writes_survive_lost_answers(store: Proxy) -> None:
    faults = [Fault(lost=True), Fault(status=500, code="InternalError"), Fault(lost=True)]
    store.plan = lambda request: faults.pop() if request.method == "PUT" and faults else None
    storage.write("s3://runs/lost", b"1" * 10_000)
    assert storage.read("s3://runs/lost") == b"1" * 10_000
    assert not faults
