"""TEMI: cluster heads on frozen embeddings, taught by pairs of near neighbours and by nothing else (2303.17896).

All heads are trained at once, as batched matrix products. A result depends on the world size by rounding alone: a step
sums over ranks what one rank alone would compute. Reproducible for a fixed seed, world size and number of threads, also
across a crash.

Shapes: H heads, d numbers of an embedding, C clusters, n pairs on this rank.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn
from torch.nn import functional

from models import training
from models.distributed import sum_gradients, sum_over_ranks
from models.precision import Precision, autocast
from pipeline import counter
from pipeline.config import Config


class TemiConfig(Config):
    """A run of some epochs; the defaults are those of ELFS (2406.04273) and, for the warm-up, of TEMI's code."""

    heads: int = Field(default=50, ge=1, description="trained side by side; the one of least training loss is used")
    hidden: int = Field(default=512, ge=1, description="width of a head's hidden layer")
    bottleneck: int = Field(default=256, ge=1, description="width of what a head compares with its cluster prototypes")
    epochs: int = Field(default=200, ge=1, description="passes over the pool")
    batch_size: int = Field(default=1024, ge=1, description="pairs of a step, over all workers")
    lr: float = Field(default=4e-4, gt=0, description="learning rate after the warm-up")
    warmup_epochs: int = Field(default=20, ge=0, description="epochs in which the learning rate grows to lr")
    weight_decay: float = Field(default=1e-4, ge=0, description="of AdamW, on matrices")
    temperature: float = Field(default=0.1, gt=0, description="of the softmax of student and teacher")
    beta: float = Field(default=0.6, gt=0, le=1, description="below 1, against all samples in one cluster")
    teacher_decay: float = Field(default=0.996, ge=0, lt=1, description="of the averaged heads, which predict")
    share_decay: float = Field(default=0.9, ge=0, lt=1, description="of the clusters' running shares of the pool")
    precision: Precision = "auto"


class Pairs(NamedTuple):
    """One rank's part of a step: embeddings float [n, d] and those of a neighbour of each; pairs over all ranks."""

    first: torch.Tensor
    second: torch.Tensor
    num_global: int


class Heads(nn.Module):
    """H heads side by side: standardise, a hidden layer, L2 norm, one prototype with a scale per cluster."""

    def __init__(self, num_heads: int, width: int, num_clusters: int, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.hidden_weight = nn.Parameter(torch.empty(num_heads, hidden, width))
        self.hidden_bias = nn.Parameter(torch.zeros(num_heads, hidden))
        self.bottleneck_weight = nn.Parameter(torch.empty(num_heads, hidden, bottleneck))
        self.bottleneck_bias = nn.Parameter(torch.zeros(num_heads, 1, bottleneck))
        self.prototypes = nn.Parameter(torch.empty(num_heads, bottleneck, num_clusters))
        self.scale = nn.Parameter(torch.ones(num_heads, 1, num_clusters))
        for weight in (self.hidden_weight, self.bottleneck_weight, self.prototypes):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Float32 logits [H, n, C] of embeddings [n, d], in the precision of autocast up to the L2 norm."""
        num_heads, hidden, width = self.hidden_weight.shape
        x = (embeddings.float() - self.mean) / self.std
        h = functional.linear(x, self.hidden_weight.view(-1, width), self.hidden_bias.view(-1))
        h = functional.gelu(h).view(-1, num_heads, hidden).transpose(0, 1)
        h = torch.baddbmm(self.bottleneck_bias, h, self.bottleneck_weight)
        with torch.autocast(h.device.type, enabled=False):
            h = h.float()
            logits = torch.bmm(h, functional.normalize(self.prototypes, dim=1) * self.scale)
            logits = logits / h.norm(dim=2, keepdim=True).clamp_min(1e-12)  # here, where there is least to divide
        return logits


def temi_losses(
    student: torch.Tensor, teacher: torch.Tensor, shares: torch.Tensor, beta: float, num_global: int
) -> torch.Tensor:
    """This rank's part of the loss of every head, float [H]; over all ranks the parts add up to the mean over pairs.

    student, teacher: log probabilities [H, 2n, C], first all x, then all x'; shares: of each cluster, [H, C]. With
    w = mean over heads of sum_c q_t(c|x) q_t(c|x'), the loss of a pair is
    -w * log sum_c (q_s(c|x) q_t(c|x'))^beta / shares(c), the mean of both orders.
    """
    student_x, student_y = student.tensor_split(2, dim=1)  # also of no rows, which a rank may have
    teacher_x, teacher_y = teacher.tensor_split(2, dim=1)
    weight = (teacher_x + teacher_y).exp().sum(dim=2).mean(dim=0)
    log_shares = shares.log()[:, None]
    forth = torch.logsumexp(beta * (student_x + teacher_y) - log_shares, dim=2)
    back = torch.logsumexp(beta * (student_y + teacher_x) - log_shares, dim=2)
    return -(weight * (forth + back) / 2).sum(dim=1) / num_global


class TemiTrainer:
    """Heads in training and their averages; one call of `train_epoch` per epoch, in order.

    mean, std: float [d], of the pool, by which embeddings are standardised; seed: of the initial weights.
    """

    def __init__(
        self,
        config: TemiConfig,
        num_clusters: int,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        steps_per_epoch: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config, self.steps_per_epoch, self.device = config, steps_per_epoch, device
        bits = counter.hash64(seed, "temi-weights", 0, np.zeros(1, dtype=np.int64))[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(bits >> np.uint64(1)))
            heads = Heads(config.heads, len(mean), num_clusters, config.hidden, config.bottleneck)
        heads.mean.copy_(torch.from_numpy(mean))
        heads.std.copy_(torch.from_numpy(std))
        self.student = heads.to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.shares = torch.full((config.heads, num_clusters), 1 / num_clusters, device=device)
        student = self.student
        matrices = [student.hidden_weight, student.bottleneck_weight, student.prototypes]
        vectors = [student.hidden_bias, student.bottleneck_bias, student.scale]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)

    def lr(self, step: int) -> float:
        """Learning rate of an update, counted from 0 over all epochs."""
        warmup = self.config.warmup_epochs * self.steps_per_epoch
        return self.config.lr * min(1.0, (step + 1) / (warmup + 1))

    def train_epoch(
        self, epoch: int, batches: Iterable[Pairs], on_step: Callable[[int], None] | None = None
    ) -> list[float]:
        """Train on this rank's `batches` of `epoch`, counted from 0; the mean loss of every head, over all ranks.

        on_step: told how many steps of this epoch are done.
        """
        totals = torch.zeros(self.config.heads, dtype=torch.float64, device=self.device)
        done = 0
        for done, batch in enumerate(batches, start=1):
            training.set_lr(self.optimizer, self.lr(epoch * self.steps_per_epoch + done - 1))
            totals += self._step(batch)
            if on_step is not None:
                on_step(done)
        assert done == self.steps_per_epoch
        losses: list[float] = (sum_over_ranks(totals) / done).tolist()
        return losses

    def _step(self, batch: Pairs) -> torch.Tensor:
        """One update; this rank's part of every head's loss, on the device."""
        config = self.config
        pairs = torch.cat([batch.first, batch.second]).to(self.device, non_blocking=True)
        with torch.no_grad():
            teacher = self._log_probabilities(self.teacher, pairs)
            shares = sum_over_ranks(teacher.exp().sum(dim=1) / (2 * batch.num_global))
            self.shares.lerp_(shares, 1 - config.share_decay)
        student = self._log_probabilities(self.student, pairs)
        losses = temi_losses(student, teacher, self.shares, config.beta, batch.num_global)
        self.optimizer.zero_grad()
        losses.mean().backward()
        sum_gradients(self.student.parameters())
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.teacher.parameters()), list(self.student.parameters()), 1 - config.teacher_decay
            )
        return losses.detach().double()

    def _log_probabilities(self, heads: Heads, embeddings: torch.Tensor) -> torch.Tensor:
        with autocast(self.config.precision, self.device):
            logits = heads(embeddings)
        return functional.log_softmax(logits / self.config.temperature, dim=2)

    def weights(self, head: int) -> bytes:
        """One head of the teacher alone, for TemiPredictor."""
        state = self.teacher.state_dict()
        shared = dict(self.teacher.named_buffers())
        return training.dump({name: x if name in shared else x[head : head + 1].clone() for name, x in state.items()})

    def state(self) -> bytes:
        """All that training goes on from; equal on every rank after an epoch."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return training.dump({**parts, "shares": self.shares})

    def restore(self, data: bytes) -> None:
        """Go back to what `state` was on a trainer of the same settings."""
        state = training.load(data, self.device)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.shares.copy_(state["shares"])

    def _parts(self) -> dict[str, Any]:
        return {"student": self.student, "teacher": self.teacher, "optimizer": self.optimizer}


class TemiPredictor:
    """One trained head, from the bytes of TemiTrainer.weights."""

    def __init__(self, config: TemiConfig, weights: bytes, device: torch.device) -> None:
        state = training.load(weights, device)
        _, hidden, width = state["hidden_weight"].shape
        _, bottleneck, num_clusters = state["prototypes"].shape
        self._heads = Heads(1, width, num_clusters, hidden, bottleneck).to(device).requires_grad_(False)
        self._heads.load_state_dict(state)
        self._temperature, self._device = config.temperature, device

    @torch.inference_mode()
    def predict(self, embeddings: NDArray[np.floating[Any]]) -> torch.Tensor:
        """Float32 probabilities of the clusters, [n, C] on the host, of embeddings [n, d]; always in float32."""
        x = torch.tensor(embeddings, device=self._device)
        return functional.softmax(self._heads(x)[0] / self._temperature, dim=1).cpu()
