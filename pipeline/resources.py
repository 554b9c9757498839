"""What a run may use. A type apart from Config: resources never enter a stage's key.

They change speed and, in trainings, rounding: another number of workers or threads gives another, equally good model.
The stages that train say in their manifest with how many workers they ran.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from pipeline import storage


def _local(folder: str) -> str:
    if not storage.is_local(folder):
        raise ValueError("images are mapped into memory: name a folder of every machine's own")
    return storage.resolve(folder)[1]


class Elastic(BaseModel):
    """A training has as many workers as the cluster has room for, from `min` to `max`, and waits while it has less."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    min: int = Field(ge=1, description="workers without which a training waits")
    max: int = Field(ge=1, description="workers beyond which it takes none")

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}: exchange them, or give one number of workers")
        return self


def _kind(value: Any) -> str:
    return "elastic" if isinstance(value, dict | Elastic) else "fixed"


class Resources(BaseModel):
    """Workers of a training and tasks of a stage: the `resources` section of a recipe, which changes speed alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    num_workers: Annotated[
        Annotated[Annotated[int, Field(ge=1)], Tag("fixed")] | Annotated[Elastic, Tag("elastic")], Discriminator(_kind)
    ] = Field(
        default=2, description="processes of a training, and final trainings at a time: a number, or {min: 2, max: 16}"
    )
    cpus_per_worker: int = Field(default=1, ge=1, description="cores and torch threads of each")
    gpus_per_worker: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="of each; 0 trains on the CPU; a part of one is for a worker alone",
    )
    tasks: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="at a time where shards are read, decoded or written; null: as many as cores"
    )
    max_failures: int = Field(
        default=3,
        ge=0,
        description="how often a training whose worker died is continued from its last commit before the stage fails",
    )
    images: Literal["auto", "cache", "stream"] = Field(
        default="auto",
        description="decoded once into a cache on each machine's disk, or streamed from the shards in every epoch; "
        "auto caches what fits",
    )
    cache_dir: Annotated[str, Field(min_length=1), AfterValidator(_local)] | None = Field(
        default=None,
        description="where the cache has its folder, which also says where in the shards each image is; null: TMPDIR",
    )
    cache_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="what all runs may keep there; null: half of what is free"
    )

    @property
    def min_workers(self) -> int:
        """The fewest that a training runs on: what is sure."""
        return self.num_workers.min if isinstance(self.num_workers, Elastic) else self.num_workers

    @property
    def max_workers(self) -> int:
        """The most that a training runs on, each with a share of the global batch."""
        return self.num_workers.max if isinstance(self.num_workers, Elastic) else self.num_workers

    @field_validator("gpus_per_worker")
    @classmethod
    def _can_be_placed(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("more than one GPU must be a whole number")
        return gpus

    @model_validator(mode="after")
    def _has_a_gpu_for_each(self) -> Self:
        if 0 < self.gpus_per_worker < 1 < self.max_workers:
            raise ValueError(
                f"gpus_per_worker={self.gpus_per_worker:g} puts several of {self.max_workers} workers on one GPU, "
                "where NCCL refuses to train: set gpus_per_worker to 0, 1 or more, or num_workers to 1"
            )
        return self
