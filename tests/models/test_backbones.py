"""The contract of every network in the registry."""

import pytest
import torch
from pydantic import ValidationError

from models import backbones
from models.backbones import ModelConfig, architectures
from pipeline.errors import UserError

SMALL = [name for name in architectures() if not name.startswith("torchvision")]
PARAMETERS = {
    "resnet9": (4.0e5, 4.4e5),
    "resnet18": (1.1e7, 1.12e7),
    "wrn_16_2": (6.8e5, 7.0e5),
    "wrn_28_2": (1.45e6, 1.49e6),
    "torchvision_resnet18": (1.11e7, 1.13e7),
    "torchvision_resnet34": (2.12e7, 2.14e7),
    "torchvision_resnet50": (2.35e7, 2.36e7),
}


def test_every_network_has_its_known_number_of_parameters():
    assert set(PARAMETERS) == set(architectures())
    for name, (low, high) in PARAMETERS.items():
        assert low < sum(p.numel() for p in ModelConfig(name=name).build(10).parameters()) < high, name


@pytest.mark.parametrize("name", architectures())
@pytest.mark.parametrize("size", [8, 32, 64])
def test_logits_are_finite_float32_at_any_size_under_autocast(name, size):
    model = ModelConfig(name=name, width=8 if name in SMALL else None).build(7)
    images = torch.randn(2, 3, size, size).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, features = model.eval()(images), model.features(images)
    assert logits.shape == (2, 7) and logits.dtype == torch.float32 and logits.isfinite().all()
    assert features.shape == (2, model.head.in_features)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient_and_large_images_pass(name):
    model = ModelConfig(name=name, width=4).build(3)
    model(torch.randn(2, 3, 96, 96)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_width_sets_the_size(name):
    sizes = [sum(p.numel() for p in ModelConfig(name=name, width=width).build(3).parameters()) for width in (8, 16)]
    assert 3 < sizes[1] / sizes[0] < 4.1


def test_mistakes_name_the_value_and_the_choices():
    with pytest.raises(ValidationError, match="unknown network 'resnet10'; choose one of resnet18, resnet9"):
        ModelConfig(name="resnet10")
    with pytest.raises(ValidationError, match="width 32 of torchvision_resnet18 is not between 64 and 64"):
        ModelConfig(name="torchvision_resnet18", width=32)
    with pytest.raises(ValidationError, match="depth"):
        ModelConfig(name="resnet9", depth=3)


@pytest.mark.parametrize("text", ["def (", "import absent_package", "ARCHITECTURE = {}"])
def test_a_broken_file_is_one_sentence(tmp_path, monkeypatch, text):
    """Also where a default is made while a module is imported: no ValidationError, which a command line cannot tell."""
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.setattr(backbones, "__path__", [*backbones.__path__, str(tmp_path)])
    monkeypatch.setattr(backbones, "architectures", architectures.__wrapped__)
    with pytest.raises(UserError, match=rf"^the network in '{tmp_path}/broken.py' cannot be used: .*; mend or remove"):
        ModelConfig(name="resnet9")
