import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.metrics import METRICS, Meter, record, watched

RUN = "s3://bucket/run-of-these-tests"
ELSEWHERE = "/home/j%C3%B6rg/%E7%A9%BA"
DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"


def loop() -> None:
    meter = Meter(f"{RUN}/proxy/0123")
    for _ in meter.watch(iter([[1, 2], [3, 4], [5]]), len):
        time.sleep(0.01)
    meter.commit(4, loss=0.25, pseudo_label_rate=0.5)
    time.sleep(1)  # until it is reported: what a process that ends at once had to say is lost


def served() -> dict[str, float]:
    """What Ray's agent serves of ours: metric{run,stage} -> value, summed over workers."""
    import ray

    [node] = ray.nodes()
    page = urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=5)
    found: dict[str, float] = {}
    for line in page.read().decode().splitlines():
        match = re.match(r'(ray_semiprune_\w+){.*run="(.*?)",stage="(.*?)".*} (\S+)$', line)
        if match and match[2] in (RUN, ELSEWHERE):  # other tests tell this Ray of theirs
            name = " ".join(match.groups()[:3])
            found[name] = found.get(name, 0) + float(match[4])
    return found


@contextmanager
def scraped() -> Iterator[dict[str, float]]:
    """The last that was served of each, also by workers that have gone."""
    found: dict[str, float] = {}
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(0.1):
            found.update(served())

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def test_what_a_training_and_its_driver_tell_is_served_to_prometheus(ray_local: None) -> None:
    import ray

    told: list[tuple[int, int, str]] = []
    with scraped() as found:
        watched(lambda *now: told.append(now), RUN, "proxy")(1, 4, "epochs")
        record("semiprune_stage_seconds", 7.5, RUN, "index")
        record("semiprune_stage_seconds", 8.5, "/home/jörg/空", "index")
        ray.get(ray.remote(num_cpus=0)(loop).remote())
        deadline = time.monotonic() + 20
        while len(found) < 10 and time.monotonic() < deadline:
            time.sleep(0.1)
    here = f"{RUN} proxy"
    assert found.pop(f"ray_semiprune_step_seconds_total {here}") >= 0.03
    assert found.pop(f"ray_semiprune_wait_seconds_total {here}") > 0
    assert found == {
        f"ray_semiprune_images_total {here}": 5,
        f"ray_semiprune_steps_total {here}": 3,
        f"ray_semiprune_commits {here}": 4,
        f"ray_semiprune_loss {here}": 0.25,
        f"ray_semiprune_pseudo_label_rate {here}": 0.5,
        f"ray_semiprune_progress {here}": 0.25,
        f"ray_semiprune_stage_seconds {RUN} index": 7.5,
        f"ray_semiprune_stage_seconds {ELSEWHERE} index": 8.5,
    }
    assert told == [(1, 4, "epochs")]


def test_batches_pass_unchanged_where_no_ray_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("pipeline.metrics.EVERY", 0.0)
    batches = [[1, 2], [3]]
    meter = Meter("run/ssl/key")
    meter.commit(1, 0.5)
    assert list(meter.watch(iter(batches), len)) == batches


def test_the_dashboard_draws_every_metric_and_no_other() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    drawn = {name for panel in panels for one in panel["targets"] for name in re.findall(r"ray_(\w+)", one["expr"])}
    assert drawn == {name + "_total" * (metric.kind == "counter") for name, metric in METRICS.items()}
