"""Training with labels for few samples: one loop for every algorithm of models/ssl.

Reproducible for a fixed seed, world size and number of threads, also across a crash. Batch-norm statistics are those of
each rank's own rows; rank 0's running ones are kept. Views are drawn anew in every step, so every repeat of a sample
differs.
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

    algorithm: str = Field(default="fixmatch", description="an algorithm of models/ssl")
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of the algorithm", validate_default=True
    )
    model: ModelConfig = ModelConfig(name="wrn_28_2")
    steps: int = Field(default=2**15, ge=1, description="updates in all")
    batch_size: int = Field(default=64, ge=1, description="labelled samples of a step, over all workers")
    unlabelled_ratio: int = Field(default=7, ge=1, description="unlabelled samples of a step per labelled one")
    unlabelled_weight: float = Field(default=1.0, ge=0, description="of the unlabelled loss")
    lr: float = Field(default=0.03, gt=0, description="learning rate at its highest")
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="of the averaged network, which predicts")
    augment: AugmentConfig = AugmentConfig()
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


class SemiSupervisedTrainer:
    """A network and its average in training; `train_steps` is called with consecutive ranges of steps.

    num_samples: every sample_id is below it; seed: of the initial weights and of the views.
    """

    def __init__(
        self, config: SemiSupervisedConfig, num_classes: int, seed: int, device: torch.device, num_samples: int
    ) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.model = training.seeded_model(config.model, num_classes, seed, device)
        self.ema = Ema(self.model, config.ema_decay)
        self.optimizer = training.optimiser(self.model, config)
        algorithm = algorithms()[config.algorithm]
        options = algorithm.Options.model_validate(config.options)
        self.algorithm = algorithm(options, num_classes, num_samples).to(device)

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
        step are dealt out evenly; on_step: told how many steps of the whole training are done. Returned: loss_labelled;
        loss_unlabelled, before its weight; mask_rate, the mean weight of unlabelled rows.
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
        )
        losses = self.algorithm(step)
        self.optimizer.zero_grad()
        (losses.labelled + config.unlabelled_weight * losses.unlabelled).backward()
        sum_gradients(self.model.parameters())
        self.optimizer.step()
        mask_rate = losses.weight.sum() / step.valid.sum()
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
