"""Tokens from FLOPs, d_model and d_ffn from parameters; and that cost is a sum of parts, monotone in every size."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.budget import nearest_size, parse_count, tokens_of_flops
from hybrid.config import Resolved
from hybrid.cost import (
    block_params,
    full_train_flops_per_sample,
    paper_block_train_flops,
    paper_train_flops_per_sample,
    run_cost,
)
from hybrid.spec import ConfigError, RunSpec

Resolve = Callable[..., Resolved]

MODELS = ("llama", "mamba", "inter", "intra", "swa", "hymba", "zamba2", "diff_mamba", "nemotron_h")
every_model = pytest.mark.parametrize("model", MODELS)


@given(
    target=st.integers(1, 10**24),
    flops_per_sample=st.integers(1, 10**15),
    seq_len=st.sampled_from([2, 256, 8192]),
    batch=st.integers(1, 512),
)
def test_tokens_of_flops_are_the_nearest_whole_batches(
    target: int, flops_per_sample: int, seq_len: int, batch: int
) -> None:
    batch_tokens = batch * seq_len
    tokens = tokens_of_flops(Fraction(target), flops_per_sample, seq_len, batch_tokens)
    assert tokens % batch_tokens == 0
    exact = Fraction(target * seq_len, flops_per_sample)
    assert abs(tokens - exact) <= Fraction(batch_tokens, 2) + 1


@given(size=st.integers(1, 5000), slope=st.integers(1, 50), offset=st.integers(0, 10**6), target=st.integers(0, 10**6))
@settings(max_examples=200)
def test_the_nearest_size_is_the_nearest_of_all_sizes(size: int, slope: int, offset: int, target: int) -> None:
    step = 8 if size >= 512 else 1
    low, high = max(1, -(-size // (2 * step))), max(1, 2 * size // step)
    sizes = [n * step for n in range(low, high + 1)]

    def params_at(width: int) -> int:
        return offset + slope * width

    found = nearest_size(size, params_at, target)
    assert found in sizes
    assert abs(params_at(found) - target) == min(abs(params_at(width) - target) for width in sizes)


@every_model
@pytest.mark.parametrize("convention", ["paper", "full"])
def test_a_matched_run_spends_what_the_reference_spends_to_half_a_batch(
    resolve: Resolve, model: str, convention: str
) -> None:
    length = 64 if model != "hymba" else 512  # its windows see 128 meta tokens
    common = (f"seq_len={length}", f"batch_tokens={2 * length}", "budget.scale_tokens=1M")
    matched = resolve(f"model={model}", *common, "budget.match=llama", f"budget.convention={convention}")
    llama = resolve("model=llama", *common)
    name = f"{convention}_train_flops_per_sample"
    target = Fraction(getattr(run_cost(llama.run), name) * 1_000_000, length)
    one_batch = 2 * getattr(run_cost(matched.run), name)
    spent = getattr(run_cost(matched.run), f"{convention}_train_flops")
    assert abs(spent - target) <= Fraction(one_batch, 2)
    assert matched.budget is not None
    assert matched.budget.target_flops == round(target)
    assert matched.budget.mismatch == pytest.approx(float(spent / target - 1), abs=1e-12)
    assert (matched.budget.convention, matched.budget.source) == (convention, "llama at 1,000,000 tokens")


def test_a_reference_is_matched_at_its_own_length_and_tokens(resolve: Resolve) -> None:
    matched = resolve("model=mamba", "budget.match=llama", "budget.match_tokens=1M", "budget.match_seq_len=64")
    llama = resolve("model=llama", "seq_len=64")
    assert matched.budget is not None
    assert matched.budget.target_flops == round(Fraction(run_cost(llama.run).paper_train_flops_per_sample * 10**6, 64))


def test_dimensions_of_the_row_are_the_references_too_but_not_its_layout(resolve: Resolve) -> None:
    narrow = resolve("model=inter", "model.ratio=1:1", "model.d_model=32", "budget.match=llama")
    llama = resolve("model=llama", "model.d_model=32")
    assert narrow.budget is not None
    target = Fraction(run_cost(llama.run).paper_train_flops_per_sample * 2_000_000, 256)
    assert narrow.budget.target_flops == round(target)


@pytest.mark.parametrize("spelling", ["4e12", "4000000000000", "4T", "'4 T'", "0.004e15"])
def test_one_budget_is_read_however_it_is_written(resolve: Resolve, spelling: str) -> None:
    assert resolve(f"budget.flops={spelling}").run == resolve("budget.flops=4e12").run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget.flops=1e9"], r"budget.flops = 1e\+09: expected at least one batch of 2048 tokens, 1.351e"),
        (["budget.flops=2e10"], "the nearest whole batches, 1 of 2048 tokens, are -32.5% off"),
        (["budget.flops=4e12", "budget.tokens=1M"], "tokens = 1M, flops = 4.*: expected one of them"),
        (["budget.match=llama", "budget.flops=4e12"], "flops = 4.*, match = llama: expected one of them"),
        (["budget.match=lama"], "budget.match = lama, at scale toy: model=lama: no such choice; did you mean llama"),
        (["budget.match_tokens=1M"], "budget.match_tokens = 1M: expected a budget.match"),
        (["budget.match_seq_len=64"], "budget.match_seq_len = 64: expected a budget.match"),
        (["budget.match=llama", "budget.match_seq_len=1"], "expected at least 2 tokens"),
        (["budget.match=llama", "budget.match_tokens=1000"], "expected at least one batch"),
        (["budget.match=''"], "expected the name of a model= choice"),
        (["budget.match=hymba", "model.d_model=1000000000"], "model.d_model"),
        (["budget.flops='60 Bs'"], "budget.flops = '60 Bs': expected a positive whole number"),
        (["budget.flops=0.5"], "budget.flops = 0.5"),
        (["budget.convention=both"], "one of paper, full"),
        (["budget.max_mismatch=-1", "budget.flops=4e12"], "budget.max_mismatch = -1"),
        (["model.ratio=0:0", "budget.match=llama"], "0:0: nothing of either"),
        (["model.match=width"], "expected a model.depth"),
        (["model.trim_ffn=true", "model.ffn=null", "model.depth=2"], "no ffn to trim"),
        (["model.max_param_mismatch=-1"], "expected a fraction"),
        (["model=mamba", "model.max_param_mismatch=0.01"], "the nearest depth, 12, is -2.5% off"),
        (["model.match=width", "model.depth=2"], r"the nearest d_model, \d+, is -\d+\.\d% off"),
        (["model.trim_ffn=true", "model.depth=2"], r"the nearest d_ffn, \d+, at 2 blocks is -\d+\.\d% off"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_with_what_would_do(
    resolve: Resolve, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(*overrides)


def test_a_reference_that_cannot_exist_at_this_scale_is_named_with_the_scale(resolve: Resolve) -> None:
    with pytest.raises(ConfigError, match=r"budget\.match = samba, at scale toy: model\.max_param_mismatch"):
        resolve("model.depth=2", "model.reference_depth=1", "budget.match=samba")


@pytest.mark.parametrize("value", [1e23, 6e10, 2.5e22])
def test_a_float_is_the_number_that_is_written(value: float) -> None:
    assert parse_count(value, "here") == parse_count(repr(value), "here")


def test_a_mismatch_that_is_allowed_is_kept_and_said(resolve: Resolve) -> None:
    allowed = resolve("budget.flops=2e10", "budget.max_mismatch=0.4")
    assert allowed.budget is not None
    assert allowed.budget.mismatch == pytest.approx(-0.325, abs=0.001)
    assert allowed.run.train_steps == 1


@every_model
@pytest.mark.parametrize("scale", ["toy", "1b"])
def test_trimming_the_ffn_matches_parameters_better_than_depth_alone(resolve: Resolve, model: str, scale: str) -> None:
    depth_only = resolve(f"model={model}", f"scale={scale}")
    trimmed = resolve(f"model={model}", f"scale={scale}", "model.trim_ffn=true", "model.max_param_mismatch=0.01")
    assert depth_only.param_mismatch is not None
    assert trimmed.param_mismatch is not None
    assert abs(trimmed.param_mismatch) <= abs(depth_only.param_mismatch)
    assert abs(trimmed.param_mismatch) < (0.002 if scale == "1b" else 0.01)
    assert len(trimmed.run.model.blocks) == len(depth_only.run.model.blocks)


@pytest.mark.parametrize("depth", [10, 14, 20])
def test_a_given_depth_is_matched_in_width(resolve: Resolve, depth: int) -> None:
    found = resolve("model=inter", "scale=1b", f"model.depth={depth}", "model.match=width")
    llama = resolve("model=llama", "scale=1b").run.model
    reference = 16 * block_params(llama.blocks[0], 2048)
    own = sum(block_params(block, found.run.model.d_model) for block in found.run.model.blocks)
    assert len(found.run.model.blocks) == depth
    assert found.run.model.d_model % 8 == 0
    assert found.param_mismatch == pytest.approx(own / reference - 1)
    assert abs(found.param_mismatch) < 0.003


def test_what_is_matched_leaves_the_layout_and_the_mixers_as_they_are(resolve: Resolve) -> None:
    plain = resolve("model=inter").run.model.blocks
    trimmed = resolve("model=inter", "model.trim_ffn=true").run.model.blocks
    assert [block.mixer for block in plain] == [block.mixer for block in trimmed]
    assert plain != trimmed


@every_model
def test_a_models_cost_is_the_sum_of_its_blocks(resolve: Resolve, model: str) -> None:
    run = resolve(f"model={model}").run
    positions = run.seq_len + run.model.meta_tokens
    blocks = sum(paper_block_train_flops(block, run.model.d_model, positions) for block in run.model.blocks)
    assert paper_train_flops_per_sample(run.model, run.seq_len) == blocks
    cost = run_cost(run)
    assert cost.paper_train_flops == cost.train_samples * cost.paper_train_flops_per_sample
    assert cost.full_train_flops == cost.train_samples * cost.full_train_flops_per_sample


@every_model
def test_cost_grows_with_depth_width_length_and_tokens(resolve: Resolve, model: str) -> None:
    run = resolve(f"model={model}").run
    deeper = dataclasses.replace(run.model, blocks=(*run.model.blocks, run.model.blocks[-1]))
    wider = dataclasses.replace(run.model, d_model=run.model.d_model + 8)
    for per_sample in (paper_train_flops_per_sample, full_train_flops_per_sample):
        here = per_sample(run.model, run.seq_len)
        assert per_sample(deeper, run.seq_len) > here
        assert per_sample(wider, run.seq_len) > here
        assert per_sample(run.model, run.seq_len + 1) > here
        assert _flops_of(run, run.train_tokens + run.batch_tokens) > _flops_of(run, run.train_tokens)


def _flops_of(run: RunSpec, tokens: int) -> int:
    return run_cost(dataclasses.replace(run, train_tokens=tokens)).paper_train_flops
