"""What a spec costs: parameters, floating-point operations, state bytes; from formulas, without torch.

Two conventions, never added or compared:

* **paper**: the formulas printed in arXiv 2510.04800 (Table 1 and appendix C). Embedding and head excluded, causal
  pairs only, recurrent scan count, norms, biases and short-convolution arithmetic left out. Budgets and tables use it.
* **full**: the matrix products and convolutions that the reference code executes, head included: attention over all
  seq_len x seq_len pairs (no causal discount), a window over blocks of keys (`Softmax.full_keys`), each as through
  PyTorch's own attention, whatever kernel is in use; the chunked SSD at `FULL_SSD_CHUNK`. Elementwise work, norms,
  softmax and the optimiser are not counted. MFU uses it.

Where the paper has no formula, its spirit decides. Its parameter count takes the projections of a variant, and leaves
out scale vectors, lambdas, gates, routers and meta tokens as it leaves out norms; short convolutions on q, k, v count
without their bias. Differential attention costs two maps of scores and one product with the values, as its authors
count. Of experts, parameters count all and FLOPs those that a token is sent to. Tied blocks count their parameters once
and their FLOPs and state every time. An outside mixer counts what its author says.

Meta tokens are positions like others, except that the head does not see them. One multiply-add is two operations;
training is three times forward in both. All results are exact integers. What decoding costs is in `decode_cost.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

from hybrid import outside
from hybrid.layout import LETTERS
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    DiffAttentionSpec,
    DiffMambaSpec,
    FfnSpec,
    IntraSpec,
    Mamba2Spec,
    MixerSpec,
    ModelSpec,
    MoeSpec,
    OutsideSpec,
    Relu2Spec,
    RunSpec,
    ShortConvSpec,
    SwigluSpec,
    WindowSpec,
)

FULL_SSD_CHUNK = 64
_BF16_BYTES = 2
_FP32_BYTES = 4


def letter(mixer: MixerSpec) -> str:
    """The letter that stands for this mixer in a layout."""
    match mixer:
        case AttentionSpec():
            return LETTERS["attention" if mixer.window is None else "window"]
        case Mamba2Spec():
            return LETTERS["mamba"]
        case IntraSpec():
            return LETTERS["intra" if mixer.attention.window is None else "window_intra"]
        case DiffAttentionSpec():
            return LETTERS["diff_attention"]
        case DiffMambaSpec():
            return LETTERS["diff_mamba"]
        case ShortConvSpec():
            return LETTERS["short_conv"]
        case OutsideSpec():
            return LETTERS["outside"]
        case _ as never:
            assert_never(never)


def layout_of(model: ModelSpec) -> str:
    """The model's layout, one letter a block; among blocks with an ffn, those without one in lower case."""
    bare = {block.ffn is None for block in model.blocks}
    return "".join(
        letter(block.mixer).lower() if block.ffn is None and len(bare) > 1 else letter(block.mixer)
        for block in model.blocks
    )


# --- what a mixer is made of --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """Softmax attention: for every pair of positions, d_qk multiply-adds for its scores and d_v for its values.

    `full_d_v` is d_v as the reference code executes it, `d_kv` the width of the keys and values that a query reads,
    `borrowed` whether another block holds them.
    """

    d_qk: int
    d_v: int
    full_d_v: int
    d_kv: int
    window: WindowSpec | None
    borrowed: bool

    def visible(self, length: int) -> int:
        """Keys that the last of `length` positions sees: also what a static cache holds."""
        return length if self.window is None else min(length, self.window.size + self.window.sink)

    def causal_pairs(self, length: int) -> int:
        """Pairs of a query and a key that it sees: L (L + 1) / 2, and W (W + 1) / 2 + W (L - W) for a width of W."""
        width = self.visible(length)
        return width * (width + 1) // 2 + width * (length - width)

    def full_keys(self, length: int) -> int:
        """Keys that each query is multiplied with in the full convention.

        All of them, masked; with a window the sink, the block of `size` keys before the query's own and that block
        itself, or all where those are fewer. Exact where `size` divides the length, or nothing is cut into blocks.
        """
        return length if self.window is None else min(length, self.window.sink + 2 * self.window.size)


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A causal depthwise convolution with a bias."""

    channels: int
    taps: int


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One layer's token mixing as a sum of parts, from which every cost follows.

    `matrices` are the elements of its projections, each multiplied with every token once; `vectors` its parameters
    outside projections and convolutions; `paper_params` those of all that the paper's formulas count.
    """

    matrices: int
    vectors: int
    paper_params: int
    softmaxes: tuple[Softmax, ...] = ()
    convolutions: tuple[Convolution, ...] = ()
    scans: tuple[Mamba2Spec, ...] = ()


InsideSpec = AttentionSpec | Mamba2Spec | DiffAttentionSpec | DiffMambaSpec | IntraSpec | ShortConvSpec


@lru_cache(maxsize=4096)
def parts(mixer: InsideSpec, d_model: int) -> Parts:
    """What the mixer's module is made of."""
    match mixer:
        case AttentionSpec():
            return _attention(mixer, d_model, output=True)
        case Mamba2Spec():
            return _mamba(mixer, d_model, output=True, own_values=True)
        case DiffAttentionSpec():
            return _diff_attention(mixer, d_model)
        case DiffMambaSpec():
            one = _mamba(mixer.mamba, d_model, output=True, own_values=True)
            return _sum(one, one, vectors=d_model * (2 if mixer.norm == "output" else 1))
        case IntraSpec():
            return _intra(mixer, d_model)
        case ShortConvSpec():
            convolution = Convolution(channels=d_model, taps=mixer.d_conv)
            return Parts(matrices=0, vectors=0, paper_params=d_model * mixer.d_conv, convolutions=(convolution,))
        case _ as never:
            assert_never(never)


def _sum(*terms: Parts, matrices: int = 0, vectors: int = 0, paper_params: int = 0) -> Parts:
    return Parts(
        matrices=matrices + sum(term.matrices for term in terms),
        vectors=vectors + sum(term.vectors for term in terms),
        paper_params=paper_params + sum(term.paper_params for term in terms),
        softmaxes=tuple(softmax for term in terms for softmax in term.softmaxes),
        convolutions=tuple(convolution for term in terms for convolution in term.convolutions),
        scans=tuple(scan for term in terms for scan in term.scans),
    )


def _attention(a: AttentionSpec, d_model: int, *, output: bool) -> Parts:
    d_kv = a.n_kv_heads * a.head_dim + a.n_v_heads * a.v_head_dim
    made = a.d_qk + (0 if a.borrows_kv else d_kv)
    matrices = d_model * (made + (a.d_v if output else 0))
    taps = a.qkv_conv
    return Parts(
        matrices=matrices,
        vectors=0,
        paper_params=matrices + (0 if taps is None else taps * made),
        softmaxes=(Softmax(d_qk=a.d_qk, d_v=a.d_v, full_d_v=a.d_v, d_kv=d_kv, window=a.window, borrowed=a.borrows_kv),),
        convolutions=() if taps is None else (Convolution(channels=made, taps=taps),),
    )


def _diff_attention(a: DiffAttentionSpec, d_model: int) -> Parts:
    # Two queries and two keys of head_dim a head, one value of twice that.
    d_q, d_kv = 2 * a.n_heads * a.head_dim, 4 * a.n_kv_heads * a.head_dim
    matrices = d_model * (2 * d_q + d_kv)
    lambdas, norm = 4 * a.head_dim, 2 * a.head_dim if a.norm == "head" else 0
    # Through PyTorch's attention each of the two maps is multiplied with the values.
    softmax = Softmax(d_qk=d_q, d_v=d_q, full_d_v=2 * d_q, d_kv=d_kv, window=None, borrowed=False)
    return Parts(matrices=matrices, vectors=lambdas + norm, paper_params=matrices, softmaxes=(softmax,))


def _mamba(m: Mamba2Spec, d_model: int, *, output: bool, own_values: bool) -> Parts:
    """The printed formula has a misprint, d_state for d_ssm in its second term; here it is put right."""
    channels = m.d_ssm + 2 * m.n_groups * m.d_state
    d_projected = m.d_ssm + channels + m.n_heads - (0 if own_values else m.d_ssm)
    matrices = d_model * (d_projected + (m.d_ssm if output else 0))
    return Parts(
        matrices=matrices,
        vectors=3 * m.n_heads + (0 if m.gate_norm == "none" else m.d_ssm),  # A_log, D, dt_bias, norm
        paper_params=matrices + m.d_ssm * m.d_conv + 2 * m.n_heads,
        convolutions=(Convolution(channels=channels, taps=m.d_conv),),
        scans=(m,),
    )


def _intra(i: IntraSpec, d_model: int) -> Parts:
    d_attention, d_ssm = i.attention.d_v, i.mamba.d_ssm
    joint = i.output == "joint" and i.fusion != "concat"
    outputs = d_model * (d_ssm if joint else d_ssm + d_attention)
    vectors = d_attention + d_ssm if i.norm == "group" else 0
    gate = 0
    match i.scalar:
        case "none":
            pass
        case "scale":
            vectors += d_attention + d_ssm
        case "diff_t":
            vectors += 4 * i.attention.head_dim
        case "gate":
            gate = d_model
        case _ as never:
            assert_never(never)
    return _sum(
        _attention(i.attention, d_model, output=False),
        _mamba(i.mamba, d_model, output=False, own_values=i.value == "separate"),
        matrices=outputs + gate,
        vectors=vectors,
        paper_params=outputs,
    )


# --- parameters ---------------------------------------------------------------------------------


def mixer_params(mixer: MixerSpec, d_model: int) -> int:
    """Every parameter of the mixer's module, without the block's norm."""
    if isinstance(mixer, OutsideSpec):
        return outside.params(mixer, d_model)
    p = parts(mixer, d_model)
    return p.matrices + p.vectors + sum(c.channels * (c.taps + 1) for c in p.convolutions)


def expert_params(moe: MoeSpec, d_model: int) -> int:
    """The parameters of one expert."""
    return 3 * d_model * moe.d_ffn


def ffn_params(ffn: FfnSpec | None, d_model: int) -> int:
    """Every parameter of the feed-forward network, without the block's norm; 0 where there is none."""
    match ffn:
        case None:
            return 0
        case SwigluSpec():
            return 3 * d_model * ffn.d_ffn
        case Relu2Spec():
            return 2 * d_model * ffn.d_ffn
        case MoeSpec():
            return (ffn.n_shared + ffn.n_experts) * expert_params(ffn, d_model) + router_params(ffn, d_model)
        case _ as never:
            assert_never(never)


def router_params(ffn: FfnSpec | None, d_model: int) -> int:
    """The parameters that choose experts; their biases are no parameters, as no gradient moves them."""
    return d_model * ffn.n_experts if isinstance(ffn, MoeSpec) else 0


def active_ffn_params(ffn: FfnSpec | None, d_model: int) -> int:
    """The parameters that one token is multiplied with."""
    if not isinstance(ffn, MoeSpec):
        return ffn_params(ffn, d_model)
    return (ffn.n_shared + ffn.top_k) * expert_params(ffn, d_model) + router_params(ffn, d_model)


def _norm_params(block: BlockSpec, d_model: int) -> int:
    return d_model * (1 if block.ffn is None else 2)


@lru_cache(maxsize=4096)
def block_params(block: BlockSpec, d_model: int) -> int:
    """Every parameter of the block, its norms included."""
    return mixer_params(block.mixer, d_model) + ffn_params(block.ffn, d_model) + _norm_params(block, d_model)


@lru_cache(maxsize=4096)
def active_block_params(block: BlockSpec, d_model: int) -> int:
    """Those of the block's parameters that one token meets: of routed experts, `top_k`."""
    return mixer_params(block.mixer, d_model) + active_ffn_params(block.ffn, d_model) + _norm_params(block, d_model)


def _paper_mixer_params(mixer: MixerSpec, d_model: int) -> int:
    if isinstance(mixer, OutsideSpec):
        return mixer_params(mixer, d_model)
    return parts(mixer, d_model).paper_params


@lru_cache(maxsize=4096)
def paper_block_params(block: BlockSpec, d_model: int) -> int:
    """The paper's count: no norms, no convolution bias, Mamba's convolution over d_ssm channels only."""
    ffn = ffn_params(block.ffn, d_model) - router_params(block.ffn, d_model)
    return _paper_mixer_params(block.mixer, d_model) + ffn


@lru_cache(maxsize=4096)
def paper_active_block_params(block: BlockSpec, d_model: int) -> int:
    """The paper's count of what one token meets."""
    ffn = active_ffn_params(block.ffn, d_model) - router_params(block.ffn, d_model)
    return _paper_mixer_params(block.mixer, d_model) + ffn


def distinct_blocks(blocks: tuple[BlockSpec, ...]) -> Iterator[BlockSpec]:
    """The blocks that have parameters of their own: of those with one `tie`, the first."""
    seen: set[str] = set()
    for block in blocks:
        if block.tie is None or block.tie not in seen:
            yield block
        if block.tie is not None:
            seen.add(block.tie)


# --- floating-point operations ------------------------------------------------------------------


@lru_cache(maxsize=4096)
def paper_block_train_flops(block: BlockSpec, d_model: int, seq_len: int) -> int:
    """Forward and backward of one sample of `seq_len` positions, in the paper's convention."""
    mixer = block.mixer
    if isinstance(mixer, OutsideSpec):
        ffn = active_ffn_params(block.ffn, d_model) - router_params(block.ffn, d_model)
        forward = outside.forward_flops(mixer, d_model, seq_len)
        return 3 * forward + 6 * ffn * seq_len
    p = parts(mixer, d_model)
    # 12 d L (L + 1) / 2 where d_qk = d_v = d.
    softmax = sum(6 * (s.d_qk + s.d_v) * s.causal_pairs(seq_len) for s in p.softmaxes)
    scan = sum(3 * seq_len * (9 * m.d_ssm * m.d_state + 2 * m.d_ssm) for m in p.scans)
    return 6 * paper_active_block_params(block, d_model) * seq_len + softmax + scan


@lru_cache(maxsize=4096)
def full_block_forward_flops(block: BlockSpec, d_model: int, seq_len: int) -> int:
    """Forward of one sample of `seq_len` positions, in the full convention.

    The SSD works in chunks of Q = min(FULL_SSD_CHUNK, seq_len): scores C B^T once a group, their
    product with the inputs, and, where there are several chunks, their states and the output from the carried state.
    Exact where Q divides seq_len.
    """
    ffn = 2 * active_ffn_params(block.ffn, d_model) * seq_len
    if isinstance(block.mixer, OutsideSpec):
        return outside.forward_flops(block.mixer, d_model, seq_len) + ffn
    p = parts(block.mixer, d_model)
    chunk = min(FULL_SSD_CHUNK, seq_len)
    scan = sum(
        2 * chunk * (m.n_groups * m.d_state + m.d_ssm) + (4 * m.d_ssm * m.d_state if seq_len > chunk else 0)
        for m in p.scans
    )
    softmax = sum(2 * s.full_keys(seq_len) * (s.d_qk + s.full_d_v) for s in p.softmaxes)
    return seq_len * (2 * p.matrices + convolution_flops(p) + softmax + scan) + ffn


def convolution_flops(p: Parts) -> int:
    """Operations of the short convolutions, for one token."""
    return sum(2 * c.taps * c.channels for c in p.convolutions)


# --- state --------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def paper_block_cache_bytes(block: BlockSpec, d_model: int, seq_len: int) -> int:
    """Decoding cache of one sequence in bf16, as the paper prints it: convolutions with as many inputs as taps."""
    if isinstance(block.mixer, OutsideSpec):
        return block_state_bytes(block, d_model, seq_len, _BF16_BYTES)
    p = parts(block.mixer, d_model)
    softmax = sum(s.d_kv * s.visible(seq_len) for s in p.softmaxes if not s.borrowed)
    convolution = sum(c.taps * c.channels for c in p.convolutions)
    return _BF16_BYTES * (softmax + convolution + sum(m.d_ssm * m.d_state for m in p.scans))


@lru_cache(maxsize=4096)
def block_state_bytes(block: BlockSpec, d_model: int, seq_len: int, element_bytes: int) -> int:
    """Bytes that our module holds to decode one sequence up to `seq_len` positions.

    Keys, values and the convolutions' last taps - 1 inputs in the model's dtype (`element_bytes` each); the SSM
    state in fp32 (fp64 in a float64 model). Of a window, the positions that are seen; borrowed keys and values are
    another block's.
    """
    if isinstance(block.mixer, OutsideSpec):
        return outside.state_bytes(block.mixer, d_model, seq_len, element_bytes)
    p = parts(block.mixer, d_model)
    softmax = sum(s.d_kv * s.visible(seq_len) for s in p.softmaxes if not s.borrowed)
    return element_bytes * softmax + recurrent_state_bytes(p, element_bytes)


def recurrent_state_bytes(p: Parts, element_bytes: int) -> int:
    """Bytes of the part of a state that has one size at every length, and is rewritten at every step."""
    convolution = sum((c.taps - 1) * c.channels for c in p.convolutions)
    return element_bytes * convolution + max(element_bytes, _FP32_BYTES) * sum(m.d_ssm * m.d_state for m in p.scans)


# --- a whole model, a whole run -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run costs. `*_flops_per_sample` are for one sequence of the run's seq_len.

    `active_params` and `paper_active_params` are those of the non-embedding parameters that one token meets: all of
    them, but for experts that it is not sent to.
    """

    embedding_params: int
    head_params: int
    meta_params: int
    block_params: int
    norm_params: int
    total_params: int
    non_embedding_params: int
    active_params: int
    paper_non_embedding_params: int
    paper_active_params: int
    paper_train_flops_per_sample: int
    full_train_flops_per_sample: int
    train_samples: int
    paper_train_flops: int
    full_train_flops: int
    paper_cache_bytes: int
    state_bytes: int


def full_forward_flops(model: ModelSpec, seq_len: int) -> int:
    """Forward of one sample of `seq_len` tokens, logits at all of them, in the full convention."""
    positions = model.meta_tokens + seq_len
    blocks = sum(full_block_forward_flops(block, model.d_model, positions) for block in model.blocks)
    return blocks + 2 * seq_len * model.d_model * model.vocab_size


def paper_train_flops_per_sample(model: ModelSpec, seq_len: int) -> int:
    """Forward and backward of one sample of `seq_len` tokens, in the paper's convention."""
    positions = model.meta_tokens + seq_len
    return sum(paper_block_train_flops(block, model.d_model, positions) for block in model.blocks)


def full_train_flops_per_sample(model: ModelSpec, seq_len: int) -> int:
    """Forward and backward of one sample of `seq_len` tokens, in the full convention."""
    return 3 * full_forward_flops(model, seq_len)


def model_state_bytes(model: ModelSpec, seq_len: int, element_bytes: int) -> int:
    """Bytes held to decode one sequence up to `seq_len` tokens, after the meta tokens."""
    positions = model.meta_tokens + seq_len
    return sum(block_state_bytes(block, model.d_model, positions, element_bytes) for block in model.blocks)


def run_cost(run: RunSpec) -> Cost:
    """The cost of a run, both conventions side by side. State bytes are for one sequence of seq_len in bf16."""
    model, d_model, positions = run.model, run.model.d_model, run.model.meta_tokens + run.seq_len
    distinct = tuple(distinct_blocks(model.blocks))
    embedding = model.vocab_size * d_model
    head = 0 if model.tie_embeddings else embedding
    meta = model.meta_tokens * d_model
    blocks = sum(block_params(block, d_model) for block in distinct)
    active = sum(active_block_params(block, d_model) for block in distinct)
    paper_sample = paper_train_flops_per_sample(model, run.seq_len)
    full_sample = full_train_flops_per_sample(model, run.seq_len)
    samples = run.train_tokens // run.seq_len
    return Cost(
        embedding_params=embedding,
        head_params=head,
        meta_params=meta,
        block_params=blocks,
        norm_params=d_model,
        total_params=embedding + head + meta + blocks + d_model,
        non_embedding_params=meta + blocks + d_model,
        active_params=meta + active + d_model,
        paper_non_embedding_params=sum(paper_block_params(block, d_model) for block in distinct),
        paper_active_params=sum(paper_active_block_params(block, d_model) for block in distinct),
        paper_train_flops_per_sample=paper_sample,
        full_train_flops_per_sample=full_sample,
        train_samples=samples,
        paper_train_flops=samples * paper_sample,
        full_train_flops=samples * full_sample,
        paper_cache_bytes=sum(paper_block_cache_bytes(block, d_model, positions) for block in model.blocks),
        state_bytes=model_state_bytes(model, run.seq_len, _BF16_BYTES),
    )
