from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.recipe import load_recipe
from pipeline.reference import keys
from tests.running import tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tiny_recipe(tmp_path / "data", tmp_path / "run")


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
        ("resources.num_workers=few", "resources.num_workers: 'few' cannot be used"),
        ("resources.num_workers={min: 4, max: 2}", "resources.num_workers: min=4 is above max=2: exchange them"),
        ("resources.num_workers={min: 0, max: 2}", "resources.num_workers.min: 0 cannot be used"),
        ("resources.num_workers={min: 2}", "the key 'resources.num_workers.max' is missing"),
        ("resources.num_workers={min: 2, mox: 2}", "'resources.num_workers.m"),
        ("resources.num_workers={min: 1, max: 99}", "leaves some of resources.num_workers=99 without a sample"),
        ("ssl.options.treshold=1", "it has threshold"),
        ("select.1.name=cutoff", "the name 'cutoff' is taken"),
        ("select.1.name=random", "the name 'random' is taken"),
        ("proxy.epochs=7", "score.dual needs 8 epochs but proxy.epochs is 7"),
        ("score={aum: {}}", "'beta' needs the score column 'dual'"),
        ("proxy.batch_size=1", "proxy.batch_size=1 leaves some of resources.num_workers=2 without a sample"),
        ("data.image_size=4", "data.image_size: 4 cannot be used"),
        ("data.shards=7", "data.shards: 7 cannot be used"),
        ("select.-1.name=x", "names nothing that the recipe could hold: entries of select go by number, the first is"),
        ("select.beta.seed=1", "the recipe could hold: entries of select go by number, the first is select.0"),
        ("select.keep_fraction=0.3", "the recipe could hold: entries of select go by number, the first is select.0"),
        ("root=s3:/bucket/run", "'s3:/bucket/run' has one slash after s3: write s3://bucket/run"),
        ("data.shards=s3:///pool/{0..9}.tar", "names no bucket: write it like s3://bucket/prefix"),
        ("proxy.lr={", "--set proxy.lr={ is not valid YAML"),
        ("nonsense", "not of the form section.key=value"),
        ("select.7.name=x", "names nothing that the recipe could hold"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(recipe: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(str(recipe), (override,))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["data.shards", "evaluate.test_shards"])
def test_a_run_has_a_folder_of_its_own(recipe: Path, tmp_path: Path, key: str) -> None:
    place = f"{tmp_path}/run/train-{{000..003}}.tar"
    with pytest.raises(UserError, match=r"run' holds the shards .*: name a folder of its own"):
        load_recipe(str(recipe), (f"{key}=['{place}']",))
    load_recipe(str(recipe), (f"data.shards=['{tmp_path}/run/pool/train-{{000..003}}.tar']",))


@pytest.mark.parametrize(
    ("override", "sentence", "key"),
    [
        ("root=", "root: None cannot be used: ", "root"),
        ("proxy.epochs=0", "proxy.epochs: 0 cannot be used: input should be greater than ", "proxy.epochs"),
        ("select.0.keep_fraction=most", "select.0.keep_fraction: 'most' cannot", "select.keep_fraction"),
        ("select=[]", "select is empty: name at least one; ", "select"),
        ("evaluate.test_shards=[]", "evaluate.test_shards is empty: name at least one; ", "evaluate.test_shards"),
        ("data.shards=[7]", "data.shards.0: 7 cannot be used: ", "data.shards"),
        ("resources.num_workers={min: x, max: 2}", "resources.num_workers.min: 'x'", "resources.num_workers.min"),
        ("score.dual@60=5", "score.dual@60: 5 cannot be used: ", "score"),
    ],
)
def test_a_wrong_value_ends_with_what_says_more(recipe: Path, override: str, sentence: str, key: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(str(recipe), (override,))
    assert sentence in str(caught.value)
    assert str(caught.value).endswith(f"; `semiprune explain {key}` says what may stand there")
    assert keys(key)


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
