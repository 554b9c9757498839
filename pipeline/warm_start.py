"""When a refresh goes on from the last version's semi-supervised model, and when it trains one from scratch.

FixMatch on the digits, 100 labels and 80% of the pool and then 120 labels and all of it: a quarter of the steps from
the last model labels 97.3% of the pool right, all steps from scratch 96.0%, a quarter of them from scratch 90.6% (mean
of 2 seeds).

The proxy always begins anew: its scores are about how an image is learned, and a network that knows most of the pool
has learned it before the first epoch. Measured on the digits with the settings of their recipe and 5% wrong labels,
after a first training on 80% of the pool: rank correlation of the AUM with that of a training from scratch, 3 seeds:

| proxy                               | AUM  | coreset of 30% in common |
|-------------------------------------|------|--------------------------|
| from scratch, another seed          | .795 | 74%                      |
| warm start, all 20 epochs           | .760 | 70%                      |
| warm start, 5 epochs                | .722 | 67%                      |
| from scratch, 5 epochs              | .653 | 66%                      |

DUAL, which looks at ten epochs at a time, falls from .74 to .68 and .65 (one seed). What a warm start would save, it
takes from the ranking.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.errors import UserError


class RefreshConfig(Config):
    """The `refresh` section of a recipe, which `semiprune refresh` alone reads; no key of a plain run depends on it."""

    warm_start: Literal["auto", "always", "never"] = Field(
        default="auto", description="of the semi-supervised model; auto goes by how much is new"
    )
    retrain_above: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="share of samples or labels that came since the last training from scratch, above which auto "
        "trains from scratch",
    )
    warm_steps_fraction: float = Field(default=0.25, gt=0, le=1, description="of ssl.steps, those of a warm start")
    budget: Literal["cumulative", "per_batch"] = Field(
        default="cumulative",
        description="cumulative chooses the coreset anew in the whole pool, per_batch keeps what was selected and "
        "chooses the rest of the budget among the samples that are new",
    )


@dataclass(frozen=True)
class Learned:
    """A training from scratch. version: that did it; learner: hash of its settings; the others: what there was."""

    version: int
    learner: str
    num_samples: int
    num_labels: int


def decide(config: RefreshConfig, last: Learned, now: Learned) -> tuple[bool, str]:
    """Whether to start from the model that goes back to `last`, and why; now: what a training from scratch would be.

    UserError if a warm start is demanded of a model that was trained otherwise.
    """
    if config.warm_start == "never":
        return False, "from scratch: as refresh.warm_start says"
    if last.learner != now.learner:
        if config.warm_start == "always":
            raise UserError(
                "refresh.warm_start=always, but the seed, the classes, image_size or the section ssl are not those of "
                f"version {last.version}, whose model cannot go on with others: set it to auto or never"
            )
        return False, f"from scratch: version {last.version} was trained with other settings"
    if config.warm_start == "always":
        return True, "warm: as refresh.warm_start says"
    shares = {
        "samples": 1 - last.num_samples / now.num_samples,
        "labels": 1 - last.num_labels / now.num_labels if now.num_labels else 0.0,
    }
    what = max(shares, key=lambda name: shares[name])
    new = f"{max(0.0, shares[what]):.1%} of the {what} are new since version {last.version} was trained from scratch"
    if shares[what] > config.retrain_above:
        return False, f"from scratch: {new}, above refresh.retrain_above={config.retrain_above:g}"
    return True, f"warm: {new}"
