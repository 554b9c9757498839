"""YAML as people write it: numbers that are numbers, and one sentence for what is no JSON value."""

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.values import load_yaml, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1E5", -1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e+3", 1000.0),
        ("30", 30),
        ("1_000", 1000),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("a{0..3}.tar", "a{0..3}.tar"),
        ("", None),
        ("[a, {b: true}]", ["a", {"b": True}]),
        ("{0: cat}", {"0": "cat"}),
        ("{a: {<<: {b: 1}, b: 2}}", {"a": {"b": 2}}),
    ],
)
def test_values_are_json(text: str, value: Any) -> None:
    read = parse_value(text, "x")
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: {", "recipe is not valid YAML in line 2: expected the node content"),
        ("*y", "found undefined alias 'y'"),
        ("a: 1\nb: 2\na: 3", "in line 1: the key 'a' is there twice"),
        ("a\n---\nb", "in line 2: but found another document"),
        ("2024-13-45", "in line 1: '2024-13-45' is no timestamp"),
        ("!!bool maybe", "'maybe' is no bool"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("\0", "recipe is not valid YAML: unacceptable character"),
        (b"\xff", "recipe is not valid YAML: unacceptable character"),
        ("day: 2024-01-01", "recipe cannot be used: 2024-01-01 is neither text, number, list nor mapping"),
        ("!!binary aGk=", "b'hi' is neither text"),
        ("{2024-01-01: x}", "keys must be"),
        ("[.nan]", "recipe cannot be used: .* finite values"),
        ("&a [*a]", "recipe cannot be used: "),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_no_value_is_one_sentence(text: str | bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load_yaml(text, "recipe")
    assert "\n" not in str(caught.value)


def test_an_option_is_named_with_its_text() -> None:
    with pytest.raises(UserError, match=r"^T=\{ is not valid YAML in line 1"):
        parse_value("{", "T")
