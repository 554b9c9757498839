"""The held-out rows' dynamics with their true labels, recorded beside the proxy's own in the same forward passes.

The commit of the proxy's epoch names these files too, so both records are of one attempt at each epoch, and a training
that continues is exact. When the training is over, `publish` makes a store of them.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pipeline.dynamics import DynamicsPart, DynamicsWriter
from pipeline.epochs import Commit
from pipeline.pseudo_label import Holdout

FACT = "true_dynamics"
"""Where a commit of the proxy names the files of its epoch."""

_PARTS = TypeAdapter(list[DynamicsPart])


def store_uri(dynamics_uri: str) -> str:
    """The store beside the proxy's dynamics; its ids are places among the held-out sample_ids in ascending order."""
    return f"{dynamics_uri}_true"


class TrueDynamics:
    """The writer of one rank; without a held-out row it does nothing."""

    def __init__(self, dynamics_uri: str, holdout: Holdout, rank: int, world_size: int, *, probs: bool) -> None:
        self._ids, self._labels = holdout.sample_ids, holdout.labels
        self._writer = (
            DynamicsWriter(store_uri(dynamics_uri), len(self._ids), rank, world_size, probs=probs)
            if len(self._ids)
            else None
        )

    def observe(self, sample_ids: NDArray[np.int64], logits: Any) -> None:
        """Take in those of a batch that are held out: int64[B] and a tensor [B, C] on any device."""
        if self._writer is None:
            return
        import torch

        place = np.searchsorted(self._ids, sample_ids).clip(max=len(self._ids) - 1)
        here = np.flatnonzero(self._ids[place] == sample_ids)
        if len(here):
            rows = logits[torch.from_numpy(here).to(logits.device, non_blocking=True)]
            self._writer.observe(place[here], rows, self._labels[place[here]])

    def flush(self, epoch: int) -> DynamicsPart | None:
        """Write this rank's files of the epoch."""
        return None if self._writer is None else self._writer.flush(epoch)


def facts(parts: Sequence[DynamicsPart | None]) -> dict[str, Any]:
    """What the commit of an epoch remembers of the files of all ranks."""
    return {FACT: [asdict(part) for part in parts if part is not None]}


def publish(commits: Sequence[Commit], dynamics_uri: str) -> None:
    """Commit the store's epochs, those of all the commits of the training; nothing if no row is held out."""
    recorded = [_PARTS.validate_python(commit.facts[FACT]) for commit in commits]
    if not recorded[0]:
        return
    writer = DynamicsWriter(store_uri(dynamics_uri), sum(part.rows for part in recorded[0]))
    last = writer.log.latest()
    for epoch in range(last.epoch + 1 if last else 0, len(recorded)):
        writer.commit_epoch(epoch, recorded[epoch])
