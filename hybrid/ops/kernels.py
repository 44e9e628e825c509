"""Which implementation each operation takes: plain PyTorch, or kernels of a GPU package that is installed."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, assert_never

import torch

from hybrid.spec import ConfigError


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The implementation of each operation that has several.

    Anything but the first of each is for GPUs, and steps aside for PyTorch's own where tensors are not what it takes:
    float64, and float32 where its products would be less exact than PyTorch's; heads too narrow; part of a sequence.
    """

    ssd: Literal["torch", "triton"]
    conv: Literal["torch", "causal_conv1d"]
    attention: Literal["sdpa", "flash_attn"]
    window: Literal["blocked", "flex"]


TORCH = Kernels(ssd="torch", conv="torch", attention="sdpa", window="blocked")

# What has to be importable. Packages with a compiled part are there without it where only their source was copied.
_TRITON_SCAN = ("mamba_ssm", "triton", "einops")
_CAUSAL_CONV1D = ("causal_conv1d", "causal_conv1d_cuda")
_FLASH_ATTN = ("flash_attn", "flash_attn_2_cuda")
_FLEX = ("triton",)


def select(kernels: Literal["torch", "fused", "auto"], device: torch.device) -> Kernels:
    """The kernels that `exec.kernels` asks for, on a device that exists; nothing is imported.

    `fused` insists on the SSD scan of mamba-ssm and takes what else is installed; `auto` takes what is
    installed, on a GPU. Raises ConfigError where `fused` cannot be had.
    """
    match kernels:
        case "torch":
            return TORCH
        case "fused":
            lacking: list[str] = []
            if device.type != "cuda":
                lacking.append(f"a CUDA device (exec.device is {device})")
            if missing := [name for name in _TRITON_SCAN if not _installed(name)]:
                lacking.append(f"packages that are not installed: {', '.join(missing)}")
            if lacking:
                raise ConfigError(
                    f"exec.kernels = fused: it needs {', and '.join(lacking)}; see make install-cuda. "
                    "Did you mean auto, which takes what there is, or torch?"
                )
        case "auto":
            if device.type != "cuda":
                return TORCH
        case _:
            assert_never(kernels)
    return Kernels(
        ssd="triton" if all(map(_installed, _TRITON_SCAN)) else "torch",
        conv="causal_conv1d" if all(map(_installed, _CAUSAL_CONV1D)) else "torch",
        attention="flash_attn" if all(map(_installed, _FLASH_ATTN)) else "sdpa",
        window="flex" if all(map(_installed, _FLEX)) else "blocked",
    )


def _installed(name: str) -> bool:
    return find_spec(name) is not None
