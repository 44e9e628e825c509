from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from hybrid import outside
from hybrid.budget import matched_repeats
from hybrid.cost import (
    Cost,
    Softmax,
    block_params,
    block_state_bytes,
    full_block_forward_flops,
    layout_of,
    paper_block_cache_bytes,
    paper_block_train_flops,
    run_cost,
)
from hybrid.layout import compact
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    OutsideSetting,
    OutsideSpec,
    RunSpec,
    ShortConvSpec,
    SwigluSpec,
    WindowSpec,
)

# arXiv 2510.04800, Table 4 and Table 6: scale, ratio, attention blocks, Mamba blocks.
PAPER_DEPTHS = [
    ("1b", "1:0", 16, 0),
    ("1b", "0:1", 0, 13),
    ("1b", "1:1", 7, 7),
    ("1b", "1:3", 3, 10),
    ("1b", "1:5", 2, 11),
    ("1b", "1:12", 1, 12),
    ("350m", "1:0", 14, 0),
    ("350m", "0:1", 0, 11),
    ("350m", "1:1", 6, 6),
    ("350m", "1:3", 3, 8),
    ("350m", "1:5", 2, 9),
    ("350m", "1:12", 1, 10),
    ("100m", "1:0", 8, 0),
    ("100m", "0:1", 0, 6),
    ("3b", "1:0", 28, 0),
    ("3b", "0:1", 0, 21),
]


@pytest.mark.parametrize(("scale", "ratio", "n_attention", "n_mamba"), PAPER_DEPTHS)
def test_one_rule_gives_every_depth_that_the_paper_prints(
    resolve, scale: str, ratio: str, n_attention: int, n_mamba: int
) -> None:
    layout = layout_of(resolve(f"scale={scale}", f"model.ratio={ratio}").run.model)
    assert (layout.count("A"), layout.count("M")) == (n_attention, n_mamba)


# Table 6, N-emb in billions as printed. Mamba 1B prints 0.98 where Table 2 and the formula give 0.99.
@pytest.mark.parametrize(
    ("scale", "model", "printed"),
    [
        ("100m", "llama", 0.10),
        ("350m", "llama", 0.35),
        ("1b", "llama", 0.97),
        ("100m", "mamba", 0.10),
        ("350m", "mamba", 0.37),
        ("1b", "mamba", 0.99),
    ],
)
def test_paper_parameters_agree_with_the_printed_digits(resolve, scale: str, model: str, printed: float) -> None:
    cost = run_cost(resolve(f"scale={scale}", f"model={model}").run)
    assert round(cost.paper_non_embedding_params / 1e9, 2) == printed


# Table 2, equal data: training FLOPs in 1e20 and cache in MiB at 8K, as printed.
@pytest.mark.parametrize(
    ("overrides", "flops", "cache"),
    [(["model=llama"], 4.5, 256), (["model=mamba"], 3.7, 13), (["model=inter", "model.ratio=1:5"], 3.7, 43)],
)
def test_paper_flops_and_cache_agree_with_table_2(resolve, overrides: list[str], flops: float, cache: int) -> None:
    cost = run_cost(resolve("scale=1b", *overrides).run)
    assert round(cost.paper_train_flops / 1e20, 1) == flops
    assert round(cost.paper_cache_bytes / 2**20) == cache


def test_llamas_unrounded_flops_at_60b_tokens_are_the_papers(resolve) -> None:
    run = resolve("scale=1b", "model=llama").run
    cost = run_cost(run)
    assert cost.paper_train_flops_per_sample / run.seq_len * 60e9 == pytest.approx(4.4696e20, rel=2e-5)


def test_training_is_whole_samples_times_the_cost_of_one(resolve) -> None:
    run = resolve("scale=toy").run
    cost = run_cost(run)
    assert cost.train_samples * run.seq_len == run.train_tokens
    assert cost.paper_train_flops == cost.train_samples * cost.paper_train_flops_per_sample
    assert cost.full_train_flops > cost.paper_train_flops / 2


def test_a_hybrids_cost_is_the_sum_of_its_blocks(resolve) -> None:
    llama, mamba, inter = (
        run_cost(resolve("scale=1b", f"model={model}", *extra).run)
        for model, extra in [("llama", ["model.depth=1"]), ("mamba", ["model.depth=1"]), ("inter", ["model.depth=13"])]
    )
    assert (
        inter.paper_train_flops_per_sample
        == 2 * llama.paper_train_flops_per_sample + 11 * mamba.paper_train_flops_per_sample
    )
    assert inter.block_params == 2 * llama.block_params + 11 * mamba.block_params


def test_the_toy_scale_mirrors_the_depths_of_1b(resolve) -> None:
    for ratio in ("1:0", "1:1", "1:3"):
        toy, big = (
            compact(layout_of(resolve(f"scale={scale}", f"model.ratio={ratio}").run.model)) for scale in ("toy", "1b")
        )
        assert toy == big


# --- printed numbers of the variants ------------------------------------------------------------

# arXiv 2510.04800v3, Tables 9 (1B) and 10 (350M), equal data: non-embedding parameters in 1e9, training FLOPs in 1e20
# at 60B tokens, cache in MiB at 8K. As printed, and as computed where that differs in the printed digits: these cells
# contradict the paper's own formulas, or its other tables.
PRINTED = [
    ("1b", "A16", (0.97, 4.5, 256), None),
    ("1b", "A8 W8", (0.97, 3.8, 137), (0.97, 4.1, 137)),
    ("1b", "A4 W12", (0.97, 3.8, 78), None),
    ("1b", "A3 W13", (0.97, 3.8, 63), None),
    ("1b", "M13", (0.99, 3.7, 13), None),
    ("1b", "A7 M7", (0.96, 3.9, 119), None),
    ("1b", "A3 M10", (0.94, 3.6, 58), (0.94, 3.7, 58)),
    ("1b", "A2 M11", (0.96, 3.7, 43), None),
    ("1b", "A1 M12", (0.97, 3.7, 28), None),
    ("1b", "I13", (0.95, 4.2, 180), (0.95, 4.1, 170)),
    ("1b", "I7 M6", (0.97, 3.9, 89), (0.97, 3.9, 98)),
    ("1b", "I3 M10", (0.98, 3.8, 50), None),
    ("1b", "I2 M11", (0.98, 3.7, 38), None),
    ("1b", "I1 M12", (0.99, 3.7, 23), (0.99, 3.7, 25)),
    ("350m", "A14", (0.35, 1.9, 224), None),
    ("350m", "A3 W11", (0.35, 1.5, 60), None),
    ("350m", "M11", (0.35, 1.4, 9), (0.37, 1.4, 9)),
    ("350m", "A6 M6", (0.35, 1.6, 103), (0.35, 1.6, 101)),
    ("350m", "A3 M8", (0.34, 1.4, 57), (0.34, 1.4, 54)),
    ("350m", "A2 M9", (0.35, 1.4, 42), (0.35, 1.4, 39)),
    ("350m", "A1 M10", (0.36, 1.4, 27), (0.36, 1.4, 24)),
    ("350m", "I11", (0.36, 1.9, 110), (0.35, 1.7, 109)),
    ("350m", "I6 M5", (0.35, 1.5, 60), (0.36, 1.6, 64)),
    ("350m", "I3 M8", (0.39, 1.5, 34), (0.36, 1.5, 36)),
    ("350m", "I2 M9", (0.36, 1.4, 26), (0.37, 1.5, 27)),
    ("350m", "I1 M10", (0.37, 1.4, 17), (0.37, 1.4, 18)),
]


@pytest.mark.parametrize(("scale", "pattern", "printed", "computed"), PRINTED)
def test_parameters_flops_and_cache_are_those_of_tables_9_and_10(
    resolve, scale: str, pattern: str, printed: tuple[float, ...], computed: tuple[float, ...] | None
) -> None:
    depth = sum(int(kind[1:]) for kind in pattern.split())
    shape = (f"model.pattern={pattern}", "model.ratio=null", "model.placement=null", f"model.depth={depth}")
    run = resolve(f"scale={scale}", "model=intra", *shape).run
    cost = run_cost(run)
    at_60b = cost.paper_train_flops_per_sample / run.seq_len * 60e9
    ours = (round(cost.paper_active_params / 1e9, 2), round(at_60b / 1e20, 1), round(cost.paper_cache_bytes / 2**20))
    assert ours == (printed if computed is None else computed)


# Table 3: active and total non-embedding parameters in 1e9, all experts in the total.
@pytest.mark.parametrize(
    ("model", "active", "total"),
    [("llama", 0.97, 3.79), ("mamba", 0.99, 3.28), ("inter", 0.96, 3.25), ("intra", 0.98, 3.27)],
)
def test_active_and_total_parameters_of_experts_are_those_of_table_3(
    resolve, model: str, active: float, total: float
) -> None:
    dense, sparse = (
        run_cost(resolve("scale=1b", f"model={model}", *extra).run) for extra in ((), ("model.moe.every=1",))
    )
    assert (round(sparse.paper_active_params / 1e9, 2), round(sparse.paper_non_embedding_params / 1e9, 2)) == (
        active,
        total,
    )
    assert sparse.paper_active_params == dense.paper_non_embedding_params == dense.paper_active_params
    assert sparse.paper_train_flops == dense.paper_train_flops
    assert sparse.active_params == dense.non_embedding_params + 2048 * 8 * len(
        layout_of(resolve("scale=1b", f"model={model}").run.model)
    )


# Tables 18 (1B) and 19 (350M): layers and parameters in 1e9. Differential Mamba prints those of Mamba, so that its two
# halves may share B and C there; ours, as its authors', have B and C of their own.
VARIANTS = [
    ("diff attention", ["model=diff_transformer"], (16, 0.97), (14, 0.35)),
    ("diff mamba", ["model=diff_mamba"], (13, 1.00), (10, 0.34)),
    ("shared, joint", ["model.intra.value=shared", "model.intra.output=joint"], (15, 0.96), (13, 0.35)),
    ("joint", ["model.intra.output=joint"], (14, 0.94), (12, 0.34)),
    ("separate", ["model.intra.output=separate"], (13, 0.95), (11, 0.35)),
    ("concat", ["model.intra.output=joint", "model.intra.fusion=concat"], (13, 0.95), (11, 0.35)),
]


@pytest.mark.parametrize("scale", ["1b", "350m"])
@pytest.mark.parametrize("variant", VARIANTS, ids=[variant[0] for variant in VARIANTS])
def test_layers_and_parameters_are_those_of_tables_18_and_19(resolve, scale: str, variant: Any) -> None:
    """Printed alike but for Diff-M (0.99; at 350M 11 layers and 0.37) and 0.36 of 11 intra blocks at 350M."""
    _, settings, at_1b, at_350m = variant
    base = [] if settings[0].startswith("model=") else ["model=intra", "model.ratio=1:0"]
    run = resolve(f"scale={scale}", *base, *settings).run
    found = (len(run.model.blocks), round(run_cost(run).paper_non_embedding_params / 1e9, 2))
    assert found == (at_1b if scale == "1b" else at_350m)


# --- formulas -----------------------------------------------------------------------------------


def mixer_of(run: RunSpec) -> Any:
    return run.model.blocks[0].mixer


@pytest.mark.parametrize(("size", "sink"), [(1, 0), (5, 0), (4, 3), (64, 8)])
@pytest.mark.parametrize("length", [1, 4, 7, 8, 30, 100])
def test_pairs_of_a_window_are_those_that_a_mask_leaves(size: int, sink: int, length: int) -> None:
    softmax = Softmax(d_qk=1, d_v=1, full_d_v=1, d_kv=1, window=WindowSpec(size=size, sink=sink), borrowed=False)
    seen = [[j for j in range(i + 1) if i - j < size or j < sink] for i in range(length)]
    assert softmax.causal_pairs(length) == sum(map(len, seen))
    assert softmax.visible(length) == len(seen[-1])


def test_a_windows_flops_are_the_printed_formula(resolve) -> None:
    run = resolve("scale=1b", "model=swa", "model.ratio=0:1").run
    d, length, width = 2048, 8192, 576
    printed = 12 * d * width * ((width + 1) / 2 + (length - width))
    projections = 6 * (2 * d**2 + 2 * d * 64 * 8 + 3 * d * 8192) * length
    assert paper_block_train_flops(run.model.blocks[0], d, length) == projections + printed


def test_an_intra_blocks_flops_are_those_of_its_attention_and_its_mamba(resolve) -> None:
    run = resolve("scale=1b", "model=intra", "model.ratio=1:0").run
    d, length, d_qk, d_v, d_ssm = 2048, 8192, 1152, 2048, 2304
    attention = d * (d_qk + 4 * 72 + 4 * 128 + d_v)
    mamba = d * (2 * d_ssm + 2 * 128 + 16) + d_ssm * (4 + d) + 2 * 16
    ffn = 3 * d * 8192
    expected = (
        6 * (attention + mamba + ffn) * length
        + 6 * (d_qk + d_v) * length * (length + 1) // 2
        + 3 * length * (9 * d_ssm * 128 + 2 * d_ssm)
    )
    assert paper_block_train_flops(run.model.blocks[0], d, length) == expected


def test_differential_attention_costs_what_attention_does_in_the_papers_convention(resolve) -> None:
    llama, diff = (run_cost(resolve("scale=1b", f"model={model}").run) for model in ("llama", "diff_transformer"))
    assert diff.paper_train_flops == llama.paper_train_flops
    assert diff.paper_cache_bytes == llama.paper_cache_bytes
    assert diff.full_train_flops > llama.full_train_flops


def test_what_the_paper_leaves_out_of_its_count_changes_no_flops(resolve) -> None:
    shape = ("scale=toy", "model=intra", "model.ratio=1:0", "model.intra.output=separate", "model.depth=3")
    plain = run_cost(resolve(*shape, "model.intra.norm=none").run)
    for extra in (["norm=group"], ["scalar=scale"], ["scalar=diff_t"], ["scalar=gate"], ["fusion=add"]):
        with_extra = run_cost(resolve(*shape, *(f"model.intra.{setting}" for setting in extra)).run)
        assert with_extra.paper_train_flops == plain.paper_train_flops
        assert with_extra.paper_non_embedding_params == plain.paper_non_embedding_params


def test_a_window_is_a_whole_sequence_where_that_is_shorter(resolve) -> None:
    run = resolve("scale=toy", "model=llama", "model.depth=1").run
    (block,) = run.model.blocks
    windowed = replace(block, mixer=replace(block.mixer, window=WindowSpec(size=254, sink=2)))
    one, other = (run_cost(replace(run, model=replace(run.model, blocks=(b,)))) for b in (block, windowed))
    assert one == other


def test_tied_blocks_have_parameters_once_and_flops_and_state_every_time(resolve) -> None:
    shape = ("scale=toy", "model=zamba2", "model.depth=12")
    tied, untied = (resolve(*shape, f"model.tied={kinds}").run for kinds in ("[attention]", "[]"))
    attention = next(block for block in untied.model.blocks if isinstance(block.mixer, AttentionSpec))
    one, other = run_cost(tied), run_cost(untied)
    assert layout_of(tied.model).count("A") == 2
    assert other.block_params - one.block_params == block_params(attention, tied.model.d_model)
    assert (one.paper_train_flops, one.full_train_flops) == (other.paper_train_flops, other.full_train_flops)
    assert (one.state_bytes, one.paper_cache_bytes) == (other.state_bytes, other.paper_cache_bytes)


def test_a_block_that_borrows_makes_and_holds_no_keys_and_values(resolve) -> None:
    own, lent = (
        resolve("scale=toy", "model=llama", "model.depth=4", f"model.kv_sharing={group}").run for group in (1, 4)
    )
    a = mixer_of(own)
    made = own.model.d_model * 2 * a.n_kv_heads * a.head_dim
    assert run_cost(own).block_params - run_cost(lent).block_params == 3 * made
    assert run_cost(own).state_bytes == 4 * run_cost(lent).state_bytes
    assert run_cost(own).paper_cache_bytes == 4 * run_cost(lent).paper_cache_bytes
    assert run_cost(own).paper_train_flops - run_cost(lent).paper_train_flops == 6 * 3 * made * own.train_tokens


def test_meta_tokens_are_positions_without_a_head(resolve) -> None:
    run = resolve("scale=toy", "model=inter", "model.meta_tokens=64", "seq_len=192", "batch_tokens=1536").run
    longer = resolve("scale=toy", "model=inter", "seq_len=256").run
    one, other = run_cost(run), run_cost(longer)
    assert one.meta_params == 64 * run.model.d_model
    assert one.total_params - other.total_params == one.meta_params
    assert one.paper_train_flops_per_sample == other.paper_train_flops_per_sample
    assert one.state_bytes == other.state_bytes
    head = 3 * 2 * 64 * run.model.d_model * run.model.vocab_size
    assert one.full_train_flops_per_sample == other.full_train_flops_per_sample - head


def test_each_kind_of_block_has_a_letter_of_its_own(resolve) -> None:
    run = resolve(
        "scale=toy", "model.pattern=A W M I J D E C", "model.ratio=null", "model.placement=null", "model.depth=8"
    ).run
    assert layout_of(run.model) == "AWMIJDEC"


def test_every_cost_is_a_whole_number(resolve) -> None:
    cost = run_cost(resolve("scale=toy", "model=hymba").run)
    assert all(type(getattr(cost, field.name)) is int for field in fields(Cost))


def test_short_convolutions_count_where_the_paper_would(resolve) -> None:
    plain, conv = (
        resolve("scale=toy", "model=llama", "model.depth=1", f"model.attention.qkv_conv={taps}").run
        for taps in ("null", 4)
    )
    a, d = mixer_of(plain), plain.model.d_model
    channels = a.d_qk + 2 * a.n_kv_heads * a.head_dim
    one, other = run_cost(plain), run_cost(conv)
    assert other.paper_non_embedding_params - one.paper_non_embedding_params == 4 * channels
    assert other.block_params - one.block_params == 5 * channels
    assert other.paper_cache_bytes - one.paper_cache_bytes == 2 * 4 * channels
    assert other.state_bytes - one.state_bytes == 2 * 3 * channels
    bare = BlockSpec(mixer=ShortConvSpec(d_conv=4), ffn=None)
    assert (block_params(bare, d), full_block_forward_flops(bare, d, 10)) == (5 * d + d, 10 * 2 * 4 * d)
    assert (paper_block_cache_bytes(bare, d, 10), block_state_bytes(bare, d, 10, 4)) == (2 * 4 * d, 4 * 3 * d)


OUTSIDE = """
from hybrid.outside import OutsideMixer

class Doubled(OutsideMixer):
    name, version, defaults = "doubled_for_cost", 1, {"n": 2}

    def params(self, settings, d_model):
        return settings["n"] * d_model

    def forward_flops(self, settings, d_model, seq_len):
        return 7 * settings["n"] * d_model * seq_len

    def state_bytes(self, settings, d_model, seq_len, element_bytes):
        return 3 * element_bytes * d_model

    def build(self, settings, d_model):
        raise NotImplementedError
"""


def test_an_outside_mixer_costs_what_its_author_says(tmp_path: Path) -> None:
    path = tmp_path / "doubled.py"
    path.write_text(OUTSIDE)
    outside.load([str(path)])
    spec = OutsideSpec(name="doubled_for_cost", version=1, settings=(OutsideSetting(name="n", value="5"),))
    block, d = BlockSpec(mixer=spec, ffn=SwigluSpec(d_ffn=3)), 8
    ffn = 3 * 8 * 3
    assert block_params(block, d) == 5 * d + ffn + 2 * d
    assert full_block_forward_flops(block, d, 10) == 7 * 5 * d * 10 + 2 * ffn * 10
    assert paper_block_train_flops(block, d, 10) == 3 * full_block_forward_flops(block, d, 10)
    assert block_state_bytes(block, d, 10, 2) == paper_block_cache_bytes(block, d, 10) == 3 * 2 * d


def test_a_pattern_with_a_tied_block_is_repeated_until_its_parameters_match() -> None:
    attention = AttentionSpec(n_heads=2, n_kv_heads=2, head_dim=4, rope=None)
    plain = BlockSpec(mixer=attention, ffn=None)
    tied = BlockSpec(mixer=attention, ffn=None, tie="a")
    one = block_params(plain, 8)
    assert matched_repeats([plain, plain], 8, 6 * one) == 6
    assert matched_repeats([plain, tied], 8, 6 * one) == 9
    assert matched_repeats([tied], 8, 6 * one) == 1
