"""Which specs are one model by symmetry.

Two models are one if a relabelling of weights, a map that permutes them and flips signs, takes one to the other and all
that training does respects it: the same outputs, the same distribution over initial weights, and therefore, as AdamW,
its decay and the clipping of gradients commute with the map, the same distribution over training runs. Two runs of
such models are replicates: what tells their results apart is chance, at equal seeds too, as the map moves the initial
weights that a seed draws. Three facts make such pairs.

* Diff fusion is add fusion with the sign of attention's values flipped. Attention is linear in its values, RMSNorm,
  scale vectors, scalars, gates and constants pass a sign through, and the value projection is drawn from a symmetric
  distribution. Where the value is shared with Mamba, the taps through which Mamba reads it are flipped as well. With
  separate outputs it may as well be attention's output projection that is flipped. Up to the sign, bit for bit.
* Concatenation with a joint output is addition with separate outputs: W [m, a] = W_m m + W_a a, and the halves of W are
  drawn and trained as matrices of their own. Up to the order of sums.
* A gated norm grouped over one group is the norm over the whole width.

Not one model, though they have the same functions: a scale vector where the norm has a weight anyway, or constant
multipliers that the next matrix could absorb. The product of two weights trains differently from one, and a multiplier
changes the distribution at the start. Nor a window as long as the training sequences: longer ones tell it apart.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from hybrid.spec import AttentionSpec, BlockSpec, DiffMambaSpec, IntraSpec, Mamba2Spec, MixerSpec, ModelSpec

SIGN = "diff = add with the sign of attention's values flipped"
CONCATENATION = "concat with a joint output = add with separate outputs"
ONE_GROUP = "a norm grouped over one group = the norm over the whole width"
SPELLING = "the same in another spelling"


@dataclass(frozen=True, kw_only=True)
class EquivalenceClass:
    """Names of specs that are one model; a reason for each but the first says why it is what the first one is."""

    names: tuple[str, ...]
    reasons: tuple[str, ...]


def canonical_model(model: ModelSpec) -> ModelSpec:
    """The same model as everyone would write it: equal for two specs if they are one model by symmetry."""
    return _canonical(model)[0]


def equivalence_classes(models: Mapping[str, ModelSpec]) -> tuple[EquivalenceClass, ...]:
    """The classes with more than one member, and members, in the order in which they are given."""
    members: dict[ModelSpec, list[tuple[str, frozenset[str]]]] = {}
    for name, model in models.items():
        canonical, applied = _canonical(model)
        members.setdefault(canonical, []).append((name, applied))
    return tuple(
        EquivalenceClass(
            names=tuple(name for name, _ in found),
            reasons=tuple(_reason(models[found[0][0]], found[0][1], models[name], used) for name, used in found[1:]),
        )
        for found in members.values()
        if len(found) > 1
    )


def _reason(first: ModelSpec, of_first: frozenset[str], other: ModelSpec, of_other: frozenset[str]) -> str:
    """The facts that lead from one to the other: those that one of the two needs on its way to the canonical form."""
    if first == other:
        return "the same spec"
    used = of_first ^ of_other or of_first | of_other
    return "; ".join(fact for fact in (SIGN, CONCATENATION, ONE_GROUP, SPELLING) if fact in used)


@lru_cache(maxsize=1024)
def _canonical(model: ModelSpec) -> tuple[ModelSpec, frozenset[str]]:
    """The canonical form, and the facts that were needed to come to it."""
    applied: set[str] = set()
    blocks = _renamed_ties(model.blocks, applied)
    blocks = tuple(replace(block, mixer=_spelt(block.mixer, applied)) for block in blocks)
    blocks = _without_signs(blocks, applied)
    blocks = tuple(replace(block, mixer=_without_concatenation(block.mixer, applied)) for block in blocks)
    return replace(model, blocks=blocks), frozenset(applied)


# --- spelling -----------------------------------------------------------------------------------


def _renamed_ties(blocks: tuple[BlockSpec, ...], applied: set[str]) -> tuple[BlockSpec, ...]:
    """Ties named by their order, and no tie where a block is tied to none."""
    names = [block.tie for block in blocks if block.tie is not None]
    shared = {name: str(i) for i, name in enumerate(dict.fromkeys(n for n in names if names.count(n) > 1))}
    renamed = tuple(block if block.tie is None else replace(block, tie=shared.get(block.tie)) for block in blocks)
    if renamed != blocks:
        applied.add(SPELLING)
    return renamed


def _spelt(mixer: MixerSpec, applied: set[str]) -> MixerSpec:
    """Without what says the default in other words."""
    match mixer:
        case AttentionSpec():
            return _spelt_attention(mixer, applied)
        case Mamba2Spec():
            return _spelt_mamba(mixer, applied)
        case DiffMambaSpec():
            return replace(mixer, mamba=_spelt_mamba(mixer.mamba, applied))
        case IntraSpec():
            return replace(
                mixer,
                attention=_spelt_attention(mixer.attention, applied),
                mamba=_spelt_mamba(mixer.mamba, applied),
                lambda_depth=mixer.lambda_depth if mixer.scalar == "diff_t" else None,
            )
        case _:
            return mixer


def _spelt_attention(a: AttentionSpec, applied: set[str]) -> AttentionSpec:
    default_scale = a.softmax_scale is not None and math.isclose(a.softmax_scale, a.head_dim**-0.5, rel_tol=1e-12)
    spelt = replace(
        a,
        value_head_dim=None if a.value_head_dim == a.head_dim else a.value_head_dim,
        n_value_heads=None if a.n_value_heads == a.n_kv_heads else a.n_value_heads,
        softmax_scale=None if default_scale else a.softmax_scale,
    )
    if spelt != a:
        applied.add(SPELLING)
    return spelt


def _spelt_mamba(m: Mamba2Spec, applied: set[str]) -> Mamba2Spec:
    if m.gate_norm == "grouped" and m.n_groups == 1:
        applied.add(ONE_GROUP)
        return replace(m, gate_norm="rms")
    return m


# --- symmetries of the intra-hybrid block -------------------------------------------------------


def _without_concatenation(mixer: MixerSpec, applied: set[str]) -> MixerSpec:
    if isinstance(mixer, IntraSpec) and mixer.fusion == "concat" and mixer.output == "joint":
        applied.add(CONCATENATION)
        return replace(mixer, fusion="add", output="separate")
    return mixer


def _without_signs(blocks: tuple[BlockSpec, ...], applied: set[str]) -> tuple[BlockSpec, ...]:
    """Add for diff, wherever a projection of the block's own, or values that no other block needs, take the sign."""
    result = list(blocks)
    for group in _readers_of_one_value(blocks):
        # With an output projection of attention's own, the sign is the block's own affair.
        signed = []
        for i in group:
            mixer = result[i].mixer
            if isinstance(mixer, IntraSpec) and mixer.output == "separate" and mixer.fusion == "diff":
                applied.add(SIGN)
                result[i] = replace(result[i], mixer=replace(mixer, fusion="add"))
            elif isinstance(mixer, IntraSpec) and mixer.output == "joint" and mixer.fusion != "concat":
                signed.append((i, mixer))
        # Otherwise all readers of the values flip together; a tied reader may read other values elsewhere.
        tied = len(group) > 1 and any(blocks[i].tie is not None for i in group)
        if signed and not tied and signed[0][1].fusion == "diff":
            applied.add(SIGN)
            for i, mixer in signed:
                result[i] = replace(result[i], mixer=replace(mixer, fusion="add" if mixer.fusion == "diff" else "diff"))
    return tuple(result)


def _readers_of_one_value(blocks: tuple[BlockSpec, ...]) -> Iterator[list[int]]:
    """The blocks with attention, in groups of one that makes keys and values and those that borrow them."""
    group: list[int] = []
    for i, block in enumerate(blocks):
        match block.mixer:
            case AttentionSpec() as attention:
                pass
            case IntraSpec(attention=attention):
                pass
            case _:
                continue
        if not attention.borrows_kv and group:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
