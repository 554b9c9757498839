"""The pieces that both loops share."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from models import training
from models.backbones import ModelConfig
from models.supervised import SupervisedConfig

CPU = torch.device("cpu")
MODEL = ModelConfig(name="resnet9", width=4)


def test_weights_come_from_the_seed_and_leave_the_callers_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = training.seeded_model(MODEL, 4, 0, CPU)
    assert torch.equal(torch.rand(3), expected)
    again, other = training.seeded_model(MODEL, 4, 0, CPU), training.seeded_model(MODEL, 4, 1, CPU)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_only_weight_tensors_decay():
    model = training.seeded_model(MODEL, 4, 0, CPU)
    decaying, rest = training.optimiser(model, SupervisedConfig(model=MODEL)).param_groups
    assert decaying["weight_decay"] == 5e-4 and rest["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decaying["params"]) and all(p.ndim == 1 for p in rest["params"])
    assert len(decaying["params"]) + len(rest["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_shares_add_up_to_the_mean_over_valid_rows(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 4, generator=generator)
    labels = torch.randint(0, 4, (10,), generator=generator)
    valid = torch.tensor([True] * 7 + [False] * 3)
    expected = functional.cross_entropy(logits[:7], labels[:7], label_smoothing=smoothing)
    padded = labels.where(valid, -1)
    shares = [
        training.mean_cross_entropy(logits[rows], padded[rows], valid[rows], 7, smoothing)
        for rows in (slice(0, 4), slice(4, 10))
    ]
    torch.testing.assert_close(sum(shares), expected)


def test_a_rank_of_padding_alone_has_loss_and_gradient_zero():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = training.mean_cross_entropy(logits, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool), 5)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


PRECISE = """
import torch
from models.training import reproducible
cudnn = torch.backends.cudnn
torch.backends.fp32_precision = "ieee"
for benchmark, deterministic in ((True, False), (False, True)):
    cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
    try:
        with reproducible():
            print(cudnn.benchmark, cudnn.deterministic, torch.backends.fp32_precision, cudnn.fp32_precision)
            raise KeyError
    except KeyError:
        print(cudnn.benchmark, cudnn.deterministic, torch.backends.fp32_precision, cudnn.fp32_precision)
"""


def test_sums_in_a_fixed_order_are_no_matter_of_their_precision():
    done = subprocess.run([sys.executable, "-c", PRECISE], capture_output=True, text=True)  # settings of a process
    inside = "False True ieee ieee"
    assert done.stdout.splitlines() == [inside, "True False ieee ieee", inside, inside], done.stderr


def test_predictions_do_not_depend_on_the_rows_around_them():
    model = training.seeded_model(MODEL, 4, 0, CPU)
    images = torch.randint(0, 256, (300, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = training.predict(model, images.numpy(), "auto", CPU)
    assert whole.shape == (300, 4) and whole.dtype == torch.float32
    assert torch.equal(training.predict(model, images[100:103], "auto", CPU), whole[100:103])
    assert model.training


def test_a_predictor_is_the_network_whose_weights_it_got():
    model = training.seeded_model(MODEL, 4, 7, CPU)
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    predictor = training.Predictor(MODEL, 4, training.dump(model.state_dict()), "fp32", CPU)
    assert torch.equal(predictor.predict(images), training.predict(model, images, "fp32", CPU))


def test_loading_refuses_code():
    class Payload:
        def __reduce__(self):
            return (print, ("executed",))

    with pytest.raises(Exception, match="Weights only load failed"):
        training.load(training.dump({"x": Payload()}), CPU)


def test_batch_norm_of_numpy_images_is_not_changed_by_prediction():
    model = training.seeded_model(MODEL, 4, 0, CPU)
    before = model.stem[1].running_mean.clone()
    training.predict(model, np.zeros((2, 8, 8, 3), dtype=np.uint8), "fp32", CPU)
    assert torch.equal(model.stem[1].running_mean, before)
