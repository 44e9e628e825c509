"""Token mixers, one primitive a file; `base` holds what they have in common."""

from typing import Any, assert_never

from hybrid.mixers.attention import Attention
from hybrid.mixers.base import KvMixer, Mixer, rows_of_state, state_bytes
from hybrid.mixers.diff_attention import DiffAttention
from hybrid.mixers.diff_mamba import DiffMamba
from hybrid.mixers.intra import Intra
from hybrid.mixers.mamba2 import Mamba2
from hybrid.mixers.short_conv import ShortConv
from hybrid.ops.kernels import TORCH, Kernels
from hybrid.spec import (
    AttentionSpec,
    DiffAttentionSpec,
    DiffMambaSpec,
    IntraSpec,
    Mamba2Spec,
    MixerSpec,
    OutsideSpec,
    ShortConvSpec,
)

__all__ = [
    "Attention",
    "DiffAttention",
    "DiffMamba",
    "Intra",
    "KvMixer",
    "Mamba2",
    "Mixer",
    "ShortConv",
    "build_mixer",
    "rows_of_state",
    "state_bytes",
]


def build_mixer(
    spec: MixerSpec, d_model: int, *, norm_eps: float, ssd_chunk: int, kernels: Kernels = TORCH
) -> Mixer[Any]:
    """The module of a spec, its parameters not yet set."""
    match spec:
        case AttentionSpec():
            return Attention(spec, d_model, kernels=kernels)
        case DiffAttentionSpec():
            return DiffAttention(spec, d_model, norm_eps=norm_eps, kernels=kernels)
        case Mamba2Spec():
            return Mamba2(spec, d_model, norm_eps=norm_eps, ssd_chunk=ssd_chunk, kernels=kernels)
        case DiffMambaSpec():
            return DiffMamba(spec, d_model, norm_eps=norm_eps, ssd_chunk=ssd_chunk, kernels=kernels)
        case IntraSpec():
            return Intra(spec, d_model, norm_eps=norm_eps, ssd_chunk=ssd_chunk, kernels=kernels)
        case ShortConvSpec():
            return ShortConv(spec, d_model)
        case OutsideSpec():
            # Here, for its loader of users' files has business of its own that most models never need.
            from hybrid.outside import build

            return build(spec, d_model)
        case _:
            assert_never(spec)
