"""The SSD recurrence through mamba-ssm's Triton kernels (Dao & Gu 2024): the fused path of `hybrid.ops.ssd`.

Shapes: B batch, L length, H heads, P head_dim, N d_state, G groups.
"""

import importlib
import importlib.util
import sys
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from hybrid.ops.precision import without_autocast


def takes(x_BLHP: Tensor) -> bool:
    """Whether the kernels are as exact as PyTorch's path for this input, up to rounding in its dtype.

    They multiply float32 as TF32, so float32 goes there only where PyTorch's own products may be TF32 too.
    """
    match x_BLHP.dtype:
        case torch.bfloat16 | torch.float16:
            return True
        case torch.float32:
            return torch.get_float32_matmul_precision() != "highest"
        case _:
            return False


def fused_ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    *,
    chunk: int,
    initial_state_BHPN: Tensor | None = None,
    return_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`hybrid.ops.ssd.ssd` with products in the dtype of x, accumulated in float32; any length and chunk.

    The backward passes add up in no fixed order unless MAMBA_DETERMINISTIC=1 is set.
    """
    dt_BLH, A_H = dt_BLH.float(), A_H.float()
    B_BLGN, C_BLGN = B_BLGN.to(x_BLHP.dtype), C_BLGN.to(x_BLHP.dtype)
    if initial_state_BHPN is not None:
        initial_state_BHPN = initial_state_BHPN.float()
    with without_autocast(x_BLHP):
        if x_BLHP.shape[1] == 1 and initial_state_BHPN is not None and not torch.is_grad_enabled():
            y_BHP, final_BHPN = _update(x_BLHP[:, 0], dt_BLH[:, 0], A_H, B_BLGN[:, 0], C_BLGN[:, 0], initial_state_BHPN)
            return y_BHP.unsqueeze(1), final_BHPN if return_state else None
        # Without dt_bias, dt_softplus and dt_limit, dt is used as it is; D and z are the mixer's own.
        scanned = _kernels("ssd_combined").mamba_chunk_scan_combined(
            x_BLHP,
            dt_BLH,
            A_H,
            B_BLGN,
            C_BLGN,
            chunk_size=chunk,
            initial_states=initial_state_BHPN,
            return_final_states=return_state,
        )
    if return_state:
        y_BLHP, final_BHPN = scanned
        return y_BLHP, final_BHPN
    return scanned, None


def _update(
    x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BGN: Tensor, C_BGN: Tensor, state_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """One position; the state that was given stays as it is."""
    state_BHPN = state_BHPN.clone(memory_format=torch.contiguous_format)
    # Strides of zero tell the kernel that a head has one dt and one A; its bias and its D may not be left out.
    zero_HP = A_H.new_zeros(1, 1).expand(x_BHP.shape[1:])
    y_BHP = _kernels("selective_state_update").selective_state_update(
        state_BHPN,
        x_BHP,
        dt_BH.unsqueeze(-1).expand(x_BHP.shape),
        A_H[:, None, None].expand(state_BHPN.shape[1:]),
        B_BGN,
        C_BGN,
        D=zero_HP,
        dt_bias=zero_HP,
    )
    return y_BHP, state_BHPN


@cache
def _kernels(name: str) -> ModuleType:
    """A module of mamba_ssm.ops.triton, without running `import mamba_ssm`.

    That one needs a CUDA extension that Mamba-2 has no use for, and imports transformers. In its place stands an
    empty package of the same path, for as long as the import takes.
    """
    stand_in: ModuleType | None = None
    if "mamba_ssm" not in sys.modules:
        spec = importlib.util.find_spec("mamba_ssm")
        if spec is None:
            raise ModuleNotFoundError("mamba_ssm is not installed: make install-cuda", name="mamba_ssm")
        stand_in = importlib.util.module_from_spec(spec)
        sys.modules["mamba_ssm"] = stand_in
    try:
        return importlib.import_module(f"mamba_ssm.ops.triton.{name}")
    finally:
        if stand_in is not None:
            del sys.modules["mamba_ssm"]
