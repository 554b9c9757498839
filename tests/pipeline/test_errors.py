"""The tree of exceptions, and that its leaves survive the way between processes."""

import inspect
import pickle

import pytest

from pipeline import errors
from pipeline.errors import SemiPruneError
from pipeline.quarantine import DefectError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


def drawn() -> dict[str, str]:
    """The parent of each exception, as the module's docstring draws it."""
    parents: dict[str, str] = {}
    path = [(-1, "Exception")]
    for line in inspect.getdoc(errors).splitlines():
        bare = line.lstrip("│├└─ ")
        name, depth = bare.partition(" ")[0], len(line) - len(bare)
        if name.endswith("Error"):
            while path[-1][0] >= depth:
                path.pop()
            parents[name] = path[-1][1]
            path.append((depth, name))
    return parents


def test_the_tree_that_is_drawn_is_the_tree_there_is() -> None:
    assert drawn() == {kind.__name__: kind.__base__.__name__ for kind in KINDS}


@pytest.mark.parametrize("error", [*(kind("the shard 'x' is gone") for kind in KINDS), DefectError("no image", "x")])
def test_an_error_is_the_same_after_the_way_from_a_worker(error: SemiPruneError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert type(again) is type(error) and vars(again) == vars(error)
    assert str(again) == str(error)
