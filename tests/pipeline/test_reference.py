"""What is said of a recipe's keys is what a recipe takes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.reference import keys, schema
from pipeline.scores import SCORES
from pipeline.selectors import SELECTORS
from pipeline.values import load_yaml
from tests.running import REPOSITORY

ALL = [key for section in keys() for key in keys(section.name)]
RECIPES = sorted((REPOSITORY / "jobs/recipes").glob("*.yaml"))
DIGITS = load_yaml((REPOSITORY / "jobs/recipes/digits.yaml").read_text(), "a recipe")


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a settings class, by another way than its JSON Schema."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for below in models(field.annotation):
            yield from fields(below, f"{prefix}{name}.")


def models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models(argument)]


def test_every_key_is_explained_once() -> None:
    by_name = ("ssl.options.", "score.")  # of an algorithm; a score
    plain = [key.name for key in ALL if not key.name.startswith(by_name) and not key.values.startswith("of ")]
    assert sorted(name.replace("[]", "") for name in plain) == sorted(set(fields(Recipe)) - {"score.scores"})
    assert [key for key in ALL if not key.meaning or not key.values] == []


def test_what_goes_by_a_name_is_explained_for_each() -> None:
    assert [key.name for key in keys("score")[1:]] == [f"score.{name}" for name in SCORES.names()]
    assert [key.values for key in keys("select.options")[1:]] == [f"of {name}" for name in SELECTORS.names()]
    (temperature,) = (key for key in keys("ssl.options.temperature") if key.meaning.startswith("of uda:"))
    assert (temperature.values, temperature.default) == ("number > 0", "0.4")


@pytest.mark.parametrize(
    ("name", "values", "default"),
    [
        ("root", "text", "required"),
        ("ssl.model", "mapping", ""),
        ("proxy.precision", "auto, bf16 or fp32", "auto"),
        ("split.folds", "whole number ≥ 2, ≤ 100 or null", "null"),
        ("resources.num_workers", "whole number ≥ 1 or mapping", "2"),
        ("encode.mean", "3 times number", "[0.485, 0.456, 0.406]"),
        ("data.shards", "text or list of text", "required"),
        ("data.num_classes", "whole number ≥ 2", ""),
    ],
)
def test_values_and_default(name: str, values: str, default: str) -> None:
    found = keys(name)[0]
    assert (found.name, found.values, found.default) == (name, values, default)


def test_defaults_are_those_that_a_recipe_gets() -> None:
    kept = {name: DIGITS[name] for name in ("root", "data", "split", "score", "select")}
    recipe = Recipe.model_validate_json(json.dumps({**kept, "ssl": {}, "proxy": {}})).model_dump(mode="json")
    compared = {}
    for section in ("ssl", "proxy", "export", "report", "refresh", "resources"):
        for key in keys(section):
            value: Any = recipe
            for part in key.name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None and not isinstance(value, dict) and not key.name.startswith("ssl.options."):
                compared[key.name] = (key.default, value if isinstance(value, str) else json.dumps(value))
    assert len(compared) > 30
    assert {name: pair for name, pair in compared.items() if pair[0] != pair[1]} == {}
    assert (compared["ssl.model.name"][0], compared["proxy.model.name"][0]) == ("wrn_28_2", "resnet18")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_fit_the_schema(path: Path) -> None:
    Draft202012Validator.check_schema(schema())
    Draft202012Validator(schema()).validate(load_yaml(path.read_text(), "a recipe"))


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ("ssl", {"algorithm": "fixmach"}),
        ("ssl", {"lr": 0}),
        ("proxy", {"epoch": 3}),
        ("score", {"auum": {}}),
        ("select", []),
        ("data", {"image_size": 32}),
    ],
)
def test_the_schema_refuses(section: str, wrong: Any) -> None:
    validator = Draft202012Validator(schema())
    assert validator.is_valid(DIGITS)
    assert validator.is_valid({**DIGITS, "score": {"dual@2": {"T": 20}}})
    assert not validator.is_valid({**DIGITS, section: wrong})


def test_an_unknown_key_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no key 'ssl.algoritm': did you mean 'ssl.algorithm'\? sections are root, "):
        keys("ssl.algoritm")
