"""The recipe: one strict YAML file with everything a run needs, and `--set a.b=c` on top of it."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from models.semi_supervised import SemiSupervisedConfig
from models.supervised import SupervisedConfig
from pipeline import storage
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluate import EvaluateSettings
from pipeline.export import ExportConfig
from pipeline.index import DataConfig
from pipeline.pseudo_label import PseudoLabelConfig
from pipeline.report import ReportConfig
from pipeline.resources import Resources
from pipeline.score import ScoreConfig
from pipeline.select import SelectConfig
from pipeline.split import SplitConfig


def _absolute(uri: str) -> str:
    """Local paths from the current directory; workers run elsewhere, so they must not stay relative."""
    return uri if "://" in uri or not storage.is_local(uri) else str(Path(uri).expanduser().absolute())


Uri = Annotated[str, AfterValidator(_absolute)]


class Recipe(Config):
    """All sections of a recipe. root: the run directory; seed: of every random draw of the run."""

    root: Uri
    seed: int = 0
    data: DataConfig
    split: SplitConfig
    ssl: SemiSupervisedConfig
    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()
    proxy: SupervisedConfig
    score: ScoreConfig
    select: Annotated[tuple[SelectConfig, ...], Field(min_length=1)]
    export: ExportConfig = ExportConfig()
    evaluate: EvaluateSettings | None = None
    report: ReportConfig = ReportConfig()
    resources: Resources = Resources()


def load_recipe(path: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read, override and validate a recipe; every mistake is one UserError sentence.

    path: local path or URI of a YAML file; overrides: "a.b=c" with c in YAML, an index for a list ("select.0.name=x").
    """
    try:
        content = yaml.safe_load(storage.read(path))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(
            f"there is no recipe at {path!r}: name a YAML file, such as jobs/recipes/cifar10.yaml"
        ) from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        raise UserError(f"{path!r} is not valid YAML{line}: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path!r} is not a recipe: it must be a mapping with the keys {_choices(Recipe)}")
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(Recipe, error)}") from error


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise UserError(f"--set {override!r} is not of the form section.key=value")
    node: Any = content
    *parents, last = name.split(".")
    try:
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        if isinstance(node, list):
            node[int(last)] = yaml.safe_load(value)
        else:
            node[last] = yaml.safe_load(value)
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"--set {name!r} names nothing that the recipe could hold") from error
    except yaml.YAMLError as error:
        raise UserError(f"--set {name}: {value!r} is not valid YAML") from error


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first complaint as a sentence: key, value, and what could stand there."""
    first = error.errors()[0]
    location = first["loc"]
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), parent.model_fields if parent else (), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        choices = f"choices: {_choices(parent)}" if parent else "remove it"
        return f"unknown key {key!r}; {hint}{choices}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}"
    return f"{key}: {first['input']!r} cannot be used: {message[:1].lower()}{message[1:]}"


def _choices(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The settings class at a place of the recipe, looked up through optional and repeated fields."""
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        found = _models_in(field.annotation) if field else []
        if not found:
            return None
        model = found[0]
    return model


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
