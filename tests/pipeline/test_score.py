"""The score stage: its settings, and a real Ray under it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline import dynamics, score
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
    assert short.scores == {"dual": {"T": 30, "J": 10, "ddof": 1}, "forgetting": {"never_learned": "max"}}
    assert list(short.scores) == ["dual", "forgetting"]
    assert config(json.dumps(short.model_dump())) == short
    assert (
        Stage("score", 1, short, {}, score.run).key
        == Stage("score", 1, config(json.dumps(short.scores)), {}, score.run).key
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no score is asked for: choose from aum, aum_logit"),
        ('{"loss": {}}', "there is no score 'loss': choose from aum"),
        ('{"dual": {"T": 5}}', "J=10 must be 2 or more and at most T=5"),
        ('{"dual": {"T": 30, "K": 5}}', "no option 'K': choose from T, J, ddof"),
        ('{"aum": null}', "should be an object"),
        ("[]", "should be an object"),
    ],
)
def test_wrong_settings_are_found_without_data(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(text)


@pytest.mark.parametrize("n", [1, 100, 2**14, 2**14 + 1, 10**6, 10**7])
@pytest.mark.parametrize("span", [2**4, 2**15, 2**18])
@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_ranges_cover_every_id_once_in_whole_blocks_and_give_every_task_some(n: int, span: int, tasks: int) -> None:
    ranges = score.cut(n, span, tasks)
    assert [i for low, high in ranges for i in (low, high)][1:-1] == [low for low, _ in ranges[1:] for _ in range(2)]
    assert ranges[0][0] == 0 and ranges[-1][1] == n
    assert all(low % max(span, score.SUM_ROWS) == 0 for low, _ in ranges)
    assert len(ranges) == min(2 * tasks, -(-n // max(span, score.SUM_ROWS)))


def test_the_stage_writes_the_same_values_and_metrics_for_any_number_of_tasks(
    ray_local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamics, "BLOCK_ROWS", score.SUM_ROWS // 2)
    n, rng = 8 * score.SUM_ROWS + 77, np.random.default_rng(0)
    writer = DynamicsWriter(f"{tmp_path}/proxy/dynamics", n)
    for epoch in range(4):
        writer.observe(rng.permutation(n), rng.normal(0, 2, (n, 3)).astype(np.float32), rng.integers(0, 3, n))
        writer.commit_epoch(epoch)
    settings = config('{"aum": {}, "forgetting": {}, "dual": {"T": 4, "J": 3}}')
    proxy = Artifact(f"{tmp_path}/proxy", {})
    labels = Output(f"{tmp_path}/pseudo_label")
    train_label = rng.integers(0, 3, n)
    for low in range(0, n, 5000):
        ids = np.arange(low, min(low + 5000, n))
        labels.write_table(pa.table({"sample_id": ids, "train_label": train_label[ids]}))
    pseudo_label = Artifact(labels.uri, {"parts": [vars(part) for part in labels.parts]})
    told: dict[int, list[int]] = {1: [], 3: []}
    outputs, metrics = {}, {}
    for workers, heard in told.items():
        outputs[workers] = Output(f"{tmp_path}/score-{workers}")
        metrics[workers] = score.run(
            {"proxy": proxy, "pseudo_label": pseudo_label},
            settings,
            outputs[workers],
            resources=Resources(num_workers=workers),
            progress=lambda done, total, unit, heard=heard: heard.append(done),
        )
    assert [len(output.parts) for output in outputs.values()] == [2, 6]
    tables = [
        Artifact(output.uri, {"parts": [vars(part) for part in output.parts]}).table() for output in outputs.values()
    ]
    expected = compute_scores(f"{tmp_path}/proxy/dynamics", ["aum", "dual", "forgetting"], dual={"T": 4, "J": 3})
    expected = expected.add_column(1, "train_label", pa.array(train_label))
    assert tables[0].equals(expected) and tables[1].equals(expected)
    assert json.dumps(metrics[1]) == json.dumps(metrics[3])
    assert told == {1: list(range(3)), 3: list(range(7))}
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
    with pytest.raises(CorruptArtifactError, match=rf"^'.*{file}' .epoch 0. is damaged"):
        score.run(
            {"proxy": Artifact(f"{tmp_path}/proxy", {}), "pseudo_label": Artifact(f"{tmp_path}/none", {"parts": []})},
            config('{"aum": {}}'),
            out,
            resources=Resources(),
            progress=lambda *_: None,
        )
    assert out.parts == []
