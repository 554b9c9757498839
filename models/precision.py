"""bfloat16 autocast where the device is fast at it, float32 elsewhere."""

import contextlib
from typing import Annotated, Literal

import torch
from pydantic import Field

Precision = Annotated[
    Literal["auto", "bf16", "fp32"], Field(description="auto is bf16 where the device is fast at it, else fp32")
]


def resolve(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """What "auto" means on `device`: bf16 on GPUs with native support and on CPUs with AMX or AVX-512 BF16."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return "bf16" if fast else "fp32"


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context in which networks compute in `precision`; weights stay float32."""
    enabled = resolve(precision, device) == "bf16"
    context: contextlib.AbstractContextManager[None] = torch.autocast(device.type, torch.bfloat16, enabled=enabled)
    return context
