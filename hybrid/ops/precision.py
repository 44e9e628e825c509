"""What the kernels compute in, whatever autocast is doing around them."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precisions are computed in float32; float32 and float64 in themselves."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Keep the matrix products of a kernel in the dtype of their operands.

    Needed in backward too: called inside an autocast region, it runs under it.
    """
    device = tensor.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
