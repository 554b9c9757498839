"""Recipes without labels, and with labels where embeddings say: their stages, and what does not go together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import plan
from pipeline.errors import UserError
from pipeline.recipe import Recipe, load_recipe
from tests.running import tiny_recipe

CLUSTER = {"heads": 2, "epochs": 3, "neighbours": 5}


def written(folder: Path, without: tuple[str, ...] = (), **sections: Any) -> str:
    folder.mkdir(exist_ok=True)
    place = tiny_recipe(folder / "data", folder / "run")
    content = {name: value for name, value in yaml.safe_load(place.read_text()).items() if name not in without}
    place.write_text(yaml.safe_dump({**content, **sections}))
    return str(place)


def label_free(folder: Path, **sections: Any) -> str:
    own = {"split": {"num_labelled": 0}, "encode": {"encoder": "pixels"}, "cluster": CLUSTER}
    return written(folder, ("ssl",), **{**own, **sections})


def keys(recipe: str, *overrides: str) -> dict[str, str]:
    return {stage.title: stage.key for stage in plan.build(load_recipe(recipe, overrides))}


def test_clusters_take_the_place_of_ssl_and_nothing_else_changes(tmp_path: Path) -> None:
    with_labels = [stage.title for stage in plan.build(load_recipe(written(tmp_path / "a")))]
    stages = plan.build(load_recipe(label_free(tmp_path / "b")))
    titles = [stage.title for stage in stages]
    own = {"encode", "neighbours", "cluster"}
    assert [title for title in titles if title not in own] == [title for title in with_labels if title != "ssl"]
    assert own <= set(titles) and titles.index("encode") < titles.index("neighbours") < titles.index("cluster")
    by_title = {stage.title: stage for stage in stages}
    assert set(by_title["pseudo_label"].inputs) == {"encode", "cluster"}
    for title in own | {"pseudo_label"}:  # no label comes near, not those of the index either, which encode has
        assert {"split", "index test"}.isdisjoint(source.title for source in by_title[title].inputs.values())
    places = {stage.key: place for place, stage in enumerate(stages)}
    assert all(places[source.key] < place for place, s in enumerate(stages) for source in s.inputs.values())


def test_a_change_runs_what_depends_on_it(tmp_path: Path) -> None:
    recipe = label_free(tmp_path)
    before = keys(recipe)
    later = {"proxy", "score", "trust", "select cutoff", "export cutoff", "select beta", "export beta", "evaluate"}
    later |= {"report", "pseudo_label", "cluster"}
    for override, expected in (
        ("cluster.epochs=4", later),
        ("cluster.neighbours=6", later | {"neighbours"}),
        ("encode.size=4", later | {"neighbours", "encode"}),
    ):
        after = keys(recipe, override)
        assert {title for title in before if before[title] != after[title]} == expected


def test_a_plan_can_be_read_again(tmp_path: Path) -> None:
    recipe = load_recipe(label_free(tmp_path))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_typical_images_need_embeddings_and_no_clusters(tmp_path: Path) -> None:
    chosen = {"split": {"num_labelled": 40, "draw": "typiclust"}, "encode": {"encoder": "pixels"}}
    stages = {stage.title: stage for stage in plan.build(load_recipe(written(tmp_path, **chosen)))}
    assert set(stages["split"].inputs) == {"index", "encode"} and "ssl" in stages and "cluster" not in stages


@pytest.mark.parametrize(
    ("without", "sections", "sentence"),
    [
        (("ssl",), {}, "neither of the sections ssl and cluster are there"),
        ((), {"cluster": CLUSTER, "encode": {"encoder": "pixels"}}, "both of the sections ssl and cluster are there"),
        ((), {"split": {"num_labelled": 0}}, "split.num_labelled is 0, but ssl needs labels: raise it, or replace ssl"),
        (("ssl",), {"cluster": CLUSTER}, "cluster needs embeddings: add the section encode"),
        ((), {"split": {"num_labelled": 9}}, "split.num_labelled=9 is less than data.num_classes=10, and each class"),
        (
            ("ssl",),
            {"cluster": CLUSTER, "encode": {"encoder": "pixels"}, "pseudo_label": {"labelled_rows": "model"}},
            "pseudo_label says what becomes of the predictions of ssl, but here clusters are the pseudo-labels: remove",
        ),
        (
            (),
            {"split": {"num_labelled": 40, "draw": "typiclust"}},
            "split.draw=typiclust needs embeddings: add the sec",
        ),
        ((), {"encode": {"encoder": "pixels"}}, "nothing reads the embeddings of encode: remove it"),
        (("ssl",), {"cluster": {"batch_size": 1}, "encode": {"encoder": "pixels"}}, "cluster.batch_size=1 leaves some"),
        (("ssl",), {"cluster": {"head": 1}}, "unknown key 'cluster.head'; did you mean 'heads'?"),
        (("ssl",), {"encode": {"encoder": "resnet"}}, "encode: unknown encoder 'resnet'; did you mean"),
        (("ssl",), {"encode": {}}, "encode: neither of encoder and table are given"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    tmp_path: Path, without: tuple[str, ...], sections: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(written(tmp_path, without, **sections))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
