"""The formulas of hybrid/cost.py beside the modules that they describe, and beside torch's own counter."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybrid.config import read_config
from hybrid.cost import (
    block_params,
    block_state_bytes,
    convolution_flops,
    full_block_forward_flops,
    full_forward_flops,
    mixer_params,
    model_state_bytes,
    parts,
    run_cost,
)
from hybrid.mixers import build_mixer, state_bytes
from hybrid.model import LanguageModel
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    DiffAttentionSpec,
    DiffMambaSpec,
    IntraSpec,
    Mamba2Spec,
    ModelSpec,
    MoeSpec,
    Relu2Spec,
    RopeSpec,
    RunSpec,
    ShortConvSpec,
    SwigluSpec,
    WindowSpec,
)
from sweeps.compose import Composer

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
Preset = Callable[[str, str], RunSpec]


@pytest.fixture(scope="module")
def preset() -> Iterator[Preset]:
    """A shipped model at a shipped scale, composed once."""
    with Composer() as composer:
        yield cache(
            lambda scale, model: (
                read_config(
                    composer.compose([f"scale={scale}", f"model={model}"]), stdlib_fingerprint=lambda: "0" * 16
                ).run
            )
        )


# --- one of every kind, with every setting that has parameters, FLOPs or state ------------------

D_MODEL = 24
ATTENTION = AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=6, rope=RopeSpec(theta=10_000.0, scaling=None))
WINDOW = WindowSpec(size=16, sink=4)
MAMBA = Mamba2Spec(
    d_ssm=32,
    head_dim=8,
    d_state=12,
    n_groups=2,
    d_conv=3,
    a_init_min=0.01,
    a_init_max=2.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
)
DIFF_ATTENTION = DiffAttentionSpec(n_heads=4, n_kv_heads=2, head_dim=6, rope=None, depth=2, norm="head", fusion="diff")
INTRA = IntraSpec(
    attention=replace(ATTENTION, value_head_dim=8),
    mamba=replace(MAMBA, gate_norm="none"),
    norm="group",
    scalar="none",
    fusion="diff",
    value="separate",
    output="separate",
    lambda_depth=None,
    attention_multiplier=1.0,
    mamba_multiplier=1.0,
)


def intra(**changes: Any) -> IntraSpec:
    return replace(INTRA, lambda_depth=3 if changes.get("scalar") == "diff_t" else None, **changes)


MIXERS: dict[str, Any] = {
    "attention": ATTENTION,
    "attention, wide values": replace(ATTENTION, value_head_dim=10),
    "attention, more value heads": replace(ATTENTION, n_value_heads=4),
    "attention, convolution": replace(ATTENTION, qkv_conv=4),
    "attention, window": replace(ATTENTION, window=WINDOW),
    "attention, window, convolution, wide values": replace(ATTENTION, window=WINDOW, qkv_conv=2, value_head_dim=10),
    "attention, no positions": replace(ATTENTION, rope=None),
    "mamba": MAMBA,
    "mamba, grouped": replace(MAMBA, gate_norm="grouped"),
    "mamba, no norm": replace(MAMBA, gate_norm="none"),
    "diff attention": DIFF_ATTENTION,
    "diff attention, no norm": replace(DIFF_ATTENTION, norm="none"),
    "diff mamba": DiffMambaSpec(mamba=MAMBA, depth=2, norm="output"),
    "diff mamba, no norm": DiffMambaSpec(mamba=MAMBA, depth=2, norm="none"),
    "short convolution": ShortConvSpec(d_conv=4),
    "intra, window": intra(attention=replace(INTRA.attention, window=WINDOW)),
    "intra, unequal widths": intra(mamba=replace(INTRA.mamba, d_ssm=48)),
    "intra, unequal widths, concat": intra(
        mamba=replace(INTRA.mamba, d_ssm=48), fusion="concat", output="joint", scalar="scale"
    ),
    **{
        f"intra, {norm}, {scalar}, {fusion}, {value}, {output}": intra(
            norm=norm, scalar=scalar, fusion=fusion, value=value, output=output
        )
        for norm, scalar, (fusion, output), value in itertools.product(
            ("group", "none"),
            ("none", "scale", "diff_t", "gate"),
            (("diff", "joint"), ("diff", "separate"), ("concat", "joint")),
            ("separate", "shared"),
        )
    },
}
FFNS = {
    "none": None,
    "swiglu": SwigluSpec(d_ffn=20),
    "relu2": Relu2Spec(d_ffn=20),
    "top-1 and shared": MoeSpec(d_ffn=10, n_experts=4, top_k=1, n_shared=1, bias_step=1e-3),
    "top-2": MoeSpec(d_ffn=10, n_experts=4, top_k=2, n_shared=0, bias_step=1e-3),
}


def model_of(*blocks: BlockSpec, **changes: Any) -> ModelSpec:
    spec = ModelSpec(
        d_model=D_MODEL, vocab_size=30, tie_embeddings=True, norm_eps=1e-5, init_std=0.02, blocks=tuple(blocks)
    )
    return replace(spec, **changes)


def counted_flops(model: ModelSpec, length: int) -> int:
    """A forward on the meta device, where attention is PyTorch's own, as torch's counter sees it.

    The counter is told of the in-place product that it does not know, and is given the convolutions, which it cannot
    see, being elementwise in our code.
    """
    in_place = {torch.ops.aten.baddbmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * a[2] * b[2]}
    with torch.device("meta"):
        module = LanguageModel(model, ssd_chunk=64)
        tokens = torch.zeros((1, length), dtype=torch.long)
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter, torch.no_grad():
            module(tokens)
    positions = model.meta_tokens + length
    convolutions = sum(positions * convolution_flops(parts(block.mixer, model.d_model)) for block in model.blocks)
    return counter.get_total_flops() + convolutions


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_parameters_of_every_preset_at_every_scale_equal_the_modules_exactly(preset: Preset, model: str) -> None:
    for scale in SCALES:
        run = preset(scale, model)
        with torch.device("meta"):
            module = LanguageModel(run.model)
        cost = run_cost(run)
        assert sum(p.numel() for p in module.parameters()) == cost.total_params, scale
        assert cost.total_params == cost.embedding_params + cost.head_params + cost.non_embedding_params
        assert cost.non_embedding_params == cost.meta_params + cost.block_params + cost.norm_params
        assert cost.active_params <= cost.non_embedding_params


@pytest.mark.parametrize("name", MIXERS)
def test_parameters_of_every_mixer_equal_its_module(name: str) -> None:
    with torch.device("meta"):
        module = build_mixer(MIXERS[name], D_MODEL, norm_eps=1e-5, ssd_chunk=64)
    assert sum(p.numel() for p in module.parameters()) == mixer_params(MIXERS[name], D_MODEL)


@pytest.mark.parametrize("name", FFNS)
def test_parameters_of_every_ffn_equal_its_module(name: str) -> None:
    block = BlockSpec(mixer=ShortConvSpec(d_conv=2), ffn=FFNS[name])
    with torch.device("meta"):
        module = LanguageModel(model_of(block))
    assert sum(p.numel() for p in module.blocks.parameters()) == block_params(block, D_MODEL)


def test_parameters_of_ties_meta_tokens_borrowers_and_an_untied_head_equal_the_modules(resolve) -> None:
    for changes in (
        ["model.tie_embeddings=false"],
        ["model.tied=[attention,mamba]", "model.depth=6"],
        ["model.meta_tokens=5"],
        ["model=intra", "model.kv_sharing=3", "model.ratio=1:0"],
        ["model=llama", "model.kv_sharing=2", "model.attention.qkv_conv=4"],
    ):
        run = resolve("scale=toy", *changes).run
        with torch.device("meta"):
            module = LanguageModel(run.model)
        assert sum(p.numel() for p in module.parameters()) == run_cost(run).total_params, changes


# --- floating-point operations ------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["toy", "100m", "1b"])
@pytest.mark.parametrize("model", ["llama", "mamba", "inter"])
def test_full_flops_equal_an_independent_counter(preset: Preset, scale: str, model: str) -> None:
    """At chunk 64 and without a causal discount."""
    run = preset(scale, model)
    for length in (32, 64, 512):
        ours = full_forward_flops(run.model, length)
        assert counted_flops(run.model, length) == ours
        assert run_cost(replace(run, seq_len=length)).full_train_flops_per_sample == 3 * ours


@pytest.mark.parametrize("length", [32, 128])
@pytest.mark.parametrize("name", MIXERS)
def test_full_flops_of_every_mixer_equal_the_counter(name: str, length: int) -> None:
    """At lengths within a chunk and of several, and within a window's masked length and of whole blocks."""
    model = model_of(BlockSpec(mixer=MIXERS[name], ffn=None))
    assert counted_flops(model, length) == full_forward_flops(model, length)


@pytest.mark.parametrize("name", FFNS)
def test_full_flops_of_every_ffn_equal_the_counter(name: str) -> None:
    model = model_of(BlockSpec(mixer=ShortConvSpec(d_conv=2), ffn=FFNS[name]))
    assert counted_flops(model, 8) == full_forward_flops(model, 8)


@pytest.mark.parametrize("model", MODELS)
def test_full_flops_of_every_preset_equal_the_counter(preset: Preset, model: str) -> None:
    """At the toy scale, at lengths that are whole chunks and whole blocks of the windows, meta tokens included."""
    spec = preset("toy", model).model
    spec = replace(spec, meta_tokens=64 if spec.meta_tokens else 0)
    for length in (64, 512):
        assert counted_flops(spec, length) == full_forward_flops(spec, length)


def test_a_window_is_cut_into_blocks_only_where_that_is_less() -> None:
    block = BlockSpec(mixer=MIXERS["attention, window"], ffn=None)
    plain = BlockSpec(mixer=ATTENTION, ffn=None)
    for length in (16, WINDOW.sink + 2 * WINDOW.size):
        assert full_block_forward_flops(block, D_MODEL, length) == full_block_forward_flops(plain, D_MODEL, length)
        assert counted_flops(model_of(block), length) == full_forward_flops(model_of(block), length)
    assert full_block_forward_flops(block, D_MODEL, 48) < full_block_forward_flops(plain, D_MODEL, 48)


# --- state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [7, 100])
@pytest.mark.parametrize("name", MIXERS)
def test_state_bytes_of_every_mixer_equal_what_is_allocated(name: str, length: int) -> None:
    module = build_mixer(MIXERS[name], D_MODEL, norm_eps=1e-5, ssd_chunk=64)
    block = BlockSpec(mixer=MIXERS[name], ffn=None)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        held = state_bytes(module.init_state(3, length, torch.device("cpu"), dtype))
        assert held == 3 * block_state_bytes(block, D_MODEL, length, dtype.itemsize)


@pytest.mark.parametrize("model", MODELS)
def test_state_bytes_of_every_preset_equal_what_is_allocated(preset: Preset, model: str) -> None:
    run = preset("toy", model)
    module = LanguageModel(run.model).to(torch.bfloat16)
    module.init_weights(1)
    with torch.no_grad():
        state = module.init_state(2, 100)
    held = sum(state_bytes(mixer) for mixer in state.mixers)
    assert held == 2 * model_state_bytes(run.model, 100, 2)


@pytest.mark.parametrize("size", [3, 16])
def test_borrowers_hold_nothing_and_windows_what_is_seen(size: int) -> None:
    windowed = replace(ATTENTION, window=WindowSpec(size=size, sink=2))
    lender, borrower = windowed, replace(windowed, borrows_kv=True)
    model = model_of(*(BlockSpec(mixer=mixer, ffn=None) for mixer in (lender, borrower, borrower)))
    module = LanguageModel(model)
    module.init_weights(1)
    held = [state_bytes(mixer) for mixer in module.init_state(1, 50).mixers]
    assert held == [4 * (size + 2) * 2 * ATTENTION.n_kv_heads * ATTENTION.head_dim, 0, 0]
    assert sum(held) == model_state_bytes(model, 50, 4)
