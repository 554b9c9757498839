from pathlib import Path

import pytest
import yaml

from pipeline import plan
from pipeline.errors import UserError
from pipeline.recipe import load_recipe
from tests.running import REPOSITORY, tiny_recipe

RECIPES = sorted(REPOSITORY.glob("jobs/recipes/*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tiny_recipe(tmp_path / "data", tmp_path / "run")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_plan(path: Path) -> None:
    stages = plan.build(load_recipe(str(path)))
    names = [stage.name for stage in stages]
    assert names[0] == "index" and names[-1] == "report"
    places = {stage.key: place for place, stage in enumerate(stages)}
    for place, stage in enumerate(stages):
        assert all(places[source.key] < place for source in stage.inputs.values())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("proxy.epoch=3", "unknown key 'proxy.epoch'; did you mean 'epochs'? choices: "),
        ("proxy.epochs=many", "proxy.epochs: 'many' cannot be used"),
        ("proxy.epochs=0", "proxy.epochs: 0 cannot be used"),
        ("data.colour=1", "unknown key 'data.colour'; choices: "),
        ("select.0.selector=best", "choose from"),
        ("select.0.keep_fraction=0.95", "mislabel_fraction"),
        ("select.0.keep_fraction=0", "keep_fraction"),
        ("score.dual.T=soon", "T='soon'"),
        ("score.luck={}", "there is no score 'luck'"),
        ("ssl.algorithm=magic", "unknown algorithm 'magic'"),
        ("ssl.model.name=resnet", "resnet9"),
        ("resources.num_workers=0", "resources.num_workers: 0 cannot be used"),
        ("ssl.options.treshold=1", "it has threshold"),
        ("select.1.name=cutoff", "the name 'cutoff' is taken"),
        ("select.1.name=random", "the name 'random' is taken"),
        ("proxy.epochs=7", "score.dual needs 8 epochs but proxy.epochs is 7"),
        ("score={aum: {}}", "'beta' needs the score column 'dual'"),
        ("proxy.batch_size=1", "proxy.batch_size=1 leaves some of resources.num_workers=2 without a sample"),
        ("data.image_size=4", "data.image_size: 4 cannot be used"),
        ("data.shards=7", "data.shards: 7 cannot be used"),
        ("evaluate.test_shards=[]", "test_shards"),
        ("select.-1.name=x", "names nothing that the recipe could hold"),
        ("proxy.lr={", "--set proxy.lr={ is not valid YAML"),
        ("nonsense", "not of the form section.key=value"),
        ("select.7.name=x", "names nothing that the recipe could hold"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(recipe: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(str(recipe), (override,))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_broken_yaml_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no recipe at"):
        load_recipe(str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\nb: 2")
    with pytest.raises(UserError, match="not valid YAML in line"):
        load_recipe(str(broken))
    broken.write_text("- 1")
    with pytest.raises(UserError, match="must be a mapping"):
        load_recipe(str(broken))
    content = yaml.safe_load(tiny_recipe(tmp_path, tmp_path / "run").read_text())
    del content["proxy"]
    broken.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="the key 'proxy' is missing"):
        load_recipe(str(broken))


def changed(recipe: Path, override: str) -> set[str]:
    """Titles of the stages whose keys the override changes."""
    before = {stage.title: stage.key for stage in plan.build(load_recipe(str(recipe)))}
    after = {stage.title: stage.key for stage in plan.build(load_recipe(str(recipe), (override,)))}
    return {title for title in before if before[title] != after.get(title)}


def test_a_change_reruns_what_depends_on_it_and_nothing_else(recipe: Path) -> None:
    assert changed(recipe, "resources.num_workers=4") == set()
    assert changed(recipe, "root=elsewhere") == set()
    assert changed(recipe, "select.0.options.mislabel_fraction=0.2") == {
        "select cutoff",
        "export cutoff",
        "evaluate",
        "report",
    }
    rescored = changed(recipe, "score.el2n.num_epochs=4")
    assert "score" in rescored and not rescored & {"index", "pixels", "split", "ssl", "pseudo_label", "proxy"}
    assert {"ssl", "proxy"} <= changed(recipe, "seed=1")
    assert "index" not in changed(recipe, "seed=1")
