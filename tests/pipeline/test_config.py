"""What every settings object refuses, and that a recipe has no other kind."""

from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.config import Config
from pipeline.recipe import Recipe
from pipeline.resources import Elastic, Resources


class Oven(Config):
    """Settings with a number, a whole number and a default."""

    heat: float = 200.0
    shelf: int = 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"heta": 180}', "Extra inputs are not permitted"),
        ('{"shelf": "2"}', "valid integer"),
        ('{"shelf": 2.0}', "valid integer"),
        ('{"shelf": true}', "valid integer"),
        ('{"heat": "180"}', "valid number"),
        ('{"heat": NaN}', "finite number"),
        ('{"heat": Infinity}', "finite number"),
    ],
)
def test_a_value_is_what_it_says_or_it_is_refused(content: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Oven.model_validate_json(content)


def test_settings_never_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Oven().heat = 100.0  # type: ignore[misc]


def test_a_default_is_checked_like_a_value() -> None:
    class Broken(Config):
        shelf: int = "top"  # type: ignore[assignment]

    with pytest.raises(ValidationError, match="valid integer"):
        Broken()


def settings(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """All settings classes below one, itself included."""
    yield kind
    for field in kind.model_fields.values():
        yield from inside(field.annotation)


def inside(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from settings(annotation)
    for argument in get_args(annotation):
        yield from inside(argument)


def test_a_recipe_consists_of_strict_settings_and_resources() -> None:
    kinds = set(settings(Recipe))
    assert len(kinds) > 10
    assert {kind for kind in kinds if not issubclass(kind, Config)} == {Resources, Elastic}
