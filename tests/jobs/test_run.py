"""`python -m jobs.run RECIPE`, what a submitted job runs."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The module as `python -m` runs it, in this process; the exit status."""
    monkeypatch.setattr(sys, "argv", ["jobs/run.py", *arguments])
    monkeypatch.delitem(sys.modules, "jobs.run", raising=False)
    try:
        runpy.run_module("jobs.run", run_name="__main__")
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_it_runs_the_recipe_like_the_command(
    reference_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, f"{reference_run}.yaml") == 0
    out, err = capsys.readouterr()
    assert "index  found done" in err and "report  found done" in err
    (report,) = reference_run.glob("report/*/report.html")
    assert out.endswith(f"Report:  {report}\n")


def test_options_and_mistakes_are_those_of_the_command(
    reference_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, f"{reference_run}.yaml", "--set", "proxy.epoch=3") == 2
    assert "did you mean 'epochs'?" in capsys.readouterr().err
    assert run(monkeypatch) == 2


def test_importing_it_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/run.py", "nonsense"])
    monkeypatch.delitem(sys.modules, "jobs.run", raising=False)
    importlib.import_module("jobs.run")
    assert sys.argv == ["jobs/run.py", "nonsense"]
