"""The `model` settings of a configuration, and how they become a `ModelSpec`.

A scale gives the dimensions of attention, Mamba-2 and the intra-hybrid block; every other kind of block is made from
those. Which kinds a model mixes, in what ratio and where, is `mixers`, `ratio` and `placement`, or one `pattern`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, assert_never, cast

from hybrid import outside
from hybrid.budget import matched_depth, matched_repeats
from hybrid.cost import block_params, distinct_blocks
from hybrid.decode import did_you_mean
from hybrid.layout import (
    KINDS,
    LETTERS,
    PLACEMENT_NAMES,
    BlockKind,
    Placement,
    Ratio,
    Slot,
    layout,
    parse_pattern,
    parse_ratio,
    repeated,
)
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    ConfigError,
    DiffAttentionSpec,
    DiffMambaSpec,
    FfnSpec,
    IntraSpec,
    Mamba2Spec,
    MixerSpec,
    ModelSpec,
    MoeSpec,
    OutsideSetting,
    OutsideSpec,
    Relu2Spec,
    RopeSpec,
    ShortConvSpec,
    SwigluSpec,
    WindowSpec,
)

_DEEPEST, _LARGEST = 10_000, 10_000_000
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
    """Differential attention with half as many, paired heads as the scale's attention."""

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
    """Experts for the ffn of every `every`-th block (null: nowhere); `d_ffn: null` is half of the dense one's."""

    every: int | None
    d_ffn: int | None
    n_experts: int
    top_k: int
    n_shared: int
    bias_step: float


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The `model` settings. `depth: null` takes the depth that matches `reference_depth` attention blocks in
    parameters; a `pattern` replaces `mixers`, `ratio` and `placement`."""

    mixers: tuple[BlockKind, ...]
    ratio: Any
    placement: Any
    pattern: Any
    depth: int | None
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


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model, and the relative difference of its blocks' parameters from the reference's: None for a given depth.

    Parameters are matched with dense feed-forward networks, as experts leave the active ones as they are.
    """

    spec: ModelSpec
    param_mismatch: float | None


def resolve_model(config: ModelConfig, data_vocab_size: int) -> ResolvedModel:
    """The model that the settings describe. Raises ConfigError with every problem of the first stage that has any."""
    _stop_if_any(_size_problems(config))
    problems = _attention_and_mamba_problems(config)
    vocab_size = data_vocab_size if config.vocab_size is None else config.vocab_size
    if vocab_size < data_vocab_size:
        problems.append(
            f"model.vocab_size = {vocab_size}: expected at least the data's {data_vocab_size} "
            "(null takes the data's own)"
        )
    try:
        period = _period(config)
    except ConfigError as error:
        period = ()
        problems += error.problems
    _stop_if_any(problems)
    letters = {slot.letter for slot in period}
    kinds = [kind for kind, letter in LETTERS.items() if letter in letters]
    _stop_if_any(_kind_problems(config, kinds))
    mixers = {kind: _mixer(config, kind) for kind in kinds}
    slots, mismatch = _slots(config, period, mixers)
    blocks = _shared_keys_and_values(tuple(_blocks(config, slots, mixers)), config.kv_sharing)
    _stop_if_any(_tie_problems(config, blocks))
    spec = ModelSpec(
        d_model=config.d_model,
        vocab_size=vocab_size,
        tie_embeddings=config.tie_embeddings,
        norm_eps=config.norm_eps,
        init_std=config.init_std,
        blocks=blocks,
        meta_tokens=config.meta_tokens,
        embedding_multiplier=config.embedding_multiplier,
        residual_multiplier=config.residual_multiplier,
        logit_multiplier=config.logit_multiplier,
    )
    return ResolvedModel(spec=spec, param_mismatch=mismatch)


def _stop_if_any(problems: list[str]) -> None:
    if problems:
        raise ConfigError(problems)


# --- which blocks, and how many -----------------------------------------------------------------


def _period(config: ModelConfig) -> tuple[Slot, ...]:
    """One period of the blocks; of a ratio, one block of each kind that it has."""
    if config.pattern is not None:
        set_too = [f"model.{name}" for name in ("ratio", "placement") if getattr(config, name) is not None]
        if set_too:
            raise ConfigError(
                f"model.pattern = {config.pattern!r}: it says which blocks there are and where; expected "
                f"{' and '.join(set_too)}: null beside it"
            )
        return parse_pattern(config.pattern)
    if config.ratio is None:
        raise ConfigError("model.ratio = None: expected a ratio of model.mixers such as 1:5, or a model.pattern")
    if len(config.mixers) != 2 or config.mixers[0] == config.mixers[1]:
        raise ConfigError(
            f"model.mixers = {list(config.mixers)}: expected two different kinds of block, which the ratio counts "
            f"(of {', '.join(LETTERS)})"
        )
    ratio = parse_ratio(config.ratio, "model.ratio")
    counts = zip(config.mixers, (ratio.first, ratio.second), strict=True)
    return tuple(Slot(letter=LETTERS[kind], bare=False) for kind, count in counts if count)


def _slots(
    config: ModelConfig, period: tuple[Slot, ...], mixers: Mapping[BlockKind, MixerSpec]
) -> tuple[tuple[Slot, ...], float | None]:
    """The blocks in order, and how well their parameters match where the depth was not given."""
    reference = config.reference_depth * block_params(_block(config.attention, config.ffn), config.d_model)

    def dense(slot: Slot) -> BlockSpec:
        kind = KINDS[slot.letter]
        return _block(mixers[kind], None if slot.bare else config.ffn, kind if kind in config.tied else None)

    depth = config.depth
    if config.pattern is not None:
        if depth is None:
            depth = matched_repeats([dense(slot) for slot in period], config.d_model, reference)
        slots = repeated(period, depth)
        missing = {slot.letter for slot in period} - {slot.letter for slot in slots}
        if missing:
            needed = next(
                n for n in range(1, len(period) + 1) if {s.letter for s in period[:n]} == {s.letter for s in period}
            )
            raise ConfigError(
                f"model.pattern = {config.pattern!r}: {depth} blocks hold no {', '.join(sorted(missing))} block; "
                f"expected a larger scale, or model.depth of at least {needed}"
            )
    else:
        ratio, placement = parse_ratio(config.ratio, "model.ratio"), _placement(config.placement)
        first, second = (LETTERS[kind] for kind in config.mixers)
        if depth is None:
            blocks = {slot.letter: dense(slot) for slot in period}
            of_first, of_second = blocks.get(first), blocks.get(second)
            given = cast(BlockSpec, of_first or of_second)
            depth = _matched_depth(ratio, of_first or given, of_second or given, config.d_model, reference)
        slots = tuple(
            Slot(letter=letter, bare=False) for letter in layout(ratio, depth, placement, letters=first + second)
        )
    if config.depth is not None:
        return slots, None
    own = distinct_blocks(tuple(dense(slot) for slot in slots))
    return slots, sum(block_params(block, config.d_model) for block in own) / reference - 1


_matched_depth = lru_cache(maxsize=4096)(matched_depth)


def _placement(value: object) -> Placement:
    if value is None:
        return "middle"
    if isinstance(value, str) and value in PLACEMENT_NAMES:
        return cast(Placement, value)
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, list | tuple) and all(isinstance(p, int) and not isinstance(p, bool) for p in value):
        return tuple(value)
    raise ConfigError(
        f"model.placement = {value!r}: expected {', '.join(PLACEMENT_NAMES)}, or the positions of the first kind's "
        "blocks counted from 1, such as [4, 8]"
        + (did_you_mean(value, PLACEMENT_NAMES) if isinstance(value, str) else "")
    )


@lru_cache(maxsize=4096)
def _block(mixer: MixerSpec, ffn: FfnSpec | None, tie: str | None = None) -> BlockSpec:
    return BlockSpec(mixer=mixer, ffn=ffn, tie=tie)


def _blocks(config: ModelConfig, slots: tuple[Slot, ...], mixers: Mapping[BlockKind, MixerSpec]) -> Iterator[BlockSpec]:
    """The blocks, with experts, ties, and the depths that differential mixers start from: of tied ones, the first's."""
    seen: dict[BlockKind, int] = {}
    first_at: dict[BlockKind, int] = {}
    for i, slot in enumerate(slots, 1):
        kind = KINDS[slot.letter]
        seen[kind] = seen.get(kind, 0) + 1
        first_at.setdefault(kind, i)
        tied = kind in config.tied
        depth = (first_at[kind] if tied else i) if config.lambda_depth == "blocks" else (1 if tied else seen[kind])
        yield _block(_at_depth(mixers[kind], depth), None if slot.bare else _ffn(config, i), kind if tied else None)


def _tie_problems(config: ModelConfig, blocks: tuple[BlockSpec, ...]) -> list[str]:
    problems = []
    for kind in config.tied:
        alike = {block for block in blocks if block.tie == kind}
        if not alike:
            problems.append(f"model.tied = {list(config.tied)}: the model has no {kind} block")
        elif len(alike) > 1:
            problems.append(
                f"model.tied = {list(config.tied)}: the {kind} blocks differ, in their ffn or in whose keys and values "
                "they use; expected equal blocks, such as with model.moe.every: null and model.kv_sharing: 1"
            )
    return problems


def _ffn(config: ModelConfig, block: int) -> FfnSpec | None:
    moe, dense = config.moe, config.ffn
    if moe.every is None or dense is None or block % moe.every:
        return dense
    return MoeSpec(
        d_ffn=dense.d_ffn // 2 if moe.d_ffn is None else moe.d_ffn,
        n_experts=moe.n_experts,
        top_k=moe.top_k,
        n_shared=moe.n_shared,
        bias_step=moe.bias_step,
    )


def _at_depth(mixer: MixerSpec, depth: int) -> MixerSpec:
    """Of a mixer whose lambda starts from its depth, the one at this depth."""
    match mixer:
        case DiffAttentionSpec() | DiffMambaSpec():
            return dataclasses.replace(mixer, depth=depth)
        case IntraSpec(scalar="diff_t"):
            return dataclasses.replace(mixer, lambda_depth=depth)
        case _:
            return mixer


def _shared_keys_and_values(blocks: tuple[BlockSpec, ...], group: int) -> tuple[BlockSpec, ...]:
    """Of every `group` successive blocks with equal attention, all but the first borrow the first one's keys and
    values (Dong et al. 2024, section 2.3)."""
    if group == 1:
        return blocks
    shared: list[BlockSpec] = []
    lender: AttentionSpec | None = None
    borrowed = 0
    for block in blocks:
        attention = attention_in(block.mixer)
        if attention is not None:
            if attention == lender and borrowed < group - 1:
                borrowed += 1
                block = dataclasses.replace(block, mixer=_borrowing(block.mixer))
            else:
                lender, borrowed = attention, 0
        shared.append(block)
    return tuple(shared)


def attention_in(mixer: MixerSpec) -> AttentionSpec | None:
    """The attention that a block has, alone or beside Mamba."""
    match mixer:
        case AttentionSpec():
            return mixer
        case IntraSpec():
            return mixer.attention
        case _:
            return None


def _borrowing(mixer: MixerSpec) -> MixerSpec:
    match mixer:
        case AttentionSpec():
            return dataclasses.replace(mixer, borrows_kv=True)
        case IntraSpec():
            return dataclasses.replace(mixer, attention=dataclasses.replace(mixer.attention, borrows_kv=True))
        case _:
            raise AssertionError(f"{mixer} has no keys and values")


# --- one kind of block --------------------------------------------------------------------------


def _mixer(config: ModelConfig, kind: BlockKind) -> MixerSpec:
    """The mixer of a kind, at depth 1 where that matters."""
    match kind:
        case "attention":
            return config.attention
        case "window":
            return _windowed(config.attention, config.window)
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
            a = config.attention
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
        settings=tuple(OutsideSetting(name=name, value=settings[name]) for name in sorted(settings)),
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
        return config.attention
    if ratio is not None and ratio.first == 0:
        return _one_spelling(config.mamba)
    return _intra_of(intra, _widths(config), config.attention, config.mamba)


def _widths(config: ModelConfig) -> IntraWidths:
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
            rope=attention.rope,
            value_head_dim=None if intra.value_head_dim == widths.qk_head_dim else intra.value_head_dim,
            n_value_heads=None if value_heads == intra.n_kv_heads else value_heads,
            qkv_conv=attention.qkv_conv,
            softmax_scale=attention.softmax_scale,
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
        return block_params(_block(_intra_of(intra, widths, attention, mamba), None), d_model)

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


# --- what cannot be ----------------------------------------------------------------------------


def _size_problems(model: ModelConfig) -> list[str]:
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


def _attention_and_mamba_problems(model: ModelConfig) -> list[str]:
    """What every model must have right, whichever blocks it mixes."""
    problems = [*_heads("model.attention", model.attention.n_heads, model.attention.n_kv_heads)]
    problems += _ssm("model.mamba", model.mamba)
    a, m = model.attention, model.mamba
    if a.rope is not None and a.head_dim % 2:
        problems.append(f"model.attention.head_dim = {a.head_dim}: expected an even number, as RoPE turns pairs")
    scaling = None if a.rope is None else a.rope.scaling
    if scaling is not None and not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
        problems.append(
            f"model.attention.rope.scaling: low_freq_factor, high_freq_factor = {scaling.low_freq_factor}, "
            f"{scaling.high_freq_factor}: expected 0 < low < high"
        )
    for name, low, high in (("a_init", m.a_init_min, m.a_init_max), ("dt_init", m.dt_init_min, m.dt_init_max)):
        if not 0 < low <= high:
            problems.append(f"model.mamba.{name}_min, {name}_max = {low}, {high}: expected 0 < min <= max")
    return problems


def _kind_problems(model: ModelConfig, kinds: list[BlockKind]) -> list[str]:
    """What the kinds of block that this model has ask of their settings."""
    problems: list[str] = []
    if "diff_attention" in kinds and model.attention.n_heads % 2:
        problems.append(
            f"model.attention.n_heads = {model.attention.n_heads}: differential attention pairs heads; expected an "
            f"even number (nearest: {model.attention.n_heads + 1})"
        )
    if "diff_attention" in kinds and (model.attention.n_heads // 2) % max(1, model.attention.n_kv_heads // 2):
        problems.append(
            f"model.attention.n_kv_heads = {model.attention.n_kv_heads}: expected pairs that divide the "
            f"{model.attention.n_heads // 2} pairs of heads"
        )
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


def _intra_problems(model: ModelConfig) -> list[str]:
    """Combinations of the intra-hybrid block's settings that mean nothing."""
    i = model.intra
    if i.dim_ratio is not None:
        set_too = [name for name in ("qk_head_dim", "d_ssm", "ssm_head_dim") if getattr(i, name) is not None]
        if set_too:
            return [f"model.intra.dim_ratio = {i.dim_ratio}: it sets the widths; expected {set_too[0]}: null beside it"]
    widths = _widths(model)
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
    if i.output == "joint" and i.fusion != "concat" and widths.d_ssm != d_v:
        problems.append(
            f"model.intra.d_ssm = {widths.d_ssm}: {i.fusion} of two modules of unequal width ({widths.d_ssm} and "
            f"n_heads * value_head_dim = {d_v}); expected d_ssm: {d_v}, or output: separate, or fusion: concat"
        )
    if i.value == "shared" and widths.d_ssm != d_v:
        problems.append(
            f"model.intra.d_ssm = {widths.d_ssm}: a shared value needs n_heads * value_head_dim = {d_v} in both "
            f"modules; expected d_ssm: {d_v}, or value: separate"
        )
    if i.value == "shared" and model.kv_sharing > 1:
        problems.append("model.kv_sharing: a block with a shared value makes its own; expected kv_sharing: 1")
    if i.n_value_heads is not None and (i.n_value_heads % i.n_kv_heads or i.n_heads % i.n_value_heads):
        problems.append(
            f"model.intra.n_value_heads = {i.n_value_heads}: expected a multiple of n_kv_heads = {i.n_kv_heads} that "
            f"divides n_heads = {i.n_heads}"
        )
    return problems


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
