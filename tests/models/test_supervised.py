"""The supervised loop: what it reports, what it shows, that it resumes, that it learns."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.augment import Draw, WeakConfig, weak
from models.backbones import ModelConfig
from models.supervised import SupervisedConfig, SupervisedTrainer
from tests.models.conftest import noise

CPU = torch.device("cpu")
CONFIG = SupervisedConfig(model=ModelConfig(name="resnet9", width=4), epochs=4, batch_size=16, lr=0.05)


def _trainer(config=CONFIG, steps=3):
    return SupervisedTrainer(config, num_classes=4, steps_per_epoch=steps, seed=1, device=CPU)


def test_resumed_training_is_bit_equal():
    pool = noise(40, 8)
    through = _trainer()
    metrics = [through.train_epoch(epoch, pool.epoch(epoch, 16)) for epoch in range(4)]
    first = _trainer()
    for epoch in range(2):
        first.train_epoch(epoch, pool.epoch(epoch, 16))
    second = _trainer()
    second.restore(first.state())
    assert [second.train_epoch(epoch, pool.epoch(epoch, 16)) for epoch in (2, 3)] == metrics[2:]
    assert second.state() == through.state()
    assert second.weights() == through.weights()


def test_observe_gets_the_logits_of_the_training_forward_before_the_update():
    pool = noise(12, 8)
    config = CONFIG.model_copy(update={"precision": "fp32"})
    trainer, twin = _trainer(config, steps=1), _trainer(config, steps=1)
    batch = pool.batch([3, 9, 5, 0], valid=[True, False, True, True])
    seen = []
    metrics = trainer.train_epoch(0, [batch], lambda *args: seen.append(args))
    ((ids, logits, labels),) = seen
    views = weak(batch.images, config.augment, Draw(1, "supervised", 0, batch.sample_ids))
    expected = twin.model.train()(views)[[0, 2, 3]]
    assert ids.tolist() == [3, 5, 0] and labels.tolist() == pool.labels[[3, 5, 0]].tolist()
    assert logits.dtype == torch.float32 and not logits.requires_grad
    torch.testing.assert_close(logits, expected)
    assert metrics["loss"] == pytest.approx(functional.cross_entropy(expected, labels).item())
    assert metrics["accuracy"] == pytest.approx((expected.argmax(1) == labels).float().mean().item())


def test_every_sample_is_shown_once_and_steps_are_told():
    pool = noise(40, 8)
    ids, steps = [], []
    _trainer().train_epoch(0, pool.epoch(0, 16), lambda i, z, y: ids.extend(i.tolist()), steps.append)
    assert sorted(ids) == list(range(40)) and steps == [1, 2, 3]


def test_a_label_of_padding_is_never_read():
    pool = noise(12, 8)
    trainers = [_trainer(steps=1), _trainer(steps=1)]
    for trainer, junk in zip(trainers, (0, -1), strict=True):
        batch = pool.batch(range(6), valid=[True] * 4 + [False] * 2)
        batch.labels[4:] = junk
        trainer.train_epoch(0, [batch])
    assert trainers[0].weights() == trainers[1].weights()


def test_an_epoch_of_another_length_is_refused():
    with pytest.raises(AssertionError):
        _trainer().train_epoch(0, noise(40, 8).epoch(0, 16)[:2])


def test_the_learning_rate_is_half_a_cosine_over_all_steps():
    trainer = _trainer(CONFIG.model_copy(update={"final_lr_fraction": 0.1}))
    assert trainer.lr(0) == 0.05
    assert trainer.lr(6) == pytest.approx(0.05 * 0.55)
    assert trainer.lr(12) == pytest.approx(0.005)


def test_it_learns_real_digits(digit_pools):
    train, test = digit_pools
    ids = np.arange(500)
    config = SupervisedConfig(
        model=ModelConfig(name="resnet9", width=8),
        epochs=8,
        batch_size=32,
        lr=0.05,
        augment=WeakConfig(flip=False),
    )
    trainer = SupervisedTrainer(config, 10, 16, seed=0, device=CPU)
    for epoch in range(config.epochs):
        metrics = trainer.train_epoch(epoch, train.epoch(epoch, 32, ids))
    assert metrics["accuracy"] > 0.9
    assert (trainer.predict(test.images).argmax(1) == test.labels).float().mean() > 0.9
