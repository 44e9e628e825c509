"""The `model` settings of a configuration, and the mixer of each kind of block that they describe.

A scale gives the dimensions of attention, Mamba-2 and the intra-hybrid block; every other kind of block is made from
those. Which kinds a model mixes, in what ratio and where, is `mixers`, `ratio` and `placement`, or one `pattern`:
`hybrid.model_resolve` makes blocks of them. What cannot be is in `hybrid.model_checks`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, assert_never

from hybrid import outside
from hybrid.cost import mixer_params
from hybrid.layout import BlockKind, Ratio, parse_ratio
from hybrid.spec import (
    AttentionSpec,
    ConfigError,
    DiffAttentionSpec,
    DiffMambaSpec,
    IntraSpec,
    Mamba2Spec,
    MixerSpec,
    OutsideSetting,
    OutsideSpec,
    Relu2Spec,
    RopeSpec,
    ShortConvSpec,
    SwigluSpec,
    WindowSpec,
)

DenseFfnSpec = SwigluSpec | Relu2Spec


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Sliding-window attention: the scale's attention with a window, a sink, and its own unscaled RoPE."""

    size: int
    sink: int
    theta: float


@dataclass(frozen=True, kw_only=True)
class IntraWidths:
    """Dimensions of an intra-hybrid block that depend on how its modules are joined."""

    qk_head_dim: int
    d_ssm: int
    ssm_head_dim: int


@dataclass(frozen=True, kw_only=True)
class IntraWidthsByOutput:
    """The widths for a joint output of equal widths (add, diff), and for separate outputs or concatenation."""

    joint: IntraWidths
    separate: IntraWidths


@dataclass(frozen=True, kw_only=True)
class IntraConfig:
    """The intra-hybrid block. Widths that are null come from `widths`, or from `dim_ratio` at equal parameters."""

    n_heads: int
    n_kv_heads: int
    n_value_heads: int | None
    value_head_dim: int
    widths: IntraWidthsByOutput
    qk_head_dim: int | None
    d_ssm: int | None
    ssm_head_dim: int | None
    dim_ratio: Any
    norm: Literal["group", "none"]
    scalar: Literal["none", "scale", "diff_t", "gate"]
    fusion: Literal["add", "diff", "concat"]
    value: Literal["separate", "shared"]
    output: Literal["joint", "separate"]
    gate_norm: Literal["rms", "grouped", "none"]
    attention_multiplier: float
    mamba_multiplier: float


@dataclass(frozen=True, kw_only=True)
class DiffAttentionConfig:
    """Differential attention with half as many, paired heads as the scale's attention, at least one pair of keys."""

    norm: Literal["head", "none"]
    fusion: Literal["diff", "add"]


@dataclass(frozen=True, kw_only=True)
class DiffMambaConfig:
    """Differential Mamba of two Mamba-2 mixers of half the scale's d_ssm."""

    norm: Literal["output", "none"]


@dataclass(frozen=True, kw_only=True)
class ShortConvConfig:
    """A bare short convolution."""

    d_conv: int


@dataclass(frozen=True, kw_only=True)
class OutsideConfig:
    """A mixer from a file of the user's own, by its name and version there."""

    name: str
    version: int
    settings: Any


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """Experts for the ffn of every `every`-th block (null: nowhere); `d_ffn: null` shares the dense one's out
    among the experts that a token meets, so that active parameters stay."""

    every: int | None
    d_ffn: int | None
    n_experts: int
    top_k: int
    n_shared: int
    bias_step: float


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `model` settings. `depth: null` takes the depth that matches `reference_depth` attention blocks in
    parameters, or, where they `match` in width, has to be given; a `pattern` replaces `mixers`, `ratio` and
    `placement`. `max_param_mismatch` is the largest relative difference that is not refused."""

    mixers: tuple[BlockKind, ...]
    ratio: Any
    placement: Any
    pattern: Any
    depth: int | None
    match: Literal["depth", "width"]
    trim_ffn: bool
    max_param_mismatch: float
    reference_depth: int
    d_model: int
    vocab_size: int | None
    tie_embeddings: bool
    norm_eps: float
    init_std: float
    meta_tokens: int
    embedding_multiplier: float
    residual_multiplier: float
    logit_multiplier: float
    lambda_depth: Literal["blocks", "mixers"]
    tied: tuple[BlockKind, ...]
    kv_sharing: int
    attention: AttentionSpec
    window: WindowConfig
    mamba: Mamba2Spec
    intra: IntraConfig
    diff_attention: DiffAttentionConfig
    diff_mamba: DiffMambaConfig
    short_conv: ShortConvConfig
    outside: OutsideConfig | None
    ffn: DenseFfnSpec | None
    moe: MoeConfig


# --- one kind of block --------------------------------------------------------------------------


def mixer_of(config: ModelConfig, kind: BlockKind) -> MixerSpec:
    """The mixer of a kind, at depth 1 where that matters."""
    match kind:
        case "attention":
            return _attention(config)
        case "window":
            return _windowed(_attention(config), config.window)
        case "mamba":
            return _one_spelling(config.mamba)
        case "intra":
            return _intra(config)
        case "window_intra":
            mixer = _intra(config)
            if not isinstance(mixer, IntraSpec):
                raise ConfigError("model.intra.dim_ratio: a windowed intra-hybrid block has both modules")
            return dataclasses.replace(mixer, attention=_windowed(mixer.attention, config.window))
        case "diff_attention":
            a = _attention(config)
            return DiffAttentionSpec(
                n_heads=a.n_heads // 2,
                n_kv_heads=max(1, a.n_kv_heads // 2),
                head_dim=a.head_dim,
                rope=a.rope,
                depth=1,
                norm=config.diff_attention.norm,
                fusion=config.diff_attention.fusion,
            )
        case "diff_mamba":
            half = _one_spelling(dataclasses.replace(config.mamba, d_ssm=config.mamba.d_ssm // 2))
            return DiffMambaSpec(mamba=half, depth=1, norm=config.diff_mamba.norm)
        case "short_conv":
            return ShortConvSpec(d_conv=config.short_conv.d_conv)
        case "outside":
            return _outside(config.outside, config.d_model)
        case _ as never:
            assert_never(never)


def _attention(config: ModelConfig) -> AttentionSpec:
    """The scale's attention, with what says the default in other words left out: one model has one id."""
    a = config.attention
    return dataclasses.replace(
        a,
        rope=_one_rope(a.rope),
        softmax_scale=None if a.softmax_scale == 1.0 / math.sqrt(a.head_dim) else a.softmax_scale,
    )


def _one_rope(rope: RopeSpec | None) -> RopeSpec | None:
    """Scaling by 1 is none."""
    if rope is None or rope.scaling is None or rope.scaling.factor != 1.0:
        return rope
    return RopeSpec(theta=rope.theta, scaling=None)


def _one_spelling(mamba: Mamba2Spec) -> Mamba2Spec:
    """A norm over one group is the norm over the whole width: one model has one id."""
    if mamba.gate_norm == "grouped" and mamba.n_groups == 1:
        return dataclasses.replace(mamba, gate_norm="rms")
    return mamba


def _windowed(attention: AttentionSpec, window: WindowConfig) -> AttentionSpec:
    rope = None if attention.rope is None else RopeSpec(theta=window.theta, scaling=None)
    return dataclasses.replace(attention, window=WindowSpec(size=window.size, sink=window.sink), rope=rope)


def _outside(config: OutsideConfig | None, d_model: int) -> OutsideSpec:
    if config is None:
        raise ConfigError("model.outside = None: expected {name, version, settings} of the mixer in your file")
    if not isinstance(config.settings, Mapping):
        raise ConfigError(f"model.outside.settings = {config.settings!r}: expected settings, or {{}} for none")
    settings = outside.with_defaults(config.name, config.version, config.settings, d_model)
    return OutsideSpec(
        name=config.name,
        version=config.version,
        settings=tuple(OutsideSetting(name=name, value=json.dumps(settings[name])) for name in sorted(settings)),
    )


def intra_widths(config: IntraConfig) -> IntraWidths:
    """The widths as set, and where they are not, those that go with the block's output and fusion."""
    equal = config.output == "joint" and config.fusion != "concat"
    own = config.widths.joint if equal else config.widths.separate
    return IntraWidths(
        qk_head_dim=own.qk_head_dim if config.qk_head_dim is None else config.qk_head_dim,
        d_ssm=own.d_ssm if config.d_ssm is None else config.d_ssm,
        ssm_head_dim=own.ssm_head_dim if config.ssm_head_dim is None else config.ssm_head_dim,
    )


def _intra(config: ModelConfig) -> MixerSpec:
    """The intra-hybrid block; by a dimension ratio of 1:0 or 0:1, the scale's attention or Mamba block."""
    intra = config.intra
    ratio = None if intra.dim_ratio is None else parse_ratio(intra.dim_ratio, "model.intra.dim_ratio")
    if ratio is not None and ratio.second == 0:
        return _attention(config)
    if ratio is not None and ratio.first == 0:
        return _one_spelling(config.mamba)
    return _intra_of(intra, widths_of(config), config.attention, config.mamba)


def widths_of(config: ModelConfig) -> IntraWidths:
    if config.intra.dim_ratio is None:
        return intra_widths(config.intra)
    ratio = parse_ratio(config.intra.dim_ratio, "model.intra.dim_ratio")
    if not (ratio.first and ratio.second):
        return intra_widths(config.intra)
    return _widths_by_ratio(config.intra, ratio, config.attention, config.mamba, config.d_model)


def _intra_of(intra: IntraConfig, widths: IntraWidths, attention: AttentionSpec, mamba: Mamba2Spec) -> IntraSpec:
    value_heads = intra.n_value_heads
    if value_heads is None and intra.value == "shared":
        value_heads = max(intra.n_kv_heads, intra.n_heads // 2)
    return IntraSpec(
        # Where a width is another's default it is left out, so that one block has one spelling.
        attention=AttentionSpec(
            n_heads=intra.n_heads,
            n_kv_heads=intra.n_kv_heads,
            head_dim=widths.qk_head_dim,
            rope=_one_rope(attention.rope),
            value_head_dim=None if intra.value_head_dim == widths.qk_head_dim else intra.value_head_dim,
            n_value_heads=None if value_heads == intra.n_kv_heads else value_heads,
            qkv_conv=attention.qkv_conv,
            softmax_scale=(
                None if attention.softmax_scale == 1.0 / math.sqrt(widths.qk_head_dim) else attention.softmax_scale
            ),
        ),
        mamba=_one_spelling(
            dataclasses.replace(mamba, d_ssm=widths.d_ssm, head_dim=widths.ssm_head_dim, gate_norm=intra.gate_norm)
        ),
        norm=intra.norm,
        scalar=intra.scalar,
        fusion=intra.fusion,
        value=intra.value,
        output=intra.output,
        lambda_depth=1 if intra.scalar == "diff_t" else None,
        attention_multiplier=intra.attention_multiplier,
        mamba_multiplier=intra.mamba_multiplier,
    )


@lru_cache(maxsize=1024)
def _widths_by_ratio(
    intra: IntraConfig, ratio: Ratio, attention: AttentionSpec, mamba: Mamba2Spec, d_model: int
) -> IntraWidths:
    """The widths at which d_qk : d_ssm / 2 is nearest to the ratio at the parameters of the block's usual widths.

    The ratio is the paper's, of query-key width to Mamba's width before expansion. Query heads stay even for RoPE.
    """
    usual = intra_widths(intra)
    n_ssm_heads = max(1, usual.d_ssm // usual.ssm_head_dim)

    def params(widths: IntraWidths) -> int:
        return mixer_params(_intra_of(intra, widths, attention, mamba), d_model)

    target = params(usual)
    best, best_mismatch = usual, -1
    for qk_head_dim in range(2, 64 * usual.qk_head_dim, 2):
        d_mamba = intra.n_heads * qk_head_dim * ratio.second / ratio.first
        ssm_head_dim = max(1, round(2 * d_mamba / n_ssm_heads))
        widths = IntraWidths(qk_head_dim=qk_head_dim, d_ssm=n_ssm_heads * ssm_head_dim, ssm_head_dim=ssm_head_dim)
        found = params(widths)
        if best_mismatch < 0 or abs(found - target) < best_mismatch:
            best, best_mismatch = widths, abs(found - target)
        if found > 2 * target:
            break
    return best
