"""The score stage: its settings, and a real Ray under it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline import reduce, score
from pipeline.dynamics import DynamicsWriter
from pipeline.errors import CorruptArtifactError
from pipeline.resources import Resources
from pipeline.score import ScoreConfig
from pipeline.scores import compute_scores
from pipeline.stage import Artifact, Output, Stage


def config(text: str) -> ScoreConfig:
    return ScoreConfig.model_validate_json(text)


def test_settings_are_complete_and_sorted_so_that_equal_ones_have_equal_keys() -> None:
    short = config('{"forgetting": {}, "dual": {"T": 30}}')
    assert short.scores == {"dual": {"T": 30, "J": 10}, "forgetting": {"never_learned": "max"}}
    assert list(short.scores) == ["dual", "forgetting"]
    assert config(json.dumps(short.model_dump())) == short
    assert (
        Stage("score", 1, short, {}, score.run).key
        == Stage("score", 1, config(json.dumps(short.scores)), {}, score.run).key
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no score is asked for: choose from aum, dual"),
        ('{"loss": {}}', "there is no score 'loss': choose from aum"),
        ('{"dual": {"T": 5}}', "J=10 must be 2 or more and at most T=5"),
        ('{"dual": {"T": 30, "K": 5}}', "no option 'K': choose from T, J"),
        ('{"aum": null}', "should be an object"),
        ("[]", "should be an object"),
    ],
)
def test_wrong_settings_are_found_without_data(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(text)


@pytest.mark.parametrize(
    ("n", "workers", "count"),
    [
        (1, 4, 1),
        (100, 1, 1),
        (3 * 2**14, 2, 2),
        (3 * 2**14 + 1, 3, 3),
        (2**20, 7, 7),
        (reduce.RANGE, 1, 1),
        (reduce.RANGE + 1, 1, 2),
        (10 * reduce.RANGE - 1, 4, 10),
    ],
)
def test_ranges_cover_every_id_once_at_chunk_boundaries(n: int, workers: int, count: int) -> None:
    ranges = score.cut(n, workers)
    assert [i for low, high in ranges for i in (low, high)][1:-1] == [low for low, _ in ranges[1:] for _ in range(2)]
    assert ranges[0][0] == 0 and ranges[-1][1] == n and len(ranges) == count
    assert all(low % reduce.CHUNK == 0 and 0 < high - low <= reduce.RANGE for low, high in ranges)


def test_the_stage_writes_the_same_values_and_metrics_for_any_number_of_tasks(ray_local: Any, tmp_path: Path) -> None:
    n, rng = 2 * reduce.CHUNK + 77, np.random.default_rng(0)
    writer = DynamicsWriter(f"{tmp_path}/proxy/dynamics", n)
    for epoch in range(4):
        writer.observe(rng.permutation(n), rng.normal(0, 2, (n, 3)).astype(np.float32), rng.integers(0, 3, n))
        writer.commit_epoch(epoch)
    settings = config('{"aum": {}, "forgetting": {}, "dual": {"T": 4, "J": 3}}')
    proxy = Artifact(f"{tmp_path}/proxy", {})
    told: dict[int, list[int]] = {1: [], 3: []}
    outputs, metrics = {}, {}
    for workers, heard in told.items():
        outputs[workers] = Output(f"{tmp_path}/score-{workers}")
        metrics[workers] = score.run(
            {"proxy": proxy},
            settings,
            outputs[workers],
            resources=Resources(num_workers=workers),
            progress=lambda done, total, unit, heard=heard: heard.append(done),
        )
    assert [len(output.parts) for output in outputs.values()] == [1, 3]
    tables = [
        Artifact(output.uri, {"parts": [vars(part) for part in output.parts]}).table() for output in outputs.values()
    ]
    expected = compute_scores(f"{tmp_path}/proxy/dynamics", ["aum", "dual", "forgetting"], dual={"T": 4, "J": 3})
    assert tables[0].equals(expected) and tables[1].equals(expected)
    assert json.dumps(metrics[1]) == json.dumps(metrics[3])
    assert told == {1: [0, 1], 3: [0, 1, 2, 3]}
    assert metrics[1]["harder"] == {"aum": "low", "dual": "high", "dual_mean": "low", "forgetting": "high"}
    assert (metrics[1]["num_samples"], metrics[1]["num_epochs"], metrics[1]["coverage"]) == (n, 4, 1.0)
    summary, column = metrics[1]["columns"]["aum"], expected["aum"].to_numpy().astype(np.float64)
    assert [summary["min"], summary["max"]] == [column.min(), column.max()]
    assert summary["mean"] == pytest.approx(column.mean())


def test_a_damaged_record_stops_the_stage_with_its_name(ray_local: Any, tmp_path: Path) -> None:
    writer = DynamicsWriter(f"{tmp_path}/proxy/dynamics", 3)
    writer.observe(np.arange(3), np.eye(3), np.arange(3))
    file = writer.commit_epoch(0).files[0].name
    (tmp_path / "proxy" / "dynamics" / file).write_bytes(b"damaged")
    out = Output(f"{tmp_path}/score")
    with pytest.raises(CorruptArtifactError, match=rf"^'.*{file}' is damaged"):
        score.run(
            {"proxy": Artifact(f"{tmp_path}/proxy", {})},
            config('{"aum": {}}'),
            out,
            resources=Resources(),
            progress=lambda *_: None,
        )
    assert out.parts == []
