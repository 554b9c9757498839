"""Training with labels for few samples: one loop for every algorithm of models/ssl.

Reproducible for a fixed seed, world size and number of threads, also across a crash. Batch-norm statistics are those of
each rank's own rows, and on several GPUs of the rows of all; rank 0's running ones are kept. Views are drawn anew at
every visit of a sample, in the same step, too, where there are fewer labels than rows.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator

from models import training
from models.augment import AugmentConfig
from models.backbones import ModelConfig
from models.batch import Batch
from models.distributed import share_buffers, sum_gradients
from models.ema import Ema
from models.ssl import Step, algorithms, evened


class SemiSupervisedConfig(training.TrainingConfig):
    """A run of some steps; the defaults are FixMatch's for 32x32 images (2001.07685), but for the number of steps.

    Where the authors of another algorithm differ, what is left out is as they have it.
    """

    algorithm: str = Field(
        default="fixmatch",
        description="an algorithm of models/ssl",
        json_schema_extra=lambda name: name.update(enum=list(algorithms())),
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of the algorithm", validate_default=True
    )
    model: ModelConfig = Field(default=ModelConfig(name="wrn_28_2"), description="the network")
    steps: int = Field(default=2**15, ge=1, description="updates in all")
    batch_size: int = Field(default=64, ge=1, description="labelled samples of a step, over all workers")
    micro_batches: int = Field(
        default=1,
        ge=1,
        description="in which a step's rows pass through the network one after the other: less memory, a forward pass "
        "more; batch-norm statistics are those of each",
    )
    class_balanced: bool = Field(default=False, description="labelled samples are drawn evenly over the classes")
    logit_adjustment: float = Field(
        default=0.0,
        ge=0,
        description="tau of 2007.07314, for long-tailed labels; 1 makes the average over classes of the error small",
    )
    unlabelled_ratio: int = Field(
        default=7, ge=1, description="unlabelled samples of a step per labelled one; supervised reads none"
    )
    unlabelled_weight: float = Field(default=1.0, ge=0, description="of the unlabelled loss")
    lr: float = Field(default=0.03, gt=0, description="learning rate at its highest")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="of the averaged network, which predicts")
    augment: AugmentConfig = Field(default=AugmentConfig(), description="weak and strong views")
    checkpoint_every: int = Field(default=1000, ge=1, description="steps between checkpoints")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_algorithm(cls, settings: Any) -> Any:
        name = settings.get("algorithm", "fixmatch") if isinstance(settings, dict) else None
        if not isinstance(name, str) or name not in algorithms():
            return settings
        return {**algorithms()[name].defaults, **settings}

    @field_validator("algorithm")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in algorithms():
            raise ValueError(f"unknown algorithm {name!r}; choose one of {', '.join(algorithms())}")
        return name

    @field_validator("options")
    @classmethod
    def _complete(cls, options: dict[str, Any], info: Any) -> dict[str, Any]:
        """All settings of the algorithm, so that equal settings are written equally."""
        if "algorithm" not in info.data:
            return options
        name = info.data["algorithm"]
        model = algorithms()[name].Options
        try:
            return model.model_validate(options).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            option = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                choices = ", ".join(model.model_fields) or "no options"
                raise ValueError(f"{name!r} has no option {option!r}; it has {choices}") from error
            message = first["msg"][:1].lower() + first["msg"][1:]
            raise ValueError(f"{option}={first['input']!r} cannot be used by {name!r}: {message}") from error

    @model_validator(mode="after")
    def _one_correction(self) -> "SemiSupervisedConfig":
        if self.class_balanced and self.logit_adjustment:
            raise ValueError(
                f"class_balanced and logit_adjustment={self.logit_adjustment:g} both make up for rare classes, and "
                "together overdo it: choose one"
            )
        return self


class SemiSupervisedTrainer:
    """A network and its average in training; `train_steps` is called with consecutive ranges of steps.

    num_samples: every sample_id is below it; seed: of the initial weights and of the views; class_counts: int [C],
    labelled samples of each class, which logit_adjustment needs.
    """

    def __init__(
        self,
        config: SemiSupervisedConfig,
        num_classes: int,
        seed: int,
        device: torch.device,
        num_samples: int,
        class_counts: NDArray[np.int64] | None = None,
    ) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.model = training.synchronised(training.seeded_model(config.model, num_classes, seed, device), device)
        self.ema = Ema(self.model, config.ema_decay)
        self.optimizer = training.optimiser(self.model, config)
        algorithm = algorithms()[config.algorithm]
        options = algorithm.Options.model_validate(config.options)
        self.algorithm = algorithm(options, num_classes, num_samples).to(device)
        self.adjustment = torch.zeros(num_classes, device=device)
        if config.logit_adjustment:
            self.adjustment = logit_adjustment(config.logit_adjustment, class_counts).to(device)

    def lr(self, step: int) -> float:
        """Learning rate of an update, counted from 0: 7/16 of a half cosine, as in FixMatch."""
        return self.config.lr * math.cos(7 * math.pi * step / (16 * self.config.steps))

    def train_steps(
        self,
        steps: range,
        batches: Iterable[tuple[Batch, Batch]],
        on_step: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """Train on this rank's (labelled, unlabelled) batches of `steps`, and return means over steps and ranks.

        batches: one pair is taken per step, and none after the last; all ranks hold equally many rows, or the rows of a
        step are dealt out evenly; the unlabelled one has no row where the algorithm reads none; on_step: told how many
        steps of the whole training are done. Returned: loss_labelled; loss_unlabelled, before its weight; mask_rate,
        the mean weight of unlabelled rows.
        """
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        step = None
        with training.reproducible():
            for step, (labelled, unlabelled) in zip(steps, batches, strict=False):
                training.set_lr(self.optimizer, self.lr(step))
                totals += self._step(step, evened(labelled).to(self.device), evened(unlabelled).to(self.device))
                self.ema.update(self.model, step)
                if on_step is not None:
                    on_step(step + 1)
        assert step == steps[-1]
        share_buffers(self.model)
        share_buffers(self.ema.module)
        means = (totals / len(steps)).tolist()
        return dict(zip(("loss_labelled", "loss_unlabelled", "mask_rate"), means, strict=True))

    def _step(self, number: int, labelled: Batch, unlabelled: Batch) -> torch.Tensor:
        """One update; [labelled loss, unlabelled loss, mask rate] over all ranks, on the device."""
        config = self.config
        step = Step(
            number,
            config.steps,
            labelled,
            unlabelled,
            self.model.train(),
            self.ema.module,
            config.augment,
            config.precision,
            self.seed,
            self.adjustment,
            config.micro_batches,
        )
        losses = self.algorithm(step)
        self.optimizer.zero_grad()
        (losses.labelled + config.unlabelled_weight * losses.unlabelled).backward()
        sum_gradients(self.model.parameters())
        self.optimizer.step()
        mask_rate = losses.weight.sum() / step.valid.sum().clamp(min=1)
        return torch.stack([losses.labelled, losses.unlabelled, mask_rate]).detach().double()

    def predict(self, images: torch.Tensor | NDArray[np.uint8]) -> torch.Tensor:
        """Float32 logits [n, C], on the host, of the averaged network on uint8 images [n, H, W, 3]."""
        return training.predict(self.ema.module, images, self.config.precision, self.device)

    def weights(self) -> bytes:
        """The averaged network alone, for training.Predictor."""
        return training.dump(self.ema.module.state_dict())

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "ema": self.ema.module, "optimizer": self.optimizer, "algorithm": self.algorithm}

    def state(self) -> bytes:
        """All that training goes on from; equal on every rank after `train_steps`."""
        return training.dump({name: part.state_dict() for name, part in self._parts().items()})

    def restore(self, data: bytes) -> None:
        """Go back to what `state` was on a trainer of the same settings."""
        state = training.load(data, self.device)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


def logit_adjustment(tau: float, class_counts: NDArray[np.int64] | None) -> torch.Tensor:
    """tau * log of the share of each class, float32 [C], which the loss of labelled rows adds to their logits.

    So the logits themselves learn what they would from classes of equal size, and the balanced error is small: the
    average of the classes' own (2007.07314, the logit-adjusted loss). Predictions on unlabelled rows and the loss of
    these are of the logits themselves: pseudo-labels then do not follow the long tail of the labels. ValueError if a
    class has no labelled sample.
    """
    if class_counts is None or (class_counts == 0).any():
        lacking = "no class_counts are given" if class_counts is None else f"class {class_counts.argmin()} has no label"
        raise ValueError(f"logit_adjustment={tau:g} needs labels of every class, and {lacking}")
    return torch.from_numpy(tau * np.log(class_counts / class_counts.sum())).float()
