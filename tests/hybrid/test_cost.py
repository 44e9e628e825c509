import pytest

from hybrid.cost import layout_of, run_cost
from hybrid.layout import compact

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
