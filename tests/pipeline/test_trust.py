"""The trust stage on the reference run, against recounts and slow plain versions."""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import spearmanr

from pipeline import select, trust
from pipeline.errors import UserError
from pipeline.mislabel import choose
from pipeline.pseudo_label import Holdout
from pipeline.ranks import ties
from pipeline.recipe import load_recipe
from pipeline.resources import Resources
from pipeline.scores import compute_scores
from pipeline.select import SelectConfig
from pipeline.selectors import select as scores_select
from pipeline.stage import Artifact, Output
from pipeline.trust import HeldOut, TrustConfig, expected_wrong
from tests.pipeline.making import silent
from tests.running import tiny_recipe

N = 1437


@pytest.fixture(scope="module")
def held(done: dict[str, Artifact]) -> HeldOut:
    return HeldOut.load(done["trust"])


@pytest.fixture(scope="module")
def metrics(done: dict[str, Artifact]) -> dict[str, Any]:
    return done["trust"].metrics


def again(done: dict[str, Artifact], folder: Path, **changes: Artifact) -> tuple[pa.Table, dict[str, Any]]:
    """The stage once more, in this process, with other inputs."""
    out = Output(str(folder))
    inputs = {name: done[name] for name in ("split", "pseudo_label", "proxy", "score")} | changes
    found = trust.run(inputs, TrustConfig(seed=0), out, resources=Resources(), progress=silent)
    return Artifact(out.uri, {"parts": [vars(part) for part in out.parts]}).table(), found


def test_the_rows_are_the_held_out_ones_with_what_the_model_said(done: dict[str, Artifact], held: HeldOut) -> None:
    split, guesses = done["split"].table(), done["pseudo_label"].table()
    rows = split.filter(pc.equal(split["role"], "holdout")).sort_by("sample_id")
    assert held.sample_ids.tolist() == rows["sample_id"].to_pylist()
    assert held.table["label"].to_pylist() == rows["label"].to_pylist()
    for name in ("pseudo_label", "confidence"):
        assert held.table[name].to_pylist() == guesses[name].take(rows["sample_id"]).to_pylist()
    assert held.wrong.tolist() == pc.not_equal(held.table["label"], held.table["pseudo_label"]).to_pylist()


def test_the_metrics_are_a_recount(held: HeldOut, metrics: dict[str, Any]) -> None:
    assert metrics["num_holdout"] == len(held.wrong) == 20 and metrics["num_wrong"] == held.wrong.sum()
    assert metrics["accuracy"] == pytest.approx(1 - held.wrong.mean())
    known = {row["label"]: (row["correct"], row["total"]) for row in metrics["per_class"]}
    labels = held.table["label"].to_numpy()
    assert known == {c: ((~held.wrong)[labels == c].sum(), (labels == c).sum()) for c in np.unique(labels)}
    assert metrics["pool"]["unknown"] == N - 100 and metrics["num_train"] == 80
    assert sum(row["total"] for row in metrics["by_confidence"]) == 20
    assert metrics["more_labels"] is None and metrics["verdict"]["level"] in ("label more", "do not use", "trust")
    json.dumps(metrics, allow_nan=False)


def test_a_share_is_that_of_the_pool_with_a_harder_score_and_of_the_equals_by_their_hash(
    done: dict[str, Artifact], held: HeldOut
) -> None:
    scores = done["score"].table()
    seed = done["trust"].manifest["config"]["seed"]
    for column, harder in done["score"].metrics["harder"].items():
        pool = scores[column].to_numpy() * (1 if harder == "high" else -1)
        hashes = ties(seed, held.sample_ids) / 2.0**64
        expected = [
            ((pool > pool[i]).sum() + share * (pool == pool[i]).sum()) / N
            for i, share in zip(held.sample_ids, hashes, strict=True)
        ]
        np.testing.assert_allclose(held.harder_share(column), expected, atol=1e-12)
        assert np.array_equal(held.table[f"given:{column}"].to_numpy(), scores[column].to_numpy()[held.sample_ids])


@pytest.mark.parametrize("harder", ["low", "high"])
def test_a_cut_through_equal_scores_parts_the_held_out_rows_as_it_parts_the_pool(tmp_path: Path, harder: str) -> None:
    """A third of all are never forgotten, say: half of those a selector keeps."""
    ids, keep, cut, seed = np.arange(6000), 0.3, 0.5, 7
    scores = np.repeat([0.0, 1.0, 2.0], 2000).astype(np.float32)[np.random.default_rng(0).permutation(6000)]
    pool = pa.table({"sample_id": ids, "mine": scores})
    out = Output(str(tmp_path))
    out.write_table(pool)
    artifact = Artifact(out.uri, {"parts": [vars(part) for part in out.parts]})
    share = trust._pool_scores(artifact, ids[::5], {"mine": harder}, seed)["harder_share:mine"]
    options = {"score": "mine", "mislabel_fraction": cut, "harder": harder}
    kept = scores_select(pool, "double_end", keep_fraction=keep, seed=seed, **options)
    said = (share >= cut) & (share < cut + keep)
    assert (said != np.isin(ids[::5], kept)).sum() < 30  # of 1200; all equals in or out would be wrong in hundreds


def test_scores_by_true_labels_are_those_of_their_own_record(
    done: dict[str, Artifact], held: HeldOut, metrics: dict[str, Any]
) -> None:
    options = done["score"].manifest["config"]["scores"]
    expected = compute_scores(f"{done['proxy'].uri}/dynamics_true", list(options), **options)
    right = ~held.wrong
    for column in metrics["rank_correlation"]:
        given, true = (held.table[name].to_numpy() for name in (f"given:{column}", f"true:{column}"))
        assert np.array_equal(true, expected[column].to_numpy())
        assert np.array_equal(given[right], true[right])
        found = metrics["rank_correlation"][column]
        assert found["rho"] == pytest.approx(spearmanr(given, true).statistic)
        assert found["interval"][0] <= found["rho"] <= found["interval"][1]
    assert set(metrics["rank_correlation"]) == {"aum", "confidence", "forgetting", "el2n", "dual", "dual_mean"}


def test_it_is_a_function_of_its_inputs(done: dict[str, Artifact], metrics: dict[str, Any], tmp_path: Path) -> None:
    table, found = again(done, tmp_path)
    assert found == metrics and table.equals(done["trust"].table())


def test_without_a_held_out_row_nothing_is_known_and_nothing_breaks(done: dict[str, Artifact], tmp_path: Path) -> None:
    labels = done["pseudo_label"]
    parts = [part for part in labels.manifest["parts"] if not part["name"].startswith("holdout")]
    table, found = again(
        done, tmp_path, pseudo_label=dataclasses.replace(labels, manifest={**labels.manifest, "parts": parts})
    )
    assert table.num_rows == found["num_holdout"] == 0 and found["verdict"]["level"] == "not measured"
    absent = ("accuracy", "interval", "calibration", "pool", "more_labels")
    assert [found[name] for name in absent] == [None] * len(absent)
    assert (found["per_class"], found["by_confidence"], found["along"], found["rank_correlation"]) == ([], [], {}, {})
    json.dumps(found, allow_nan=False)


def test_labels_that_came_back_are_a_caveat(done: dict[str, Artifact], metrics: dict[str, Any], tmp_path: Path) -> None:
    split = done["split"]
    for number in (0, 30):
        told = {**split.manifest, "metrics": {**split.metrics, "num_annotated": number}}
        _, found = again(done, tmp_path / str(number), split=dataclasses.replace(split, manifest=told))
        assert (found == metrics) == (number == 0)
        assert found["verdict"]["level"] == metrics["verdict"]["level"]
    assert found["verdict"]["caveat"].startswith("of the labels 30 came back")


def test_enough_held_out_rows_say_what_more_would_bring(done: dict[str, Artifact]) -> None:
    rng, labels = np.random.default_rng(0), np.arange(200) % 10
    features = (3 * np.eye(10)[labels] + rng.standard_normal((200, 10))).astype(np.float32)
    found = trust._more_labels(Holdout(np.arange(200), labels, features, features), 40, seed=0)
    assert found is not None
    low, high = found["doubled"]["interval"]
    assert 0.8 <= low <= found["doubled"]["accuracy"] == pytest.approx(1 - 0.2 * found["left"]) and high < 1


@pytest.mark.parametrize("cut", [0.0, 0.2])
def test_the_held_out_members_of_a_coreset_tell_how_many_of_it_are_wrong(cut: float) -> None:
    """On pools where wrong ones gather at the hard end, for a coreset from there, as double_end chooses it."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(300):
        wrong = rng.random(5000) < 0.8 * np.exp(-np.arange(5000) / 1000)  # in order of difficulty
        held = rng.random(5000) < 0.05
        coreset = slice(int(cut * 5000), int(cut * 5000) + 1500)
        own = held[coreset]
        found = expected_wrong(int((wrong[coreset] & own).sum()), int(own.sum()), int((~own).sum()))
        assert found is not None
        hits.append(found["interval"][0] <= wrong[coreset].sum() <= found["interval"][1])
    assert 0.92 < np.mean(hits) < 0.98


def test_a_set_without_a_held_out_row_is_not_known_and_one_of_them_alone_is() -> None:
    assert expected_wrong(0, 0, 100) is None
    found = expected_wrong(3, 10, 0)
    assert found is not None and (found["expected"], found["interval"]) == (3, [3, 3])


def test_a_selection_with_an_auto_cut_takes_it_from_here(
    done: dict[str, Artifact], held: HeldOut, tmp_path: Path
) -> None:
    settings = SelectConfig(
        name="auto", selector="double_end", keep_fraction=0.3, seed=0, options={"mislabel_fraction": "auto"}
    )
    out = Output(str(tmp_path))
    inputs = {name: done[name] for name in ("score", "split", "trust")}
    metrics = select.run(inputs, settings, out, resources=Resources(), progress=silent)
    used = metrics["choice"]["used"]
    assert Fraction(str(used)) == choose(held.harder_share("aum"), held.wrong, Fraction("0.3"))
    kept = Artifact(out.uri, {"parts": [vars(part) for part in out.parts]}).table()["sample_id"].to_numpy()
    by_hand = scores_select(done["score"].table(), "double_end", keep_fraction=0.3, mislabel_fraction=used)
    assert np.array_equal(kept, by_hand)


@pytest.mark.parametrize(
    "auto",
    [
        ("select.0.options.mislabel_fraction=auto",),
        ("select.0.selector=dual_beta", "select.0.options={c_d: auto}", "score={aum: {}, dual: {T: 2, J: 2}}"),
    ],
)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "split.holdout_fraction=0",
            "which held-out labels choose, but split.holdout_fraction is 0: raise it, or name",
        ),
        ("split.holdout_fraction=0.1", None),
    ],
)
def test_an_auto_option_without_held_out_rows_is_told_before_any_training(
    auto: tuple[str, ...], override: str, message: str | None, tmp_path: Path
) -> None:
    recipe = str(tiny_recipe(tmp_path / "data", tmp_path / "run"))
    overrides = (*auto, override)
    if message is None:
        assert load_recipe(recipe, overrides).select[0].undecided
        return
    with pytest.raises(UserError, match=message):
        load_recipe(recipe, overrides)
