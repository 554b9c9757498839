"""Components that register themselves by being a file in a package: scores, selectors."""

import contextlib
import importlib
import importlib.util
import inspect
import json
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import UserError


class ChoiceError(UserError, ValueError):
    """A name or an option that no component has. Also a ValueError, so that a recipe's reader adds the place."""


class Component:
    """What a registry holds: a class alone in its file, settings nested in it.

    source: where the method comes from, "arXiv id, title", shown by --help; Options: a frozen dataclass of JSON
    values, whose `__post_init__` raises ValueError with one sentence.
    """

    source: ClassVar[str]

    @dataclass(frozen=True)
    class Options:
        """No options; a component that has some derives from this class."""

        __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Entry:
    """A component in words. what: the first line of its file; options: with their defaults, as in "T=30, J=10", and
    what they mean."""

    name: str
    what: str
    options: str
    meaning: str
    source: str


C = TypeVar("C", bound=Component)
T = TypeVar("T")


@contextlib.contextmanager
def plug_in(kind: str, module: str) -> Iterator[ModuleType]:
    """The module of a component's file; whatever is wrong with it, here or in the block, is a UserError that names it.

    No ChoiceError: that would be told as a mistake in the recipe, which names nothing wrong.
    """
    try:
        yield importlib.import_module(module)
    except Exception as error:  # of code that anybody wrote
        spec = importlib.util.find_spec(module)
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"the {kind} in {str(spec.origin if spec else module)!r} cannot be used: {' '.join(said.split())}; mend or "
            "remove that file"
        ) from error


def only_class(module: ModuleType, base: type[T]) -> type[T]:
    """The class of `base` that a file defines; UserError if it is not one."""
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    found = [value for value in own if isinstance(value, type) and issubclass(value, base)]
    if len(found) != 1:
        names = ", ".join(kind.__name__ for kind in found) or "none"
        raise UserError(f"one class must derive from {base.__name__}, here {names}")
    return found[0]


class Registry(Generic[C]):
    """The components of a package by the name of their file.

    kind: what a sentence calls them; base: the class that each of them derives from.
    """

    def __init__(self, kind: str, base: type[C], package: str, path: Iterable[str]) -> None:
        self.kind = kind
        self._base = base
        self._package = package
        self._path = path

    @cached_property
    def _classes(self) -> dict[str, type[C]]:
        found = {}
        for name in sorted(module.name for module in pkgutil.iter_modules(self._path)):
            with plug_in(self.kind, f"{self._package}.{name}") as module:
                found[name] = only_class(module, self._base)
                if lacking := self._lacking(found[name]):
                    raise UserError(f"{found[name].__name__} lacks {', '.join(lacking)}")
        return found

    def _lacking(self, component: type[C]) -> list[str]:
        """What the base class declares and leaves to each of its own."""
        declared = [name for kind in self._base.__mro__ for name in inspect.get_annotations(kind)]
        abstract: frozenset[str] = getattr(component, "__abstractmethods__", frozenset())
        return sorted({name for name in declared if not hasattr(component, name)} | abstract)

    def names(self) -> list[str]:
        """All names, sorted."""
        return list(self._classes)

    def get(self, name: str) -> type[C]:
        """The class in that file; ChoiceError naming the choices if there is none."""
        if name not in self._classes:
            raise ChoiceError(f"there is no {self.kind} {name!r}: choose from {', '.join(self._classes)}")
        return self._classes[name]

    def entries(self) -> list["Entry"]:
        """Every component as people are told of it."""
        found = []
        for name, component in self._classes.items():
            with plug_in(self.kind, component.__module__) as module:
                if not (module.__doc__ or "").strip():
                    raise UserError("it does not begin with a docstring, which --help shows")
                what = (module.__doc__ or "").strip().splitlines()[0]
                defaults = asdict(component.Options())
            options = ", ".join(f"{option}={_said(value)}" for option, value in defaults.items())
            meaning = " ".join((component.Options.__doc__ or "").split()) if defaults else ""
            found.append(Entry(name, what, options, meaning, component.source))
        return found

    def describe(self) -> str:
        """Every component for --help, a paragraph each; if one cannot be used, that."""
        try:
            entries = self.entries()
        except UserError as error:
            return str(error)
        lines = []
        for entry in entries:
            options = f"Options: {entry.options}. " if entry.options else ""
            lines.append(f"{entry.name} - {entry.what} {options}Source: {entry.source}")
        return "\n\n".join(lines)

    def options(self, name: str, values: Mapping[str, Any]) -> Any:
        """The component's Options with these values, strictly typed; ChoiceError naming value and choices."""
        options = self.get(name).Options
        try:
            # Through JSON, where a strict dataclass accepts a mapping and a tuple a list.
            return TypeAdapter(options).validate_json(json.dumps(values, default=_plain))
        except TypeError as error:
            raise ChoiceError(f"{self.kind} {name!r}: {error}") from error
        except ValidationError as error:
            raise ChoiceError(self._sentence(name, options, error)) from error

    def _sentence(self, name: str, options: type[Component.Options], error: ValidationError) -> str:
        first = error.errors()[0]
        if not first["loc"] and first["type"] == "value_error":
            return f"{self.kind} {name!r}: {first['ctx']['error']}"
        option = first["loc"][0] if first["loc"] else ""
        if first["type"] == "unexpected_keyword_argument":
            names = ", ".join(field.name for field in fields(options))
            return f"{self.kind} {name!r} has no option {option!r}: " + (
                f"choose from {names}" if names else "it has none"
            )
        message = first["msg"].removeprefix("Value error, ")
        return f"{self.kind} {name!r}: {option}={first['input']!r} cannot be used: {message[:1].lower()}{message[1:]}"


def _said(value: object) -> str:
    """An option's value as one writes it, in YAML."""
    return str(value) if isinstance(value, str) else json.dumps(value)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be an option: use text, numbers, true or false, lists and mappings")
