"""What a run may use. A type apart from Config: resources change speed, never a stage's key."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Resources(BaseModel):
    """Workers of a training and tasks of a stage.

    num_workers: training processes, and tasks at a time in the other stages; cpus_per_worker: cores and torch threads
    of each; gpus_per_worker: GPUs of each, 0 trains on the CPU; max_failures: how often a training whose worker died
    is continued from its last commit before the stage fails.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    num_workers: Annotated[int, Field(ge=1)] = 2
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    max_failures: Annotated[int, Field(ge=0)] = 3
