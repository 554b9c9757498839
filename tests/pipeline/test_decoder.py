"""The processes that decode: what reaches them, how they end, and what is said when they end too early."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from pipeline import forks, images
from pipeline.decoder import Views
from pipeline.epoch_plan import Plan, Planned, in_order
from pipeline.errors import SemiPruneError
from pipeline.samples import Samples
from pipeline.stage import Artifact
from pipeline.stream import Stream
from tests.pipeline import in_decoder
from tests.pipeline.in_decoder import Arriving, decoders
from tests.pipeline.making import image, open_samples, run_index, write_dataset

N = 12


@pytest.fixture(scope="module")
def index(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("decoder")
    return run_index(folder / "run", write_dataset(folder / "data", num_shards=3))


@pytest.fixture(scope="module")
def samples(index: Artifact) -> Samples:
    return open_samples(index)


def all_of(samples: Samples, batch_size: int = N) -> Iterator[Planned]:
    return in_order(samples, np.arange(N), batch_size)


def gone(found: Callable[[], list[psutil.Process]]) -> bool:
    """Within some seconds."""
    until = time.monotonic() + 20
    while found() and time.monotonic() < until:
        time.sleep(0.01)
    return not found()


def test_there_may_be_more_processes_than_work(samples: Samples) -> None:
    (step,) = Stream(samples, processes=7).steps(all_of(samples))
    assert np.array_equal(step.images, np.stack([images.decode(image(n), 8, 10**6) for n in range(N)]))
    assert gone(decoders)


def test_steps_stay_as_long_as_they_are_kept(samples: Samples) -> None:
    plan = Plan(samples, 0, "test", 5)
    few, kept = itertools.islice(plan.epochs(), 60), []
    for step in Stream(samples, processes=2).steps(few):
        kept.append((step.ids, step.images, step.images.copy()))
    assert len(kept) == 60
    assert all(np.array_equal(array, copy) for _, array, copy in kept)


def test_it_has_the_environment_of_the_moment_and_no_other(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(Stream(samples).steps(all_of(samples)))  # whatever has to be started for all
    monkeypatch.setenv("SEMIPRUNE_TEST", "the value of now")
    monkeypatch.delenv("LANG", raising=False)
    for name in ("SEMIPRUNE_TEST", "LANG", "OPENBLAS_NUM_THREADS"):
        hook = partial(in_decoder.environment, name, tmp_path / name)
        list(Stream(samples, views=Arriving(hook)).steps(all_of(samples)))
        assert (tmp_path / name).read_text() == os.environ.get(name, "none")


@pytest.mark.parametrize("views", [in_decoder.mistake, Arriving(in_decoder.broken)])
def test_a_mistake_of_ours_is_raised_with_the_place_where_it_was_made(samples: Samples, views: Views) -> None:
    with pytest.raises(KeyError, match="a mistake") as caught:
        list(Stream(samples, 2, views).steps(all_of(samples, 3)))
    assert "in_decoder.py" in "".join(caught.value.__notes__)
    assert gone(decoders)


def test_one_that_is_killed_is_one_sentence(samples: Samples) -> None:
    said = r"^a process that decodes images was killed, most likely for want of memory: .* run the same command again$"
    with pytest.raises(SemiPruneError, match=said):
        list(Stream(samples, 2, in_decoder.die).steps(all_of(samples, 3)))
    assert gone(decoders)

    steps = Stream(samples, 2).steps(Plan(samples, 0, "test", 3).epochs())
    next(steps)
    for process in decoders():
        process.kill()
    with pytest.raises(SemiPruneError, match=said):
        list(itertools.islice(steps, 100))
    assert gone(decoders)


def test_the_process_that_starts_them_may_be_killed_and_is_started_again(samples: Samples) -> None:
    steps = Stream(samples).steps(all_of(samples, 1))
    next(steps)
    ((server, _),) = forks._servers.values()
    assert psutil.Process(server.pid).num_threads() == 1  # it forks
    psutil.Process(server.pid).kill()
    assert len(list(steps)) == N - 1
    assert gone(lambda: [p for p in (psutil.Process(server.pid),) if p.status() != psutil.STATUS_ZOMBIE])
    for _ in range(2):
        assert len(list(Stream(samples).steps(all_of(samples, 1)))) == N
    ((other, _),) = forks._servers.values()
    assert other.pid != server.pid


TRAINING = """
import signal, sys
from pipeline.disk_cache import DiskCache
from pipeline.samples import Samples
from pipeline.stage import Artifact
from pipeline.stream import Stream
from pipeline.epoch_plan import Plan
import json
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's job in the background has not
samples = Samples.open(Artifact(sys.argv[1], json.loads(sys.argv[2])), DiskCache.at(None, None))
steps = Stream(samples, 2).steps(Plan(samples, 0, "test", 3).epochs())
next(steps)
print("going", flush=True)
while True:
    next(steps)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_all_end_when_the_process_that_trains_is_killed(index: Artifact, end: signal.Signals) -> None:
    command = [sys.executable, "-c", TRAINING, index.uri, json.dumps(index.manifest)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as training:
        assert training.stdout is not None and training.stdout.readline() == "going\n"
        started = psutil.Process(training.pid).children(recursive=True)
        assert len(started) == 3
        while training.poll() is None:  # Python loses an interrupt that comes while a weak reference is called back
            training.send_signal(end)
            time.sleep(0.5)
    assert gone(lambda: [process for process in started if process.is_running() and process.status() != "zombie"])
