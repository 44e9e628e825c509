"""From `model` settings to a `ModelSpec`: layouts, presets, printed depths and parameters, and what is refused."""

from pathlib import Path

import pytest

from hybrid.config import read_config
from hybrid.cost import layout_of, run_cost
from hybrid.layout import compact
from hybrid.spec import AttentionSpec, ConfigError, IntraSpec, Mamba2Spec, MoeSpec, RunSpec
from sweeps.compose import Composer

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
PRESETS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))


def rows(expand_request, sweep: str, scale: str) -> dict[str, RunSpec]:
    return {run.cell.row: run.resolved.run for run in expand_request(f"+sweep={sweep}", f"scale={scale}").runs}


@pytest.mark.parametrize("scale", SCALES)
def test_every_preset_fits_every_scale_with_parameters_that_match_llamas(scale: str) -> None:
    """With dense feed-forward networks; experts leave the active parameters as they are."""
    with Composer() as composer:
        found = {
            preset: read_config(
                composer.compose([f"scale={scale}", f"model={preset}", "model.moe.every=null"]),
                stdlib_fingerprint=lambda: "0" * 16,
            )
            for preset in PRESETS
        }
    llama = run_cost(found["llama"].run).block_params
    for preset, resolved in found.items():
        mismatch = run_cost(resolved.run).block_params / llama - 1
        assert abs(mismatch) < 0.09, preset
        assert resolved.param_mismatch == pytest.approx(mismatch, abs=1e-9), preset


# arXiv 2510.04800, v3, Tables 18 (1B) and 19 (350M): layers and non-embedding parameters (billions) by row.
VARIANTS = {
    "Diff-T": (16, 0.97, 14, 0.35),
    "Diff-M": (13, 0.99, 11, 0.37),
    "Diff-T add": (16, 0.97, 14, 0.35),
    "diff_t diff shared joint": (15, 0.96, 13, 0.35),
    "group diff_t diff shared joint": (15, 0.96, 13, 0.35),
    "diff_t diff joint": (14, 0.94, 12, 0.34),
    "group diff_t diff joint": (14, 0.94, 12, 0.34),
    "group diff_t diff separate": (13, 0.95, 11, 0.36),
    "Hymba": (14, 0.94, 12, 0.34),
    "add joint": (14, 0.94, 12, 0.34),
    "group add joint": (14, 0.94, 12, 0.34),
    "scale add joint": (14, 0.94, 12, 0.34),
    "group scale add shared joint": (15, 0.96, 13, 0.35),
    "add separate": (13, 0.95, 11, 0.36),
    "group add separate": (13, 0.95, 11, 0.36),
    "group scale add separate": (13, 0.95, 11, 0.36),
    "diff separate": (13, 0.95, 11, 0.36),
    "group diff separate": (13, 0.95, 11, 0.36),
    "group scale diff separate": (13, 0.95, 11, 0.36),
    "group diff joint": (14, 0.94, 12, 0.34),
    "Falcon-H1": (13, 0.95, 11, 0.36),
    "group concat joint": (13, 0.95, 11, 0.36),
    "group scale concat joint": (13, 0.95, 11, 0.36),
}


def test_the_variants_have_the_printed_layers_and_parameters_at_1b(expand_request) -> None:
    found = {
        name: (len(run.model.blocks), round(run_cost(run).paper_non_embedding_params / 1e9, 2))
        for name, run in rows(expand_request, "variants", "1b").items()
    }
    # Two Mamba-2 mixers have B and C each: 0.997B, where Table 18 prints Mamba's own 0.99B.
    printed = {name: row[:2] for name, row in VARIANTS.items()} | {"Diff-M": (13, 1.0)}
    assert found == printed


def test_the_variants_have_the_printed_layers_at_350m(expand_request) -> None:
    found = {name: len(run.model.blocks) for name, run in rows(expand_request, "variants", "350m").items()}
    assert found == {name: printed[2] for name, printed in VARIANTS.items()}


# v3, Tables 2, 11 and 21: blocks of the first kind, of the second, and their printed positions.
@pytest.mark.parametrize(
    ("sweep", "row", "layout"),
    [
        ("table2", "Llama", "A16"),
        ("table2", "SWA", "W4 A W3 A W3 A W3"),
        ("table2", "Mamba", "M13"),
        ("table2", "Inter-H", "M3 A M3 A M5"),
        ("table2", "Intra-H", "M4 I M3 I M4"),
        ("swa", "1:1 front", "(AW)8"),
        ("swa", "1:1 end", "(WA)8"),
        ("swa", "1:3 end", "W3 A W2 A W2 A W5 A"),
        ("swa", "windows only", "W16"),
        ("intra_placement", "1:1 cluster", "M4 I7 M2"),
        ("intra_placement", "1:3 scatter", "M3 I M2 I M3 I M2"),
        ("intra_placement", "1:5 sandwich", "I M11 I"),
        ("intra_placement", "1:1 sandwich", "I2 M3 I3 M3 I2"),
        ("table5", "Hymba", "I14"),
        ("table5", "group diff separate", "I13"),
    ],
)
def test_rows_at_1b_have_the_printed_layouts(expand_request, sweep: str, row: str, layout: str) -> None:
    run = rows(expand_request, sweep, "1b")[row]
    assert compact(layout_of(run.model)) == layout


def test_the_dimension_ratios_keep_the_parameters_at_every_scale(expand_request) -> None:
    for scale in SCALES:
        runs = rows(expand_request, "dims", scale)
        sizes = {name: run.model.blocks[0] for name, run in runs.items() if name not in ("1:0", "0:1")}
        depths = {len(runs[name].model.blocks) for name in sizes}
        params = [run_cost(runs[name]).paper_non_embedding_params for name in sizes]
        assert len(depths) == 1
        assert max(params) / min(params) < 1.04, scale


def test_a_dimension_ratio_is_one_line_beside_the_papers_block(resolve) -> None:
    run = resolve("scale=1b", "model=intra", "model.intra.dim_ratio=2:1", "model.intra.scalar=gate").run
    mixer = next(block.mixer for block in run.model.blocks if isinstance(block.mixer, IntraSpec))
    assert mixer.attention.d_qk / (mixer.mamba.d_ssm / 2) == pytest.approx(2, rel=0.01)
    assert mixer.scalar == "gate"
    usual = resolve("scale=1b", "model=intra").run
    ours = run_cost(run).non_embedding_params
    assert ours == pytest.approx(run_cost(usual).non_embedding_params, rel=0.002)


def test_dimension_ratios_of_one_module_are_that_module(resolve) -> None:
    only_attention = resolve("model=intra", "model.ratio=1:0", "model.intra.dim_ratio=1:0").run.model
    only_mamba = resolve("model=intra", "model.ratio=1:0", "model.intra.dim_ratio=0:1").run.model
    assert only_attention == resolve("model=llama").run.model
    assert only_mamba == resolve("model=mamba").run.model


def test_moe_keeps_the_active_parameters_and_the_depth(resolve) -> None:
    dense, moe = (resolve("scale=1b", "model=llama", *extra).run for extra in ((), ("model.moe.every=1",)))
    assert len(dense.model.blocks) == len(moe.model.blocks)
    assert isinstance(moe.model.blocks[0].ffn, MoeSpec)
    assert moe.model.blocks[0].ffn.d_ffn == 4096
    # Table 3 prints 0.97B active and 3.79B in all.
    cost = run_cost(moe)
    assert round(cost.paper_active_params / 1e9, 2) == 0.97
    assert round(cost.paper_non_embedding_params / 1e9, 2) == 3.79


def test_the_reference_is_a_llama_block_whatever_a_model_makes_of_attention_and_ffn(resolve) -> None:
    depth = len(resolve("model=mamba").run.model.blocks)
    assert len(resolve("model=mamba", "model.attention.qkv_conv=4").run.model.blocks) == depth
    relu2 = resolve("model=mamba", "model.ffn.kind=relu2")
    assert relu2.param_mismatch is not None
    assert abs(relu2.param_mismatch) < 0.05
    assert len(relu2.run.model.blocks) > depth


def test_experts_share_out_the_dense_width_so_that_active_parameters_stay(resolve) -> None:
    for preset in ("gpt_oss", "jamba"):
        cost = run_cost(resolve("scale=1b", f"model={preset}").run)
        dense = run_cost(resolve("scale=1b", f"model={preset}", "model.moe.every=null").run)
        assert cost.paper_active_params == dense.paper_active_params


def test_the_default_softmax_scale_is_that_of_the_block_that_has_it(resolve) -> None:
    given, default = (
        next(
            b.mixer.attention for b in resolve("model=intra", *more).run.model.blocks if isinstance(b.mixer, IntraSpec)
        )
        for more in (("model.attention.softmax_scale=0.25",), ())
    )
    assert given.head_dim == 18
    assert given.softmax_scale == 0.25
    assert default.softmax_scale is None


def test_a_layout_shows_which_blocks_have_no_ffn_where_others_have_one(resolve) -> None:
    layouts = [
        layout_of(resolve("model=pattern", f'model.pattern="{pattern}"', "model.depth=4").run.model)
        for pattern in ("M A", "M. A", "M A.", "M. A.")
    ]
    assert layouts == ["MAMA", "mAmA", "MaMa", "MAMA"]


def test_experts_stand_in_every_kth_block(resolve) -> None:
    ffns = [block.ffn for block in resolve("model=jamba").run.model.blocks]
    assert [isinstance(ffn, MoeSpec) for ffn in ffns[:4]] == [False, True, False, True]


def test_a_dot_leaves_out_the_ffn_and_ties_share_one_block(resolve) -> None:
    model = resolve("model=zamba2").run.model
    assert all((block.ffn is None) == isinstance(block.mixer, Mamba2Spec) for block in model.blocks)
    assert {block.tie for block in model.blocks if isinstance(block.mixer, AttentionSpec)} == {"attention"}


def test_successive_attention_borrows_keys_and_values_within_its_group(resolve) -> None:
    model = resolve("model=hymba", "model.depth=9", "model.ratio=3:6").run.model
    borrows = [block.mixer.attention.borrows_kv for block in model.blocks if isinstance(block.mixer, IntraSpec)]
    # Windows in blocks 2 to 4 and 6 to 8; full attention in 1, 5 and 9 interrupts their groups.
    assert borrows == [False, False, True, False, False, False, True, False, False]


def test_lambda_depth_counts_blocks_or_mixers(resolve) -> None:
    settings = ("model.mixers=[diff_attention,mamba]", "model.ratio=1:1", "model.placement=end", "model.depth=6")
    by_block = resolve(*settings).run.model
    by_mixer = resolve(*settings, "model.lambda_depth=mixers").run.model
    depths = [[b.mixer.depth for b in m.blocks if b.mixer.kind == "diff_attention"] for m in (by_block, by_mixer)]
    assert depths == [[2, 4, 6], [1, 2, 3]]


def test_one_model_has_one_spelling(resolve) -> None:
    assert resolve("model.mamba.gate_norm=grouped").run == resolve().run
    assert resolve("model.attention.softmax_scale=0.25").run == resolve().run
    identity = "{factor:1,low_freq_factor:1,high_freq_factor:4,original_seq_len:64}"
    assert resolve(f"model.attention.rope.scaling={identity}").run == resolve().run
    one = ("model.ratio=1:2", "model.depth=3")
    assert resolve(*one, "model.tied=[attention]").run == resolve(*one).run
    pattern = ("model.ratio=null", "model.placement=null", 'model.pattern="(M2 A)2"', "model.depth=6")
    assert resolve(*pattern).run == resolve("model.ratio=1:2", "model.placement=[3,6]", "model.depth=6").run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("model=intra", "model.intra.output=joint", "model.intra.d_ssm=72"),
            "expected d_ssm: 64, or output: separate",
        ),
        (("model=intra", "model.intra.value=shared"), "a shared value needs n_heads . value_head_dim = 64"),
        (("model=intra", "model.intra.fusion=concat"), "fusion: add, which with separate outputs is the same model"),
        (("model=intra", "model.intra.dim_ratio=2:1", "model.intra.d_ssm=64"), "it sets the widths"),
        (("model=intra", "model.intra.n_kv_heads=3"), "model.intra.n_kv_heads = 3: expected a divisor of n_heads = 2"),
        (("model=intra", "model.intra.qk_head_dim=17"), "qk_head_dim = 17: expected an even number"),
        (("model=swa", "model.window.size=0"), "model.window.size = 0: expected from 1"),
        (("model=swa", "model.window.size=300"), "expected less .nearest size: 253"),
        (("model=jamba", "model.moe.top_k=17"), "top_k = 17: expected at most n_experts = 16 .nearest: 16"),
        (("model=jamba", "model.ratio=1:3"), "expected model.ratio: null beside it"),
        (("model=jamba", "model.depth=3"), "hold no A block; expected a larger scale, or model.depth of at least 5"),
        (("model.ratio=null",), "expected a ratio of model.mixers such as 1:5"),
        (("model.mixers=[mamba,mamba]",), "expected two different kinds of block"),
        (("model.mixers=[atention,mamba]",), "atention"),
        (("model=jamba", "model.pattern=MQ"), "Q is no block"),
        (("model=jamba", 'model.pattern="(M A"'), "a bracket is not closed"),
        (("model=diff_transformer", "model.attention.n_heads=3"), "pairs heads; expected an even number"),
        (("model=zamba2", "model.tied=[window]"), "the model has no window block"),
        (("model=zamba2", "model.tied=[attention]", "model.moe.every=4"), "the attention blocks differ"),
        (("model=mamba", "model.kv_sharing=2"), "no two successive blocks have equal attention"),
        (("model=nemotron_h", "model.moe.every=1"), "experts are SwiGLU"),
        (("model.ffn=null", "model.moe.every=1"), "model.ffn, which is null"),
        (("model.moe.every=50",), "no block has experts; expected null, or at most"),
        (("model.ffn.d_ffn=1", "model.moe.every=1"), "cannot be shared out among 2 experts"),
        (("model=diff_transformer", "model.attention.softmax_scale=0.5"), "differential attention has none"),
        (("model=diff_transformer", "model.attention.qkv_conv=4"), "differential attention has none"),
        (("model=diff_transformer", "model.attention.n_heads=20", "model.attention.n_kv_heads=5"), "pairs key heads"),
        (("model.intra.widths.joint.ssm_head_dim=0",), "widths.joint.ssm_head_dim = 0: expected from 1"),
        (("scale=1b", "model.attention.rope.scaling.factor=0"), "scaling.factor = 0.0: expected at least 1"),
        (("model=pattern", "model.pattern=A9999999999"), "expected at most 10000 blocks"),
        (("model=pattern", "model.pattern=M0A"), "'0A' is no block"),
        (("model=pattern", "model.pattern=M" + "9" * 5000), "expected at most 10000 blocks"),
        (("model=llama", "model.tied=[attention]"), "off the parameters of 16 attention blocks"),
        (("model=intra", "model.intra.dim_ratio=1000:1"), "the nearest at equal parameters is"),
        (
            ("model=intra", "model.intra.dim_ratio=2:1", "model.intra.output=joint"),
            "expected dim_ratio: null, or output",
        ),
        (("model=hymba", "model.meta_tokens=0", "seq_len=64", "batch_tokens=64"), "sink at most 62"),
        (("exec.kernels=fused",), "exec.kernels = fused: expected a CUDA device"),
        (("model.kv_sharing=0",), "model.kv_sharing = 0: expected from 1"),
        (("model.attention.n_kv_heads=8",), "expected a divisor of n_heads = 4"),
        (("model.mamba.n_groups=3",), "n_groups = 3: expected a divisor of the 8 heads"),
    ],
)
def test_a_combination_that_means_nothing_is_refused_with_the_reason(
    resolve, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(*overrides)
