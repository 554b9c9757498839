"""What the README and the pages behind it show is what there is."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from jobs.cli import app
from pipeline.reference import keys
from tests.running import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
PAGES = {path: path.read_text() for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))}


def test_the_score_it_shows_is_the_one_in_use() -> None:
    assert (REPOSITORY / "pipeline/scores/aum.py").read_text().strip() in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_files_exist(page: Path) -> None:
    commands = get_command(app).commands
    for name in set(re.findall(r"semiprune ([a-z]+)", PAGES[page])):
        assert name in commands, name
    for path in re.findall(r"(?:jobs|pipeline|models|benchmarks|deploy|docs)/[\w/.-]+\.\w+|cluster\.yaml", PAGES[page]):
        assert (REPOSITORY / path).exists(), path
    for place in re.findall(r"\]\((?!http)([^)#]+)", PAGES[page]):
        assert (page.parent / place).exists(), place


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_there(page: Path) -> None:
    for place, heading in re.findall(r"\]\(([\w/.]*)#([\w-]+)\)", PAGES[page]):
        titles = re.findall(r"^#+ (.+)$", PAGES[page.parent / place if place else page], re.MULTILINE)
        assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], heading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_that_are_named_are_those_of_a_recipe(page: Path) -> None:
    sections = [key.name.removesuffix("[]") for key in keys()]
    for name in set(re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_.]+)", PAGES[page])):
        if not name.endswith((".yaml", ".parquet")):
            keys(name)


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
