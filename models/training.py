"""What supervised and semi-supervised training share: settings, seeded networks, the optimiser, bytes, prediction."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn
from torch.nn import functional

from models.augment import normalise
from models.backbones import Backbone, ModelConfig
from models.distributed import world_size
from models.precision import Precision, autocast
from pipeline import counter
from pipeline.config import Config


class TrainingConfig(Config):
    """Settings of stochastic gradient descent; `batch_size` is summed over all ranks."""

    model: ModelConfig = Field(default=ModelConfig(), description="the network")
    batch_size: int = Field(default=128, ge=1, description="labelled samples of a step, over all workers")
    lr: float = Field(default=0.1, gt=0, description="learning rate at its highest")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD")
    nesterov: bool = Field(default=True, description="look-ahead momentum; needs momentum above 0")
    weight_decay: float = Field(default=5e-4, ge=0, description="not applied to biases and batch norms")
    precision: Precision = "auto"


def seeded_model(config: ModelConfig, num_classes: int, seed: int, device: torch.device) -> Backbone:
    """A new network whose weights depend on `seed` alone: equal on every rank, the caller's generators untouched."""
    bits = counter.hash64(seed, "weights", 0, np.zeros(1, dtype=np.int64))[0]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(bits >> np.uint64(1)))
        model = config.build(num_classes)
    placed: Backbone = model.to(device)
    return placed


def synchronised(model: Backbone, device: torch.device) -> Backbone:
    """The network with batch norms over the rows of all ranks, where there are several and each has a GPU.

    Gloo on CPUs would take longer to exchange their statistics, layer by layer, than the layers take.
    """
    if device.type != "cuda" or world_size() == 1:
        return model
    converted: Backbone = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted


def optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.SGD:
    """SGD without weight decay on vectors: biases and batch norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def mean_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor, num_valid_global: int, label_smoothing: float = 0.0
) -> torch.Tensor:
    """This rank's share of the mean loss over the valid rows of all ranks: the shares of all ranks add up to it.

    logits: float32 [n, C]; labels: int64 [n], any value where `valid`, bool [n], is False.
    """
    ignored = -100
    total = functional.cross_entropy(
        logits,
        labels.masked_fill(~valid, ignored),
        reduction="sum",
        ignore_index=ignored,
        label_smoothing=label_smoothing,
    )
    return total / num_valid_global


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Convolutions on a GPU choose algorithms whose sums have a fixed order."""
    cudnn = torch.backends.cudnn  # whose own context manager would set TF32 too, which is the user's
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def dump(state: dict[str, Any]) -> bytes:
    """Tensors and plain values as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load(data: bytes, device: torch.device) -> dict[str, Any]:
    """What `dump` wrote, onto `device`; nothing but tensors and plain values is ever loaded."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state


@torch.inference_mode()
def embed(
    model: Backbone, images: torch.Tensor | NDArray[np.uint8], precision: Precision, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 features [n, d] and logits [n, C], on the host, of uint8 images [n, H, W, 3]; the mode is left as it was.

    Every forward has the same number of rows, so that the logits of an image do not depend on how many came with it.
    """
    images, rows = torch.as_tensor(images), 256
    was_training = model.training
    model.eval()
    found = []
    with reproducible():
        for chunk in images.split(rows):
            padded = functional.pad(chunk, (0, 0, 0, 0, 0, 0, 0, rows - len(chunk)))
            with autocast(precision, device):
                features = model.features(normalise(padded.to(device, non_blocking=True)))
            features = features.float()
            found.append((features[: len(chunk)].cpu(), model.head(features)[: len(chunk)].cpu()))
    model.train(was_training)
    whole: tuple[torch.Tensor, torch.Tensor] = tuple(map(torch.cat, zip(*found, strict=True)))
    return whole


def predict(
    model: Backbone, images: torch.Tensor | NDArray[np.uint8], precision: Precision, device: torch.device
) -> torch.Tensor:
    """The logits of `embed`."""
    return embed(model, images, precision, device)[1]


class Predictor:
    """A trained network, from the bytes of a trainer's `weights()`."""

    def __init__(
        self, config: ModelConfig, num_classes: int, weights: bytes, precision: Precision, device: torch.device
    ) -> None:
        self.device, self.precision = device, precision
        self.model = seeded_model(config, num_classes, 0, device).eval()
        self.model.load_state_dict(load(weights, device))

    def predict(self, images: torch.Tensor | NDArray[np.uint8]) -> torch.Tensor:
        """Float32 logits [n, C], on the host, of uint8 images [n, H, W, 3]."""
        return predict(self.model, images, self.precision, self.device)

    def embed(self, images: torch.Tensor | NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 features [n, d] and logits [n, C], on the host, of uint8 images [n, H, W, 3]."""
        found: tuple[torch.Tensor, torch.Tensor] = embed(self.model, images, self.precision, self.device)
        return found
