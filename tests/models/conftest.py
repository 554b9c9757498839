"""Small data for the training loops: real digits and ready-made batches."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from models.batch import Batch
from pipeline import counter


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    torch.set_num_threads(2)


@dataclass(frozen=True)
class Pool:
    """Images uint8 [N, S, S, 3] and their labels; a batch is made from ids."""

    images: torch.Tensor
    labels: torch.Tensor

    def batch(self, ids, valid=None, num_valid_global=None, visits=0):
        ids = np.asarray(ids, dtype=np.int64)
        valid = np.ones(len(ids), dtype=bool) if valid is None else np.asarray(valid)
        return Batch(
            sample_ids=ids,
            visits=np.broadcast_to(np.int64(visits), len(ids)),
            images=self.images[ids],
            labels=self.labels[ids],
            valid=torch.from_numpy(valid),
            num_valid_global=num_valid_global or int(valid.sum()),
        )

    def epoch(self, epoch, batch_size, ids=None):
        ids = np.arange(len(self.labels)) if ids is None else ids
        order = counter.permutation(0, "test", epoch, ids)
        return [self.batch(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]

    def pairs(self, steps, labelled, num_labelled, num_unlabelled):
        """A labelled and an unlabelled batch for each of `steps`, the same for the same step."""
        everything = np.arange(len(self.labels))
        for step in steps:
            yield (
                self.batch(counter.permutation(1, "labelled", step, labelled)[:num_labelled], visits=step),
                self.batch(counter.permutation(1, "unlabelled", step, everything)[:num_unlabelled], visits=step),
            )


def noise(num_samples, size, num_classes=4):
    """A pool of noise, whose classes differ in brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_samples) % num_classes
    images = torch.randint(0, 256, (num_samples, size, size, 3), dtype=torch.uint8, generator=generator)
    return Pool(images // 2 + (labels * 30).to(torch.uint8)[:, None, None, None], labels)


@pytest.fixture(scope="session")
def digit_pools():
    """scikit-learn's digits at 16x16: 1,437 to train on and 360 to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] * (255 / 16)
    images = torch.nn.functional.interpolate(images, size=16, mode="bilinear").round().to(torch.uint8)
    images = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    labels = torch.from_numpy(data.target).long()
    order = torch.from_numpy(counter.permutation(0, "split", 0, np.arange(len(labels))))
    train, test = order[:1437], order[1437:]
    return Pool(images[train], labels[train]), Pool(images[test], labels[test])
