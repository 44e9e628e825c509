"""Modules of transformers whose whole models differ from ours on purpose."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Zamba2Config
from transformers.models.zamba2.modeling_zamba2 import Zamba2Attention, Zamba2MLP, Zamba2RotaryEmbedding

from hybrid.ffn import Swiglu
from hybrid.mixers import Attention
from hybrid.spec import AttentionSpec, RopeSpec, SwigluSpec

Check = Callable[..., None]


@pytest.fixture
def zamba2() -> Zamba2Config:
    config = Zamba2Config(
        hidden_size=32,
        intermediate_size=56,
        num_attention_heads=4,
        num_hidden_layers=1,
        layers_block_type=["hybrid"],
        hidden_act="silu",
        adapter_rank=4,
        use_mem_rope=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    config._attn_implementation = "sdpa"
    return config


def test_zamba2_shared_attention_is_ours_on_twice_the_width(zamba2: Zamba2Config, same_function: Check) -> None:
    """It reads the stream beside the embeddings, is scaled for half its head, and its output has the stream's width."""
    theirs = Zamba2Attention(zamba2, layer_idx=-1, num_fwd_mem_blocks=1, block_id=0)
    spec = AttentionSpec(
        n_heads=4, n_kv_heads=4, head_dim=16, rope=RopeSpec(theta=10_000.0, scaling=None), softmax_scale=8**-0.5
    )
    ours = Attention(spec, 64, output=False)
    x_BLD = torch.randn(2, 45, 64)
    tables = Zamba2RotaryEmbedding(zamba2)(x_BLD, torch.arange(45).unsqueeze(0))

    def run_theirs() -> Tensor:
        y_BLD: Tensor = theirs(x_BLD, layer_idx=0, position_embeddings=tables)[0]
        return y_BLD

    def convert(copy: Any) -> None:
        copy.give("qkv_proj.weight", *(copy.take(f"{part}_proj.weight") for part in "qkv"))
        copy.leave("o_proj.")

    same_function(
        "Zamba2: attention of its shared block",
        theirs,
        ours,
        convert,
        run_theirs=run_theirs,
        run_ours=lambda: F.linear(ours.mix(x_BLD)[0], theirs.o_proj.weight),
    )


def test_zamba2_shared_ffn_is_ours_without_the_low_rank_difference(zamba2: Zamba2Config, same_function: Check) -> None:
    """By default its gate is a GELU; here it is a SiLU."""
    theirs = Zamba2MLP(zamba2, num_fwd_mem_blocks=1, block_id=0)
    ours = Swiglu(SwigluSpec(d_ffn=56), 32)
    x_BLD = torch.randn(2, 45, 32)

    def without_difference(theirs: Any) -> None:
        torch.nn.init.zeros_(theirs.gate_up_proj_adapter_list[0][1].weight)

    def convert(copy: Any) -> None:
        copy.same("gate_up_proj.weight", "gate_up_proj.weight")
        copy.same("down_proj.weight", "down_proj.weight")
        copy.leave("gate_up_proj_adapter_list.")

    same_function(
        "Zamba2: ffn of its shared block, gate SiLU for GELU",
        theirs,
        ours,
        convert,
        run_theirs=lambda: theirs(x_BLD, layer_idx=0),
        run_ours=lambda: ours(x_BLD),
        prepare=without_difference,
    )
