"""Where bfloat16 is used, and what it leaves alone."""

from typing import Any

import pytest
import torch

from models.precision import Precision, autocast, resolve

CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_what_was_asked_for_is_what_is_used_on_any_device(device: str) -> None:
    assert resolve("fp32", torch.device(device)) == "fp32"
    assert resolve("bf16", torch.device(device)) == "bf16"


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({"cpu_name": "AMD EPYC 9R14", "avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"cpu_name": "AMD EPYC 7B13", "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "fp32"),
        ({"architecture": "aarch64", "neon": True}, "fp32"),
    ],
)
def test_auto_is_bf16_on_a_cpu_that_is_fast_at_it(
    monkeypatch: pytest.MonkeyPatch, cpu: dict[str, Any], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert resolve("auto", CPU) == expected


def test_what_torch_says_of_this_cpu_is_understood() -> None:
    assert torch.cpu.get_capabilities()["architecture"]
    assert resolve("auto", CPU) in ("bf16", "fp32")


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_fp32_on_a_gpu_that_only_emulates_bf16(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolve("auto", torch.device("cuda")) == expected


def test_auto_is_fp32_on_a_device_that_nobody_knows() -> None:
    assert resolve("auto", torch.device("meta")) == "fp32"


@pytest.mark.parametrize(("precision", "computed"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_networks_compute_in_it_while_weights_and_gradients_stay_float32(
    precision: Precision, computed: torch.dtype
) -> None:
    layer = torch.nn.Linear(2, 2)
    with autocast(precision, CPU):
        result = layer(torch.ones(1, 2))
    assert result.dtype == computed
    result.sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32


def test_it_ends_with_the_block() -> None:
    layer = torch.nn.Linear(2, 2)
    with autocast("bf16", CPU):
        pass
    assert layer(torch.ones(1, 2)).dtype == torch.float32


def test_fp32_also_inside_a_block_of_bf16() -> None:
    layer = torch.nn.Linear(2, 2)
    with autocast("bf16", CPU), autocast("fp32", CPU):
        assert layer(torch.ones(1, 2)).dtype == torch.float32
