"""The stages of a recipe: their order, and which change runs which of them again."""

from pathlib import Path

import pytest

from pipeline import plan, samples
from pipeline.errors import UserError
from pipeline.recipe import load_recipe
from pipeline.stage import Stage
from tests.running import REPOSITORY, tiny_recipe

RECIPES = sorted(REPOSITORY.glob("jobs/recipes/*.yaml"))
DATA = {"index"}
TESTS = {"index test"}
SCORED = {"score", "trust"}
TRAINED = {"split", "ssl", "pseudo_label", "proxy"} | SCORED
CHOSEN = {"select cutoff", "export cutoff", "select beta", "export beta"}
END = {"evaluate", "report"}
ALL = DATA | TESTS | TRAINED | CHOSEN | END


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return str(tiny_recipe(tmp_path / "data", tmp_path / "run"))


def stages(recipe: str, *overrides: str) -> list[Stage]:
    return plan.build(load_recipe(recipe, overrides))


def keys(recipe: str, *overrides: str) -> dict[str, str]:
    return {stage.title: stage.key for stage in stages(recipe, *overrides)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_plan_every_stage_after_its_inputs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/photos").mkdir(parents=True)
    (tmp_path / "data/photos/index.json").write_text('{"shardlist": [{"url": "images-000000.tar"}]}')
    (tmp_path / "data/photos.csv").write_text("key,label\n0002,cat\n")
    planned = stages(str(path))
    assert planned[0].name == "index" and planned[-1].name == "report"
    places = {stage.key: place for place, stage in enumerate(planned)}
    for place, stage in enumerate(planned):
        assert all(places[source.key] < place for source in stage.inputs.values())


def test_every_stage_has_a_title_and_a_key_of_its_own(recipe: str) -> None:
    planned = stages(recipe)
    assert {stage.title for stage in planned} == ALL
    assert len({stage.key for stage in planned}) == len({stage.title for stage in planned}) == len(planned)


def test_the_test_images_are_read_before_any_training_and_reach_the_end_alone(recipe: str) -> None:
    planned = stages(recipe)
    titles = [stage.title for stage in planned]
    assert max(titles.index(title) for title in TESTS) < titles.index("ssl")
    readers = {stage.title for stage in planned if {source.title for source in stage.inputs.values()} & TESTS}
    assert readers - TESTS == END


def test_labels_that_stay_hidden_are_read_by_no_stage_that_trains_or_chooses(recipe: str) -> None:
    """Only the index knows them: the split draws the visible ones, others copy bytes, report, or want images alone."""
    planned = stages(recipe)
    readers = {stage.title for stage in planned if "index" in {s.title for s in stage.inputs.values()}}
    want_images = {stage.title for stage in planned if "index" in stage.images}
    assert want_images == {"ssl", "pseudo_label", "proxy", "evaluate"}
    assert readers - want_images == {"split", "export cutoff", "export beta", "report"}
    assert "label" not in samples._COLUMNS


def wanted(recipe: str, *overrides: str) -> dict[str, tuple[str, ...]]:
    """The indexes whose images a stage wants whole and central, which is what a cache holds."""
    return {stage.title: stage.images for stage in stages(recipe, *overrides) if stage.images}


def test_images_are_asked_for_by_the_stages_that_look_at_them(recipe: str) -> None:
    everywhere = dict.fromkeys(("ssl", "pseudo_label", "proxy"), ("index",)) | {"evaluate": ("index", "test_index")}
    assert wanted(recipe) == everywhere
    assert wanted(recipe, "evaluate=null") == {title: everywhere[title] for title in ("ssl", "pseudo_label", "proxy")}
    assert wanted(recipe, "score={aum: {}, dual: {T: 8, J: 4}, grand: {}}") == everywhere | {"embed": ("index",)}
    assert wanted(recipe, "proxy.random_crop={}") == {t: names for t, names in everywhere.items() if t != "proxy"}
    assert wanted(recipe, "evaluate.training.random_crop={}") == everywhere | {"evaluate": ("test_index",)}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("root=elsewhere", set()),
        ("resources={num_workers: 4, cpus_per_worker: 2, gpus_per_worker: 1, tasks: 3, max_failures: 9}", set()),
        ("resources={images: stream}", set()),
        ("resources={images: cache, cache_dir: /elsewhere, cache_gb: 7}", set()),
        ("data.image_size=16", ALL),
        ("data.quarantine_limit=0.5", ALL),
        ("split.num_labelled=200", TRAINED | CHOSEN | END),
        ("split.holdout_fraction=0.1", TRAINED | CHOSEN | END),
        ("ssl.steps=61", TRAINED - {"split"} | CHOSEN | END),
        ("pseudo_label.labelled_rows=model", {"pseudo_label", "proxy"} | SCORED | CHOSEN | END),
        ("proxy.lr=0.2", {"proxy"} | SCORED | CHOSEN | END),
        ("proxy.random_crop={}", {"proxy"} | SCORED | CHOSEN | END),
        ("evaluate.training.random_crop={flip: false}", END),
        ("score.el2n.num_epochs=4", SCORED | CHOSEN | END),
        ("select.0.options.mislabel_fraction=0.2", {"select cutoff", "export cutoff"} | END),
        ("select.1.seed=7", {"select beta", "export beta"} | END),
        ("export.shards=false", {"export cutoff", "export beta", "report"}),
        ("evaluate.seeds=2", END),
        ("evaluate.training.epochs=3", END),
        ("evaluate.test_shards=other.tar", TESTS | END),
        ("report.title=Ours", {"report"}),
        ("seed=1", ALL - DATA - TESTS),
    ],
)
def test_a_change_runs_what_depends_on_it_and_nothing_else(recipe: str, override: str, expected: set[str]) -> None:
    before, after = keys(recipe), keys(recipe, override)
    assert {title for title in before if before[title] != after[title]} == expected


@pytest.mark.parametrize(
    "override",
    [
        "split.draw=uniform",
        "pseudo_label={}",
        "ssl.options.threshold=0.95",
        "select.1.seed=0",
        "data.max_pixels=50000000",
        "ssl.second_round=null",
    ],
)
def test_what_is_said_though_it_is_so_anyway_changes_nothing(recipe: str, override: str) -> None:
    assert keys(recipe, override) == keys(recipe)


def test_a_second_round_is_two_stages_behind_the_first_round_which_stays(recipe: str) -> None:
    before, planned = keys(recipe), stages(recipe, "ssl.second_round={}")
    titles = [stage.title for stage in planned]
    place = titles.index("ssl round 2")
    assert titles[place - 2 : place + 3] == ["ssl", "pseudo_label", "ssl round 2", "pseudo_label round 2", "proxy"]
    assert {stage.title for stage in planned} - before.keys() == {"ssl round 2", "pseudo_label round 2"}
    first = DATA | TESTS | {"split", "ssl", "pseudo_label"}
    assert {stage.title for stage in planned if before.get(stage.title) == stage.key} == first
    by_title = {stage.title: stage for stage in planned}
    for title in (
        "proxy",
        "score",
        "trust",
        "export beta",
        "report",
    ):  # the last round's, wherever pseudo-labels are read
        assert by_title[title].inputs.get("pseudo_label") in (by_title["pseudo_label round 2"], None)
    assert keys(recipe, "ssl.second_round={}") == keys(recipe, "ssl.second_round.confident=0.95")
    lower, changed = keys(recipe, "ssl.second_round.confident=0.9"), {stage.title: stage.key for stage in planned}
    assert {title for title in titles if lower[title] == changed[title]} == first
    assert {s.title for s in plan.needed(planned, "pseudo_label")} == DATA | {"split"} | set(
        titles[place - 2 : place + 2]
    )


def test_every_fold_has_trainings_of_its_own_and_the_pool_those_that_know_all_labels(recipe: str) -> None:
    planned = stages(recipe, "split.folds=3")
    by_title = {stage.title: stage for stage in planned}
    own = ["fold", "ssl", "pseudo_label", "proxy", "score", "trust"]
    folds = {f"{name} fold {number}".replace("fold fold", "fold") for name in own for number in (1, 2, 3)}
    assert by_title.keys() == ALL | folds and len({stage.key for stage in planned}) == len(planned)
    places = {stage.key: place for place, stage in enumerate(planned)}
    assert all(places[source.key] < place for place, stage in enumerate(planned) for source in stage.inputs.values())
    for number in (1, 2, 3):
        split, guesses = by_title[f"fold {number}"], by_title[f"pseudo_label fold {number}"]
        assert by_title[f"ssl fold {number}"].inputs["split"] is guesses.inputs["split"] is split
        assert by_title[f"proxy fold {number}"].inputs["pseudo_label"] is guesses
        assert by_title["trust"].inputs[f"trust:{number - 1}"] is by_title[f"trust fold {number}"]
    assert by_title["select beta"].inputs["score"] is by_title["score"]
    assert by_title["ssl"].inputs["split"] is by_title["split"]
    alone = {stage.title: stage.key for stage in stages(recipe, "split.folds=3", "ssl.second_round={}")}
    assert {"ssl round 2 fold 3", "pseudo_label round 2 fold 3"} <= alone.keys()
    assert {title for title in folds if alone[title] == by_title[title].key} == {
        title for title in folds if title.split()[0] in ("fold", "ssl", "pseudo_label")
    }


def test_a_selection_with_a_seed_of_its_own_draws_the_same_from_the_same_scores(recipe: str) -> None:
    def settings(*overrides: str) -> object:
        return next(stage for stage in stages(recipe, *overrides) if stage.title == "select beta").settings()

    assert settings("select.1.seed=7", "seed=1") == settings("select.1.seed=7")
    assert settings("seed=1") != settings()


def test_annotations_made_later_are_another_evaluation(recipe: str, tmp_path: Path) -> None:
    table = tmp_path / "annotated.csv"
    with pytest.raises(UserError, match=r"evaluate.labels: there is no table of labels at"):
        stages(recipe, f"evaluate.labels={table}")
    planned = []
    for content in ("key,label\n", "key,label\ndigit-0001,3\n"):
        table.write_text(content)
        planned.append(keys(recipe, f"evaluate.labels={table}"))
    assert {title for title in ALL if planned[0][title] != planned[1][title]} == END


def test_without_an_evaluation_nothing_reads_test_images(recipe: str) -> None:
    planned = stages(recipe, "evaluate=null")
    assert {stage.title for stage in planned} == ALL - TESTS - {"evaluate"}
    assert not {"evaluate", "test_index"} & set(planned[-1].inputs)
    assert {stage.key for stage in planned[:-1]} <= set(keys(recipe).values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("report", ALL),
        ("evaluate", ALL - {"export cutoff", "export beta", "report"}),
        ("export", ALL - TESTS - END),
        ("select", DATA | TRAINED | {"select cutoff", "select beta"}),
        ("pseudo_label", DATA | {"split", "ssl", "pseudo_label"}),
        ("index", {"index", "index test"}),
    ],
)
def test_a_stage_needs_all_that_it_reads_and_no_more_in_the_same_order(
    recipe: str, name: str, expected: set[str]
) -> None:
    planned = stages(recipe)
    needed = plan.needed(planned, name)
    assert {stage.title for stage in needed} == expected
    assert needed == [stage for stage in planned if stage in needed]


def test_a_section_that_the_recipe_lacks_is_one_sentence(recipe: str) -> None:
    with pytest.raises(UserError, match=r"^the recipe has no 'evaluate' section: add one, or run another command$"):
        plan.needed(stages(recipe, "evaluate=null"), "evaluate")
