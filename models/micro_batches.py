"""A batch through a network piece by piece: the memory of one piece, for a second forward pass of each.

What a piece leaves behind is its logits; in the backward pass it is computed once more (checkpointing, 1604.06174).
So a loss may look at all rows together, as those of semi-supervised algorithms do, and gradients are those of the whole
batch up to rounding. Batch norms alone see a difference: their statistics are those of each piece.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def forward(network: nn.Module, views: Sequence[torch.Tensor], pieces: int) -> torch.Tensor:
    """network(torch.cat(views)); each piece has its share of every kind of view, so that all are mixed alike."""
    images = torch.cat(list(views))
    if pieces == 1:
        whole: torch.Tensor = network(images)
        return whole
    piece = torch.cat([torch.arange(len(view)) % pieces for view in views])
    order = piece.argsort(stable=True)
    place = order.argsort().to(images.device)
    parts = images[order.to(images.device)].split([size for size in piece.bincount().tolist() if size])
    return torch.cat([_recomputed(network, part) for part in parts])[place]


def _recomputed(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """network(images), whose backward pass begins with a second forward pass; that one moves no running statistic."""
    found: torch.Tensor = checkpoint(
        network,
        images,
        use_reentrant=False,
        preserve_rng_state=False,  # no network here draws random numbers
        context_fn=lambda: (contextlib.nullcontext(), _untracked(network)),
    )
    return found


@contextlib.contextmanager
def _untracked(network: nn.Module) -> Iterator[None]:
    """What is computed here changes copies of the buffers."""
    modules = list(network.modules())
    buffers = [(module, name, own) for module in modules for name, own in module.named_buffers(recurse=False)]
    for module, name, own in buffers:
        setattr(module, name, own.clone())
    try:
        yield
    finally:
        for module, name, own in buffers:
            setattr(module, name, own)
