"""The base of every settings object; each stands beside the component that owns it."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings that change results: frozen, strict, part of a stage's key. Batch sizes in it are global."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)
