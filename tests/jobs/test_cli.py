import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from jobs import cli
from pipeline.cost import SPEEDS
from pipeline.dynamics import DynamicsWriter
from pipeline.report.costs import compare
from tests.running import artifacts, tiny_recipe

Semiprune = Callable[..., tuple[int, str, str]]


@pytest.fixture
def semiprune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Semiprune:
    """Call the command line in this process: exit status, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["semiprune", *arguments])
        try:
            cli.main()
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def recipe(tmp_path: Path, digits: Path) -> Path:
    return tiny_recipe(digits, tmp_path / "run")


def test_a_mistake_is_one_sentence_and_status_2(
    semiprune: Semiprune, recipe: Path, tmp_path: Path, ray_local: None
) -> None:
    absent = str(tmp_path / "absent")
    for arguments, sentence in [
        (("plan", f"{absent}.yaml"), "there is no recipe at"),
        (("run", str(recipe), "--set", "proxy.epoch=3"), "did you mean 'epochs'?"),
        (("run", str(recipe), "--set", "select.0.keep_fraction=0"), "select.0.keep_fraction: 0 cannot be used"),
        (("run", str(recipe), "--set", "select.0.keep_fraction=1.5"), "select.0.keep_fraction: 1.5 cannot be used"),
        (("run", str(recipe), "--set", "select.0.options.mislabel_fraction=0.8"), "mislabel_fraction"),
        (("run", str(recipe), "--set", "resources.num_workers=32"), "lower resources.num_workers"),
        (("status", str(tmp_path)), "is not a run directory"),
        (("explain", "ssl.optons"), "did you mean 'ssl.options'?"),
        (
            ("select", f"{absent}.parquet", "random", "--keep-fraction", "0.5", "-o", "x"),
            "there is no file",
        ),
        (("import", "imagefolder", absent, str(tmp_path / "out")), "is no folder"),
        (("import", "torchvision", "CIFAR11", str(tmp_path / "out")), "torchvision has no dataset 'CIFAR11'"),
    ]:
        status, out, err = semiprune(*arguments)
        assert (status, out) == (2, ""), (arguments, out, err)
        assert sentence in err and err.startswith("semiprune: error: ") and err.count("\n") == 1, err


def test_a_recipes_keys_are_explained(semiprune: Semiprune) -> None:
    status, out, _ = semiprune("explain")
    assert status == 0
    assert all(section in out for section in ("root", "ssl", "resources")) and "ssl.lr" not in out
    status, out, _ = semiprune("explain", "ssl.lr")
    assert status == 0
    assert all(word in out for word in ("ssl.lr", "number > 0", "0.03", "learning rate"))
    status, out, _ = semiprune("explain", "--schema")
    assert status == 0
    assert json.loads(out)["properties"].keys() >= {"root", "ssl", "resources"}


def test_plan_runs_nothing(semiprune: Semiprune, recipe: Path, tmp_path: Path) -> None:
    status, out, _ = semiprune("plan", str(recipe))
    assert status == 0
    assert out.count("to run") == len(out.splitlines()) - 2
    assert not (tmp_path / "run").exists()


def test_the_cost_of_a_plan_beside_what_it_took(semiprune: Semiprune, reference_run: Path) -> None:
    speeds = [text for name in SPEEDS for text in ("--speed", f"{name}=100")]
    status, out, err = semiprune("plan", str(reference_run.parent / "run.yaml"), "--cost", *speeds)
    assert (status, err) == (0, "")
    title, _, *rows, speed = out.splitlines()
    assert title.startswith("Cost of 1,437 images, ") and title.endswith(" in 6 shards")
    assert [row.split()[0] for row in rows][-2:] == ["evaluate", "all"]
    assert all(row.split()[-1] == "s" for row in rows[:-1]), "each stage is done, so each has what it took"
    assert "decode 100, ssl 100" in speed and "this machine" not in speed
    compared = compare(artifacts(reference_run)) or []
    assert {row["title"] for row in compared} >= {"index", "ssl", "proxy", "score", "evaluate"}
    assert all(row["speed"] == 100 and row["reached"] > 0 for row in compared if row["images"])


@pytest.mark.parametrize("given", ["gpu=3", "ssl", "ssl=fast", "ssl=0", "ssl=nan"])
def test_a_speed_that_is_none(semiprune: Semiprune, recipe: Path, given: str) -> None:
    status, _, err = semiprune("plan", str(recipe), "--cost", "--speed", given)
    assert status == 2
    assert f"--speed {given!r} is not NAME=X" in err and "decode, ssl, proxy, final, predict" in err


def test_a_run_is_found_done_and_explained(semiprune: Semiprune, reference_run: Path, digits: Path) -> None:
    recipe = reference_run.parent / "run.yaml"
    status, out, _ = semiprune("plan", str(recipe))
    assert status == 0 and "to run" not in out
    status, out, _ = semiprune("status", str(reference_run))
    assert status == 0 and "to run" not in out and "started" not in out
    status, out, err = semiprune("run", str(recipe))
    assert status == 0 and err.count("found done") == len(yaml.safe_load(recipe.read_text())["select"]) * 2 + 10
    assert "cutoff 30%" in out and "report.html" in out


def test_score_and_select_need_no_recipe(semiprune: Semiprune, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    writer = DynamicsWriter(str(tmp_path / "dynamics"), num_samples=50)
    for epoch in range(4):
        writer.observe(np.arange(50), rng.normal(size=(50, 3)).astype(np.float32), np.arange(50) % 3)
        writer.commit_epoch(epoch)
    scores, coreset = str(tmp_path / "scores.parquet"), str(tmp_path / "coreset.parquet")
    requests = ("-s", "aum", "-s", "dual:T=4,J=2")
    status, out, err = semiprune("score", str(tmp_path / "dynamics"), "-o", scores, *requests)
    assert status == 0 and "dual_mean" in out, err
    arguments = (scores, "double_end", "--keep-fraction", "0.3", "-o", coreset, "--option", "mislabel_fraction=0.2")
    assert semiprune("select", *arguments)[0] == 0
    order = np.argsort(pq.read_table(scores)["aum"].to_numpy(), kind="stable")
    assert pq.read_table(coreset)["sample_id"].to_pylist() == sorted(order[10:25].tolist())
    status, _, err = semiprune("select", *arguments[:-1], "mislabel_fraction=0.9")
    assert status == 2 and "mislabel_fraction" in err
    status, _, err = semiprune("select", *arguments[:-1], "seed=1")
    assert status == 2 and "'seed'" in err


def test_changed_and_missing_shards_are_named(semiprune: Semiprune, reference_run: Path, digits: Path) -> None:
    recipe, shard = str(reference_run.parent / "run.yaml"), digits / "train-000003.tar"
    original = shard.read_bytes()
    try:
        shard.write_bytes(original[:-512] + b"x" * 512)
        status, _, err = semiprune("run", recipe)
        assert status == 2 and "train-000003.tar" in err and "changed since indexing" in err
        shard.unlink()
        status, _, err = semiprune("run", recipe)
        assert status == 2 and "train-000003.tar" in err
    finally:
        shard.write_bytes(original)
    assert semiprune("run", recipe)[0] == 0
