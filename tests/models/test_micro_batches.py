"""Rows piece by piece: the same losses and gradients with a part of the memory."""

import pytest
import torch
from torch import nn

from models import micro_batches
from models.backbones import ModelConfig
from models.semi_supervised import SemiSupervisedConfig, SemiSupervisedTrainer
from models.ssl import algorithms
from tests.models.conftest import noise
from tests.models.ssl.making import algorithm, network, step

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_finds_the_same_losses_and_gradients(name):
    """Without batch norm; 8 and 24 rows do not go into 5, and one piece of 30 has no labelled row."""

    def run(pieces):
        tested, model, found = algorithm(name), network(), []
        for number in (1, 4, 7):
            losses = tested(step(model, number, micro_batches=pieces))
            (losses.labelled + losses.unlabelled).backward()
            found += [losses.labelled.detach(), losses.unlabelled.detach(), losses.weight]
        return [*found, *(parameter.grad for parameter in model.parameters()), *tested.buffers()]

    expected = run(1)
    for pieces in (2, 5, 30):
        torch.testing.assert_close(run(pieces), expected)


def _norms():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4)
    return nn.Sequential(*layers).double()


def _views():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 3, 8, 8, dtype=torch.float64, generator=generator) for rows in (5, 11)]


def test_batch_norm_sees_each_piece_once():
    """A piece has every third row of each kind; running statistics take in the three, one after the other."""
    network, plain, views = _norms(), _norms(), _views()
    weight = torch.linspace(-1, 1, 16 * 4, dtype=torch.float64).view(16, 4)
    logits = micro_batches.forward(network, views, 3)
    (logits.softmax(1) * weight).sum().backward()
    expected = torch.empty(16, 4, dtype=torch.float64)
    for piece in range(3):
        rows = torch.cat([torch.arange(piece, 5, 3), 5 + torch.arange(piece, 11, 3)])
        expected[rows] = plain(torch.cat(views)[rows])
    (expected.softmax(1) * weight).sum().backward()
    torch.testing.assert_close(logits, expected)
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for (name, one), (_, other) in zip(network.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert network[1].num_batches_tracked == 3 and network.state_dict().keys() == plain.state_dict().keys()


def test_what_is_kept_for_the_backward_pass_is_the_images_alone():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        micro_batches.forward(_norms(), _views(), 1)
        whole = sum(kept)
        kept.clear()
        micro_batches.forward(_norms(), _views(), 4)
    assert sum(kept) <= 16 * 3 * 8 * 8 + 16 * 4 < whole / 3


def test_a_training_in_pieces_resumes_bit_equal():
    pool, labelled = noise(40, 8), range(12)

    def trainer():
        model = ModelConfig(name="resnet9", width=4)
        config = SemiSupervisedConfig(model=model, steps=4, batch_size=8, unlabelled_ratio=2, micro_batches=3)
        return SemiSupervisedTrainer(config, num_classes=4, seed=1, device=CPU, num_samples=40)

    through, first, second = trainer(), trainer(), trainer()
    through.train_steps(range(4), pool.pairs(range(4), labelled, 8, 16))
    first.train_steps(range(2), pool.pairs(range(2), labelled, 8, 16))
    second.restore(first.state())
    second.train_steps(range(2, 4), pool.pairs(range(2, 4), labelled, 8, 16))
    assert second.state() == through.state()
