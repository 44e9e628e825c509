"""From `model` settings to a `ModelSpec`: which blocks, how many, in what order, and what they share."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from hybrid.budget import matched_depth, matched_repeats, nearest_size
from hybrid.cost import block_params, distinct_blocks
from hybrid.decode import did_you_mean
from hybrid.layout import (
    KINDS,
    LETTERS,
    PLACEMENT_NAMES,
    BlockKind,
    Placement,
    Slot,
    layout,
    parse_pattern,
    parse_ratio,
    repeated,
)
from hybrid.model_checks import attention_and_mamba_problems, kind_problems, size_problems
from hybrid.model_config import DenseFfnSpec, ModelConfig, mixer_of
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    ConfigError,
    DiffAttentionSpec,
    DiffMambaSpec,
    FfnSpec,
    IntraSpec,
    MixerSpec,
    ModelSpec,
    MoeSpec,
    SwigluSpec,
)


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model, and the relative difference of its blocks' parameters from the reference's: None where nothing was
    matched, as depth, width and d_ffn were given. `matched_sizes` are the widths that were worked out for it, by name.

    Parameters are matched with dense feed-forward networks, as experts leave the active ones as they are.
    """

    spec: ModelSpec
    param_mismatch: float | None
    matched_sizes: tuple[tuple[str, int], ...]


def resolve_model(config: ModelConfig, data_vocab_size: int) -> ResolvedModel:
    """The model that the settings describe. Raises ConfigError with every problem of the first stage that has any."""
    _stop_if_any(size_problems(config))
    problems = attention_and_mamba_problems(config)
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
    _stop_if_any(kind_problems(config, kinds))
    mixers = {kind: mixer_of(config, kind) for kind in kinds}
    _stop_if_any(_matching_problems(config))
    slots = _slots(config, period, mixers)
    blocks = _blocks_of(config, slots, mixers)
    reference = _reference_params(config)
    matched_sizes: list[tuple[str, int]] = []
    if config.match == "width":
        config = dataclasses.replace(config, d_model=_matched_width(config, blocks, reference))
        matched_sizes.append(("d_model", config.d_model))
    if config.trim_ffn:
        ffn = _trimmed_ffn(config, blocks, reference)
        config = dataclasses.replace(config, ffn=ffn)
        matched_sizes.append(("d_ffn", ffn.d_ffn))
        blocks = _blocks_of(config, slots, mixers)
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
    matched = config.depth is None or config.match == "width" or config.trim_ffn
    mismatch = _matched_params(config, blocks) / reference - 1 if matched else None
    if mismatch is not None and abs(mismatch) > config.max_param_mismatch:
        raise ConfigError(_mismatch_problem(config, len(blocks), mismatch))
    return ResolvedModel(spec=spec, param_mismatch=mismatch, matched_sizes=tuple(matched_sizes))


def _mismatch_problem(config: ModelConfig, depth: int, mismatch: float) -> str:
    nearest = {"depth": f"depth, {depth},", "width": f"d_model, {config.d_model},"}[config.match]
    if config.trim_ffn:
        nearest = f"d_ffn, {0 if config.ffn is None else config.ffn.d_ffn}, at {depth} blocks"
    remedies = [] if config.trim_ffn or config.ffn is None else ["model.trim_ffn=true"]
    remedies += ["a model.depth of your own", f"model.max_param_mismatch={math.ceil(1000 * abs(mismatch)) / 1000:g}"]
    return (
        f"model.max_param_mismatch = {config.max_param_mismatch:g}: the nearest {nearest} is {mismatch:+.1%} off the "
        f"parameters of {config.reference_depth} attention blocks; expected {' or '.join(remedies)}"
    )


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


def _slots(config: ModelConfig, period: tuple[Slot, ...], mixers: Mapping[BlockKind, MixerSpec]) -> tuple[Slot, ...]:
    """The blocks in order: as many as given, or as many as match the reference's parameters.

    What blocks borrow of each other is not known yet: keys and values count as every block's own.
    """
    reference = _reference_params(config)

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
    return slots


def _matching_problems(config: ModelConfig) -> list[str]:
    problems = []
    if config.match == "width" and config.depth is None:
        problems.append("model.match = width: expected a model.depth, at which d_model is worked out")
    if config.trim_ffn and config.ffn is None:
        problems.append("model.trim_ffn = True: the model has no ffn to trim; expected false")
    return problems


def _matched_params(config: ModelConfig, blocks: tuple[BlockSpec, ...], *, d_ffn: int | None = None) -> int:
    """The blocks' parameters with dense feed-forward networks, of width `d_ffn` if given."""
    dense = config.ffn
    if dense is not None and d_ffn is not None:
        dense = dataclasses.replace(dense, d_ffn=d_ffn)
    counted = Counter(
        block if block.ffn is None else _block(block.mixer, dense, block.tie) for block in distinct_blocks(blocks)
    )
    return sum(count * block_params(block, config.d_model) for block, count in counted.items())


def _matched_width(config: ModelConfig, blocks: tuple[BlockSpec, ...], reference: int) -> int:
    """The d_model at which the blocks match the reference's parameters; mixers and ffn stay as wide as they are."""

    def params_at(d_model: int) -> int:
        return _matched_params(dataclasses.replace(config, d_model=d_model), blocks)

    return nearest_size(config.d_model, params_at, reference)


def _trimmed_ffn(config: ModelConfig, blocks: tuple[BlockSpec, ...], reference: int) -> DenseFfnSpec:
    """The dense feed-forward network whose width makes the blocks match the reference's parameters."""
    assert config.ffn is not None
    d_ffn = nearest_size(config.ffn.d_ffn, lambda width: _matched_params(config, blocks, d_ffn=width), reference)
    return dataclasses.replace(config.ffn, d_ffn=d_ffn)


def _reference_params(config: ModelConfig) -> int:
    return config.reference_depth * block_params(_reference_block(config), config.d_model)


def _reference_block(config: ModelConfig) -> BlockSpec:
    """A Llama block of the scale's dimensions, whatever a model makes of its attention and ffn."""
    attention = dataclasses.replace(config.attention, qkv_conv=None)
    return _block(attention, None if config.ffn is None else SwigluSpec(d_ffn=config.ffn.d_ffn))


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


def _blocks_of(
    config: ModelConfig, slots: tuple[Slot, ...], mixers: Mapping[BlockKind, MixerSpec]
) -> tuple[BlockSpec, ...]:
    """The model's blocks with all that they share."""
    blocks = _shared_keys_and_values(tuple(_blocks(config, slots, mixers)), config.kv_sharing)
    _stop_if_any(_sharing_problems(config, blocks))
    return _without_lonely_ties(blocks)


def _blocks(config: ModelConfig, slots: tuple[Slot, ...], mixers: Mapping[BlockKind, MixerSpec]) -> Iterator[BlockSpec]:
    """The blocks, with experts, ties, and the depths that differential mixers start from: of tied ones, the first's."""
    seen: dict[BlockKind, int] = {}
    first_at: dict[BlockKind, int] = {}
    ffns = 0
    for i, slot in enumerate(slots, 1):
        kind = KINDS[slot.letter]
        seen[kind] = seen.get(kind, 0) + 1
        ffns += not slot.bare
        first_at.setdefault(kind, i)
        tied = kind in config.tied
        depth = (first_at[kind] if tied else i) if config.lambda_depth == "blocks" else (1 if tied else seen[kind])
        yield _block(_at_depth(mixers[kind], depth), None if slot.bare else _ffn(config, ffns), kind if tied else None)


def _sharing_problems(config: ModelConfig, blocks: tuple[BlockSpec, ...]) -> list[str]:
    """Settings of what blocks share or have instead, which no block answers to."""
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
    borrowers = [a for block in blocks if (a := attention_in(block.mixer)) is not None and a.borrows_kv]
    if config.kv_sharing > 1 and not borrowers:
        problems.append(
            f"model.kv_sharing = {config.kv_sharing}: no two successive blocks have equal attention; expected 1"
        )
    if config.moe.every is not None and not any(isinstance(block.ffn, MoeSpec) for block in blocks):
        ffns = sum(block.ffn is not None for block in blocks)
        problems.append(
            f"model.moe.every = {config.moe.every}: no block has experts; expected null, or at most the number of "
            f"blocks with an ffn, {ffns}"
        )
    return problems


def _without_lonely_ties(blocks: tuple[BlockSpec, ...]) -> tuple[BlockSpec, ...]:
    """A block that is tied to no other is not tied: one model has one id."""
    ties = [block.tie for block in blocks]
    return tuple(dataclasses.replace(b, tie=None) if b.tie and ties.count(b.tie) == 1 else b for b in blocks)


def _ffn(config: ModelConfig, number: int) -> FfnSpec | None:
    """The feed-forward network of the block that is the `number`-th to have one."""
    moe, dense = config.moe, config.ffn
    if moe.every is None or dense is None or number % moe.every:
        return dense
    return MoeSpec(
        d_ffn=dense.d_ffn // (moe.n_shared + moe.top_k) if moe.d_ffn is None else moe.d_ffn,
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
