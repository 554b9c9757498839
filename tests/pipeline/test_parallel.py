import os
import threading
import time

import pytest

from pipeline.errors import CorruptArtifactError, DataError, UserError
from pipeline.parallel import map_items
from pipeline.resources import Resources
from pipeline.stage import Part
from tests.pipeline.making import silent

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
