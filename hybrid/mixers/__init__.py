"""Token mixers, one primitive a file; `base` holds what they have in common."""

from typing import Any, assert_never

from hybrid.mixers.attention import Attention
from hybrid.mixers.base import Mixer, state_bytes
from hybrid.mixers.mamba2 import Mamba2
from hybrid.spec import AttentionSpec, Mamba2Spec, MixerSpec

__all__ = ["Attention", "Mamba2", "Mixer", "build_mixer", "state_bytes"]


def build_mixer(spec: MixerSpec, d_model: int, *, norm_eps: float, ssd_chunk: int) -> Mixer[Any]:
    """The module of a spec, its parameters not yet set."""
    match spec:
        case AttentionSpec():
            return Attention(spec, d_model)
        case Mamba2Spec():
            return Mamba2(spec, d_model, norm_eps=norm_eps, ssd_chunk=ssd_chunk)
        case _:
            assert_never(spec)
