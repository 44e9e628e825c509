"""Rooflines of training, prefill and decoding, beside counts by hand of a model small enough for it."""

from collections.abc import Callable
from dataclasses import replace

from hybrid.config import Resolved
from hybrid.cost import full_forward_flops, full_train_flops_per_sample, run_cost
from hybrid.decode_cost import H100_SXM, decode_cost
from hybrid.roofline import Peaks, Work, decode_work, prefill_work, train_work
from hybrid.spec import AttentionSpec, BlockSpec, Mamba2Spec, ModelSpec, SwigluSpec

ATTENTION = AttentionSpec(n_heads=2, n_kv_heads=1, head_dim=4, rope=None)
MAMBA = Mamba2Spec(
    d_ssm=16,
    head_dim=4,
    d_state=3,
    n_groups=1,
    d_conv=4,
    a_init_min=0.01,
    a_init_max=2.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
)
MODEL = ModelSpec(
    d_model=8,
    vocab_size=32,
    tie_embeddings=True,
    norm_eps=1e-5,
    init_std=0.02,
    blocks=tuple(BlockSpec(mixer=mixer, ffn=SwigluSpec(d_ffn=24)) for mixer in (ATTENTION, MAMBA)),
)
QKV, OUT, FFN = 8 * (8 + 4 + 4), 8 * 8, 3 * 8 * 24
IN_PROJ, CONVOLVED, SSM_OUT = 8 * (16 + 16 + 3 + 3 + 4), 16 + 3 + 3, 16 * 8
# Two norms a block, the gated norm, convolution weights and biases; dt_bias, A and D of 4 heads.
BLOCKS = QKV + OUT + IN_PROJ + SSM_OUT + 2 * FFN + 4 * 8 + 16 + 5 * CONVOLVED + 3 * 4
MATRICES = QKV + OUT + IN_PROJ + SSM_OUT + 2 * FFN


def test_reading_a_prompt_is_counted_as_by_hand() -> None:
    batch, length = 3, 20
    attention = 2 * length * length * (8 + 8)
    # One chunk, from a state of zero: C B^T, and its product with the inputs.
    scan = length * 2 * length * (3 + 16)
    head = 2 * 8 * 32
    work = prefill_work(MODEL, batch=batch, length=length, element_bytes=2)
    assert work.full_flops == batch * (length * 2 * (MATRICES + 4 * CONVOLVED) + attention + scan + head)
    states = 2 * (4 + 4) * length + 2 * 3 * CONVOLVED + 4 * 16 * 3  # keys and values; inputs; float32
    weights = 2 * (BLOCKS + 8 + 8 * 32)
    rows = 2 * 8 * 32  # 60 tokens of a vocabulary of 32
    assert work.moved_bytes == weights + rows + batch * states


def test_a_step_of_decoding_is_counted_as_by_hand() -> None:
    batch, length = 3, 20
    head, scan, attention = 2 * 8 * 32, 4 * 16 * 3, 2 * length * (8 + 8)
    work = decode_work(MODEL, batch=batch, length=length, element_bytes=2)
    assert work.full_flops == batch * (2 * (MATRICES + 4 * CONVOLVED) + head + scan + attention)
    keys_and_values = 2 * (4 + 4) * (length + 1)
    states = 2 * (2 * 3 * CONVOLVED + 4 * 16 * 3)
    assert work.moved_bytes == 2 * (BLOCKS + 8 + 8 * 32 + batch * 8) + batch * (keys_and_values + states)
    cost = decode_cost(MODEL, batch=batch, length=length, element_bytes=2)
    assert (work.full_flops, work.moved_bytes) == (cost.full_flops, cost.moved_bytes)


def test_a_training_step_is_three_forwards_and_so_many_passes_over_the_weights(
    resolve: Callable[..., Resolved],
) -> None:
    run = replace(resolve("seq_len=32", "batch_tokens=256").run, model=MODEL)
    params = BLOCKS + 8 + 8 * 32
    assert run_cost(run).total_params == params
    whole = train_work(run, None)
    assert whole.full_flops == 3 * 8 * full_forward_flops(MODEL, 32) == 8 * full_train_flops_per_sample(MODEL, 32)
    # Read in forward and backward, a gradient written; AdamW: four read, three written.
    assert whole.moved_bytes == 4 * params * (2 + 1 + 7)
    # Four microbatches: each reads the weights twice and writes gradients; all but the first read them too.
    assert train_work(run, 2).moved_bytes == 4 * params * (4 * 2 + 4 + 3 + 7)
    assert train_work(run, 3).moved_bytes == 4 * params * (3 * 2 + 3 + 2 + 7)
    assert train_work(run, 8) == whole


def test_a_roofline_is_the_larger_of_two_times() -> None:
    peaks = Peaks(flops_per_s=100.0, bytes_per_s=10.0, source="by hand")
    assert Work(full_flops=500, moved_bytes=20).roofline(peaks).time_s == 5.0
    assert Work(full_flops=500, moved_bytes=80).roofline(peaks).time_s == 8.0
    published = Peaks.published(H100_SXM)
    assert (published.flops_per_s, published.bytes_per_s) == (989.4e12, 3.35e12)
    assert "H100" in published.source
