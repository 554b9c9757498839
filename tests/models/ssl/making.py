"""Steps over noise with a linear network, whose logits of a row depend on no other row."""

import copy

import numpy as np
import torch
from torch import nn

from models.augment import AugmentConfig
from models.semi_supervised import logit_adjustment
from models.ssl import Step, algorithms, evened
from tests.models.conftest import noise

NUM_CLASSES, NUM_SAMPLES, NUM_STEPS = 4, 60, 10
POOL = noise(NUM_SAMPLES, 8, NUM_CLASSES)
ADJUSTMENT = logit_adjustment(0.7, np.array([40, 10, 4, 1]))

# Settings under which some rows of these steps count and some do not.
MIXED = {
    "fixmatch": {"threshold": 0.7},
    "flexmatch": {"threshold": 0.7},
    "freematch": {"momentum": 0.5, "fairness_weight": 0.3},
    "pseudo_label": {"threshold": 0.7},
    "softmatch": {"momentum": 0.5, "n_sigma": 3.0},
    "uda": {"threshold": 0.7},
}


def network(scale=6.0, seed=0):
    """The same weights for the same seed; a larger scale makes surer predictions."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, NUM_CLASSES))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model[1].weight.copy_(scale / 14 * torch.randn(model[1].weight.shape, generator=generator))
        model[1].bias.zero_()
    return model


def algorithm(name, **options):
    """One with its settings in MIXED, `options` over them."""
    kind = algorithms()[name]
    return kind(kind.Options(**{**MIXED.get(name, {}), **options}), NUM_CLASSES, NUM_SAMPLES)


def batches(number):
    """Ids and validity of the labelled and of the unlabelled rows; a sample comes twice, and some rows are padding."""
    generator = np.random.default_rng(number)
    labelled, unlabelled = generator.permutation(12)[:8], generator.permutation(NUM_SAMPLES)[:24]
    unlabelled[5] = unlabelled[17]
    return (labelled, np.arange(8) < 7), (unlabelled, ~np.isin(np.arange(24), [3, 22, 23]))


def step(model, number=0, ema=None, rows=None, micro_batches=1):
    """The step of that number; rows: other than `batches`, with valid rows over all ranks if there are several."""
    labelled, unlabelled = (POOL.batch(*part, visits=number) for part in (rows or batches(number)))
    average = copy.deepcopy(model) if ema is None else ema
    pair = evened(labelled), evened(unlabelled)
    return Step(
        number,
        NUM_STEPS,
        *pair,
        model,
        average.eval(),
        AugmentConfig(),
        "fp32",
        seed=1,
        adjustment=ADJUSTMENT,
        micro_batches=micro_batches,
    )
