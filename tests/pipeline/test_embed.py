"""The embed stage on a finished run: what the proxy makes of the pool, and the methods that need it."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import embed, score, select
from pipeline.dynamics import DynamicsWriter
from pipeline.dynamics_store import DynamicsStore
from pipeline.embed import EmbedConfig
from pipeline.predictor import load_predictor
from pipeline.proxy import ProxyConfig
from pipeline.resources import Resources
from pipeline.score import ScoreConfig
from pipeline.select import SelectConfig
from pipeline.stage import Artifact, Output
from tests.pipeline.making import take
from tests.running import artifacts

QUIET: dict[str, Any] = {"resources": Resources(), "progress": lambda *_: None}


def committed(out: Output, metrics: dict[str, Any]) -> Artifact:
    return Artifact(out.uri, {"parts": [vars(part) for part in out.parts], "metrics": metrics})


@pytest.fixture(scope="module")
def looked(
    reference_run: Path, ray_local: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Artifact], Path]:
    """The finished stages of a run with `embed` after them, and a folder for more."""
    folder = tmp_path_factory.mktemp("embed")
    done = artifacts(reference_run)
    out = Output(f"{folder}/embed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "ROWS_PER_TASK", 400)
        metrics = embed.run(done, EmbedConfig(), out, **QUIET)
    return {**done, "embed": committed(out, metrics)}, folder


def store(looked: Mapping[str, Artifact]) -> DynamicsStore:
    return DynamicsStore(f"{looked['embed'].uri}/dynamics")


def test_every_image_is_looked_at_once_by_the_trained_proxy(looked: tuple[dict[str, Artifact], Path]) -> None:
    done, _ = looked
    found = store(done)
    n = done["index"].metrics["num_samples"]
    assert (found.num_samples, len(found.epochs), found.num_classes) == (n, 1, 10)
    assert done["embed"].metrics == {"num_samples": n, "width": found.columns["embedding"]}
    predictor = load_predictor(done["proxy"], ProxyConfig, Resources())
    ids = np.array([0, 3, n - 1])
    embeddings, logits = predictor.embed(take(done["index"], ids))
    read = found.read(0, 0, n, ["embedding", "p_label"])
    np.testing.assert_array_equal(read["embedding"][ids], embeddings.numpy())
    labels = done["pseudo_label"].table()["train_label"].to_numpy()[ids]
    expected = torch.softmax(logits, dim=1).numpy()[np.arange(3), labels]
    np.testing.assert_allclose(read["p_label"][ids], expected, rtol=1e-5)


def test_images_from_the_shards_give_the_same_embeddings(
    looked: tuple[dict[str, Artifact], Path], tmp_path: Path
) -> None:
    done, _ = looked
    n = done["index"].metrics["num_samples"]
    inputs = {name: done[name] for name in ("index", "pseudo_label", "proxy")}
    cuts = [*range(0, n, 400), n]
    parts = [
        embed._embed(ids, **inputs, uri=str(tmp_path), resources=Resources(images="stream")) for ids in pairwise(cuts)
    ]
    DynamicsWriter(str(tmp_path), n).commit_epoch(0, parts)
    streamed, cached = DynamicsStore(str(tmp_path)).read(0, 0, n, READ), store(done).read(0, 0, n, READ)
    assert all(np.array_equal(streamed[name], cached[name]) for name in READ)


READ = ["embedding", "p_label", "p_other", "el2n"]


def test_scores_and_selectors_that_look_at_distances_use_it(looked: tuple[dict[str, Artifact], Path]) -> None:
    done, folder = looked
    out = Output(f"{folder}/score")
    config = ScoreConfig.model_validate({"aum": {}, "grand": {}, "prototypicality": {}})
    metrics = score.run(done, config, out, **QUIET)
    scored = committed(out, metrics)
    table = scored.table()
    assert table.column_names == ["sample_id", "train_label", "aum", "grand", "prototypicality"]
    read = store(done).read(0, 0, table.num_rows, ["embedding", "el2n"])
    grand = read["el2n"] * np.sqrt(1 + (read["embedding"].astype(np.float64) ** 2).sum(axis=1))
    np.testing.assert_allclose(table["grand"], grand, rtol=1e-5)
    np.testing.assert_array_equal(table["aum"], done["score"].table()["aum"])
    np.testing.assert_array_equal(table["train_label"], done["pseudo_label"].table()["train_label"])

    chosen = Output(f"{folder}/select")
    wanted = SelectConfig(name="spread", selector="k_center", keep_fraction=0.1, seed=0)
    facts = select.run({**done, "score": scored}, wanted, chosen, **QUIET)
    coreset = committed(chosen, facts).table()
    assert coreset.num_rows == facts["budget"] == table.num_rows // 10
    assert sorted(coreset["rank"].to_pylist()) == list(range(facts["budget"]))
    assert facts["score"] is None and facts["cuts"] is None  # a distance is no score with cuts
