import os
import subprocess
import sys
import threading
import time

import pytest

from pipeline.errors import CorruptArtifactError, DataError, UserError
from pipeline.parallel import map_items
from pipeline.resources import Resources
from pipeline.stage import Part
from tests.pipeline.making import silent
from tests.running import REPOSITORY

TWO = Resources(num_workers=2)


def test_results_keep_the_order_of_the_items(ray_local):
    def task(item):
        time.sleep(0.1 if item["n"] == 0 else 0)
        return {"n": item["n"], "part": Part("p", item["n"], 1, "x"), "bytes": b"\0\xff", "pair": (1, None)}

    heard = []
    results = map_items(
        [{"n": n} for n in range(6)], task, resources=TWO, progress=lambda *told: heard.append(told), unit="shards"
    )
    assert results == [{"n": n, "part": Part("p", n, 1, "x"), "bytes": b"\0\xff", "pair": (1, None)} for n in range(6)]
    assert heard == [(done, 6, "shards") for done in range(7)]


def test_no_items_need_no_ray():
    assert map_items([], abs, resources=TWO, progress=silent, unit="shards") == []


@pytest.mark.parametrize("kind", [UserError, DataError, CorruptArtifactError])
def test_deliberate_errors_come_out_as_they_are(ray_local, kind, capfd):
    def task(item):
        if item == 2:
            raise kind("the shard 'x' has changed")
        return item

    before = threading.active_count()
    with pytest.raises(kind) as caught:
        map_items([1, 2, 3], task, resources=TWO, progress=silent, unit="shards")
    assert type(caught.value) is kind
    assert str(caught.value) == "the shard 'x' has changed"
    assert threading.active_count() <= before + 4
    assert capfd.readouterr() == ("", "")


def test_mistakes_of_ours_come_out_too(ray_local, capfd):
    def task(item):
        raise KeyError("not ours")

    with pytest.raises(Exception, match="not ours"):
        map_items([1], task, resources=TWO, progress=silent, unit="shards")
    assert capfd.readouterr().out == ""


def test_a_task_whose_worker_dies_is_run_again(ray_local, tmp_path):
    def task(item):
        mark = tmp_path / str(item)
        if item == 1 and not mark.exists():
            mark.touch()
            os._exit(1)
        return item

    assert map_items([0, 1, 2], task, resources=TWO, progress=silent, unit="shards") == [0, 1, 2]


@pytest.mark.slow
def test_a_gpu_keeps_its_process_from_item_to_item(tmp_path):
    script = f"""
import os, ray
from pathlib import Path
from pipeline.errors import UserError
from pipeline.parallel import map_items
from pipeline.resources import Resources

def task(item):
    if item == "mistake":
        raise UserError("stop")
    mark = Path({str(tmp_path)!r}, "died")
    if item == "dies once" and not mark.exists():
        mark.touch()
        os._exit(1)
    return item, os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

def run(*items):
    arguments = {{"resources": Resources(), "progress": lambda *told: None, "unit": "parts"}}
    return map_items(items, task, **arguments, gpus=1)

ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
found = run(*range(8))
assert [item for item, _, _ in found] == list(range(8))
assert len({{process for _, process, _ in found}}) == 1 and {{device for *_, device in found}} == {{"0"}}, found
assert [item for item, *_ in run("a", "dies once", "b")] == ["a", "dies once", "b"]
try:
    run("a", "mistake")
except UserError as error:
    assert str(error) == "stop"
else:
    raise AssertionError("no error")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Deprecation" not in done.stderr


def test_the_rest_stops_after_an_error(ray_local, tmp_path):
    def task(item):
        if item == 0:
            raise UserError("stop")
        time.sleep(0.2)
        (tmp_path / str(item)).touch()

    with pytest.raises(UserError, match="stop"):
        map_items(range(60), task, resources=TWO, progress=silent, unit="shards")
    assert map_items([1], abs, resources=TWO, progress=silent, unit="shards") == [1]
    assert len(list(tmp_path.iterdir())) < 20


def test_nothing_is_printed(ray_local, capfd):
    assert map_items([3, -4], abs, resources=TWO, progress=silent, unit="shards") == [3, 4]
    assert capfd.readouterr() == ("", "")
