"""The recipe: one strict YAML file with everything a run needs, and `--set a.b=c` on top of it."""

import difflib
import json
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline import storage
from pipeline.clustering import ClusterSettings
from pipeline.config import Config
from pipeline.encode import EncodeConfig
from pipeline.errors import UserError
from pipeline.evaluate import EvaluateSettings
from pipeline.export import ExportConfig
from pipeline.index import DataConfig
from pipeline.proxy import ProxySettings
from pipeline.pseudo_label import PseudoLabelConfig
from pipeline.report import ReportConfig
from pipeline.resources import Resources
from pipeline.score import ScoreConfig
from pipeline.select import SelectConfig
from pipeline.shards import Uri
from pipeline.split import SplitConfig
from pipeline.ssl import SslSettings
from pipeline.values import load_yaml, parse_value
from pipeline.warm_start import RefreshConfig


class Recipe(Config):
    """All sections of a recipe."""

    root: Uri = Field(description="the run directory: a local folder, or a URI such as s3://bucket/run")
    seed: int = Field(default=0, description="of every random draw of the run")
    data: DataConfig = Field(description="the images and what is known of them")
    split: SplitConfig = Field(description="which labels the pipeline sees, and which of them check its pseudo-labels")
    encode: EncodeConfig | None = Field(default=None, description="embeddings, for clusters and typical images")
    ssl: SslSettings | None = Field(default=None, description="pseudo-labels from a few labels: this or cluster")
    cluster: ClusterSettings | None = Field(default=None, description="pseudo-labels from no label: this or ssl")
    pseudo_label: PseudoLabelConfig | None = Field(default=None, description="how ssl's predictions are made and used")
    proxy: ProxySettings = Field(description="the training on pseudo-labels whose dynamics are recorded")
    score: ScoreConfig = Field(description="difficulty scores by name, each with its options")
    select: tuple[SelectConfig, ...] = Field(min_length=1, description="the coresets")
    export: ExportConfig = Field(default=ExportConfig(), description="lists and shards of the coresets")
    evaluate: EvaluateSettings | None = Field(
        default=None, description="trainings on the coresets, where labels are known; null: none"
    )
    report: ReportConfig = Field(default=ReportConfig(), description="the page that says what was found")
    refresh: RefreshConfig = Field(default=RefreshConfig(), description="what `semiprune refresh` does with new shards")
    resources: Resources = Field(default=Resources(), description="workers, tasks and the cache: speed, never results")

    @property
    def needs_embeddings(self) -> bool:
        """Whether a score or a selector looks at distances between images."""
        read = [column for request in self.score.requests() for column in request.score.reads]
        read += [column for config in self.select for column in config.build().columns]
        return "embedding" in read

    @model_validator(mode="after")
    def _agree(self) -> "Recipe":
        """What would otherwise come out after hours of training."""
        self._check_source()
        tests = self.evaluate.test_shards if self.evaluate else ()
        for shards in (*self.data.shards, *tests):
            if shards.rpartition("/")[0] == self.root.rstrip("/"):
                raise ValueError(f"root={self.root!r} holds the shards {shards!r}: name a folder of its own")
        names = [config.name for config in self.select]
        for name in names:
            if name in ("random", "full") or names.count(name) > 1:
                raise ValueError(f"select: the name {name!r} is taken: give every selection a name of its own")
        columns = ["train_label", "embedding"]
        for request in self.score.requests():
            needed = request.epochs(self.proxy.epochs).stop
            if needed > self.proxy.epochs:
                raise ValueError(
                    f"score.{request.name} needs {needed} epochs but proxy.epochs is {self.proxy.epochs}: raise it, or "
                    "lower the score's option"
                )
            if "probs" in request.score.reads and not self.proxy.probs:
                raise ValueError(
                    f"score.{request.name} needs the probabilities of all classes: set proxy.probs to true"
                )
            columns += request.harder
        for config in self.select:
            missing = [column for column in config.build().columns if column not in columns]
            if missing:
                raise ValueError(
                    f"select: {config.name!r} needs the score column {missing[0]!r} but score gives "
                    f"{', '.join(columns[2:])}: add the score"
                )
            withheld = self.split.holdout_fraction > 0 or self.split.folds is not None
            if config.undecided and (not withheld or self.ssl is None):
                why = (
                    "split.holdout_fraction is 0: raise it"
                    if self.ssl
                    else "clusters are compared with no label: add ssl"
                )
                raise ValueError(
                    f"select: {config.name!r} has {config.undecided}=auto, which held-out labels choose, but {why}, or "
                    "name a number"
                )
        trainings = {"proxy": self.proxy, **({"evaluate.training": self.evaluate.training} if self.evaluate else {})}
        for section, training in trainings.items():
            if training.random_crop and self.resources.images == "cache":
                raise ValueError(
                    f"{section}.random_crop cuts parts out of whole images, which a cache does not hold: set "
                    "resources.images to auto or stream"
                )
        batches = {"ssl": self.ssl, "cluster": self.cluster, "proxy": self.proxy}
        for section, size in ((name, batch.batch_size) for name, batch in batches.items() if batch is not None):
            if size < self.resources.max_workers:
                raise ValueError(
                    f"{section}.batch_size={size} leaves some of resources.num_workers={self.resources.max_workers} "
                    "without a sample: raise it, or use fewer workers"
                )
        return self

    def _check_source(self) -> None:
        """Pseudo-labels come from one place, which has what it needs."""
        if (self.ssl is None) == (self.cluster is None):
            number = "neither" if self.ssl is None else "both"
            raise ValueError(
                f"{number} of the sections ssl and cluster are there: pseudo-labels come from ssl, which needs a few "
                "labels, or from cluster, which needs none; name one of them"
            )
        wanted, num_classes = self.split.num_labelled, self.data.num_classes
        if self.ssl is not None and wanted == 0:
            raise ValueError("split.num_labelled is 0, but ssl needs labels: raise it, or replace ssl by cluster")
        if self.ssl is not None and wanted is not None and wanted < num_classes:
            raise ValueError(
                f"split.num_labelled={wanted} is less than data.num_classes={num_classes}, and each class needs a "
                "label: raise it, or replace ssl by cluster, which needs none"
            )
        if self.cluster is not None and self.split.folds is not None:
            raise ValueError(
                f"split.folds={self.split.folds} trains ssl once more for each fold, but here are clusters, which no "
                "label is compared with: leave it out"
            )
        if self.cluster is not None and self.pseudo_label is not None:
            raise ValueError(
                "pseudo_label says what becomes of the predictions of ssl, but here clusters are the pseudo-labels: "
                "remove the section"
            )
        readers = {"cluster": self.cluster is not None, "split.draw=typiclust": self.split.draw == "typiclust"}
        reader = next((name for name, reads in readers.items() if reads), None)
        if reader and self.encode is None:
            raise ValueError(f"{reader} needs embeddings: add the section encode, with an encoder or a table")
        if self.encode is not None and reader is None:
            raise ValueError("nothing reads the embeddings of encode: remove it, or add cluster, or draw by typiclust")


def load_recipe(path: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read, override and validate a recipe; every mistake is one UserError sentence.

    path: local path or URI of a YAML file; overrides: "a.b=c" with c in YAML, an index for a list ("select.0.name=x").
    """
    try:
        text = storage.read(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(
            f"there is no recipe at {path!r}: name a YAML file, such as jobs/recipes/cifar10.yaml"
        ) from error
    content = load_yaml(text, repr(path))
    if not isinstance(content, dict):
        raise UserError(f"{path!r} is not a recipe: it must be a mapping with the keys {_choices(Recipe)}")
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise UserError(f"{path}: {explain(Recipe, error)}") from error


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"--set {override!r} is not of the form section.key=value")
    value = parse_value(text, f"--set {name}")
    node: Any = content
    *parents, last = name.split(".")
    try:
        for parent in parents:
            node = node[_position(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        node[_position(last) if isinstance(node, list) else last] = value
    except ValueError as error:  # whose message is what stands in the place of a number
        entries = name.partition(f".{error}")[0]
        raise UserError(
            f"--set {name!r} names nothing that the recipe could hold: entries of {entries} go by number, the first is "
            f"{entries}.0"
        ) from error
    except (AttributeError, TypeError, IndexError) as error:
        raise UserError(f"--set {name!r} names nothing that the recipe could hold") from error


def _position(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


_TAGS = ("scores", "str", "tuple[str, ...]", "fixed", "elastic")
"""Places that pydantic names and a recipe has not: the field around the scores, the kinds of a union."""


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first complaint as a sentence: key, value, and what could stand there."""
    first = error.errors()[0]
    location = tuple(part for part in first["loc"] if part not in _TAGS)
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
        return f"{key}: {message}" if key else message
    known = location[:1] if "scores" in first["loc"] else location  # below it, names are the user's: dual@60
    place = ".".join(part for part in known if isinstance(part, str))
    if first["type"] == "too_short":
        return f"{key} is empty: name at least one; `semiprune explain {place}` says what may stand there"
    return (
        f"{key}: {first['input']!r} cannot be used: {message[:1].lower()}{message[1:]}; `semiprune explain {place}` "
        "says what may stand there"
    )


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
