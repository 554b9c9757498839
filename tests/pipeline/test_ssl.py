"""What the semi-supervised training leaves behind, and its loop alone in this process."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from models import training
from pipeline import ssl
from pipeline.epochs import EpochLog
from pipeline.errors import UserError
from pipeline.pixels import Pixels
from pipeline.resources import Resources
from pipeline.ssl import SslConfig
from pipeline.stage import Artifact
from pipeline.training import Worker
from tests.pipeline.making import table_artifact

Learn = Callable[..., bytes]
"""Runs the loop for 7 steps with a commit after every third; returns the last checkpoint."""


class KilledError(Exception):
    """Stands for a worker that dies."""


def config_of(done: dict[str, Artifact], **changes: object) -> SslConfig:
    config = SslConfig.model_validate_json(json.dumps(done["ssl"].manifest["config"]))
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


@pytest.fixture
def learn(done: dict[str, Artifact], lone_worker: Worker) -> Learn:
    def run(
        folder: Path,
        split: Artifact | None = None,
        die_at: int | None = None,
        images: Literal["cache", "stream"] = "cache",
        **changes: object,
    ) -> bytes:
        def tick(step: int) -> None:
            if step == die_at:
                raise KilledError

        config = config_of(done, **{"steps": 7, "checkpoint_every": 3, "batch_size": 8, **changes})
        worker = replace(lone_worker, tick=tick)
        ssl._loop(worker, done["index"], split or done["split"], config, str(folder), Resources(images=images))
        log = EpochLog(str(folder))
        return log.read_checkpoint(log.commits()[-1])

    return run


def test_the_history_has_a_row_of_finite_numbers_for_every_commit(done: dict[str, Artifact]) -> None:
    rows = done["ssl"].table("history").to_pylist()
    assert [row["step"] for row in rows] == list(range(5, 61, 5))
    assert all(math.isfinite(row["loss_labelled"]) and math.isfinite(row["loss_unlabelled"]) for row in rows)
    assert all(0 <= row["mask_rate"] <= 1 for row in rows)
    assert rows[-1]["loss_labelled"] < rows[0]["loss_labelled"]


def test_the_metrics_say_what_was_trained_and_by_how_many(done: dict[str, Artifact]) -> None:
    assert done["ssl"].metrics == {"steps": 60, "algorithm": "fixmatch", "world_sizes": [2]}


def test_the_notes_of_ray_train_are_gone(done: dict[str, Artifact]) -> None:
    assert {path.name.partition("-")[0] for path in Path(done["ssl"].uri).iterdir()} == {
        "_MANIFEST.json",
        "history",
        "model",
        "training",
    }


def test_the_model_is_the_average_of_the_last_checkpoint(done: dict[str, Artifact]) -> None:
    log = EpochLog(f"{done['ssl'].uri}/training")
    checkpoint = training.load(log.read_checkpoint(log.commits()[-1]), torch.device("cpu"))
    (part,) = done["ssl"].parts("model")
    model = training.load(done["ssl"].read(part), torch.device("cpu"))
    assert model.keys() == checkpoint["ema"].keys()
    assert all(torch.equal(value, checkpoint["ema"][name]) for name, value in model.items())
    assert not torch.equal(model["head.weight"], checkpoint["model"]["head.weight"])


def test_commits_come_at_their_interval_and_at_the_end(learn: Learn, tmp_path: Path) -> None:
    learn(tmp_path / "log")
    commits = EpochLog(str(tmp_path / "log")).commits()
    assert [commit.facts["step"] for commit in commits] == [3, 6, 7]
    assert [commit.facts["metrics"]["step"] for commit in commits] == [3, 6, 7]


@pytest.mark.parametrize("moment", [1, 3, 5, 7])
def test_a_training_that_died_at_any_step_ends_in_the_same_bytes(learn: Learn, tmp_path: Path, moment: int) -> None:
    expected = learn(tmp_path / "through")
    with pytest.raises(KilledError):
        learn(tmp_path / "died", die_at=moment)
    assert learn(tmp_path / "died") == expected


def test_images_from_the_cache_and_from_the_shards_train_the_same_model(learn: Learn, tmp_path: Path) -> None:
    """Also a training that takes them from the one before it died, and from the other afterwards."""
    expected = learn(tmp_path / "cached")
    assert learn(tmp_path / "streamed", images="stream") == expected
    with pytest.raises(KilledError):
        learn(tmp_path / "both", die_at=5, images="stream")
    assert learn(tmp_path / "both") == expected


def test_after_the_last_step_nothing_is_trained(learn: Learn, tmp_path: Path) -> None:
    first = learn(tmp_path / "log")
    before = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert learn(tmp_path / "log") == first
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == before


def with_other_labels(split: Artifact, role: str, folder: Path) -> Artifact:
    """The split with every label of a role replaced by the next class."""
    table = split.table()
    chosen = pc.equal(table["role"], role).to_numpy(zero_copy_only=False)
    labels = np.where(chosen, (table["label"].to_numpy() + 1) % 10, table["label"].to_numpy())
    column = table.column_names.index("label")
    return table_artifact(folder, role, [table.set_column(column, "label", pa.array(labels))])


def test_labels_that_are_held_out_teach_nothing(learn: Learn, done: dict[str, Artifact], tmp_path: Path) -> None:
    expected = learn(tmp_path / "log")
    assert learn(tmp_path / "held", with_other_labels(done["split"], "holdout", tmp_path)) == expected
    assert learn(tmp_path / "taught", with_other_labels(done["split"], "train", tmp_path)) != expected


def test_a_training_that_diverges_is_one_sentence_and_commits_nothing(learn: Learn, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^ssl diverged before step 3: lower ssl\.lr 1e\+30$"):
        learn(tmp_path / "log", lr=1e30)
    assert EpochLog(str(tmp_path / "log")).commits() == []


@pytest.mark.parametrize("changes", [{"class_balanced": True}, {"logit_adjustment": 1.0}, {"micro_batches": 3}])
def test_what_is_asked_for_changes_the_model_and_not_that_it_is_continued_and_streamed(
    learn: Learn, tmp_path: Path, changes: dict[str, object]
) -> None:
    expected = learn(tmp_path / "log", **changes)
    assert expected != learn(tmp_path / "plain")
    with pytest.raises(KilledError):
        learn(tmp_path / "died", die_at=5, images="stream", **changes)
    assert learn(tmp_path / "died", **changes) == expected


def test_the_supervised_baseline_reads_no_unlabelled_image(
    learn: Learn, done: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(Pixels, "take", lambda self, ids: read.append(ids) or _take(self, ids))
    learn(tmp_path / "log", algorithm="supervised", options={})
    roles = done["split"].table()
    known = roles.filter(pc.equal(roles["role"], "train"))["sample_id"].to_numpy()
    assert len(read) >= 7 and np.isin(np.concatenate(read), known).all()
    (*_, last) = EpochLog(str(tmp_path / "log")).commits()
    assert last.facts["metrics"]["mask_rate"] == last.facts["metrics"]["loss_unlabelled"] == 0


_take = Pixels.take
