"""A loop on the workers of Ray Train; what becomes of one whose worker dies is in tests/test_crash.py."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from torch import distributed

from pipeline import storage
from pipeline.errors import SemiPruneError, UserError
from pipeline.resources import Resources
from pipeline.training import Worker, _Job, _trainer, train
from tests.pipeline.making import silent

pytestmark = pytest.mark.usefixtures("ray_local")


class Witness:
    """An argument that leaves a file in every process that unpickles it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, str]) -> None:
        storage.write(f"{state['folder']}/unpickled-{os.getpid()}", b"")


def talk(worker: Worker, folder: str, witness: Witness) -> None:
    assert distributed.is_initialized() and (distributed.get_rank(), distributed.get_world_size()) == (worker.rank, 2)
    assert worker.agree(f"said by {worker.rank}") == "said by 0"
    assert worker.gather(worker.rank * 10) == [0, 10]
    for step in worker.meter.watch(iter(range(3)), lambda step: 1):
        worker.tick(step)
        time.sleep(0.3)
    storage.write(f"{folder}/rank-{worker.rank}", str(worker.world_size).encode())
    storage.write(f"{folder}/worker-{os.getpid()}", b"")


def blunder(worker: Worker, folder: str, witness: Witness) -> None:
    worker.gather(0)
    if worker.rank == 1:
        raise UserError("the labels are upside down: turn them")
    worker.gather(0)
    storage.write(f"{folder}/gathered", b"")


def break_down(worker: Worker) -> None:
    assert not distributed.is_initialized() and worker.agree("alone") == "alone" and worker.gather(7) == [7]
    raise RuntimeError("out of\nsorts")


def test_a_loop_runs_on_every_worker_and_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    train(
        talk,
        {"folder": str(tmp_path), "witness": Witness(str(tmp_path))},
        str(tmp_path / "stage"),
        Resources(),
        lambda *now: told.append(now),
        total=3,
        unit="steps",
    )
    assert (tmp_path / "rank-0").read_bytes() == (tmp_path / "rank-1").read_bytes() == b"2"
    # Nobody else waits for the imports that arguments need, torch above all.
    pids = [{path.name.split("-")[1] for path in tmp_path.glob(f"{stem}-*")} for stem in ("unpickled", "worker")]
    assert pids[0] == pids[1] and len(pids[0]) == 2
    assert told[-1] == (3, 3, "steps") and {total for _, total, _ in told} == {3}
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert len({done for done, _, _ in told}) > 2


def test_a_mistake_of_the_user_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the labels are upside down: turn them$"):
        train(
            blunder,
            {"folder": str(tmp_path), "witness": Witness(str(tmp_path))},
            str(tmp_path / "stage"),
            Resources(),
            silent,
            total=1,
            unit="steps",
        )
    assert len(list(tmp_path.glob("unpickled-*"))) == 2, "the group was started again"
    assert not (tmp_path / "gathered").exists()


def test_workers_that_keep_dying_are_one_sentence(tmp_path: Path) -> None:
    sentence = r"training in '.*stage' failed 1 times and stopped; what was committed is kept\. Last cause: .*sorts"
    with pytest.raises(SemiPruneError, match=sentence) as caught:
        train(
            break_down,
            {},
            str(tmp_path / "stage"),
            Resources(num_workers=1, max_failures=0),
            silent,
            total=1,
            unit="steps",
        )
    assert "\n" not in str(caught.value)


def test_a_stage_has_one_place_among_the_reservations_of_a_cluster(tmp_path: Path) -> None:
    """A driver that is killed leaves its reservation, and the next one has to get it."""
    uris = ("s3://bucket/run/proxy/1", "s3://bucket/run/proxy/1", "s3://bucket/run/proxy/2")
    jobs = [_Job(break_down, {}, uri, None, 1, use_gpu=False) for uri in uris]
    ids = [_trainer(job, Resources(), str(tmp_path)).train_run_context.run_id for job in jobs]
    assert ids[0] == ids[1] != ids[2]


def test_steps_are_told_as_rows(lone_worker: Worker) -> None:
    told: list[int] = []
    worker = replace(lone_worker, tick=told.append)
    for step in range(4):
        worker.tick_steps(100, 100 / 3, step)
    assert told == [100, 133, 167, 200]
