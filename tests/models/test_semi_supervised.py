"""The semi-supervised loop: its losses, its seam, that it resumes; that it learns is in ssl/test_learning.py."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from models import semi_supervised
from models.augment import Draw, strong, weak
from models.backbones import ModelConfig
from models.semi_supervised import SemiSupervisedConfig, SemiSupervisedTrainer
from models.ssl import Algorithm, algorithms, mean
from tests.models.conftest import noise

CPU = torch.device("cpu")
CONFIG = SemiSupervisedConfig(
    model=ModelConfig(name="resnet9", width=4),
    steps=6,
    batch_size=8,
    unlabelled_ratio=2,
    options={"threshold": 0.3},
    lr=0.05,
)
LABELLED = np.arange(12)


def _trainer(config=CONFIG):
    return SemiSupervisedTrainer(config, num_classes=4, seed=1, device=CPU, num_samples=40)


def test_resumed_training_is_bit_equal():
    pool = noise(40, 8)
    through, first, second = _trainer(), _trainer(), _trainer()
    through.train_steps(range(6), pool.pairs(range(6), LABELLED, 8, 16))
    first.train_steps(range(2), pool.pairs(range(6), LABELLED, 8, 16))
    second.restore(first.state())
    told = []
    second.train_steps(range(2, 6), pool.pairs(range(2, 6), LABELLED, 8, 16), told.append)
    assert second.state() == through.state()
    assert second.weights() == through.weights()
    assert told == [3, 4, 5, 6]


def test_batches_may_go_on_and_none_is_lost():
    pool = noise(40, 8)
    stream = pool.pairs(range(6), LABELLED, 8, 16)
    through, pieces = _trainer(), _trainer()
    through.train_steps(range(6), pool.pairs(range(6), LABELLED, 8, 16))
    for steps in (range(2), range(2, 6)):
        pieces.train_steps(steps, stream)
    assert pieces.state() == through.state()
    with pytest.raises(AssertionError):
        _trainer().train_steps(range(6), pool.pairs(range(4), LABELLED, 8, 16))


def test_one_step_equals_a_plain_version():
    """Padding counts nowhere, and rows under the threshold count in the denominator."""
    pool = noise(40, 8)
    labelled = pool.batch(range(8), valid=[True] * 6 + [False] * 2)
    unlabelled = pool.batch(range(20, 36), valid=[True] * 13 + [False] * 3)
    plain = CONFIG.model_copy(update={"precision": "fp32"})

    def draw(view, batch):
        return Draw(1, f"semi-supervised-{view}", 0, batch.sample_ids)

    model = _trainer(plain).model.train()
    q = model(weak(unlabelled.images, plain.augment, draw("weak", unlabelled))).softmax(1)
    threshold = q.amax(1)[:13].median().item()
    trainer = _trainer(plain.model_copy(update={"options": {"threshold": threshold}}))
    metrics = trainer.train_steps(range(1), [(labelled, unlabelled)])
    views = [
        weak(labelled.images, plain.augment, draw("labelled", labelled)),
        strong(unlabelled.images, plain.augment, draw("strong", unlabelled)),
    ]
    logits = model(torch.cat(views))
    chosen = [row for row in range(13) if q[row].max() >= threshold]
    assert len(chosen) == 7
    expected = sum(functional.cross_entropy(logits[8 + row], q[row].argmax()) for row in chosen) / 13
    supervised = functional.cross_entropy(logits[:6], labelled.labels[:6])
    assert metrics["loss_labelled"] == pytest.approx(supervised.item(), rel=1e-5)
    assert metrics["loss_unlabelled"] == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["mask_rate"] == pytest.approx(len(chosen) / 13)


def test_an_update_is_linear_in_the_weight_of_the_unlabelled_loss():
    pool, after = noise(40, 8), []
    for weight in (0.0, 1.0, 3.0):
        trainer = _trainer(CONFIG.model_copy(update={"unlabelled_weight": weight, "precision": "fp32"}))
        trainer.train_steps(range(1), pool.pairs(range(1), LABELLED, 8, 16))
        after.append([parameter.detach() for parameter in trainer.model.parameters()])
    for none, once, thrice in zip(*after, strict=True):
        torch.testing.assert_close(thrice - none, 3 * (once - none), rtol=1e-3, atol=1e-6)
    assert not torch.equal(after[0][0], after[1][0])


class _SoftTeacher(Algorithm):
    """A mean teacher with a memory: every part of the seam that FixMatch leaves alone."""

    teacher = "ema"

    def __init__(self, options, num_classes, num_samples):
        super().__init__(options, num_classes, num_samples)
        self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.int64))

    def targets(self, step, probabilities):
        self.seen[step.sample_ids[step.valid]] += 1
        return probabilities, torch.full((len(probabilities),), step.progress)

    def unlabelled_loss(self, step, logits, target, weight):
        return mean(weight * (logits.softmax(1) - target).square().sum(1), step.valid)


def test_an_algorithm_with_teacher_memory_and_loss_of_its_own(monkeypatch):
    monkeypatch.setattr(semi_supervised, "algorithms", lambda: algorithms() | {"soft": _SoftTeacher})
    pool = noise(40, 8)
    config = CONFIG.model_copy(update={"algorithm": "soft", "options": {}})
    trainer = _trainer(config)
    before = trainer.ema.module.stem[1].num_batches_tracked.clone()
    first = trainer.train_steps(range(1), pool.pairs(range(1), LABELLED, 8, 16))
    assert first["loss_unlabelled"] == 0 and first["mask_rate"] == 0
    assert trainer.model.stem[1].num_batches_tracked == before + 1
    later = trainer.train_steps(range(1, 4), pool.pairs(range(1, 4), LABELLED, 8, 16))
    assert later["mask_rate"] == pytest.approx((1 + 2 + 3) / 3 / 6) and later["loss_unlabelled"] > 0
    assert trainer.algorithm.seen.sum() == 4 * 16
    resumed = _trainer(config)
    resumed.restore(trainer.state())
    assert torch.equal(resumed.algorithm.seen, trainer.algorithm.seen)


def test_prediction_is_the_averaged_networks():
    pool = noise(40, 8)
    trainer = _trainer()
    trainer.train_steps(range(3), pool.pairs(range(3), LABELLED, 8, 16))
    predicted = trainer.predict(pool.images)
    assert torch.equal(predicted, semi_supervised.training.predict(trainer.ema.module, pool.images, "auto", CPU))
    assert not torch.equal(predicted, semi_supervised.training.predict(trainer.model, pool.images, "auto", CPU))


def test_options_are_checked_and_completed():
    assert SemiSupervisedConfig().options == {"threshold": 0.95}
    assert SemiSupervisedConfig.model_validate_json('{"options": {"threshold": 0.8}}').options == {"threshold": 0.8}
    with pytest.raises(ValidationError, match="unknown algorithm 'fixmash'; choose one of fixmatch, flexmatch, "):
        SemiSupervisedConfig(algorithm="fixmash")
    with pytest.raises(ValidationError, match="'fixmatch' has no option 'treshold'; it has threshold"):
        SemiSupervisedConfig(options={"treshold": 0.8})
    with pytest.raises(ValidationError, match="'supervised' has no option 'threshold'; it has no options"):
        SemiSupervisedConfig(algorithm="supervised", options={"threshold": 0.8})
    with pytest.raises(ValidationError, match=r"threshold=2.0 cannot be used by 'fixmatch': input should be less than"):
        SemiSupervisedConfig(options={"threshold": 2.0})
    with pytest.raises(ValidationError, match="annealing='cosine' cannot be used by 'uda': input should be 'none', "):
        SemiSupervisedConfig(algorithm="uda", options={"annealing": "cosine"})


def test_what_is_left_out_is_as_the_algorithms_authors_have_it():
    def weight_and_ratio(**settings):
        config = SemiSupervisedConfig(**settings)
        assert SemiSupervisedConfig.model_validate_json(json.dumps(settings)) == config
        return config.unlabelled_weight, config.unlabelled_ratio

    assert weight_and_ratio() == weight_and_ratio(algorithm="fixmatch") == (1, 7)
    assert weight_and_ratio(algorithm="mean_teacher") == (50, 1)
    assert weight_and_ratio(algorithm="mixmatch", unlabelled_weight=75.0) == (75, 1)
    assert weight_and_ratio(algorithm="pseudo_label", unlabelled_ratio=3) == (1, 3)


def test_logit_adjustment_is_tau_times_the_log_of_each_classs_share():
    counts = np.array([60, 30, 9, 1])
    expected = [2.5 * math.log(count / 100) for count in (60, 30, 9, 1)]
    assert semi_supervised.logit_adjustment(2.5, counts).tolist() == pytest.approx(expected)
    config = CONFIG.model_copy(update={"logit_adjustment": 2.5})
    trainer = SemiSupervisedTrainer(config, 4, seed=1, device=CPU, num_samples=40, class_counts=counts)
    assert trainer.adjustment.tolist() == pytest.approx(expected)
    for lacking, why in ((None, "no class_counts are given"), (np.array([3, 0, 1, 0]), "class 1 has no label")):
        with pytest.raises(ValueError, match=f"^logit_adjustment=2.5 needs labels of every class, and {why}$"):
            SemiSupervisedTrainer(config, 4, seed=1, device=CPU, num_samples=40, class_counts=lacking)


def test_two_corrections_for_rare_classes_are_one_too_many():
    with pytest.raises(ValidationError, match=r"class_balanced and logit_adjustment=0\.5 both make up for rare "):
        SemiSupervisedConfig(class_balanced=True, logit_adjustment=0.5)


def test_batch_norms_are_synchronised_on_several_gpus_and_nowhere_else(monkeypatch):
    """The weights are found under the same names."""

    def converted(kind, ranks):
        monkeypatch.setattr(semi_supervised.training, "world_size", lambda: ranks)
        model = semi_supervised.training.seeded_model(CONFIG.model, 4, 1, CPU)
        return semi_supervised.training.synchronised(model, torch.device(kind))

    alone = converted("cuda", 1)
    several = converted("cuda", 2)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in several.modules())
    for other in (alone, converted("cpu", 2)):
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in other.modules())
    alone.load_state_dict(several.state_dict())
    for one, other in zip(several.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
