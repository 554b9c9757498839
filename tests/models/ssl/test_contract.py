"""What every algorithm of the registry keeps, whatever its formulas."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models import ssl
from models.backbones import ModelConfig
from models.semi_supervised import SemiSupervisedConfig, SemiSupervisedTrainer
from models.ssl import algorithms
from pipeline.errors import UserError
from tests.models.conftest import noise
from tests.models.ssl.making import NUM_STEPS, POOL, algorithm, batches, network, step

every_algorithm = pytest.mark.parametrize("name", algorithms())


@every_algorithm
@pytest.mark.parametrize("scale", [0.0, 6.0, 1e4])
def test_losses_are_finite_and_weights_are_shares(name, scale):
    """For predictions that are uniform, mixed, and 0 or 1 to the last bit."""
    tested = algorithm(name)
    for number in (0, 3, NUM_STEPS - 1):
        model = network(scale)
        at = step(model, number)
        losses = tested(at)
        (losses.labelled + losses.unlabelled).backward()
        assert losses.labelled.shape == losses.unlabelled.shape == () and losses.weight.shape == (24,)
        assert losses.labelled.isfinite() and losses.unlabelled.isfinite()
        assert (losses.weight >= 0).all() and (losses.weight <= 1).all() and (losses.weight[~at.valid] == 0).all()
        assert not losses.weight.requires_grad
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        assert all(buffer.isfinite().all() for buffer in tested.buffers())


@pytest.mark.parametrize("text", ["def (", "import absent_package", "from models.ssl import Algorithm"])
def test_a_broken_file_is_one_sentence(tmp_path, monkeypatch, text):
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.setattr(ssl, "__path__", [*ssl.__path__, str(tmp_path)])
    with pytest.raises(UserError, match=rf"^the algorithm in '{tmp_path}/broken.py' cannot be used: .*; mend or"):
        algorithms.__wrapped__()


def test_a_sample_that_comes_twice_in_a_step_is_seen_in_two_ways():
    """As with fewer labels than rows of a step."""
    batch = POOL.batch([7, 7, 3, 7], visits=[4, 5, 4, 6])
    at = replace(step(network()), labelled=batch, unlabelled=batch)
    for views in (at.weak_labelled(), at.weak(), at.strong()):
        assert len(views.flatten(1).unique(dim=0)) == 4
    again = replace(at, number=5, unlabelled=POOL.batch([7], visits=[5]))
    assert torch.equal(again.strong()[0], at.strong()[1])


def _run(name, rows):
    """Losses, gradients, weights of valid rows by id, and state, after three steps on `rows(number)`."""
    tested, model = algorithm(name), network()
    found, weights = [], []
    for number in (1, 4, 7):
        at = step(model, number, rows=rows(number))
        losses = tested(at)
        (losses.labelled + losses.unlabelled).backward()
        found += [losses.labelled.detach(), losses.unlabelled.detach()]
        ids = at.sample_ids[at.valid]
        weights.append(losses.weight[at.valid][ids.argsort(stable=True)])
    return [*found, *weights, *(parameter.grad for parameter in model.parameters()), *tested.buffers()]


@every_algorithm
def test_padding_is_never_seen(name):
    """Other images, labels and ids in padding rows, and fewer of them, change nothing."""

    def other(number):
        return [(np.where(valid, ids, (7 * ids + 11) % 60), valid) for ids, valid in batches(number)]

    def none(number):
        return [(ids[valid], valid[valid]) for ids, valid in batches(number)]

    expected = _run(name, batches)
    for rows in (other, none):
        for a, b in zip(_run(name, rows), expected, strict=True):
            torch.testing.assert_close(a, b)


@every_algorithm
def test_order_of_rows_does_not_matter(name):
    def shuffled(number):
        return [
            (ids[order], valid[order])
            for ids, valid in batches(number)
            for order in [np.random.default_rng(number).permutation(len(ids))]
        ]

    for a, b in zip(_run(name, shuffled), _run(name, batches), strict=True):
        torch.testing.assert_close(a, b)


@every_algorithm
def test_no_forward_pass_too_many(name):
    """Rows through the network without gradient, through it with gradient, and through its average."""
    n, b = 24, 8
    expected = {"supervised": (0, b, 0), "pseudo_label": (0, b + n, 0), "mean_teacher": (0, b + n, n)}
    expected["mixmatch"] = (2 * n, b + 2 * n, 0)
    model, ema, seen = network(), network(), [0, 0, 0]

    def count(network, images, logits):
        seen[2 if network is ema else int(logits.requires_grad)] += len(logits)

    model.register_forward_hook(count), ema.register_forward_hook(count)
    algorithm(name)(step(model, 5, ema))
    assert tuple(seen) == expected.get(name, (n, b + n, 0))


@every_algorithm
def test_what_teaches_has_no_gradient(name):
    """The average network is never trained."""
    ema = network(seed=5)
    losses = algorithm(name)(step(network(), 5, ema))
    (losses.labelled + losses.unlabelled).backward()
    assert all(parameter.grad is None for parameter in ema.parameters())


def _trainer(name):
    config = SemiSupervisedConfig(
        algorithm=name,
        options=algorithm(name).options.model_dump(),
        model=ModelConfig(name="resnet9", width=4),
        steps=4,
        batch_size=8,
        unlabelled_ratio=2,
    )
    return SemiSupervisedTrainer(config, num_classes=4, seed=1, device=torch.device("cpu"), num_samples=40)


@every_algorithm
def test_a_resumed_training_is_bit_equal_and_state_is_all_in_checkpoints(name):
    pool, labelled = noise(40, 8), np.arange(12)
    through, first, second = _trainer(name), _trainer(name), _trainer(name)
    before = copy.deepcopy(through.algorithm.state_dict())
    through.train_steps(range(4), pool.pairs(range(4), labelled, 8, 16))
    first.train_steps(range(2), pool.pairs(range(2), labelled, 8, 16))
    second.restore(first.state())
    second.train_steps(range(2, 4), pool.pairs(range(2, 4), labelled, 8, 16))
    assert second.state() == through.state()
    changed = [key for key, value in through.algorithm.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == list(before), "every buffer is a state that moves"
    assert not set(vars(through.algorithm)) - set(vars(_trainer(name).algorithm)), "no state but buffers"


@every_algorithm
def test_options_and_defaults_are_settings(name):
    config = SemiSupervisedConfig(algorithm=name)
    assert config.options == algorithms()[name].Options().model_dump()
    assert {key: getattr(config, key) for key in algorithms()[name].defaults} == algorithms()[name].defaults
    assert SemiSupervisedConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match=f"'{name}' has no option 'luck'; it has "):
        SemiSupervisedConfig(algorithm=name, options={"luck": 1})
    for option, field in algorithms()[name].Options.model_fields.items():
        assert field.description
        with pytest.raises(ValidationError, match=f"{option}=-1 cannot be used by '{name}': "):
            SemiSupervisedConfig(algorithm=name, options={option: -1})
