"""bfloat16 autocast where the device is fast at it, float32 elsewhere."""

import contextlib
from typing import Annotated, Literal

import torch
from pydantic import Field

Precision = Annotated[
    Literal["auto", "bf16", "fp32"], Field(description="auto is bf16 where the device is fast at it, else fp32")
]


def resolve(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """What "auto" means on `device`: bf16 on GPUs with native support and on CPUs with AMX or AMD's AVX-512 BF16.

    Intel's AVX-512 BF16 without AMX, as virtual machines often have it, trains at .66 to .76 of the speed of float32
    (Xeon of family 6, model 207; ResNet-9, ResNet-18 and WRN-16-2 in channels-last layout, one thread).
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        has = torch.cpu.get_capabilities()
        intel = has.get("cpu_name", "").startswith("Intel")
        fast = has.get("amx_bf16", False) or (has.get("avx512_bf16", False) and not intel)
    else:
        fast = False
    return "bf16" if fast else "fp32"


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context in which networks compute in `precision`; weights stay float32."""
    enabled = resolve(precision, device) == "bf16"
    context: contextlib.AbstractContextManager[None] = torch.autocast(device.type, torch.bfloat16, enabled=enabled)
    return context
