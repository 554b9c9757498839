"""What the README shows is what there is."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from jobs.cli import app
from tests.running import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def test_the_score_it_shows_is_the_one_in_use() -> None:
    assert (REPOSITORY / "pipeline/scores/aum.py").read_text().strip() in README


def test_its_commands_and_files_exist() -> None:
    commands = get_command(app).commands
    for name in set(re.findall(r"semiprune ([a-z]+)", README)):
        assert name in commands, name
    for path in re.findall(r"jobs/recipes/\w+\.yaml|docs/\w+\.png|cluster\.yaml", README):
        assert (REPOSITORY / path).exists(), path


def test_its_loop_records_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    n = 200
    images, labels = torch.randn(n, 8), torch.arange(n) % 3
    model = torch.nn.Linear(8, 3)
    names = {
        "N": n,
        "epochs": 30,
        "loader": DataLoader(TensorDataset(torch.arange(n), images, labels), batch_size=32, shuffle=True),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "cross_entropy": cross_entropy,
    }
    (example,) = re.findall(r"```python\n(from pipeline\.dynamics.*?)```", README, re.DOTALL)
    exec(example, names)
    assert names["table"].column_names == ["sample_id", "aum", "dual", "dual_mean", "dual@20", "dual_mean@20"]
    assert len(names["ids"]) == 60
