"""A component is registered by being a file."""

import importlib
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.registry import ChoiceError, Registry
from pipeline.scores import Score

MARGIN = '''
"""A new score: the last margin."""
from dataclasses import dataclass
import numpy as np
from pipeline.scores import Score
from pipeline.scores.aum import Aum

@dataclass(frozen=True)
class Helper:
    x: int = 0

class Margin(Score):
    """Last margin."""
    harder = {"margin": "low"}
    source = "ours"
    @dataclass(frozen=True)
    class Options(Score.Options):
        scale: float = 1.0
        names: tuple[str, ...] = ()
    reads = ("p_label", "p_other")
    def add(self, records):
        self.last = records["p_label"] - records["p_other"]
    def values(self):
        return {"margin": self.last}
'''


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Score]:
    package = tmp_path / "extra_scores"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "margin.py").write_text(MARGIN)
    for module in [name for name in sys.modules if name.startswith("extra_scores")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    return Registry("score", Score, "extra_scores", [str(package)])  # type: ignore[type-abstract]


def test_a_file_is_a_component_of_its_name(registry: Registry[Score]) -> None:
    assert registry.names() == ["margin"]
    assert registry.get("margin").source == "ours"


def test_options_are_strict_and_immutable(registry: Registry[Score]) -> None:
    options = registry.options("margin", {"scale": 2, "names": ["a", "b"]})
    assert (options.scale, options.names) == (2.0, ("a", "b"))
    with pytest.raises(ChoiceError, match="score 'margin': scale='2' cannot be used"):
        registry.options("margin", {"scale": "2"})
    with pytest.raises(ChoiceError, match="cannot be used"):
        registry.options("margin", {"scale": float("inf")})


@pytest.mark.parametrize("value", [date(2024, 1, 1), b"x", {1}, object(), np.datetime64("2024-01-01"), 1j])
def test_what_is_no_json_value_is_no_option(registry: Registry[Score], value: object) -> None:
    with pytest.raises(ChoiceError, match=r"^score 'margin': .* cannot be an option: use text, numbers") as caught:
        registry.options("margin", {"scale": value})
    assert "\n" not in str(caught.value)


def test_components_describe_themselves(registry: Registry[Score]) -> None:
    assert registry.describe() == "margin - A new score: the last margin. Options: scale=1.0, names=[]. Source: ours"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("def (", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("import absent_package", "ModuleNotFoundError: No module named 'absent_package'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("from pipeline.scores import Score", "one class must derive from Score, here none"),
        (MARGIN + MARGIN.replace("Margin(", "Other("), "one class must derive from Score, here Margin, Other"),
        (MARGIN.replace("reads", "read").replace("values", "value"), "Margin lacks reads, values"),
    ],
)
def test_a_broken_file_is_one_sentence(registry: Registry[Score], tmp_path: Path, text: str, wrong: str) -> None:
    file = tmp_path / "extra_scores" / "broken.py"
    file.write_text(text)
    importlib.invalidate_caches()
    sentence = f"the score in '{file}' cannot be used: {wrong}; mend or remove that file"
    for use in (registry.names, registry.entries, lambda: registry.get("margin")):
        with pytest.raises(UserError) as caught:
            use()
        assert str(caught.value) == sentence
    assert registry.describe() == sentence


def test_what_is_not_described_is_said(registry: Registry[Score], tmp_path: Path) -> None:
    (tmp_path / "extra_scores" / "margin.py").write_text(MARGIN.replace('"""A new score: the last margin."""', ""))
    assert "margin.py' cannot be used: it does not begin with a docstring, which --help shows" in registry.describe()
    assert registry.names() == ["margin"]


def test_a_wrong_choice_is_both_kinds_of_error() -> None:
    """A UserError for whoever calls, a ValueError for pydantic, which adds the place in the recipe."""
    assert issubclass(ChoiceError, UserError) and issubclass(ChoiceError, ValueError)
