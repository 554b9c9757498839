"""The network of a finished stage: its own weights, loaded once, verified."""

from dataclasses import replace

import pytest
import torch

from pipeline import predictor, storage
from pipeline.errors import CorruptArtifactError
from pipeline.predictor import load_predictor
from pipeline.proxy import ProxyConfig
from pipeline.resources import Resources
from pipeline.ssl import SslConfig
from pipeline.stage import Artifact
from tests.pipeline.making import take


def test_it_holds_the_weights_that_the_stage_wrote(done: dict[str, Artifact]) -> None:
    for stage, config in (("proxy", ProxyConfig), ("ssl", SslConfig)):
        (part,) = done[stage].parts("model")
        loaded = load_predictor(done[stage], config, Resources())
        written = torch.load(f"{done[stage].uri}/{part.name}", weights_only=True)
        assert loaded.model.state_dict().keys() == written.keys()
        assert all(torch.equal(loaded.model.state_dict()[name], value) for name, value in written.items())
        assert not loaded.model.training


def test_a_process_loads_it_once(done: dict[str, Artifact]) -> None:
    first = load_predictor(done["proxy"], ProxyConfig, Resources())
    assert load_predictor(done["proxy"], ProxyConfig, Resources()) is first


def test_a_task_uses_the_threads_that_it_has(done: dict[str, Artifact]) -> None:
    before = torch.get_num_threads()
    try:
        load_predictor(done["proxy"], ProxyConfig, Resources(cpus_per_worker=3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_proxy_knows_most_of_what_it_was_trained_on(done: dict[str, Artifact]) -> None:
    images = take(done["index"], range(300))
    labels = done["pseudo_label"].table()["train_label"].to_numpy()[:300]
    predicted = load_predictor(done["proxy"], ProxyConfig, Resources()).predict(images).argmax(dim=1).numpy()
    assert (predicted == labels).mean() > 0.5


def test_damaged_weights_are_named(done: dict[str, Artifact], tmp_path: object) -> None:
    (part,) = done["proxy"].parts("model")
    storage.write(f"{tmp_path}/{part.name}", b"damaged")
    damaged = replace(done["proxy"], uri=str(tmp_path))
    predictor._load.cache_clear()
    with pytest.raises(CorruptArtifactError, match=part.name):
        load_predictor(damaged, ProxyConfig, Resources())
