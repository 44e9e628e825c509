"""Which specs are one model. That the relabelled modules are equal is shown in test_equivalent_modules.py."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from hybrid.equivalence import (
    CONCATENATION,
    ONE_GROUP,
    SIGN,
    SPELLING,
    canonical_model,
    equivalence_classes,
)
from hybrid.model import LanguageModel
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    IntraSpec,
    Mamba2Spec,
    MixerSpec,
    ModelSpec,
    RopeSpec,
    SwigluSpec,
    WindowSpec,
)

ATTENTION = AttentionSpec(
    n_heads=4, n_kv_heads=2, head_dim=2, value_head_dim=4, rope=RopeSpec(theta=10_000.0, scaling=None)
)
MAMBA = Mamba2Spec(
    d_ssm=16,
    head_dim=4,
    d_state=3,
    n_groups=1,
    d_conv=3,
    a_init_min=0.01,
    a_init_max=2.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
    gate_norm="none",
)
INTRA = IntraSpec(
    attention=ATTENTION,
    mamba=MAMBA,
    norm="group",
    scalar="none",
    fusion="add",
    value="separate",
    output="joint",
    lambda_depth=None,
    attention_multiplier=1.0,
    mamba_multiplier=1.0,
)
DIFF = replace(INTRA, fusion="diff")
BORROWER = replace(INTRA, attention=replace(ATTENTION, borrows_kv=True))
DIFF_BORROWER = replace(BORROWER, fusion="diff")


def model(*mixers: MixerSpec, tie: str | None = None) -> ModelSpec:
    return ModelSpec(
        d_model=12,
        vocab_size=17,
        tie_embeddings=True,
        norm_eps=1e-5,
        init_std=0.3,
        blocks=tuple(BlockSpec(mixer=mixer, ffn=SwigluSpec(d_ffn=20), tie=tie) for mixer in mixers),
    )


def variant(norm: str, scalar: str, fusion: str, value: str, output: str) -> ModelSpec:
    changes: dict[str, Any] = {"norm": norm, "scalar": scalar, "fusion": fusion, "value": value, "output": output}
    return model(replace(INTRA, **changes, lambda_depth=1 if scalar == "diff_t" else None))


# arXiv 2510.04800v3, Table 18: norm, scalar, fusion, value, output of its variants of the intra-hybrid block, in order.
TABLE_18 = [
    ("none", "diff_t", "diff", "shared", "joint"),
    ("group", "diff_t", "diff", "shared", "joint"),
    ("none", "diff_t", "diff", "separate", "joint"),
    ("group", "diff_t", "diff", "separate", "joint"),
    ("group", "diff_t", "diff", "separate", "separate"),
    ("group", "scale", "add", "separate", "joint"),
    ("none", "none", "add", "separate", "joint"),
    ("group", "none", "add", "separate", "joint"),
    ("none", "scale", "add", "separate", "joint"),
    ("group", "scale", "add", "shared", "joint"),
    ("none", "none", "add", "separate", "separate"),
    ("group", "none", "add", "separate", "separate"),
    ("group", "scale", "add", "separate", "separate"),
    ("none", "none", "diff", "separate", "separate"),
    ("group", "none", "diff", "separate", "separate"),
    ("group", "scale", "diff", "separate", "separate"),
    ("group", "none", "diff", "separate", "joint"),
    ("none", "none", "concat", "separate", "joint"),
    ("group", "none", "concat", "separate", "joint"),
    ("group", "scale", "concat", "separate", "joint"),
]


def test_eleven_rows_of_table_18_are_four_models() -> None:
    classes = equivalence_classes({" ".join(row): variant(*row) for row in TABLE_18})
    assert [found.names for found in classes] == [
        ("group none add separate joint", "group none diff separate joint"),
        ("none none add separate separate", "none none diff separate separate", "none none concat separate joint"),
        ("group none add separate separate", "group none diff separate separate", "group none concat separate joint"),
        (
            "group scale add separate separate",
            "group scale diff separate separate",
            "group scale concat separate joint",
        ),
    ]
    assert [found.reasons for found in classes] == [(SIGN,), *[(SIGN, CONCATENATION)] * 3]


def test_diff_with_separate_outputs_and_concat_with_a_joint_one_are_one_model_for_two_reasons() -> None:
    concat = variant("group", "none", "concat", "separate", "joint")
    diff = variant("group", "none", "diff", "separate", "separate")
    (found,) = equivalence_classes({"concat": concat, "diff": diff})
    assert found.reasons == (f"{SIGN}; {CONCATENATION}",)


def test_of_fusion_and_output_only_joint_addition_or_not_is_left() -> None:
    ways = [("add", "joint"), ("diff", "joint"), ("add", "separate"), ("diff", "separate"), ("concat", "joint")]
    others = list(itertools.product(("group", "none"), ("none", "scale", "diff_t", "gate"), ("separate", "shared")))
    canonical = {
        canonical_model(variant(norm, scalar, fusion, value, output))
        for (norm, scalar, value), (fusion, output) in itertools.product(others, ways)
    }
    assert len(canonical) == 2 * len(others)


def test_the_canonical_form_is_its_own() -> None:
    for row in TABLE_18:
        canonical = canonical_model(variant(*row))
        assert canonical_model(canonical) == canonical


NOT_ONE = {
    "a scale vector where a norm has its weight": replace(INTRA, scalar="scale"),
    "a constant that the output projection could take in": replace(INTRA, attention_multiplier=0.5),
    "another norm": replace(INTRA, norm="none"),
    "Mamba's inner norm under the block's own": replace(INTRA, mamba=replace(MAMBA, gate_norm="rms")),
    "a window, however long": replace(INTRA, attention=replace(ATTENTION, window=WindowSpec(size=10**6, sink=0))),
    "another softmax scale": replace(INTRA, attention=replace(ATTENTION, softmax_scale=0.5)),
    "a shared value": replace(INTRA, value="shared"),
}


@pytest.mark.parametrize("what", NOT_ONE)
def test_what_trains_differently_is_not_one_model(what: str) -> None:
    assert equivalence_classes({"a": model(INTRA), "b": model(NOT_ONE[what])}) == ()


def test_a_grouped_norm_is_another_model_only_with_several_groups() -> None:
    def grouped(n_groups: int, gate_norm: Any) -> ModelSpec:
        return model(replace(MAMBA, n_groups=n_groups, gate_norm=gate_norm))

    (found,) = equivalence_classes({"rms": grouped(1, "rms"), "grouped": grouped(1, "grouped")})
    assert found.reasons == (ONE_GROUP,)
    assert equivalence_classes({"rms": grouped(2, "rms"), "grouped": grouped(2, "grouped")}) == ()


def test_defaults_in_other_words_and_names_of_ties_say_nothing() -> None:
    plain = replace(ATTENTION, value_head_dim=None)
    said = replace(plain, value_head_dim=2, n_value_heads=2, softmax_scale=2**-0.5)
    (found,) = equivalence_classes({"plain": model(plain), "said": model(said)})
    assert found.reasons == (SPELLING,)
    tied = {name: model(plain, plain, tie=name) for name in ("a", "b")}
    (found,) = equivalence_classes({**tied, "untied": model(plain, plain)})
    assert found.names == ("a", "b")
    assert canonical_model(model(plain, tie="alone")) == model(plain)


# --- blocks that read each other's values -------------------------------------------------------


def test_readers_of_one_value_change_sign_together() -> None:
    assert canonical_model(model(DIFF, DIFF_BORROWER)) == canonical_model(model(INTRA, BORROWER))
    assert canonical_model(model(DIFF, BORROWER)) == canonical_model(model(INTRA, DIFF_BORROWER))
    assert canonical_model(model(DIFF, DIFF_BORROWER)) != canonical_model(model(DIFF, BORROWER))


def test_a_reader_with_an_output_projection_of_attentions_own_takes_its_own_sign() -> None:
    own = replace(DIFF_BORROWER, output="separate")
    assert canonical_model(model(INTRA, own)) == canonical_model(model(INTRA, replace(own, fusion="add")))
    # The lender is plain attention: its output projection takes the sign that the borrowers' values are given.
    assert canonical_model(model(ATTENTION, DIFF_BORROWER)) == canonical_model(model(ATTENTION, BORROWER))


def test_tied_readers_of_lent_values_are_left_as_they_are() -> None:
    spec = model(DIFF, DIFF_BORROWER)
    tied = replace(spec, blocks=tuple(replace(block, tie=str(i % 2)) for i, block in enumerate(spec.blocks * 2)))
    assert canonical_model(tied) == tied
    assert canonical_model(model(DIFF, DIFF, tie="a")).blocks[0].mixer == INTRA


def flip_lent_values(module: LanguageModel) -> None:
    """The sign of the value rows of block 0, which the others borrow."""
    with torch.no_grad():
        module.get_parameter("blocks.0.mixer.attention.qkv_proj.weight")[-8:] *= -1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [((DIFF, DIFF_BORROWER), (INTRA, BORROWER)), ((DIFF, BORROWER), (INTRA, DIFF_BORROWER))],
)
def test_modules_that_share_values_are_equal_to_the_bit(
    one: tuple[MixerSpec, ...], other: tuple[MixerSpec, ...]
) -> None:
    build: Callable[..., LanguageModel] = LanguageModel
    first, second = build(model(*one), ssd_chunk=4), build(model(*other), ssd_chunk=4)
    for module in (first, second):
        module.init_weights(1)
    tokens = torch.arange(12).remainder(17)[None]
    assert not torch.equal(first(tokens), second(tokens))
    flip_lent_values(second)
    assert torch.equal(first(tokens), second(tokens))
