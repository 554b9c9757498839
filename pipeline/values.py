"""YAML that people write, as JSON values: recipes, --set, options on the command line."""

import json
import re
from typing import Any

import yaml

from pipeline.errors import UserError

_FLOAT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$")


class Loader(yaml.SafeLoader):
    """Safe YAML whose numbers are those of YAML 1.2, and whose mappings name every key once.

    YAML 1.1, PyYAML's, takes 1e-3 for text because it wants a point and a sign: 1.0e-3.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Also tell the line of a scalar that only looks like a date, or that is not of the type its tag says."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:
            kind = node.tag.rsplit(":", 1)[-1]
            raise yaml.MarkedYAMLError(None, None, f"{node.value!r} is no {kind}", node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """Refuse a key that is there twice: the first value would be lost without a word."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load_yaml(text: bytes | str, where: str) -> Any:
    """The JSON value of a YAML document; UserError in one sentence, which calls the document `where`."""
    try:
        value = yaml.load(text, Loader)  # noqa: S506, a SafeLoader
        return json.loads(json.dumps(value, allow_nan=False, default=_refuse))
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{where} is not valid YAML{line}: {problem}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} cannot be used: {error}; write plain, finite values, and text in quotes") from error
    except RecursionError as error:
        raise UserError(f"{where} cannot be used: it is nested too deeply; write it flatter") from error


def parse_value(text: str, where: str) -> Any:
    """The JSON value of one option's text, `T=30` being `where=text`; UserError as load_yaml says."""
    return load_yaml(text, f"{where}={text}")


def _refuse(value: object) -> None:
    raise TypeError(f"{value} is neither text, number, list nor mapping")
