"""Properties of the memory formulas. What they say of our modules is tested in test_memory_of_modules.py."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest

from hybrid import outside
from hybrid.config import read_config
from hybrid.cost import run_cost
from hybrid.memory import Memory, checkpoint_bytes, final_weights_bytes, train_memory
from hybrid.spec import BlockSpec, ExecSpec, OutsideSetting, OutsideSpec, RunSpec, ShortConvSpec, StdlibSpec, SwigluSpec
from sweeps.compose import Composer

REPO = Path(__file__).resolve().parent.parent.parent
SCALES = sorted(path.stem for path in (REPO / "conf" / "scale").glob("*.yaml"))
MODELS = sorted(path.stem for path in (REPO / "conf" / "model").glob("*.yaml"))
every_model = pytest.mark.parametrize("model", MODELS)

TEXT = StdlibSpec(fingerprint="0" * 16, val_percent=5.0)
"""Of which all positions are scored."""

Preset = Callable[..., tuple[RunSpec, ExecSpec]]


@pytest.fixture(scope="module")
def preset() -> Iterator[Preset]:
    """A shipped model at a shipped scale with further settings, composed once."""
    with Composer() as composer:

        @cache
        def composed(scale: str, model: str, *overrides: str) -> tuple[RunSpec, ExecSpec]:
            config = composer.compose([f"scale={scale}", f"model={model}", *overrides])
            resolved = read_config(config, stdlib_fingerprint=lambda: "0" * 16)
            return resolved.run, resolved.execution

        yield composed


def parts(memory: Memory) -> list[int]:
    return [getattr(memory, field.name) for field in fields(memory) if field.name != "total_bytes"]


def with_blocks(run: RunSpec, *blocks: BlockSpec) -> RunSpec:
    return replace(run, model=replace(run.model, blocks=blocks))


# --- parts and their sum ------------------------------------------------------------------------


@every_model
def test_the_peak_is_at_most_the_sum_of_its_parts_and_at_least_what_is_always_there(preset: Preset, model: str) -> None:
    for scale in SCALES:
        run, execution = preset(scale, model)
        memory = train_memory(run, execution)
        params = run_cost(run).total_params
        assert memory.total_bytes <= sum(parts(memory))
        assert memory.total_bytes >= 16 * params
        assert memory.optimizer_bytes == 8 * params
        assert memory.weights_bytes >= 4 * params
        assert memory.gradient_bytes >= 4 * params


def test_autocast_has_halves_of_the_matrices_beside_the_weights(preset: Preset) -> None:
    run, execution = preset("1b", "llama")
    cost = run_cost(run)
    vectors = (2 * len(run.model.blocks) + 1) * run.model.d_model
    half, full = (train_memory(replace(run, dtype=dtype), execution) for dtype in ("bfloat16", "float32"))
    assert full.weights_bytes == 4 * cost.total_params
    assert half.weights_bytes - full.weights_bytes == 2 * (cost.total_params - vectors)


def test_logits_of_8k_by_128k_are_three_times_4_2_gb_a_sample(preset: Preset) -> None:
    run, execution = preset("1b", "llama")
    one, two = (train_memory(run, replace(execution, microbatch=size)).logits_bytes for size in (1, 2))
    assert one == 3 * 4 * 8192 * 128256
    assert one / 3 == pytest.approx(4.2e9, rel=0.01)
    assert two == 2 * one


def test_of_recall_only_the_logits_of_its_queries_are_made(preset: Preset) -> None:
    run, execution = preset("toy", "llama", "data=recall", "data.n_pairs=7")
    recall, text = (
        train_memory(replace(run, data=data), execution).logits_bytes
        for data in (run.data, preset("toy", "llama")[0].data)
    )
    # In training, where a position's logits are three arrays; text is validated in larger batches.
    assert recall == max(3 * run.batch_size, 2 * 16384 // run.seq_len) * 7 * 4 * run.model.vocab_size
    assert text == max(3 * run.batch_tokens, 2 * 16384) * 4 * run.model.vocab_size


@every_model
def test_what_blocks_keep_adds_up_whatever_their_order(preset: Preset, model: str) -> None:
    """Where the loss of a batch is the peak, a block adds what it keeps, and three floats a parameter."""
    run, execution = preset("toy", model, "model.vocab_size=16384", "data=recall", "batch_tokens=1024")
    run, execution = replace(run, data=TEXT), replace(execution, microbatch=run.batch_size)
    plain = BlockSpec(mixer=ShortConvSpec(d_conv=4), ffn=SwigluSpec(d_ffn=64))
    blocks = [replace(block, tie=None) for block in (run.model.blocks[0], run.model.blocks[-1], plain)]

    def total(*more: BlockSpec) -> int:
        return train_memory(with_blocks(run, *more, *blocks), execution).total_bytes

    first, second, third = blocks
    added = [total(block) - total() for block in blocks]
    assert all(more > 0 for more in added)
    assert total(first, second, third) == total(third, first, second) == total() + sum(added)


def test_tied_blocks_have_their_weights_once_and_their_activations_every_time(preset: Preset) -> None:
    run, execution = preset("toy", "zamba2")
    tied = [block for block in run.model.blocks if block.tie is not None]
    assert len(tied) > 1
    untied = replace(run, model=replace(run.model, blocks=tuple(replace(b, tie=None) for b in run.model.blocks)))
    one, several = train_memory(run, execution), train_memory(untied, execution)
    assert one.optimizer_bytes < several.optimizer_bytes
    assert one.activation_bytes == several.activation_bytes


# --- what changes it ----------------------------------------------------------------------------


@every_model
def test_activation_checkpointing_never_needs_more(preset: Preset, model: str) -> None:
    for scale in SCALES:
        run, execution = preset(scale, model)
        for dtype in ("float32", "bfloat16"):
            for microbatch in (1, None) if scale == "toy" else (1,):
                with_it, without = (
                    train_memory(
                        replace(run, dtype=dtype),
                        replace(execution, microbatch=microbatch, activation_checkpointing=checkpointing),
                    )
                    for checkpointing in (True, False)
                )
                assert with_it.total_bytes <= without.total_bytes
                assert with_it.activation_bytes < without.activation_bytes


@every_model
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_memory_grows_with_length_and_microbatch(preset: Preset, model: str, checkpointing: bool) -> None:
    for scale in ("toy", "1b"):
        run, execution = preset(scale, model)
        execution = replace(execution, microbatch=1, activation_checkpointing=checkpointing)
        by_length = [
            train_memory(replace(run, seq_len=length, batch_tokens=64 * length), execution)
            for length in (256, 512, 1024, 8192)
        ]
        by_microbatch = [
            train_memory(replace(run, seq_len=512, batch_tokens=64 * 512), replace(execution, microbatch=size))
            for size in (1, 2, 3, 8)
        ]
        for memories in (by_length, by_microbatch):
            assert is_growing([memory.total_bytes for memory in memories])
            assert is_growing([memory.activation_bytes for memory in memories])
            assert is_growing([memory.logits_bytes for memory in memories])


def is_growing(numbers: list[int]) -> bool:
    return all(small < large for small, large in itertools.pairwise(numbers))


@every_model
def test_memory_grows_with_depth(preset: Preset, model: str) -> None:
    run, execution = preset("1b", model)
    deeper = with_blocks(run, *run.model.blocks, *run.model.blocks)
    for checkpointing in (False, True):
        execution = replace(execution, activation_checkpointing=checkpointing)
        small, large = train_memory(run, execution), train_memory(deeper, execution)
        assert small.total_bytes < large.total_bytes
        assert small.activation_bytes < large.activation_bytes


@every_model
def test_memory_grows_with_width_and_vocabulary(preset: Preset, model: str) -> None:
    run, execution = preset("1b", model)
    wider = replace(run, model=replace(run.model, d_model=2 * run.model.d_model))
    more_words = replace(run, model=replace(run.model, vocab_size=2 * run.model.vocab_size))
    total = train_memory(run, execution).total_bytes
    assert total < train_memory(wider, execution).total_bytes
    assert total < train_memory(more_words, execution).total_bytes


def test_several_microbatches_have_the_sum_of_gradients_beside_each(preset: Preset) -> None:
    run, execution = preset("toy", "llama")
    one, more = (
        train_memory(replace(run, batch_tokens=n * run.seq_len), replace(execution, microbatch=1)) for n in (1, 2)
    )
    assert one.activation_bytes == more.activation_bytes
    assert one.gradient_bytes < more.gradient_bytes


@pytest.mark.parametrize("model", ["llama", "diff_transformer", "swa"])
def test_no_scores_are_kept_but_where_pytorch_has_no_kernel(preset: Preset, model: str) -> None:
    run, execution = preset("1b", model)
    for kernels, dtype, quadratic in (
        ("auto", "bfloat16", False),
        ("torch", "bfloat16", False),
        ("auto", "float32", model != "diff_transformer"),  # groups of heads in float32
    ):
        short, long = (
            train_memory(
                replace(run, dtype=dtype, seq_len=length, batch_tokens=4 * length), replace(execution, kernels=kernels)
            ).activation_bytes
            for length in (8192, 32768)
        )
        assert (long > 8 * short) == quadratic, (kernels, dtype)


def test_a_mixer_from_a_users_file_is_taken_for_projections_of_as_many_parameters(preset: Preset) -> None:
    outside.load([str(REPO / "tests" / "outside" / "moving_average.py")])
    run, execution = preset("toy", "llama")

    def with_width(d_inner: int) -> Memory:
        settings = (OutsideSetting(name="d_inner", value=str(d_inner)),)
        block = BlockSpec(mixer=OutsideSpec(name="moving_average", version=1, settings=settings), ffn=None)
        return train_memory(with_blocks(run, block, block), execution)

    assert with_width(64).activation_bytes < with_width(256).activation_bytes
    assert with_width(64).total_bytes < with_width(256).total_bytes


# --- files --------------------------------------------------------------------------------------


@every_model
def test_a_checkpoint_is_three_times_the_weights_and_a_little(preset: Preset, model: str) -> None:
    for scale in SCALES:
        run, _ = preset(scale, model)
        params = run_cost(run).total_params
        assert 12 * params < checkpoint_bytes(run) < 12 * params + 500_000
        assert 4 * params < final_weights_bytes(run) < 4 * params + 100_000
