"""Two gloo processes: equal ranks, exact global means, bit-equal resume."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import distributed, multiprocessing, nn

from models.backbones import ModelConfig
from models.distributed import share_buffers, sum_gradients, sum_over_ranks
from models.semi_supervised import SemiSupervisedConfig, SemiSupervisedTrainer
from models.supervised import SupervisedConfig, SupervisedTrainer
from tests.models.conftest import noise

CPU = torch.device("cpu")
WORLD = 2
MODEL = ModelConfig(name="resnet9", width=4)


def _supervised():
    config = SupervisedConfig(model=MODEL, epochs=4, batch_size=16, lr=0.05)
    return SupervisedTrainer(config, num_classes=4, steps_per_epoch=3, seed=1, device=CPU)


def _semi_supervised():
    config = SemiSupervisedConfig(model=MODEL, steps=6, options={"threshold": 0.3}, lr=0.05)
    return SemiSupervisedTrainer(config, num_classes=4, seed=1, device=CPU, num_samples=41)


def _epoch(rank, epoch):
    """This rank's rows of 41 samples in batches of 16: of the last, 5 on rank 0, 4 and a padding row on rank 1."""
    pool = noise(41, 8)
    for batch in pool.epoch(epoch, 16):
        mine = batch.sample_ids[rank::WORLD]
        most = -(-len(batch.sample_ids) // WORLD)
        valid = np.arange(most) < len(mine)
        yield pool.batch(np.resize(mine, most), valid, len(batch.sample_ids))


def _pairs(rank, steps):
    pool = noise(41, 8)
    for labelled, unlabelled in pool.pairs(steps, np.arange(12), 8, 16):
        yield tuple(pool.batch(b.sample_ids[rank::WORLD], None, len(b.sample_ids)) for b in (labelled, unlabelled))


def _work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    result, seen = {}, []

    through = _supervised()
    result["metrics"] = [
        through.train_epoch(epoch, _epoch(rank, epoch), lambda ids, z, y, e=epoch: seen.append((e, ids.tolist())))
        for epoch in range(4)
    ]
    result["seen"] = [sorted(i for e, ids in seen if e == epoch for i in ids) for epoch in range(4)]
    first, resumed = _supervised(), _supervised()
    for epoch in (0, 1):
        first.train_epoch(epoch, _epoch(rank, epoch))
    resumed.restore(first.state())
    for epoch in (2, 3):
        resumed.train_epoch(epoch, _epoch(rank, epoch))
    result["supervised"] = [through.state(), resumed.state()]

    through, first, resumed = _semi_supervised(), _semi_supervised(), _semi_supervised()
    through.train_steps(range(6), _pairs(rank, range(6)))
    first.train_steps(range(2), _pairs(rank, range(2)))
    resumed.restore(first.state())
    result["ssl_metrics"] = resumed.train_steps(range(2, 6), _pairs(rank, range(2, 6)))
    result["semi_supervised"] = [through.state(), resumed.state()]

    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.fill_(1), linear.bias.fill_(0)
    x = torch.arange(12.0).view(4, 3)[rank::WORLD]
    (linear(x).square().sum() / 4).backward()
    sum_gradients(linear.parameters())
    result["gradient"] = linear.weight.grad
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(rank)
    share_buffers(norm)
    result["buffer"] = norm.running_mean
    result["sum"] = sum_over_ranks(torch.tensor([1.0 + rank]))
    torch.save(result, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes():
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, args=(folder,), nprocs=WORLD)
        results = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]

    for loop in ("supervised", "semi_supervised"):
        states = [state for result in results for state in result[loop]]
        assert all(state == states[0] for state in states), loop
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["ssl_metrics"] == results[1]["ssl_metrics"]
    for epoch in range(4):
        assert sorted(results[0]["seen"][epoch] + results[1]["seen"][epoch]) == list(range(41))

    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.fill_(1), linear.bias.fill_(0)
    linear(torch.arange(12.0).view(4, 3)).square().sum(1).mean().backward()
    for rank in range(WORLD):
        torch.testing.assert_close(results[rank]["gradient"], linear.weight.grad)
        assert (results[rank]["buffer"] == 0).all()
        assert results[rank]["sum"] == 3


def test_alone_nothing_is_exchanged():
    assert not distributed.is_initialized()
    assert sum_over_ranks(torch.tensor([2.0])) == 2
