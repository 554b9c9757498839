"""The average against its formula, parameter by parameter."""

import copy

import pytest
import torch
from torch import nn

from models.ema import Ema


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def change(model: nn.Module, step: int) -> None:
    """What a training step does to a network, with numbers of our own."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
        model[1].running_mean.fill_(step)
        model[1].num_batches_tracked.add_(1)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_every_parameter_follows_the_formula(decay: float) -> None:
    model = network()
    ema = Ema(model, decay)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(30):
        change(model, step)
        ema.update(model, step)
        share = min(decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            expected[name] = share * expected[name] + (1 - share) * parameter.detach()
    for name, parameter in ema.module.named_parameters():
        torch.testing.assert_close(parameter, expected[name])


def test_the_first_update_keeps_a_tenth_of_the_initial_weights() -> None:
    model = network()
    ema, before = Ema(model, decay=0.999), model[0].weight.detach().clone()
    change(model, 0)
    ema.update(model, 0)
    torch.testing.assert_close(ema.module[0].weight, 0.1 * before + 0.9 * model[0].weight.detach())


def test_buffers_are_copied_and_not_averaged() -> None:
    model = network()
    ema = Ema(model, decay=0.999)
    for step in range(3):
        change(model, step)
        ema.update(model, step)
    assert (ema.module[1].running_mean == 2).all()
    assert ema.module[1].num_batches_tracked == 3


def test_the_average_is_a_network_of_its_own_that_nobody_trains() -> None:
    model = network().train()
    ema = Ema(model, decay=0.5)
    before = copy.deepcopy(ema.module.state_dict())
    change(model, 0)
    assert all(torch.equal(value, before[name]) for name, value in ema.module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    ema.update(model, 0)
    assert model.training and not ema.module.training


def test_an_update_leaves_the_network_and_its_gradients_alone() -> None:
    model = network()
    ema = Ema(model, decay=0.5)
    model(torch.ones(2, 3)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradient = model[0].weight.grad.clone()
    ema.update(model, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, gradient) and model[0].weight.requires_grad
