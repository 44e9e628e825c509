"""Model settings that cannot be: each function returns a line for everything wrong, said as users say it."""

import dataclasses

from hybrid.layout import BlockKind, parse_ratio
from hybrid.model_config import IntraWidths, ModelConfig, widths_of
from hybrid.spec import AttentionSpec, Mamba2Spec, Relu2Spec

_DEEPEST, _LARGEST = 10_000, 10_000_000


def size_problems(model: ModelConfig) -> list[str]:
    """Whole numbers out of any range, all of them at once."""
    a, m, i = model.attention, model.mamba, model.intra
    sizes: dict[str, int | None] = {
        "model.d_model": model.d_model,
        "model.reference_depth": model.reference_depth,
        "model.depth": model.depth,
        "model.attention.n_heads": a.n_heads,
        "model.attention.n_kv_heads": a.n_kv_heads,
        "model.attention.head_dim": a.head_dim,
        "model.attention.qkv_conv": a.qkv_conv,
        "model.window.size": model.window.size,
        "model.mamba.d_ssm": m.d_ssm,
        "model.mamba.head_dim": m.head_dim,
        "model.mamba.d_state": m.d_state,
        "model.mamba.n_groups": m.n_groups,
        "model.mamba.d_conv": m.d_conv,
        "model.intra.n_heads": i.n_heads,
        "model.intra.n_kv_heads": i.n_kv_heads,
        "model.intra.n_value_heads": i.n_value_heads,
        "model.intra.value_head_dim": i.value_head_dim,
        "model.intra.qk_head_dim": i.qk_head_dim,
        "model.intra.d_ssm": i.d_ssm,
        "model.intra.ssm_head_dim": i.ssm_head_dim,
        "model.intra.widths.joint.qk_head_dim": i.widths.joint.qk_head_dim,
        "model.intra.widths.joint.d_ssm": i.widths.joint.d_ssm,
        "model.intra.widths.joint.ssm_head_dim": i.widths.joint.ssm_head_dim,
        "model.intra.widths.separate.qk_head_dim": i.widths.separate.qk_head_dim,
        "model.intra.widths.separate.d_ssm": i.widths.separate.d_ssm,
        "model.intra.widths.separate.ssm_head_dim": i.widths.separate.ssm_head_dim,
        "model.short_conv.d_conv": model.short_conv.d_conv,
        "model.ffn.d_ffn": None if model.ffn is None else model.ffn.d_ffn,
        "model.moe.every": model.moe.every,
        "model.moe.d_ffn": model.moe.d_ffn,
        "model.moe.n_experts": model.moe.n_experts,
        "model.moe.top_k": model.moe.top_k,
        "model.kv_sharing": model.kv_sharing,
    }
    problems = [
        f"{where} = {size}: expected from 1 to {_LARGEST}"
        for where, size in sizes.items()
        if size is not None and not 1 <= size <= _LARGEST
    ]
    counts = {
        "model.window.sink": model.window.sink,
        "model.meta_tokens": model.meta_tokens,
        "model.moe.n_shared": model.moe.n_shared,
    }
    problems += [
        f"{where} = {count}: expected from 0 to {_LARGEST}"
        for where, count in counts.items()
        if not 0 <= count <= _LARGEST
    ]
    if (model.depth or model.reference_depth) > _DEEPEST:
        problems.append(f"model.depth = {model.depth or model.reference_depth}: expected at most {_DEEPEST} blocks")
    positive = {
        "model.norm_eps": model.norm_eps,
        "model.init_std": model.init_std,
        "model.window.theta": model.window.theta,
        "model.embedding_multiplier": model.embedding_multiplier,
        "model.residual_multiplier": model.residual_multiplier,
        "model.logit_multiplier": model.logit_multiplier,
        "model.intra.attention_multiplier": i.attention_multiplier,
        "model.intra.mamba_multiplier": i.mamba_multiplier,
    }
    if a.softmax_scale is not None:
        positive["model.attention.softmax_scale"] = a.softmax_scale
    if a.rope is not None:
        positive["model.attention.rope.theta"] = a.rope.theta
    if model.max_param_mismatch < 0:
        problems.append(f"model.max_param_mismatch = {model.max_param_mismatch}: expected a fraction of 0 or more")
    problems += [f"{where} = {number}: expected a number above 0" for where, number in positive.items() if number <= 0]
    if model.moe.bias_step < 0:
        problems.append(f"model.moe.bias_step = {model.moe.bias_step}: expected 0 or more")
    if model.moe.top_k > model.moe.n_experts:
        problems.append(
            f"model.moe.top_k = {model.moe.top_k}: expected at most n_experts = {model.moe.n_experts} "
            f"(nearest: {model.moe.n_experts})"
        )
    for where, value in (
        ("value_head_dim", a.value_head_dim),
        ("n_value_heads", a.n_value_heads),
        ("window", a.window),
    ):
        if value is not None:
            problems.append(f"model.attention.{where} = {value}: set in model.intra or model.window, not here")
    if a.borrows_kv:
        problems.append(
            "model.attention.borrows_kv = True: expected model.kv_sharing=2 or more, which says who borrows"
        )
    return problems


def attention_and_mamba_problems(model: ModelConfig) -> list[str]:
    """What every model must have right, whichever blocks it mixes."""
    problems = [*_heads("model.attention", model.attention.n_heads, model.attention.n_kv_heads)]
    problems += _ssm("model.mamba", model.mamba)
    a, m = model.attention, model.mamba
    if a.rope is not None and a.head_dim % 2:
        problems.append(f"model.attention.head_dim = {a.head_dim}: expected an even number, as RoPE turns pairs")
    scaling = None if a.rope is None else a.rope.scaling
    if scaling is not None and scaling.factor < 1:
        problems.append(f"model.attention.rope.scaling.factor = {scaling.factor}: expected at least 1")
    if scaling is not None and scaling.original_seq_len < 1:
        problems.append(
            f"model.attention.rope.scaling.original_seq_len = {scaling.original_seq_len}: expected at least 1"
        )
    if scaling is not None and not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
        problems.append(
            f"model.attention.rope.scaling: low_freq_factor, high_freq_factor = {scaling.low_freq_factor}, "
            f"{scaling.high_freq_factor}: expected 0 < low < high"
        )
    for name, low, high in (("a_init", m.a_init_min, m.a_init_max), ("dt_init", m.dt_init_min, m.dt_init_max)):
        if not 0 < low <= high:
            problems.append(f"model.mamba.{name}_min, {name}_max = {low}, {high}: expected 0 < min <= max")
    return problems


def kind_problems(model: ModelConfig, kinds: list[BlockKind]) -> list[str]:
    """What the kinds of block that this model has ask of their settings."""
    problems = _moe_problems(model)
    if "diff_attention" in kinds:
        problems += _diff_attention_problems(model.attention)
    if "diff_mamba" in kinds:
        half, head_dim = model.mamba.d_ssm // 2, model.mamba.head_dim
        if model.mamba.d_ssm % 2 or half % head_dim:
            problems.append(
                f"model.mamba.d_ssm = {model.mamba.d_ssm}: differential Mamba halves it; expected an even multiple of "
                f"head_dim = {head_dim} (nearest: {2 * head_dim * max(1, half // head_dim)})"
            )
        elif (half // model.mamba.head_dim) % model.mamba.n_groups:
            problems.append(
                f"model.mamba.n_groups = {model.mamba.n_groups}: expected a divisor of the "
                f"{half // model.mamba.head_dim} heads of each half"
            )
    if "intra" in kinds or "window_intra" in kinds:
        problems += _intra_problems(model)
    if "window_intra" in kinds and model.intra.dim_ratio is not None:
        ratio = parse_ratio(model.intra.dim_ratio, "model.intra.dim_ratio")
        if not (ratio.first and ratio.second):
            problems.append(f"model.intra.dim_ratio = {ratio}: a windowed intra-hybrid block has both modules")
    return problems


def _diff_attention_problems(a: AttentionSpec) -> list[str]:
    """Differential attention halves the scale's heads, and has neither convolution nor softmax scale of its own."""
    problems = []
    if a.n_heads % 2:
        problems.append(
            f"model.attention.n_heads = {a.n_heads}: differential attention pairs heads; expected an even number "
            f"(nearest: {a.n_heads + 1})"
        )
    elif a.n_kv_heads > 1 and (a.n_kv_heads % 2 or (a.n_heads // 2) % (a.n_kv_heads // 2)):
        problems.append(
            f"model.attention.n_kv_heads = {a.n_kv_heads}: differential attention pairs key heads; expected 1, or an "
            f"even number whose pairs divide the {a.n_heads // 2} pairs of heads"
        )
    for name, value in (("qkv_conv", a.qkv_conv), ("softmax_scale", a.softmax_scale)):
        if value is not None:
            problems.append(f"model.attention.{name} = {value}: differential attention has none; expected null")
    return problems


def _moe_problems(model: ModelConfig) -> list[str]:
    moe, dense = model.moe, model.ffn
    if moe.every is None:
        return []
    if dense is None:
        return [f"model.moe.every = {moe.every}: experts take the place of model.ffn, which is null; expected null"]
    if isinstance(dense, Relu2Spec):
        return [f"model.moe.every = {moe.every}: experts are SwiGLU; expected null, or model.ffn.kind: swiglu"]
    met = moe.n_shared + moe.top_k
    if moe.d_ffn is None and dense.d_ffn < met:
        return [f"model.moe.d_ffn = null: model.ffn.d_ffn = {dense.d_ffn} cannot be shared out among {met} experts"]
    return []


def _intra_problems(model: ModelConfig) -> list[str]:
    """Combinations of the intra-hybrid block's settings that mean nothing."""
    i = model.intra
    if i.dim_ratio is not None:
        set_too = [name for name in ("qk_head_dim", "d_ssm", "ssm_head_dim") if getattr(i, name) is not None]
        if set_too:
            return [f"model.intra.dim_ratio = {i.dim_ratio}: it sets the widths; expected {set_too[0]}: null beside it"]
        ratio = parse_ratio(i.dim_ratio, "model.intra.dim_ratio")
        if not (ratio.first and ratio.second):
            return []  # a block of one module: what joins two does not matter
    widths = widths_of(model)
    problems = _heads("model.intra", i.n_heads, i.n_kv_heads)
    if model.attention.rope is not None and widths.qk_head_dim % 2:
        problems.append(f"model.intra.qk_head_dim = {widths.qk_head_dim}: expected an even number, as RoPE turns pairs")
    mamba = dataclasses.replace(model.mamba, d_ssm=widths.d_ssm, head_dim=widths.ssm_head_dim)
    problems += _ssm("model.intra", mamba, head_dim_name="ssm_head_dim")
    d_v = i.n_heads * i.value_head_dim
    if i.output == "separate" and i.fusion == "concat":
        problems.append(
            "model.intra.fusion = concat with output = separate: concatenated modules have one projection; expected "
            "output: joint, or fusion: add, which with separate outputs is the same model"
        )
    own = i.dim_ratio is None
    if i.output == "joint" and i.fusion != "concat" and widths.d_ssm != d_v:
        ways = (f"d_ssm: {d_v}, or " if own else "dim_ratio: null, or ") + "output: separate, or fusion: concat"
        problems.append(
            f"model.intra.d_ssm = {widths.d_ssm}: {i.fusion} of two modules of unequal width ({widths.d_ssm} and "
            f"n_heads * value_head_dim = {d_v}); expected {ways}"
        )
    elif i.value == "shared" and widths.d_ssm != d_v:
        problems.append(
            f"model.intra.d_ssm = {widths.d_ssm}: a shared value needs n_heads * value_head_dim = {d_v} in both "
            f"modules; expected output: joint with the scale's widths, or value: separate"
        )
    if not own:
        problems += _ratio_problems(model, widths)
    if i.value == "shared" and model.kv_sharing > 1:
        problems.append("model.kv_sharing: a block with a shared value makes its own; expected kv_sharing: 1")
    if i.n_value_heads is not None and (i.n_value_heads % i.n_kv_heads or i.n_heads % i.n_value_heads):
        problems.append(
            f"model.intra.n_value_heads = {i.n_value_heads}: expected a multiple of n_kv_heads = {i.n_kv_heads} that "
            f"divides n_heads = {i.n_heads}"
        )
    return problems


def _ratio_problems(model: ModelConfig, widths: IntraWidths) -> list[str]:
    """A dimension ratio that whole heads cannot have at the block's parameters."""
    ratio = parse_ratio(model.intra.dim_ratio, "model.intra.dim_ratio")
    had = 2 * model.intra.n_heads * widths.qk_head_dim / widths.d_ssm
    if 0.75 < had * ratio.second / ratio.first < 1.34:
        return []
    return [
        f"model.intra.dim_ratio = {ratio}: the nearest at equal parameters is {had:.3g}:1, with {model.intra.n_heads} "
        "heads; expected a ratio nearer to 1:1, or qk_head_dim and d_ssm of your own"
    ]


def _heads(where: str, n_heads: int, n_kv_heads: int) -> list[str]:
    if n_heads % n_kv_heads == 0:
        return []
    nearest = _nearest_divisor(n_heads, n_kv_heads)
    return [f"{where}.n_kv_heads = {n_kv_heads}: expected a divisor of n_heads = {n_heads} (nearest: {nearest})"]


def _ssm(where: str, mamba: Mamba2Spec, *, head_dim_name: str = "head_dim") -> list[str]:
    if mamba.d_ssm % mamba.head_dim:
        nearest = _nearest_divisor(mamba.d_ssm, mamba.head_dim)
        return [
            f"{where}.{head_dim_name} = {mamba.head_dim}: expected a divisor of d_ssm = {mamba.d_ssm} "
            f"(nearest: {nearest})"
        ]
    if mamba.n_heads % mamba.n_groups:
        nearest = _nearest_divisor(mamba.n_heads, mamba.n_groups)
        return [
            f"model.mamba.n_groups = {mamba.n_groups}: expected a divisor of the {mamba.n_heads} heads "
            f"(nearest: {nearest})"
        ]
    return []


def _nearest_divisor(whole: int, near: int) -> int:
    return min((d for d in range(1, whole + 1) if whole % d == 0), key=lambda d: abs(d - near))
