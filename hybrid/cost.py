"""What a spec costs: parameters, floating-point operations, state bytes; from formulas, without torch.

Two conventions, never added or compared:

* **paper**: the formulas printed in arXiv 2510.04800 (Table 1 and appendix C). Embedding and head excluded, causal
  pairs only, recurrent scan count, norms, biases and short-convolution arithmetic left out. Budgets and tables use it.
* **full**: the matrix products and convolutions that the reference code executes, head included: attention over all
  seq_len x seq_len pairs (no causal discount), the chunked SSD at `FULL_SSD_CHUNK`. Elementwise work, norms,
  softmax and the optimiser are not counted. MFU uses it.

One multiply-add is two operations; training is three times forward in both. All results are exact integers.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

from hybrid.layout import ATTENTION, MAMBA
from hybrid.spec import AttentionSpec, BlockSpec, FfnSpec, Mamba2Spec, MixerSpec, ModelSpec, RunSpec, SwigluSpec

FULL_SSD_CHUNK = 64
_BF16_BYTES = 2
_FP32_BYTES = 4


def letter(mixer: MixerSpec) -> str:
    """The letter that stands for this mixer in a layout."""
    match mixer:
        case AttentionSpec():
            return ATTENTION
        case Mamba2Spec():
            return MAMBA
        case _ as never:
            assert_never(never)


def layout_of(model: ModelSpec) -> str:
    """The model's layout, one letter a block."""
    return "".join(letter(block.mixer) for block in model.blocks)


# --- parameters ---------------------------------------------------------------------------------


def mixer_params(mixer: MixerSpec, d_model: int) -> int:
    """Every parameter of the mixer's module, without the block's norm."""
    match mixer:
        case AttentionSpec():
            return d_model * mixer.head_dim * (2 * mixer.n_heads + 2 * mixer.n_kv_heads)
        case Mamba2Spec():
            d_conv_in = mixer.d_ssm + 2 * mixer.n_groups * mixer.d_state
            in_proj = d_model * (mixer.d_ssm + d_conv_in + mixer.n_heads)
            conv = d_conv_in * (mixer.d_conv + 1)
            per_head = 3 * mixer.n_heads  # A_log, D, dt_bias
            norm = mixer.d_ssm
            return in_proj + conv + per_head + norm + mixer.d_ssm * d_model
        case _ as never:
            assert_never(never)


def ffn_params(ffn: FfnSpec | None, d_model: int) -> int:
    """Every parameter of the feed-forward network, without the block's norm; 0 where there is none."""
    match ffn:
        case None:
            return 0
        case SwigluSpec():
            return 3 * d_model * ffn.d_ffn
        case _ as never:
            assert_never(never)


@lru_cache(maxsize=4096)
def block_params(block: BlockSpec, d_model: int) -> int:
    """Every parameter of the block, its norms included."""
    norms = d_model * (1 if block.ffn is None else 2)
    return mixer_params(block.mixer, d_model) + ffn_params(block.ffn, d_model) + norms


@lru_cache(maxsize=4096)
def paper_block_params(block: BlockSpec, d_model: int) -> int:
    """The paper's count: no norms, no convolution bias, the convolution over d_ssm channels only.

    The Mamba formula is the printed one with its misprint put right (d_ssm for d_state in its second term).
    """
    match block.mixer:
        case AttentionSpec() as a:
            mixer = mixer_params(a, d_model)
        case Mamba2Spec() as m:
            mixer = (
                d_model * (2 * m.d_ssm + 2 * m.n_groups * m.d_state + m.n_heads)
                + m.d_ssm * (m.d_conv + d_model)
                + 2 * m.n_heads
            )
        case _ as never:
            assert_never(never)
    return mixer + ffn_params(block.ffn, d_model)


# --- floating-point operations ------------------------------------------------------------------


@lru_cache(maxsize=4096)
def paper_block_train_flops(block: BlockSpec, d_model: int, seq_len: int) -> int:
    """Forward and backward of one sample of `seq_len` tokens, in the paper's convention."""
    match block.mixer:
        case AttentionSpec() as a:
            # 12 d L (L + 1) / 2
            pairs = 6 * a.n_heads * a.head_dim * seq_len * (seq_len + 1)
        case Mamba2Spec() as m:
            pairs = 3 * seq_len * (9 * m.d_ssm * m.d_state + 2 * m.d_ssm)
        case _ as never:
            assert_never(never)
    return 6 * paper_block_params(block, d_model) * seq_len + pairs


@lru_cache(maxsize=4096)
def full_block_forward_flops(block: BlockSpec, d_model: int, seq_len: int) -> int:
    """Forward of one sample of `seq_len` tokens, in the full convention.

    The SSD works in chunks of Q = min(FULL_SSD_CHUNK, seq_len): scores C B^T once a group, their
    product with the inputs, and, where there are several chunks, their states and the output from the carried state.
    Exact where Q divides seq_len.
    """
    match block.mixer:
        case AttentionSpec() as a:
            mixer = 2 * mixer_params(a, d_model) + 4 * seq_len * a.n_heads * a.head_dim
        case Mamba2Spec() as m:
            chunk = min(FULL_SSD_CHUNK, seq_len)
            d_conv_in = m.d_ssm + 2 * m.n_groups * m.d_state
            projections = 2 * d_model * (2 * m.d_ssm + d_conv_in + m.n_heads)
            convolution = 2 * m.d_conv * d_conv_in
            carried = 4 * m.d_ssm * m.d_state if seq_len > chunk else 0
            scan = 2 * chunk * (m.n_groups * m.d_state + m.d_ssm) + carried
            mixer = projections + convolution + scan
        case _ as never:
            assert_never(never)
    return seq_len * (mixer + 2 * ffn_params(block.ffn, d_model))


# --- state --------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def paper_block_cache_bytes(block: BlockSpec, seq_len: int) -> int:
    """Decoding cache of one sequence in bf16, as the paper prints it."""
    match block.mixer:
        case AttentionSpec() as a:
            return 2 * _BF16_BYTES * a.head_dim * a.n_kv_heads * seq_len
        case Mamba2Spec() as m:
            return _BF16_BYTES * (m.d_ssm * m.d_state + m.d_conv * (2 * m.n_groups * m.d_state + m.d_ssm))
        case _ as never:
            assert_never(never)


@lru_cache(maxsize=4096)
def block_state_bytes(block: BlockSpec, seq_len: int, element_bytes: int) -> int:
    """Bytes that our module holds to decode one sequence up to `seq_len` tokens.

    Keys, values and the convolution's last d_conv - 1 inputs in the model's dtype (`element_bytes` each); the SSM
    state in fp32 (fp64 in a float64 model).
    """
    match block.mixer:
        case AttentionSpec() as a:
            return 2 * element_bytes * a.head_dim * a.n_kv_heads * seq_len
        case Mamba2Spec() as m:
            convolution = element_bytes * (m.d_conv - 1) * (m.d_ssm + 2 * m.n_groups * m.d_state)
            return convolution + max(element_bytes, _FP32_BYTES) * m.d_ssm * m.d_state
        case _ as never:
            assert_never(never)


# --- a whole model, a whole run -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run costs. `*_flops_per_sample` are for one sequence of the run's seq_len."""

    embedding_params: int
    head_params: int
    block_params: int
    norm_params: int
    total_params: int
    non_embedding_params: int
    paper_non_embedding_params: int
    paper_train_flops_per_sample: int
    full_train_flops_per_sample: int
    train_samples: int
    paper_train_flops: int
    full_train_flops: int
    paper_cache_bytes: int
    state_bytes: int


def non_embedding_params(blocks: tuple[BlockSpec, ...], d_model: int) -> int:
    """Parameters of the blocks and the final norm: everything but embedding and head."""
    return sum(block_params(block, d_model) for block in blocks) + d_model


def run_cost(run: RunSpec) -> Cost:
    """The cost of a run, both conventions side by side. State bytes are for one sequence of seq_len in bf16."""
    model, length = run.model, run.seq_len
    embedding = model.vocab_size * model.d_model
    head = 0 if model.tie_embeddings else embedding
    blocks = sum(block_params(block, model.d_model) for block in model.blocks)
    paper_sample = sum(paper_block_train_flops(block, model.d_model, length) for block in model.blocks)
    full_forward = sum(full_block_forward_flops(block, model.d_model, length) for block in model.blocks)
    full_sample = 3 * (full_forward + 2 * length * model.d_model * model.vocab_size)
    samples = run.train_tokens // length
    return Cost(
        embedding_params=embedding,
        head_params=head,
        block_params=blocks,
        norm_params=model.d_model,
        total_params=embedding + head + blocks + model.d_model,
        non_embedding_params=blocks + model.d_model,
        paper_non_embedding_params=sum(paper_block_params(block, model.d_model) for block in model.blocks),
        paper_train_flops_per_sample=paper_sample,
        full_train_flops_per_sample=full_sample,
        train_samples=samples,
        paper_train_flops=samples * paper_sample,
        full_train_flops=samples * full_sample,
        paper_cache_bytes=sum(paper_block_cache_bytes(block, length) for block in model.blocks),
        state_bytes=sum(block_state_bytes(block, length, _BF16_BYTES) for block in model.blocks),
    )
