"""TEMI: its loss against loops, heads side by side against heads alone, one rank against two, crash against none."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn import functional

import models.distributed
from models.temi import Heads, Pairs, TemiConfig, TemiPredictor, TemiTrainer, temi_losses

CPU = torch.device("cpu")
D, C, N, WORLD = 6, 3, 50, 2
CONFIG = TemiConfig(
    heads=4, hidden=16, bottleneck=8, epochs=3, batch_size=20, lr=1e-2, warmup_epochs=1, precision="fp32"
)


def pool() -> torch.Tensor:
    """Three clouds, N points in all."""
    rng = np.random.default_rng(0)
    return torch.from_numpy((5 * np.eye(C, D)[np.arange(N) % C] + rng.normal(size=(N, D))).astype(np.float32))


def trainer(config: TemiConfig = CONFIG, seed: int = 1) -> TemiTrainer:
    points = pool().numpy()
    return TemiTrainer(config, C, points.mean(axis=0), points.std(axis=0), 3, seed, CPU)


EVEN, UNEVEN = (0, 17, 34, 50), (0, 17, 49, 50)  # in the last of which a second rank has no pair


def batches(epoch: int, rank: int = 0, world: int = 1, bounds: tuple[int, ...] = EVEN):
    """Global batches of pairs; the partner is another of the same cloud."""
    points = pool()
    order = np.random.default_rng(epoch).permutation(N)
    for begin, end in pairwise(bounds):
        mine = order[begin + rank : end : world]
        yield Pairs(points[mine], points[(mine + C) % (N - N % C)], end - begin)


def log_probabilities(heads: int, rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(heads, rows, C, generator=generator).mul(2).log_softmax(dim=2)


def test_the_loss_is_that_of_the_paper() -> None:
    n, beta = 5, 0.6
    student, teacher = log_probabilities(4, 2 * n, 0), log_probabilities(4, 2 * n, 1)
    shares = torch.rand(4, C, generator=torch.Generator().manual_seed(2)) + 0.1
    q_s, q_t, pk = student.exp().double().numpy(), teacher.exp().double().numpy(), shares.double().numpy()
    expected = np.zeros(4)
    for x in range(n):
        y = x + n
        weight = np.mean([sum(q_t[h, x, c] * q_t[h, y, c] for c in range(C)) for h in range(4)])
        for h in range(4):
            for ours, theirs in ((x, y), (y, x)):
                inner = sum((q_s[h, ours, c] * q_t[h, theirs, c]) ** beta / pk[h, c] for c in range(C))
                expected[h] -= weight * np.log(inner) / 2 / n
    np.testing.assert_allclose(temi_losses(student, teacher, shares, beta, n).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_heads_side_by_side_are_heads_alone() -> None:
    torch.manual_seed(0)
    heads, x = Heads(3, D, C, 16, 8), pool()
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    heads.mean.fill_(0.5), heads.std.fill_(2)
    found = heads(x)
    for h in range(3):
        hidden = functional.gelu((x - 0.5) / 2 @ heads.hidden_weight[h].T + heads.hidden_bias[h])
        out = hidden @ heads.bottleneck_weight[h] + heads.bottleneck_bias[h]
        out = out / out.norm(dim=1, keepdim=True)
        prototypes = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, C, bias=False))
        prototypes.parametrizations.weight.original0.data = heads.scale[h].detach().T
        prototypes.parametrizations.weight.original1.data = heads.prototypes[h].detach().T
        torch.testing.assert_close(found[h], prototypes(out), rtol=1e-4, atol=1e-5)


def test_shares_follow_what_the_teacher_says_and_the_teacher_follows_the_student() -> None:
    one = trainer()
    (batch,) = list(batches(0))[:1]
    before = [p.clone() for p in one.teacher.parameters()]
    with torch.no_grad():
        said = torch.softmax(one.teacher(torch.cat([batch.first, batch.second])) / 0.1, dim=2)
    one._step(batch)
    torch.testing.assert_close(one.shares, 0.9 / C + 0.1 * said.mean(dim=1))
    for old, teacher, student in zip(before, one.teacher.parameters(), one.student.parameters(), strict=True):
        torch.testing.assert_close(teacher, 0.996 * old + 0.004 * student)


def test_the_learning_rate_grows_over_the_warm_up() -> None:
    one = trainer()
    assert [one.lr(step) for step in (0, 1, 2, 3, 8)] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])


def test_clouds_are_found_by_the_head_of_least_loss_and_it_alone_is_kept() -> None:
    one = trainer(CONFIG.model_copy(update={"teacher_decay": 0.9}))
    first = one.train_epoch(0, batches(0))
    for epoch in range(1, 12):
        losses = one.train_epoch(epoch, batches(epoch))
    assert np.mean(losses) < np.mean(first)
    best = int(np.argmin(losses))
    found = TemiPredictor(CONFIG, one.weights(best), CPU).predict(pool().numpy())
    with torch.no_grad():
        torch.testing.assert_close(found, torch.softmax(one.teacher(pool())[best] / 0.1, dim=1))
    clusters = found.argmax(dim=1).numpy()
    assert len(set(clusters)) == C and len(set(zip(clusters, np.arange(N) % C, strict=True))) == C


def test_one_that_is_restored_goes_on_to_the_same_bytes() -> None:
    through, first, resumed = trainer(), trainer(), trainer(seed=2)
    for epoch in range(3):
        losses = through.train_epoch(epoch, batches(epoch))
    first.train_epoch(0, batches(0))
    resumed.restore(first.state())
    for epoch in (1, 2):
        again = resumed.train_epoch(epoch, batches(epoch))
    assert again == losses and resumed.state() == through.state()
    assert trainer().state() == trainer().state() != trainer(seed=2).state()


class OneOfTwo(threading.local):
    """torch.distributed for a thread: its rank of a gloo group. Processes would take seconds to import torch."""

    def join(self, store: distributed.Store, rank: int) -> None:
        self.group = distributed.ProcessGroupGloo(store, rank, WORLD, timedelta(seconds=60))

    def is_initialized(self) -> bool:
        return True

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self.group.allreduce([tensor]).wait()


def test_two_ranks_train_what_one_trains_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    here, store = OneOfTwo(), distributed.HashStore()
    trainers = [trainer() for _ in range(WORLD)]  # not in the threads, which share torch's random numbers

    def work(rank: int) -> dict[str, Any]:
        here.join(store, rank)
        one = trainers[rank]
        losses = [one.train_epoch(epoch, batches(epoch, rank, WORLD, UNEVEN)) for epoch in range(2)]
        return {"losses": losses, "state": one.state(), "shares": one.shares}

    monkeypatch.setattr(models.distributed, "distributed", here)
    with ThreadPoolExecutor(WORLD) as ranks:
        both = list(ranks.map(work, range(WORLD)))
    monkeypatch.undo()
    assert both[0]["state"] == both[1]["state"] and both[0]["losses"] == both[1]["losses"]
    alone, pair = trainer(), trainer()
    losses = [alone.train_epoch(epoch, batches(epoch, bounds=UNEVEN)) for epoch in range(2)]
    pair.restore(both[0]["state"])
    np.testing.assert_allclose(both[0]["losses"], losses, rtol=1e-4)
    torch.testing.assert_close(both[0]["shares"], alone.shares, rtol=1e-4, atol=1e-6)
    x = pool()
    torch.testing.assert_close(pair.teacher(x), alone.teacher(x), rtol=1e-3, atol=1e-4)
