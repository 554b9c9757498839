"""Several attempts at one stage: one runs it, the others say who does, whatever dies and whenever."""

import getpass
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import lease, process_mark, storage
from pipeline.config import Config
from pipeline.epochs import EpochLog
from pipeline.errors import CorruptArtifactError, SemiPruneError, UserError
from pipeline.fsck import check
from pipeline.lease import Holder, hold
from pipeline.resources import Resources
from pipeline.run import execute
from pipeline.stage import Output, Progress, Run, Stage
from pipeline.status import StageStatus, read_status
from tests.object_store import Fault, Proxy
from tests.pipeline.interleaved import MANIFEST, Attempt, World, commits, fails, hurries, world
from tests.pipeline.making import silent
from tests.running import REPOSITORY, finish

SCRIPTS = st.sampled_from([commits, fails, hurries])
DEATHS = st.one_of(st.just(-1), st.integers(0, 16))


def examine(here: World) -> None:
    """What must hold, in whatever order the attempts came."""
    assert here.passed_over == []
    passed = [attempt.generation for attempt in here.attempts if attempt.passed is not None]
    assert len(set(passed)) == len(passed)
    taken = sorted(attempt.taken for attempt in here.attempts if attempt.taken is not None)
    for attempt in here.attempts:
        if attempt.passed is not None:  # who may commit was the last to get the lease when it asked
            assert attempt.taken is not None
            assert not [step for step in taken if attempt.taken < step < attempt.passed]
        if isinstance(attempt.error, UserError):
            said = str(attempt.error)
            assert "run the same command again" in said
            assert "is being run by" in said or attempt.taken is not None
            if "is gone" not in said:
                [number] = map(int, re.findall(r"ana@box-(\d+) \(pid 10\d\d, since ", said))
                named = here.attempts[number]
                assert named is not attempt and (named.taken is not None or not here.exclusive)
        else:
            assert attempt.error is None or attempt.dead or str(attempt.error) == "the work failed"
    assert MANIFEST in here.objects or all(attempt.error for attempt in here.attempts)


def finish_alone(here: World) -> None:
    """Whatever happened, one more attempt brings the stage to its end; only the manifest is left."""
    last = here.add(commits)
    before = here.objects.get(MANIFEST)
    here.run([])
    assert last.error is None
    if before is None:
        assert [name.rsplit("/", 1)[-1] for name in here.objects] == ["_MANIFEST.json"]
        assert here.objects[MANIFEST] == last.holder.encode()
    else:
        assert here.objects[MANIFEST] == before


@given(
    st.lists(st.tuples(SCRIPTS, DEATHS, st.booleans()), min_size=2, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 8)), max_size=12),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=100)
def test_any_order_of_operations_and_any_death(
    attempts: list[tuple[Callable[[Attempt], None], int, bool]],
    turns: list[tuple[int, int]],
    exclusive: bool,
    one_host: bool,
) -> None:
    """turns: who is next, and for how many operations."""
    with world(exclusive, one_host) as here:
        for script, dies_at, effective in attempts:
            here.add(script, dies_at, effective)
        here.run([who for who, operations in turns for _ in range(operations)])
        examine(here)
        finish_alone(here)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("mortal", [None, 0, 1])
@pytest.mark.parametrize("script", [commits, hurries])
def test_every_few_switches_and_every_death(
    exclusive: bool, mortal: int | None, script: Callable[[Attempt], None]
) -> None:
    """One goes some steps, then the other, then the first, then the other to its end; or one dies, in any operation."""
    deaths = itertools.product(range(14), [True, False]) if mortal is not None else [(-1, False)]
    third = range(12) if mortal is None else [99]
    for (dies_at, effective), *steps in itertools.product(deaths, range(12), range(12), third):
        with world(exclusive) as here:
            for number in range(2):
                here.add(script, dies_at if number == mortal else -1, effective)
            here.run([number % 2 for number, count in enumerate([*steps, 99]) for _ in range(count)])
            examine(here)
            finish_alone(here)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are quick to tell."""
    for name, value in {"BEAT": 0.05, "LOOK": 0.02, "SETTLE": 0.1}.items():
        monkeypatch.setattr(lease, name, value)


@pytest.fixture(params=["local", "s3", "rclone"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A stage's folder on each kind of place: a disk, a store with conditional writes, and one without."""
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue(f"{request.param}_root")
    return f"{root}/ssl/0123"


def elsewhere(folder: str, **changes: object) -> Holder:
    """The lease, in the hands of an attempt on another machine that is never heard of again."""
    holder = Holder(**{**vars(Holder.new()), "user": "ana", "host": "elsewhere", "pid": 12, **changes})
    assert storage.create(f"{folder}/_LEASE-000001.json", holder.encode())
    return holder


def ignore(_: str) -> None:
    """Nobody wants to know."""


@pytest.mark.usefixtures("fast")
def test_one_holds_and_the_other_names_it(folder: str) -> None:
    told: list[str] = []
    with hold(folder, "stage 'ssl'", ignore) as held:
        sentence = r"^the stage 'ssl' in '.*/ssl/0123' is being run by .+@.+ \(pid \d+, since .* UTC\): wait until .*;"
        with pytest.raises(UserError, match=rf"{sentence} then run the same command again$") as caught:
            hold(folder, "stage 'ssl'", told.append).__enter__()
        assert str(held.me) in str(caught.value) and str(held.me) in told[0]
        held.verify()
    assert storage.names(folder) == []


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_a_lease_that_was_let_go_is_had_at_once(folder: str) -> None:
    for error in (KeyboardInterrupt, SemiPruneError):
        with pytest.raises(error), hold(folder, "ssl", ignore) as held:
            held.give_sign(1)
            raise error
    assert storage.names(folder) == [f"_LEASE-00000{number}.json" for number in (1, 2)]
    with hold(folder, "ssl", pytest.fail) as held:
        assert held.generation == 3
    assert storage.names(folder) == []


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_the_lease_of_a_dead_machine_lapses_and_who_comes_back_stops(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LAPSE", 0.1)
    told: list[str] = []
    dead = elsewhere(folder)
    theirs = lease.Lease(folder, "ssl", dead, 1)
    theirs.give_sign(1)
    with hold(folder, "ssl", told.append) as held:
        assert told == [f"looks for up to 0 s whether {dead}, who has it, is alive"]
        theirs.give_sign(2)  # it was asleep, and it sees that it is too late
        for ask in (theirs.check, theirs.verify):
            with pytest.raises(UserError, match=rf"was taken over by {re.escape(str(held.me))}, for this attempt"):
                ask()
        held.verify()
    assert storage.names(folder) == []
    again = lease.Lease(folder, "ssl", dead, 1)
    with pytest.raises(UserError, match="is gone: another attempt has finished it"):
        again.verify()
    again.end(None, committed=False)
    assert storage.names(folder) == []


@pytest.mark.usefixtures("fast")
def test_an_error_that_a_takeover_caused_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was taken over by ana@elsewhere"), hold(str(tmp_path), "ssl", ignore):
        storage.create(
            f"{tmp_path}/_LEASE-000002.json",
            Holder(**{**vars(Holder.new()), "user": "ana", "host": "elsewhere"}).encode(),
        )
        raise UserError("epoch 3 is already committed")


def test_who_says_so_first_commits_and_the_other_has_its_result(root: str) -> None:
    """Between the last look and the commit an attempt may fall asleep: then the lease has done what it can."""
    for first in range(2):
        stage = made(first)
        outs = [Output(stage.uri(root)) for _ in range(2)]
        for number, out in enumerate(outs):
            out.write("part", ".bin", b"%d" % number)
        artifacts = {number: stage.commit(root, outs[number], {"by": number}, {}) for number in (first, 1 - first)}
        assert artifacts[0] == artifacts[1] and artifacts[0].metrics == {"by": first}
        assert artifacts[0].read(artifacts[0].parts()[0]) == b"%d" % first


class Number(Config):
    """One number."""

    number: int


def made(number: int, run: Run = dict) -> Stage:
    """A stage that reads nothing."""
    return Stage("ssl", 1, Number(number=number), {}, run)


class Quiet:
    """A display that shows nothing."""

    def stage(self, title: str) -> AbstractContextManager[Progress]:
        return nullcontext(silent)

    def skipped(self, title: str, key: str) -> None:
        """Not shown."""

    def note(self, title: str, text: str) -> None:
        """Not shown."""


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run.connected", nullcontext)


@pytest.mark.usefixtures("fast", "no_ray")
def test_of_two_runs_at_once_one_runs_each_stage(root: str) -> None:
    ran: list[int] = []
    refused = threading.Event()

    def work(inputs: object, config: Number, out: Output, **_: object) -> dict[str, Any]:
        ran.append(config.number)
        assert config.number > 0 or refused.wait(20)
        out.write("part", ".bin", b"%d" % config.number)
        return {}

    stages = [made(number, work) for number in range(2)]

    def attempt(_: int) -> str:
        try:
            execute(stages, root, Resources(), Quiet(), {})
            return ""
        except UserError as error:
            refused.set()
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        first, second = sorted(pool.map(attempt, range(2)))
    assert first == "" and "is being run by" in second and f"pid {os.getpid()}," in second
    assert ran == [0, 1]
    execute(stages, root, Resources(), Quiet(), {})
    assert ran == [0, 1]
    assert check(root, silent).findings == []


@pytest.mark.usefixtures("no_ray")
def test_a_run_notices_at_its_next_progress_that_it_lost_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.02)
    stage = made(0, lambda *_, **told: working(told["progress"]))
    taken = Holder(**{**vars(Holder.new()), "user": "ana", "host": "elsewhere"})

    def working(progress: Progress) -> dict[str, Any]:
        assert [row.state for row in read_status(str(tmp_path))] == ["running"]
        storage.create(storage.join(stage.uri(str(tmp_path)), "_LEASE-000002.json"), taken.encode())
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            progress(1, 2, "steps")
            time.sleep(0.01)
        raise AssertionError("it did not notice")

    with pytest.raises(UserError, match=r"the stage 'ssl' .* was taken over by ana@elsewhere"):
        execute([stage], str(tmp_path), Resources(), Quiet(), {})
    assert stage.load(str(tmp_path)) is None
    assert "_LEASE-000002.json" in storage.names(stage.uri(str(tmp_path)))  # the other's, and it stays


def test_a_lease_costs_a_few_small_requests(s3_root: str, faulty: Proxy) -> None:
    assert storage.is_exclusive(s3_root)
    asked = len(faulty.requests)
    with hold(f"{s3_root}/ssl/0", "ssl", ignore) as held:
        held.verify()
    assert [request.method for request in faulty.requests[asked:]] == ["PUT", "GET", "GET", "HEAD", "GET", "DELETE"]


def test_a_lost_answer_costs_nothing(s3_root: str, faulty: Proxy) -> None:
    """The repetition of the request finds what the first one created."""
    assert storage.is_exclusive(s3_root)
    lost = [Fault(lost=True)]
    faulty.plan = lambda request: lost.pop() if request.method == "PUT" and lost else None
    with hold(f"{s3_root}/ssl/0", "ssl", ignore) as held:
        assert held.generation == 1 and not lost
        held.verify()


def test_a_holder_that_is_gone_on_this_machine_is_known_to_be_gone(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    code = f"from pipeline.process_mark import marked\nwith marked({name!r}): print(flush=True), input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        holder = elsewhere(str(tmp_path), attempt=name, host=socket.gethostname())
        assert not holder.is_gone()
        assert lease.running(str(tmp_path), storage.names(str(tmp_path))) == holder
        process.kill()
        process.wait()
        assert holder.is_gone() and not replace(holder, host="elsewhere").is_gone()
    assert lease.running(str(tmp_path), storage.names(str(tmp_path))) is None
    with hold(str(tmp_path), "ssl", pytest.fail) as held:
        assert held.generation == 2


def test_who_ended_well_left_no_mark() -> None:
    name = uuid.uuid4().hex
    with process_mark.marked(name):
        assert not process_mark.is_gone(name) and list(Path(tempfile.gettempdir()).glob(f"*{name}*"))
    assert not process_mark.is_gone(name) and not list(Path(tempfile.gettempdir()).glob(f"*{name}*"))


@pytest.mark.usefixtures("fast")
def test_who_could_not_let_go_is_known_to_be_gone(s3_root: str, faulty: Proxy) -> None:
    """As when a token expires: the same command goes on at once, with a new one."""
    folder = f"{s3_root}/ssl/0"
    with pytest.raises(UserError, match="no permission"), hold(folder, "ssl", ignore) as held:
        faulty.plan = lambda request: Fault(403, "AccessDenied")
        held.verify()
    faulty.plan = lambda request: None
    with hold(folder, "ssl", pytest.fail) as held:
        assert held.generation == 2


def test_where_no_mark_can_be_made_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/nowhere")
    with process_mark.marked("0"):
        assert not process_mark.is_gone("0")


def test_a_damaged_lease_is_named(tmp_path: Path) -> None:
    (tmp_path / "_LEASE-000001.json").write_text("{")
    with pytest.raises(CorruptArtifactError, match=r"_LEASE-000001.json' is damaged: delete it and run the same"):
        hold(str(tmp_path), "ssl", ignore).__enter__()


def test_a_holder_says_of_which_job_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_x"}}')
    assert f"(job raysubmit_x, pid {os.getpid()}, since 20" in str(Holder.new())


def test_status_and_fsck_know_what_a_lease_is(tmp_path: Path) -> None:
    storage.write(
        f"{tmp_path}/_PLAN.json", json.dumps({"stages": [{"stage": "ssl", "title": "ssl", "key": "0"}]}).encode()
    )
    folder, state = f"{tmp_path}/ssl/0", lambda: read_status(str(tmp_path))
    now = datetime.now(UTC)
    holder = elsewhere(folder, since=now)
    assert state() == [StageStatus("ssl", "0", "running", str(holder))]
    EpochLog(f"{folder}/training").commit(0, [])
    assert state() == [StageStatus("ssl", "0", "running", f"1 commits, {holder}")]
    storage.write(f"{folder}/_LEASE-000001.json", replace(holder, since=now - timedelta(hours=1)).encode())
    assert state() == [StageStatus("ssl", "0", "started", "1 commits")]
    storage.write(f"{folder}/_ALIVE-{holder.attempt}", f"3 {now.isoformat()}".encode())
    assert state()[0].state == "running"
    assert check(str(tmp_path), silent).findings == []
    storage.write(f"{folder}/_LEASE-000001.json", replace(holder, released=True).encode())
    assert state()[0].state == "started"
    shutil.rmtree(f"{folder}/training")
    assert state()[0].state == "to run"


ATTEMPT = """
import sys, time
from contextlib import nullcontext
from pathlib import Path
from pipeline import lease, run
from pipeline.errors import UserError
from pipeline.resources import Resources
from tests.pipeline.test_lease import Quiet, made
run.connected, root, scratch = nullcontext, sys.argv[1], Path(sys.argv[2])
lease.BEAT = 0.2

class Printing(Quiet):
    def note(self, title, text):
        print(text)

def work(inputs, config, out, **_):
    with (scratch / "ran").open("a") as file:
        file.write(f"{config.number}\\n")
    while config.number == 1 and not (scratch / "go").exists():
        time.sleep(0.01)
    out.write("part", ".bin", b"%d" % config.number)
    return {"number": config.number}

try:
    run.execute([made(number, work) for number in range(3)], root, Resources(), Printing(), {})
except UserError as error:
    sys.exit(f"{error}")
"""


@pytest.mark.slow
def test_two_processes_and_one_that_is_killed(folder: str, tmp_path: Path) -> None:
    """The one that is left stops; when the other is killed, a third goes on at once."""
    root = folder.removesuffix("ssl/0123") + "run"

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", ATTEMPT, root, str(tmp_path)]
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ended(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
        return [process for process in processes if process.poll() is not None]

    attempts = [start(), start()]
    while not ended(attempts):
        time.sleep(0.05)
    [refused], [holder] = ended(attempts), [process for process in attempts if process.poll() is None]
    status, noted, said = finish(refused)
    assert status == 1 and "Traceback" not in said, said
    assert noted.startswith("looks for up to 30 s whether ")
    assert f"is being run by {getpass.getuser()}@{socket.gethostname()} (pid {holder.pid}, since " in said
    holder.kill()
    holder.wait()
    (tmp_path / "go").touch()
    status, noted, said = finish(start())
    assert status == 0 and noted == "", said
    assert (tmp_path / "ran").read_text().split() == ["0", "1", "1", "2"]
    artifacts = [made(number).load(root) for number in range(3)]
    assert [artifact and artifact.metrics for artifact in artifacts] == [{"number": number} for number in range(3)]
    assert check(root, silent).findings == []
