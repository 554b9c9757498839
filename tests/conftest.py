import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from subprocess import Popen

    from pipeline.stage import Artifact
    from pipeline.training import Worker

# Before Ray is imported anywhere: what a run sets for itself, and no service of this machine's but our own.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_metrics_report_interval_ms", "500")
os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)  # Ray's workers import from the tests

settings.register_profile("any machine", deadline=None)  # no test is about time
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that is decoded here, or in any process that is started here, reaches the cache of the user's runs."""
    tmp_path_factory.getbasetemp()  # what pytest keeps of the last sessions stays where it is
    with (
        tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder,  # Ray's sockets want it short
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One real Ray with two CPUs for every test of the session that asks."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as shards: train-{000000..000005}.tar and test-000000.tar."""
    from jobs.importers import write_digits

    folder = tmp_path_factory.mktemp("digits") / "data"
    write_digits(str(folder))
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need the reference run come last: it goes on while the others are tested."""
    late = {item.path for item in items if _needs_reference(item)}
    items.sort(key=lambda item: item.path in late)


def _needs_reference(item: pytest.Item) -> bool:
    return "reference_run" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session", autouse=True)
def _reference_started(request: pytest.FixtureRequest, _temporary: None) -> None:
    if any(map(_needs_reference, request.session.items)):
        request.getfixturevalue("_reference")


@pytest.fixture(scope="session")
def _reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[tuple[Path, Popen]]":
    from tests.running import kill_tree, start, tiny_recipe

    root = tmp_path_factory.mktemp("reference") / "run"
    process = start("run", str(tiny_recipe(digits, root)))
    yield root, process
    if process.poll() is None:
        kill_tree(process)


@pytest.fixture(scope="session")
def reference_run(_reference: "tuple[Path, Popen]") -> Path:
    """The run directory of the tiny recipe, run once without interruption."""
    from tests.running import finish

    root, process = _reference
    status, _, err = finish(process)
    assert status == 0, err
    return root


@pytest.fixture(scope="session")
def done(reference_run: Path) -> dict[str, "Artifact"]:
    """The finished stages of the reference run, by title."""
    from tests.running import artifacts

    return artifacts(reference_run)


@pytest.fixture
def lone_worker(tmp_path: Path) -> Iterator["Worker"]:
    """A worker that is the whole group of a training, in this process: the loops run as they do under Ray Train."""
    import torch
    from torch import distributed

    from pipeline.metrics import Meter
    from pipeline.training import Worker

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield Worker(0, 1, torch.device("cpu"), tick=lambda done: None, meter=Meter(f"{tmp_path}/stage/key"))
    distributed.destroy_process_group()
    torch.set_num_threads(threads)
