"""Four gloo processes with a quarter of the rows each: the same losses, weights, gradients and state as one."""

import tempfile
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from models.distributed import sum_gradients
from models.ssl import algorithms
from tests.models.ssl.making import algorithm, batches, network, step

WORLD = 4
NUMBERS = (2, 5, 8)


def _rows(number):
    """Of one step padding rows too; of the others as many valid ones as do not go into four."""
    if number == NUMBERS[0]:
        return batches(number)
    return [(ids[valid][:-1], valid[valid][:-1]) for ids, valid in batches(number)]


def _quarter(number, rank):
    return [(ids[rank::WORLD], valid[rank::WORLD], int(valid.sum())) for ids, valid in _rows(number)]


def _run(name, rank=None):
    """What three steps of training find and leave, on all rows or on a rank's quarter of them."""
    tested, model, ema, found = algorithm(name), network(), network(seed=5), []
    for number in NUMBERS:
        at = step(model, number, ema, rows=_rows(number) if rank is None else _quarter(number, rank))
        losses = tested(at)
        model.zero_grad()
        (losses.labelled + losses.unlabelled).backward()
        sum_gradients(model.parameters())
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        weight = losses.weight[at.valid][at.sample_ids[at.valid].argsort(stable=True)]
        found.append([weight, losses.labelled.detach(), losses.unlabelled.detach(), *gradients])
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.sub_(0.1 * gradient)
    return {"steps": found, "state": dict(tested.state_dict())}


def _work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    torch.save({name: _run(name, rank) for name in algorithms()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def _mixed_by_quarters():
    """MixMatch mixes rows of the same worker: each quarter alone, averaged by the rows in it."""
    tested, quarters = algorithm("mixmatch"), []
    for rank in range(WORLD):
        model = network()
        at = step(model, NUMBERS[0], network(seed=5), rows=[part[:2] for part in _quarter(NUMBERS[0], rank)])
        losses = tested(at)
        share = at.labelled.valid.sum() / 7 * losses.labelled + at.valid.sum() / 21 * losses.unlabelled
        share.backward()
        quarters.append([share.detach(), *(parameter.grad for parameter in model.parameters())])
    return [sum(parts) for parts in zip(*quarters, strict=True)]


def test_four_workers_equal_one():
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, args=(folder,), nprocs=WORLD)
        ranks = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    for name in algorithms():
        alone, first = _run(name), ranks[0][name]
        for other in ranks[1:]:
            torch.testing.assert_close(other[name], first, rtol=0, atol=0)
        if name == "mixmatch":
            weight, labelled, unlabelled, *gradients = first["steps"][0]
            assert torch.equal(weight, alone["steps"][0][0])
            torch.testing.assert_close([labelled + unlabelled, *gradients], _mixed_by_quarters())
        else:
            torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6, msg=name)
