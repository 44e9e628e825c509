"""Whole models of transformers, with random weights that are copied into ours: the same logits, gradients, training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    Zamba2Config,
    Zamba2ForCausalLM,
)

from hybrid.generate import generate
from hybrid.model import LanguageModel
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    DiffAttentionSpec,
    FfnSpec,
    IntraSpec,
    Llama3RopeScalingSpec,
    Mamba2Spec,
    MixerSpec,
    ModelSpec,
    MoeSpec,
    Relu2Spec,
    RopeSpec,
    SwigluSpec,
    WindowSpec,
)

Check = Callable[..., None]

ROPE = RopeSpec(theta=10_000.0, scaling=None)
SWIGLU = SwigluSpec(d_ffn=56)
SIZES: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "pad_token_id": None}
"""A padding token would have no gradient."""
ATTENTION: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_state": 12, "mamba_chunk_size": 32}


class Pair(NamedTuple):
    """Their model, ours, and how the weights of theirs become ours."""

    theirs: nn.Module
    ours: LanguageModel
    convert: Callable[[Any], None]


def attention(**fields: Any) -> AttentionSpec:
    return AttentionSpec(**{"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": ROPE} | fields)


def mamba2(**fields: Any) -> Mamba2Spec:
    dims = {"d_ssm": 64, "head_dim": 16, "d_state": 12, "n_groups": 1, "d_conv": 4}
    ranges = {"a_init_min": 0.01, "a_init_max": 2.0, "dt_init_min": 0.001, "dt_init_max": 0.1}
    return Mamba2Spec(**dims | ranges | fields)


def model(*blocks: tuple[MixerSpec, FfnSpec | None], norm_eps: float = 1e-5, **fields: Any) -> LanguageModel:
    spec = ModelSpec(
        d_model=SIZES["hidden_size"],
        vocab_size=SIZES["vocab_size"],
        norm_eps=norm_eps,
        init_std=0.02,
        blocks=tuple(BlockSpec(mixer=mixer, ffn=ffn) for mixer, ffn in blocks),
        **{"tie_embeddings": False} | fields,
    )
    return LanguageModel(spec, ssd_chunk=16)


def ends(copy: Any, *, embedding: str = "model.embed_tokens", norm: str = "model.norm", tied: bool = False) -> None:
    copy.same("embedding", f"{embedding}.weight")
    copy.same("final_norm.weight", f"{norm}.weight")
    if not tied:
        copy.same("head", "lm_head.weight")


def norms(copy: Any, i: int, mixer: str = "input_layernorm", ffn: str = "post_attention_layernorm") -> None:
    copy.same(f"blocks.{i}.mixer_norm.weight", f"model.layers.{i}.{mixer}.weight")
    copy.same(f"blocks.{i}.ffn_norm.weight", f"model.layers.{i}.{ffn}.weight")


def transformer_block(copy: Any, i: int) -> None:
    norms(copy, i)
    copy.attention(f"blocks.{i}.mixer", f"model.layers.{i}.self_attn")
    copy.swiglu(f"blocks.{i}.ffn", f"model.layers.{i}.mlp")


# --- attention ----------------------------------------------------------------------------------


def llama() -> Pair:
    """Two blocks whose frequencies lie on both sides of the two limits of Llama 3's scaling, and between them."""
    config = LlamaConfig(
        **SIZES,
        **ATTENTION,
        intermediate_size=56,
        num_hidden_layers=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    )
    scaling = Llama3RopeScalingSpec(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_seq_len=32)
    block = (attention(rope=RopeSpec(theta=100.0, scaling=scaling)), SWIGLU)

    def convert(copy: Any) -> None:
        ends(copy, tied=True)
        transformer_block(copy, 0)
        transformer_block(copy, 1)

    return Pair(LlamaForCausalLM(config), model(block, block, tie_embeddings=True), convert)


def test_llama_with_llama3_rope_scaling(same_function: Check) -> None:
    same_function("Llama: Llama 3 RoPE scaling, grouped queries, SwiGLU, tied head", *llama())


def test_llamas_frequencies_here_are_kept_slowed_and_between() -> None:
    plain_F = 100.0 ** -(torch.arange(4) / 4)
    slower_F = plain_F / llama().theirs.model.rotary_emb.inv_freq
    assert slower_F[0] == 1
    assert ((slower_F > 1.01) & (slower_F < 31)).any()
    assert slower_F[-1] == pytest.approx(32)


def ministral() -> Pair:
    config = MinistralConfig(
        **SIZES,
        **ATTENTION,
        intermediate_size=56,
        num_hidden_layers=3,
        rms_norm_eps=1e-5,
        head_dim=8,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    window = (attention(window=WindowSpec(size=7, sink=0)), SWIGLU)

    def convert(copy: Any) -> None:
        ends(copy)
        for i in range(3):
            transformer_block(copy, i)

    return Pair(MinistralForCausalLM(config), model(window, (attention(), SWIGLU), window), convert)


def test_ministral_with_window_and_global_blocks_in_turn(same_function: Check) -> None:
    same_function("Ministral: window of 7 without sink, and global", *ministral())


@pytest.mark.parametrize("sink", [1, 5])
def test_llama_under_a_mask_of_window_and_sink(sink: int, same_function: Check) -> None:
    """transformers has no sink of visible tokens: its Llama is given the mask of one, by the definition."""
    theirs, _, convert = llama()
    position_L = torch.arange(45)
    distance_LL = position_L.unsqueeze(1) - position_L
    visible_LL = (distance_LL >= 0) & ((distance_LL < 7) | (position_L < sink))
    scaling = Llama3RopeScalingSpec(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_seq_len=32)
    rope = RopeSpec(theta=100.0, scaling=scaling)
    block = (attention(rope=rope, window=WindowSpec(size=7, sink=sink)), SWIGLU)
    ours = model(block, block, tie_embeddings=True)
    tokens_BL = torch.randint(61, (2, 45), generator=torch.Generator().manual_seed(1))
    mask_B1LL = visible_LL.expand(2, 1, -1, -1)

    def run_theirs() -> Tensor:
        logits_BLV: Tensor = theirs(tokens_BL, attention_mask=mask_B1LL, use_cache=False).logits
        return logits_BLV

    label = f"Llama under a mask: window of 7, sink of {sink}"
    same_function(label, theirs, ours, convert, run_theirs=run_theirs, run_ours=lambda: ours(tokens_BL))


def test_diffllama(same_function: Check) -> None:
    """On purpose: the norm of the heads has a weight, as the paper's, where DiffLlama has none: here it is one.

    DiffLlama pairs head h with head h + n_heads, here 2 h with 2 h + 1: the rows of its projections change places.
    """
    config = DiffLlamaConfig(
        **SIZES,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )

    def pairs_together(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (2, -1, 4)).transpose(0, 1).flatten(0, 2)

    def convert(copy: Any) -> None:
        ends(copy)
        for i in range(2):
            ours, theirs = f"blocks.{i}.mixer", f"model.layers.{i}.self_attn"
            norms(copy, i)
            qkv = (pairs_together(copy.take(f"{theirs}.{part}_proj.weight")) for part in "qkv")
            copy.give(f"{ours}.qkv_proj.weight", *qkv)
            copy.same(f"{ours}.out_proj.weight", f"{theirs}.o_proj.weight")
            for name in ("q1", "k1", "q2", "k2"):
                copy.same(f"{ours}.diff_lambda.{name}", f"{theirs}.lambda_{name}")
            copy.fixed(f"{ours}.norm.weight", torch.ones(8))
            copy.swiglu(f"blocks.{i}.ffn", f"model.layers.{i}.mlp")

    dims: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "rope": ROPE, "norm": "head"}
    ours = model(*((DiffAttentionSpec(**dims, depth=depth, fusion="diff"), SWIGLU) for depth in (1, 2)))
    label = "DiffLlama: differential attention of grouped pairs, lambda by depth"
    same_function(label, DiffLlamaForCausalLM(config), ours, convert)


def test_jamba_attention_has_no_positions(same_function: Check) -> None:
    """Jamba of attention blocks alone: its Mamba-1 has no counterpart here, where every recurrence is Mamba-2."""
    config = JambaConfig(
        **SIZES,
        **ATTENTION,
        intermediate_size=56,
        num_hidden_layers=2,
        rms_norm_eps=1e-5,
        attn_layer_period=1,
        attn_layer_offset=0,
        num_experts=1,
    )
    block = (attention(rope=None), SWIGLU)

    def convert(copy: Any) -> None:
        ends(copy, norm="model.final_layernorm")
        for i in range(2):
            norms(copy, i, ffn="pre_ff_layernorm")
            copy.attention(f"blocks.{i}.mixer", f"model.layers.{i}.self_attn")
            copy.swiglu(f"blocks.{i}.ffn", f"model.layers.{i}.feed_forward")

    same_function("Jamba: attention without positions", JambaForCausalLM(config), model(block, block), convert)


# --- experts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top_k", "n_shared"), [(1, 1), (3, 2)])
def test_glm4_moe(top_k: int, n_shared: int, same_function: Check) -> None:
    """DeepSeek-V3's experts under plain attention: sigmoid scores, a bias for the choice alone, shared experts.

    On purpose: with one expert chosen its score is not divided by itself, so theirs is told not to.
    """
    config = Glm4MoeConfig(
        **SIZES,
        **ATTENTION,
        intermediate_size=56,
        num_hidden_layers=2,
        moe_intermediate_size=16,
        n_routed_experts=6,
        num_experts_per_tok=top_k,
        n_shared_experts=n_shared,
        norm_topk_prob=top_k > 1,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        num_mtp_layers=0,
    )
    theirs = Glm4MoeForCausalLM(config)
    bias_E = theirs.model.layers[1].mlp.gate.e_score_correction_bias
    bias_E.copy_(torch.linspace(-0.2, 0.2, 6))
    moe = MoeSpec(d_ffn=16, n_experts=6, top_k=top_k, n_shared=n_shared, bias_step=1e-3)

    def convert(copy: Any) -> None:
        ends(copy)
        transformer_block(copy, 0)
        norms(copy, 1)
        copy.attention("blocks.1.mixer", "model.layers.1.self_attn")
        copy.same("blocks.1.ffn.router.weight", "model.layers.1.mlp.gate.weight")
        copy.buffer("blocks.1.ffn.expert_bias", "model.layers.1.mlp.gate.e_score_correction_bias")
        copy.same("blocks.1.ffn.experts_gate_up", "model.layers.1.mlp.experts.gate_up_proj")
        copy.same("blocks.1.ffn.experts_down", "model.layers.1.mlp.experts.down_proj")
        copy.swiglu("blocks.1.ffn.shared", "model.layers.1.mlp.shared_experts")

    label = f"GLM-4 MoE (DeepSeek-V3's experts): {top_k} of 6, {n_shared} shared, biased choice"
    same_function(label, theirs, model((attention(), SWIGLU), (attention(), moe)), convert)


# --- Mamba-2 and inter-layer hybrids ------------------------------------------------------------


def mamba2_pair(n_groups: int) -> Pair:
    config = Mamba2Config(
        **SIZES,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=16,
        state_size=12,
        n_groups=n_groups,
        chunk_size=32,
    )
    block = (mamba2(n_groups=n_groups, gate_norm="rms" if n_groups == 1 else "grouped"), None)

    def convert(copy: Any) -> None:
        ends(copy, embedding="backbone.embeddings", norm="backbone.norm_f")
        for i in range(2):
            copy.same(f"blocks.{i}.mixer_norm.weight", f"backbone.layers.{i}.norm.weight")
            copy.mamba2(f"blocks.{i}.mixer", f"backbone.layers.{i}.mixer")

    return Pair(Mamba2ForCausalLM(config), model(block, block), convert)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_mamba2(n_groups: int, same_function: Check) -> None:
    """Their gated norm has an RMS for each group: `gate_norm: grouped`. Ours can have one, as the original (`rms`)."""
    same_function(f"Mamba2: {n_groups} group{'s' * (n_groups > 1)}", *mamba2_pair(n_groups))


def bamba() -> Pair:
    """Mamba-2, attention, Mamba-2. On purpose: whole heads are turned, where Bamba turns half of each."""
    config = BambaConfig(
        **SIZES, **ATTENTION, **MAMBA, intermediate_size=56, num_hidden_layers=3, attn_layer_indices=[1]
    )
    config.rope_parameters["partial_rotary_factor"] = 1.0

    def convert(copy: Any) -> None:
        ends(copy, norm="model.final_layernorm")
        for i in range(3):
            norms(copy, i, ffn="pre_ff_layernorm")
            copy.swiglu(f"blocks.{i}.ffn", f"model.layers.{i}.feed_forward")
        copy.mamba2("blocks.0.mixer", "model.layers.0.mamba")
        copy.attention("blocks.1.mixer", "model.layers.1.self_attn")
        copy.mamba2("blocks.2.mixer", "model.layers.2.mamba")

    blocks = ((mamba2(), SWIGLU), (attention(), SWIGLU), (mamba2(), SWIGLU))
    return Pair(BambaForCausalLM(config), model(*blocks), convert)


def test_bamba_with_whole_heads_turned(same_function: Check) -> None:
    same_function("Bamba: Mamba-2, attention (whole heads turned)", *bamba())


def test_granite_4_hybrid_with_its_multipliers(same_function: Check) -> None:
    """The dense form: its experts are weighted by a softmax of the chosen, where ours are by sigmoids."""
    config = GraniteMoeHybridConfig(
        **SIZES,
        **ATTENTION,
        **MAMBA,
        num_hidden_layers=3,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        shared_intermediate_size=56,
        num_local_experts=0,
        rms_norm_eps=1e-5,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.2,
        logits_scaling=8.0,
    )

    def convert(copy: Any) -> None:
        ends(copy)
        for i in range(3):
            norms(copy, i)
            copy.same(f"blocks.{i}.ffn.gate_up_proj.weight", f"model.layers.{i}.shared_mlp.input_linear.weight")
            copy.same(f"blocks.{i}.ffn.down_proj.weight", f"model.layers.{i}.shared_mlp.output_linear.weight")
        copy.mamba2("blocks.0.mixer", "model.layers.0.mamba")
        copy.attention("blocks.1.mixer", "model.layers.1.self_attn")
        copy.mamba2("blocks.2.mixer", "model.layers.2.mamba")

    ours = model(
        (mamba2(), SWIGLU),
        (attention(rope=None, softmax_scale=0.2), SWIGLU),
        (mamba2(), SWIGLU),
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        logit_multiplier=1 / 8,
    )
    theirs = GraniteMoeHybridForCausalLM(config)
    same_function("Granite 4.0 hybrid, dense: no positions, four multipliers", theirs, ours, convert)


def test_nemotron_h(same_function: Check) -> None:
    """Its mlp layers are the ffn of the block before. On purpose: step sizes have no lower limit; it is lifted here."""
    layers = ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp"]
    config = NemotronHConfig(
        **SIZES,
        **ATTENTION,
        layers_block_type=layers,
        head_dim=8,
        intermediate_size=56,
        ssm_state_size=12,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=32,
        time_step_min=1e-9,
    )

    def convert(copy: Any) -> None:
        ends(copy, embedding="model.embeddings", norm="model.norm_f")
        for name, layer in (("0.mixer", 0), ("0.ffn", 1), ("1.mixer", 2), ("2.mixer", 3), ("2.ffn", 4)):
            copy.same(f"blocks.{name}_norm.weight", f"model.layers.{layer}.norm.weight")
            if layers[layer] == "mlp":
                copy.same(f"blocks.{name}.up_proj.weight", f"model.layers.{layer}.mixer.up_proj.weight")
                copy.same(f"blocks.{name}.down_proj.weight", f"model.layers.{layer}.mixer.down_proj.weight")
        copy.mamba2("blocks.0.mixer", "model.layers.0.mixer")
        copy.mamba2("blocks.1.mixer", "model.layers.2.mixer")
        copy.attention("blocks.2.mixer", "model.layers.3.mixer")

    mamba = mamba2(n_groups=2, gate_norm="grouped")
    relu2 = Relu2Spec(d_ffn=56)
    ours = model((mamba, relu2), (mamba, None), (attention(rope=None), relu2))
    same_function("Nemotron-H: grouped gate norm, squared ReLU", NemotronHForCausalLM(config), ours, convert)


def test_zamba2_mamba_layers(same_function: Check) -> None:
    """All of Zamba2 but its shared blocks, whose part is set to zero.

    On purpose: a shared block of Zamba2 reads the stream beside the embeddings, and its output, through one more
    projection, is seen by the next Mamba layer alone; ours (`BlockSpec.tie`) reads and writes the stream. Zamba2 also
    adds a low-rank difference at every place, and raises small step sizes: its limit is lifted here.
    """
    config = Zamba2Config(
        **SIZES,
        num_hidden_layers=3,
        layers_block_type=["linear_attention", "hybrid", "hybrid"],
        mamba_d_state=12,
        mamba_ngroups=2,
        n_mamba_heads=4,
        num_attention_heads=4,
        chunk_size=32,
        adapter_rank=4,
        time_step_min=1e-9,
        tie_word_embeddings=False,
    )
    theirs = Zamba2ForCausalLM(config)

    def without_shared_blocks(theirs: Any) -> None:
        for layer in theirs.model.layers[1:]:
            nn.init.zeros_(layer.linear.weight)

    block = (mamba2(n_groups=2, gate_norm="grouped"), None)

    def convert(copy: Any) -> None:
        ends(copy, norm="model.final_layernorm")
        for i, layer in enumerate(("0", "1.mamba_decoder", "2.mamba_decoder")):
            copy.same(f"blocks.{i}.mixer_norm.weight", f"model.layers.{layer}.input_layernorm.weight")
            copy.mamba2(f"blocks.{i}.mixer", f"model.layers.{layer}.mamba")
        for i in (1, 2):
            copy.leave(f"model.layers.{i}.shared_transformer.")
            copy.leave(f"model.layers.{i}.linear.")

    label = "Zamba2: Mamba-2 layers of two groups, shared blocks at zero"
    same_function(label, theirs, model(block, block, block), convert, prepare=without_shared_blocks)


# --- both modules in one block ------------------------------------------------------------------


def falcon_h1(gate_norm: str) -> Pair:
    """Its multipliers of inputs, keys and ffn are factors of the copied weights; the others are ours too.

    On purpose: where there is a gated norm, the gate comes first (theirs: `mamba_norm_before_gate=False`).
    """
    n_groups = 2 if gate_norm == "grouped" else 1
    config = FalconH1Config(
        **SIZES,
        **ATTENTION,
        intermediate_size=56,
        num_hidden_layers=2,
        mamba_d_ssm=48,
        mamba_n_heads=4,
        mamba_n_groups=n_groups,
        mamba_d_state=12,
        mamba_chunk_size=32,
        mamba_rms_norm=gate_norm != "none",
        mamba_norm_before_gate=False,
        attention_in_multiplier=0.9,
        key_multiplier=0.7,
        attention_out_multiplier=0.6,
        ssm_in_multiplier=1.25,
        ssm_multipliers=[0.35, 0.25, 1.5, 0.5, 0.7],
        ssm_out_multiplier=0.4,
        mlp_multipliers=[0.8, 0.3],
        embedding_multiplier=5.6,
        lm_head_multiplier=0.04,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    rows = (48, 48, 12 * n_groups, 12 * n_groups, 4)

    def convert(copy: Any) -> None:
        ends(copy, norm="model.final_layernorm")
        for i in range(2):
            ours, theirs = f"blocks.{i}", f"model.layers.{i}"
            norms(copy, i, ffn="pre_ff_layernorm")
            qkv = (copy.take(f"{theirs}.self_attn.{part}_proj.weight") for part in "qkv")
            copy.give(f"{ours}.mixer.attention.qkv_proj.weight", *qkv, times=(0.9, 0.9 * 0.7, 0.9))
            copy.same(f"{ours}.mixer.attention_out_proj.weight", f"{theirs}.self_attn.o_proj.weight")
            zxbcdt = copy.take(f"{theirs}.mamba.in_proj.weight").split(rows)
            times = tuple(1.25 * c for c in (0.35, 0.25, 1.5, 0.5, 0.7))
            copy.give(f"{ours}.mixer.mamba.in_proj.weight", *zxbcdt, times=times)
            for name in ("dt_bias", "A_log", "D"):
                copy.same(f"{ours}.mixer.mamba.{name}", f"{theirs}.mamba.{name}")
            copy.give(f"{ours}.mixer.mamba.conv_weight", copy.take(f"{theirs}.mamba.conv1d.weight").squeeze(1))
            copy.same(f"{ours}.mixer.mamba.conv_bias", f"{theirs}.mamba.conv1d.bias")
            if gate_norm != "none":
                copy.same(f"{ours}.mixer.mamba.norm.weight", f"{theirs}.mamba.norm.weight")
            copy.same(f"{ours}.mixer.mamba_out_proj.weight", f"{theirs}.mamba.out_proj.weight")
            gate_up = (copy.take(f"{theirs}.feed_forward.{part}_proj.weight") for part in ("gate", "up"))
            copy.give(f"{ours}.ffn.gate_up_proj.weight", *gate_up, times=(0.8, 1.0))
            copy.give(
                f"{ours}.ffn.down_proj.weight", copy.take(f"{theirs}.feed_forward.down_proj.weight"), times=(0.3,)
            )

    intra = IntraSpec(
        attention=attention(),
        mamba=mamba2(d_ssm=48, head_dim=12, n_groups=n_groups, gate_norm=gate_norm),
        norm="none",
        scalar="none",
        fusion="add",
        value="separate",
        output="separate",
        lambda_depth=None,
        attention_multiplier=0.6,
        mamba_multiplier=0.4,
    )
    block = (intra, SWIGLU)
    ours = model(block, block, embedding_multiplier=5.6, logit_multiplier=0.04)
    return Pair(FalconH1ForCausalLM(config), ours, convert)


@pytest.mark.parametrize("gate_norm", ["none", "rms", "grouped"])
def test_falcon_h1(gate_norm: str, same_function: Check) -> None:
    same_function(f"Falcon-H1: parallel modules, all multipliers, gate norm {gate_norm}", *falcon_h1(gate_norm))


# --- decoding -----------------------------------------------------------------------------------


DECODED: dict[str, Callable[[], Pair]] = {
    "llama": llama,
    "ministral": ministral,
    "mamba2": lambda: mamba2_pair(2),
    "bamba": bamba,
    "falcon_h1": lambda: falcon_h1("none"),
}


@pytest.mark.parametrize("name", DECODED)
def test_greedy_generation_is_theirs(name: str, with_equal_weights: Callable[..., None]) -> None:
    """Their caches and ours: a prompt at once, then token by token, far beyond the window where there is one."""
    theirs, ours, convert = DECODED[name]()
    with_equal_weights(theirs, ours, convert)
    prompt_BL = torch.randint(61, (2, 11), generator=torch.Generator().manual_seed(4))
    wanted_BL = theirs.generate(prompt_BL, do_sample=False, max_new_tokens=24, eos_token_id=None, pad_token_id=0)

    found_BL = generate(ours, prompt_BL, 24, temperature=0.0)
    assert found_BL.tolist() == wanted_BL[:, 11:].tolist()


# --- training -----------------------------------------------------------------------------------


def test_llama_trains_alike(same_training: Check) -> None:
    same_training("Llama", *llama())


def test_mamba2_trains_alike(same_training: Check) -> None:
    same_training("Mamba2", *mamba2_pair(1))


def test_bamba_trains_alike(same_training: Check) -> None:
    same_training("Bamba", *bamba())
