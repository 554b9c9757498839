"""What ranks exchange; every function is the identity unless torch.distributed is initialised.

Gradients are summed in one flat buffer instead of by DistributedDataParallel, which re-orders its buckets after the
first step: a resumed run would then add the same numbers in another order than the run that was not interrupted.
"""

from collections.abc import Iterable

import torch
from torch import distributed, nn


def world_size() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` summed elementwise over all ranks, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over ranks; all ranks must hold the same gradients, in the same order."""
    if not distributed.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    pieces = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [piece.view(g.shape) for piece, g in zip(pieces, gradients, strict=True)])


def share_buffers(module: nn.Module) -> None:
    """Replace every buffer by rank 0's: batch-norm statistics are per rank, and rank 0's are the ones kept."""
    if distributed.is_initialized():
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, which hold equally many each, one after the other; gradients reach this rank's own."""
    if not distributed.is_initialized():
        return rows
    first = distributed.get_rank() * len(rows)
    everyone = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
    distributed.all_gather_single(everyone, rows.detach().contiguous())
    everyone[first : first + len(rows)] = rows
    return everyone


def own_rows(rows: torch.Tensor) -> torch.Tensor:
    """This rank's part of what `gather_rows` gave."""
    return rows.chunk(world_size())[distributed.get_rank()] if distributed.is_initialized() else rows
