"""The contract of every semi-supervised algorithm, and FixMatch against a plain version."""

import pytest
import torch

from models.ssl import Unlabelled, algorithms
from models.ssl.fixmatch import FixMatch, Options


def _rows(n=50, num_classes=5):
    generator = torch.Generator().manual_seed(0)
    probabilities = (4 * torch.randn(n, num_classes, generator=generator)).softmax(1)
    return Unlabelled(torch.arange(n), probabilities, torch.ones(n, dtype=torch.bool), n, progress=0.5)


@pytest.mark.parametrize("name", algorithms())
def test_targets_and_losses_of_every_algorithm(name):
    rows = _rows()
    algorithm = algorithms()[name](algorithms()[name].Options(), num_classes=5, num_samples=50)
    target, weight = algorithm.targets(rows)
    assert target.shape in {(50,), (50, 5)} and weight.shape == (50,)
    assert (weight >= 0).all() and weight.isfinite().all()
    logits = torch.randn(50, 5, requires_grad=True)
    losses = algorithm.losses(logits, target, weight)
    assert losses.shape == (50,) and losses.isfinite().all()
    losses.sum().backward()
    assert logits.grad.isfinite().all()
    assert algorithm.teacher in {"model", "ema"} and algorithm.student_view in {"strong", "weak"}


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.95, 1.0])
def test_fixmatch_equals_a_plain_version(threshold):
    rows = _rows()
    target, weight = FixMatch(Options(threshold=threshold), 5, 50).targets(rows)
    for p, chosen, amount in zip(rows.probabilities.tolist(), target.tolist(), weight.tolist(), strict=True):
        assert chosen == p.index(max(p))
        assert amount == (1.0 if torch.tensor(max(p)) >= threshold else 0.0)
