"""Memory of training a spec, in bytes: a prediction from formulas, without torch.

What is counted is every tensor that our own code holds at once at the worst moment of a step, found by walking through
a step as autograd does: the end of the forward, the loss, the head, every block from the last to the first, the
embedding, the optimiser, and the validation, whose batch may be another. Each block is a list of operations (`_Step`):
what each keeps until its own backward, and what that backward needs beside it (gradients coming in and going out,
temporaries). Parts:

* weights: float32, 4 bytes a parameter, and under bfloat16 autocast the copies of matrices that it makes, 2 bytes each:
  all of them to the end of a forward, where they live as long as their products' backward, or, with activation
  checkpointing, for as long as autocast's cache; experts' as if every one were chosen by a token;
* gradients: float32, those not yet added up too: with several microbatches a matrix's new gradient stands beside its
  sum, and tied embeddings have the head's own until the end of a backward, the embedding's own, and the sum of both.
  Several ranks send them in buckets: one beside them;
* optimizer: AdamW's two moments, float32. Its fused step and the clipping need nothing beside them;
* activations: what one microbatch (`exec.microbatch` sequences, of several ranks at most the largest rank's part of a
  batch, meta tokens included) keeps for its backward, and works
  with. With activation checkpointing, the inputs of all blocks, and one block at a time in full;
* logits: the loss is not cut into chunks. Its forward holds the logits and their log-softmax, under autocast a float32
  copy too; its backward three float32 arrays: log-softmax, its gradient, the logits' gradient.

The formulas are those of the kernels that `exec` names, `fused` and `auto` on a GPU as if all packages of
`hybrid.ops.kernels` were installed: flash-attn and FlexAttention keep queries, keys, values, output and log-sum-exp,
never scores; mamba-ssm's scan keeps its arguments and output and makes the states of chunks again; causal-conv1d keeps
its input. On the CPU tests/hybrid/test_memory_of_modules.py compares them with the bytes that the modules hold, and the
plain PyTorch forms of a GPU as far as they run there; the fused kernels' are from their packages' source.

Not counted: what is constant and small (experts' biases, masks, the loss's scalars), the processor's own workspaces
(cuBLAS, oneDNN, Triton), fragmentation and rounding by the allocator, the CUDA context and the framework itself. Files'
sizes are at the end.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, assert_never

from hybrid import outside
from hybrid.cost import (
    block_params,
    distinct_blocks,
    expert_params,
    ffn_params,
    mixer_params,
    parts,
    router_params,
    run_cost,
)
from hybrid.probes import scored_positions
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    DiffAttentionSpec,
    DiffMambaSpec,
    ExecSpec,
    FfnSpec,
    IntraSpec,
    Mamba2Spec,
    MixerSpec,
    MoeSpec,
    OutsideSpec,
    Relu2Spec,
    RopeSpec,
    RunSpec,
    ShortConvSpec,
    SwigluSpec,
    WindowSpec,
)

_FLOAT_BYTES = 4
_HALF_BYTES = 2
_INT_BYTES = 8
# `hybrid.ops.attention`: elements of a block's scores, rows of a block, those of a narrow window, what is narrow.
_ROW_BLOCK_ELEMENTS = 1 << 18
_ROW_BLOCK = 64
_NARROW_ROW_BLOCK = 32
_NARROW_WINDOW = 128
# `hybrid.ops.swiglu`, `hybrid.ops.fused_conv`, `hybrid.ops.fused_attention`: what their own kernels take.
_SWIGLU_STEP = 32
_CONV_ALIGNMENT = 8
_FLASH_ATTN_WIDEST_HEAD = 256
_FLEX_NARROWEST_HEAD = 16
# `hybrid.evals.nll`: tokens of a validation batch where no microbatch is set.
_EVALUATION_TOKENS = 16384
BUCKET_BYTES = 32 * 2**20
"""Gradients that ranks send each other at once, at most: `hybrid.train.parallel`."""
# What torch 2.13 and safetensors write around the arrays of a model; of an array's own, its name and three more arrays.
_ARCHIVE_BYTES = 17_000
_ARCHIVE_TENSOR_BYTES = 1070
_EXPORT_TENSOR_BYTES = 95


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that training holds, each part at its own largest; `total_bytes` is the predicted peak.

    That is the largest sum at one moment, hence at most the sum of the parts.
    """

    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    logits_bytes: int
    total_bytes: int


def train_memory(run: RunSpec, execution: ExecSpec) -> Memory:
    """The predicted peak of a run's steps and validations, and the largest of each of its parts."""
    moments = _moments(run, execution)
    return Memory(
        weights_bytes=max(moment.weights for moment in moments),
        gradient_bytes=max(moment.gradients for moment in moments),
        optimizer_bytes=max(moment.optimizer for moment in moments),
        activation_bytes=max(moment.activations for moment in moments),
        logits_bytes=max(moment.logits for moment in moments),
        total_bytes=max(moment.total for moment in moments),
    )


# --- moments ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Moment:
    """What is held at one moment, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def _moments(run: RunSpec, execution: ExecSpec) -> list[_Moment]:
    """Those of a microbatch, of an update and of a validation that may be the worst."""
    model, recomputed = run.model, execution.activation_checkpointing
    ranks = execution.nodes * execution.gpus_per_node
    part = -(-run.batch_size // ranks)
    batch = part if execution.microbatch is None else min(execution.microbatch, part)
    several = batch < part
    p = _pass(run, execution, batch)
    blocks = [block_memory(block, p) for block in model.blocks]
    brings = _brings_parameters(model.blocks)
    copies = [block.copies if new else 0 for block, new in zip(blocks, brings, strict=True)]
    cached = sum(block.cached for block, new in zip(blocks, brings, strict=True) if new)
    # Checkpointing holds the inputs of blocks, among them the keys and values that later ones borrow.
    lent = [block.lent if lends else 0 for block, lends in zip(blocks, _lends(model.blocks), strict=True)]
    kept = [p.full(model.d_model) + lent[i] if recomputed else block.kept for i, block in enumerate(blocks)]

    scored = batch * _scored_positions(run)
    table = model.vocab_size * model.d_model
    params = sum(block.params for block, new in zip(blocks, brings, strict=True) if new)
    params += table * (1 if model.tie_embeddings else 2) + model.d_model * (1 + model.meta_tokens)
    weights, moments_of_adam = _FLOAT_BYTES * params, 2 * _FLOAT_BYTES * params
    head_copy = p.copied(table)
    always = _held_throughout(run, p)
    before = _FLOAT_BYTES * params if several else 0

    def moment(*, weights_beside: int, gradients: int, activations: int, logits: int = 0) -> _Moment:
        return _Moment(
            weights=weights + weights_beside,
            gradients=gradients,
            optimizer=moments_of_adam,
            activations=always + activations,
            logits=logits,
        )

    at_loss = sum(kept) + _final_bytes(run, p, scored)
    in_forward = max((sum(kept[:i]) + block.forward for i, block in enumerate(blocks)), default=0) if recomputed else 0
    copies_kept = head_copy + (0 if recomputed else sum(copies))
    found = [
        # The forward, where it keeps little, its end and its loss, and the head, whose weight's gradient is made in the
        # dtype of products and cast.
        moment(weights_beside=cached, gradients=before, activations=in_forward),
        moment(
            weights_beside=head_copy + (cached if recomputed else sum(copies)),
            gradients=before,
            activations=at_loss,
            logits=_logits_bytes(p, scored, model.vocab_size),
        ),
        moment(
            weights_beside=copies_kept,
            gradients=before,
            activations=at_loss,
            logits=3 * _FLOAT_BYTES * scored * model.vocab_size,
        ),
        moment(
            weights_beside=copies_kept,
            gradients=before + p.element_bytes * table,
            activations=at_loss + p.element_bytes * scored * model.d_model,
            logits=p.element_bytes * scored * model.vocab_size,
        ),
        moment(
            weights_beside=copies_kept - head_copy,
            gradients=before + _FLOAT_BYTES * table + head_copy,
            activations=at_loss + p.element_bytes * scored * model.d_model,
        ),
    ]

    # The gradient of tied embeddings waits for its second part until the end, whatever is added up already.
    gradients = before + (_FLOAT_BYTES * table if model.tie_embeddings or not several else 0)
    brings_gradient = _brings_parameters(model.blocks[::-1])[::-1]
    for i in reversed(range(len(blocks))):
        block = blocks[i]
        if brings_gradient[i] and not several:
            gradients += _FLOAT_BYTES * block.params
        found.append(
            moment(
                weights_beside=block.copies if recomputed else sum(copies[: i + 1]),
                gradients=gradients + (_FLOAT_BYTES * block.largest if several else 0) + p.copied(block.largest),
                activations=sum(kept[:i]) + (lent[i] if recomputed else 0) + block.backward,
            )
        )
    found.append(
        moment(
            weights_beside=0,
            gradients=_FLOAT_BYTES * (params + table * (several + 2 * model.tie_embeddings)),
            activations=p.full(model.d_model),
        )
    )
    if ranks > 1:
        sent = min(BUCKET_BYTES, _FLOAT_BYTES * params)
        found.append(moment(weights_beside=0, gradients=_FLOAT_BYTES * params + sent, activations=0))
    found += _validation(run, execution, weights + cached + head_copy, _FLOAT_BYTES * params, moments_of_adam)
    return found


def _validation(run: RunSpec, execution: ExecSpec, weights: int, gradients: int, optimizer: int) -> list[_Moment]:
    """A forward alone, beside the last update's gradients: the block that needs most, and the logits."""
    model = run.model
    batch = execution.microbatch or max(1, _EVALUATION_TOKENS // run.seq_len)
    p, scored = _pass(run, execution, batch), batch * _scored_positions(run)
    blocks = [block_memory(block, p) for block in model.blocks]
    # A lender's keys and values are made while those lent before are still there.
    lent = 2 * max((block.lent for block, lends in zip(blocks, _lends(model.blocks), strict=True) if lends), default=0)
    forward = lent + max((block.forward for block in blocks), default=0)
    always = _held_throughout(run, p)
    return [
        _Moment(weights=weights, gradients=gradients, optimizer=optimizer, activations=always + forward),
        _Moment(
            weights=weights,
            gradients=gradients,
            optimizer=optimizer,
            activations=always,
            logits=_logits_bytes(p, scored, model.vocab_size),
        ),
    ]


def _logits_bytes(p: "Pass", scored: int, vocab_size: int) -> int:
    """At the end of a forward: the logits as the head makes them, in float32 if that is not it, their log-softmax."""
    return scored * vocab_size * (2 * _FLOAT_BYTES + (_HALF_BYTES if p.half else 0))


def _scored_positions(run: RunSpec) -> int:
    """Positions of a sequence whose logits are made."""
    scored = scored_positions(run.data, run.seq_len)
    return run.seq_len if scored is None else scored


def _held_throughout(run: RunSpec, p: "Pass") -> int:
    """Tokens, targets, and the tables of rotary embeddings, whose lengths are powers of two."""
    tokens = _INT_BYTES * p.batch * (run.seq_len + _scored_positions(run))
    rows = 1 << max(p.length - 1, 0).bit_length()
    ropes = {rope for block in run.model.blocks for rope in _ropes(block.mixer)}
    return tokens + sum(_FLOAT_BYTES * rows * head_dim for _, head_dim in ropes)


def _ropes(mixer: MixerSpec) -> list[tuple[RopeSpec, int]]:
    """Each rotary embedding of a mixer and the width of its heads."""
    match mixer:
        case AttentionSpec() | DiffAttentionSpec():
            return [] if mixer.rope is None else [(mixer.rope, mixer.head_dim)]
        case IntraSpec():
            return _ropes(mixer.attention)
        case Mamba2Spec() | DiffMambaSpec() | ShortConvSpec() | OutsideSpec():
            return []
        case _ as never:
            assert_never(never)


def _final_bytes(run: RunSpec, p: "Pass", scored: int) -> int:
    """What the final norm and the head keep: the stream, at the scored positions alone if few are, and its norm."""
    d_model = run.model.d_model
    few = scored < p.batch * run.seq_len
    stream = _FLOAT_BYTES * scored * d_model + 2 * _INT_BYTES * scored if few else p.full(d_model)
    return stream + _FLOAT_BYTES * scored + p.element_bytes * scored * d_model


def _brings_parameters(blocks: tuple[BlockSpec, ...]) -> list[bool]:
    """Whether each block is the first of its tie."""
    seen: set[str] = set()
    brings: list[bool] = []
    for block in blocks:
        brings.append(block.tie is None or block.tie not in seen)
        if block.tie is not None:
            seen.add(block.tie)
    return brings


def _lends(blocks: tuple[BlockSpec, ...]) -> list[bool]:
    """Whether a later block borrows each block's keys and values: the nearest before it that has its own."""
    lends, nearest = [False] * len(blocks), 0
    for i, block in enumerate(blocks):
        attention = block.mixer.attention if isinstance(block.mixer, IntraSpec) else block.mixer
        if isinstance(attention, AttentionSpec):
            if attention.borrows_kv:
                lends[nearest] = True
            else:
                nearest = i
    return lends


# --- a block ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A forward and backward: what a block's memory depends on beside its spec.

    Of `batch` sequences of `length` positions, meta tokens included; `half` under bfloat16 autocast, `fused` with the
    kernels of GPU packages.
    """

    d_model: int
    batch: int
    length: int
    half: bool
    cuda: bool
    fused: bool
    ssd_chunk: int

    @property
    def positions(self) -> int:
        return self.batch * self.length

    @property
    def element_bytes(self) -> int:
        """Of what a projection makes: autocast's halves, or float32."""
        return _HALF_BYTES if self.half else _FLOAT_BYTES

    def full(self, width: int) -> int:
        """Bytes of a float32 array of `width` at every position."""
        return _FLOAT_BYTES * self.positions * width

    def made(self, width: int) -> int:
        """Bytes of an array of `width` at every position, as a projection makes it."""
        return self.element_bytes * self.positions * width

    def cast(self, width: int) -> int:
        """Bytes of autocast's copy of a float32 array."""
        return _HALF_BYTES * self.positions * width if self.half else 0

    def copied(self, params: int) -> int:
        """Bytes of autocast's copies of weights, or of their gradients in halves."""
        return _HALF_BYTES * params if self.half else 0


def _pass(run: RunSpec, execution: ExecSpec, batch: int) -> Pass:
    cuda = execution.device.startswith("cuda")
    return Pass(
        d_model=run.model.d_model,
        batch=batch,
        length=run.model.meta_tokens + run.seq_len,
        half=run.dtype == "bfloat16",
        cuda=cuda,
        fused=cuda and execution.kernels != "torch",
        ssd_chunk=execution.ssd_chunk,
    )


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One operation: bytes that it alone keeps until its backward, and that its backward needs beside what is kept."""

    kept: int
    work: int


_Steps = tuple[_Step, ...]


@dataclass(frozen=True, kw_only=True)
class BlockMemory:
    """Bytes of one block in one pass, but for `params` and `largest`, which are numbers of parameters.

    `kept` until its backward; `backward`: at that's worst moment, with what is kept and the stream's gradient, without
    those of weights; `forward`: at the worst moment of a forward that keeps nothing; `lent`: the keys and values that
    others may borrow; `copies` of weights by autocast, and those of them that are `cached` by it (not experts', which
    are parts of a parameter); `largest`: the weights whose gradients are made at once.
    """

    kept: int
    backward: int
    forward: int
    lent: int
    copies: int
    cached: int
    params: int
    largest: int


@lru_cache(maxsize=4096)
def block_memory(block: BlockSpec, p: Pass) -> BlockMemory:
    """What one block holds, tables of rotary embeddings left out, which a model has once."""
    mixer, ffn = _mixer_steps(block.mixer, p), _ffn_steps(block.ffn, p)
    steps = (_norm_step(p, p.d_model), *mixer)
    if block.ffn is not None:
        steps += (_norm_step(p, p.d_model), *ffn)
    kept = backward = 0
    for step in steps:
        kept += step.kept
        backward = max(backward, kept + step.work)
    stream, copies = p.full(p.d_model), p.copied(_matrices(block, p.d_model))
    of_mixer, of_ffn = mixer_params(block.mixer, p.d_model), ffn_params(block.ffn, p.d_model)
    return BlockMemory(
        kept=kept,
        backward=backward + stream,
        forward=max(
            2 * stream + _mixer_forward(block.mixer, mixer, p),
            3 * stream + p.made(p.d_model) + _ffn_forward(block.ffn, p),
        ),
        lent=_lent_bytes(block.mixer, p),
        copies=copies,
        cached=copies - p.copied(_routed_params(block.ffn, p.d_model)),
        params=block_params(block, p.d_model),
        largest=max(of_mixer, of_ffn),
    )


def _matrices(block: BlockSpec, d_model: int) -> int:
    """Elements of the weights that autocast copies."""
    mixer = block.mixer
    of_mixer = outside.params(mixer, d_model) if isinstance(mixer, OutsideSpec) else parts(mixer, d_model).matrices
    return of_mixer + ffn_params(block.ffn, d_model) - router_params(block.ffn, d_model)


def _routed_params(ffn: FfnSpec | None, d_model: int) -> int:
    return ffn.n_experts * expert_params(ffn, d_model) if isinstance(ffn, MoeSpec) else 0


def _beside(steps: _Steps, waiting: int) -> _Steps:
    """The steps, with more bytes held during their backwards."""
    return tuple(_Step(kept=step.kept, work=step.work + waiting) for step in steps)


def _mixer_forward(mixer: MixerSpec, steps: _Steps, p: Pass) -> int:
    """What a forward without gradients holds at its worst: about what another keeps, but of a recurrence its scan."""
    match mixer:
        case Mamba2Spec():
            return _scan_forward(mixer, p)
        case DiffMambaSpec():
            return _scan_forward(mixer.mamba, p) + p.made(p.d_model)
        case IntraSpec():
            return _scan_forward(mixer.mamba, p) + p.made(mixer.attention.d_v) + _lent_bytes(mixer, p)
        case AttentionSpec() | DiffAttentionSpec():
            h, kept = _heads(mixer), sum(step.kept for step in steps)
            if _path(h, p) != "rows":
                return kept
            block, before = _row_blocks(h, p)
            return kept + p.made(h.d_q + h.d_k + h.d_v) + (h.maps + 1) * block + h.maps * before
        case ShortConvSpec() | OutsideSpec():
            return sum(step.kept for step in steps)
        case _ as never:
            assert_never(never)


def _ffn_forward(ffn: FfnSpec | None, p: Pass) -> int:
    """What a forward without gradients holds: the projection's output, and two products of it."""
    match ffn:
        case None:
            return 0
        case SwigluSpec():
            return 4 * p.made(ffn.d_ffn)
        case Relu2Spec():
            return 2 * p.made(ffn.d_ffn)
        case MoeSpec():
            rows = p.full(ffn.top_k * p.d_model)
            last = max(rows + p.full(p.d_model), 4 * p.made(ffn.n_shared * ffn.d_ffn) + p.made(p.d_model))
            return _routing_bytes(ffn, p) + rows + 2 * p.made(ffn.top_k * p.d_model) + last
        case _ as never:
            assert_never(never)


def _lent_bytes(mixer: MixerSpec, p: Pass) -> int:
    """The arrays whose parts are the keys and values that a block could lend."""
    match mixer:
        case IntraSpec():
            return _lent_bytes(mixer.attention, p)
        case AttentionSpec() if not mixer.borrows_kv:
            d_k, d_v = mixer.n_kv_heads * mixer.head_dim, mixer.n_v_heads * mixer.v_head_dim
            turned = mixer.d_qk + d_k
            return p.made(turned + d_v + (0 if mixer.rope is None else turned))
        case _:
            return 0


def _norm_step(p: Pass, width: int, *, own_input: bool = True, n_rows: int = 1) -> _Step:
    """RMSNorm of `n_rows` a position, in float32: backward holds the gradients in and out, and three products.

    `own_input`: whether nobody else keeps the input.
    """
    return _Step(kept=(p.full(width) if own_input else 0) + p.full(n_rows), work=5 * p.full(width))


def _projection_step(p: Pass, d_in: int, d_out: int, *, kept: int) -> _Step:
    """A product with weights, whose output was cut into parts: their gradients are joined first."""
    work = max(2 * p.made(d_out), p.made(d_out) + p.made(d_in), p.cast(d_in) + p.full(d_in))
    return _Step(kept=kept, work=work)


def _mixer_steps(mixer: MixerSpec, p: Pass) -> _Steps:
    match mixer:
        case AttentionSpec():
            return _attention_steps(mixer, p, output=True)[0]
        case DiffAttentionSpec():
            return _diff_attention_steps(mixer, p)
        case Mamba2Spec():
            return _mamba_steps(mixer, p, own_input=True, own_values=True, output=True)
        case DiffMambaSpec():
            return _diff_mamba_steps(mixer, p)
        case IntraSpec():
            return _intra_steps(mixer, p)
        case ShortConvSpec():
            taps = _FLOAT_BYTES * p.d_model * mixer.d_conv
            return (_Step(kept=p.full(p.d_model) + taps, work=2 * p.full(p.d_model)),)
        case OutsideSpec():
            # As if all its parameters were projections, each output kept once more after an elementwise operation.
            width = -(-outside.params(mixer, p.d_model) // p.d_model)
            return (_Step(kept=p.made(p.d_model) + 2 * p.made(width), work=2 * p.made(width)),)
        case _ as never:
            assert_never(never)


# --- attention ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Heads:
    """What softmax attention is given: query, key and value heads, and the widths of each; `maps` share a value."""

    n_q: int
    n_k: int
    n_v: int
    head_dim: int
    v_head_dim: int
    window: WindowSpec | None
    maps: int = 1

    @property
    def d_q(self) -> int:
        return self.n_q * self.head_dim

    @property
    def d_k(self) -> int:
        return self.n_k * self.head_dim

    @property
    def d_v(self) -> int:
        return self.n_v * self.v_head_dim

    @property
    def d_out(self) -> int:
        return self.n_q // self.maps * self.v_head_dim


def _heads(a: AttentionSpec | DiffAttentionSpec) -> _Heads:
    match a:
        case AttentionSpec():
            return _Heads(
                n_q=a.n_heads,
                n_k=a.n_kv_heads,
                n_v=a.n_v_heads,
                head_dim=a.head_dim,
                v_head_dim=a.v_head_dim,
                window=a.window,
            )
        case DiffAttentionSpec():
            return _Heads(
                n_q=2 * a.n_heads,
                n_k=2 * a.n_kv_heads,
                n_v=a.n_kv_heads,
                head_dim=a.head_dim,
                v_head_dim=2 * a.head_dim,
                window=None,
                maps=2,
            )
        case _ as never:
            assert_never(never)


def _attention_steps(a: AttentionSpec, p: Pass, *, output: bool) -> tuple[_Steps, bool]:
    """And whether they keep what the heads return, which is the last thing here without `output`."""
    h = _heads(a)
    turned = h.d_q + (0 if a.borrows_kv else h.d_k)
    made = turned + (0 if a.borrows_kv else h.d_v)
    steps = [_projection_step(p, p.d_model, made, kept=p.made(p.d_model))]
    if a.qkv_conv is not None:
        steps.append(_convolution_step(p, made, a.qkv_conv, silu=False, input_bytes=p.made(made)))
    if a.rope is not None:
        steps.append(_rotation_step(p, turned, waiting=made - turned))
    core, keeps_output = _core_step(h, p, made=made, turned=0 if a.rope is None else turned, borrowed=a.borrows_kv)
    steps.append(core)
    if output:
        steps.append(_output_step(p, a.d_v, kept=not keeps_output))
    return tuple(steps), keeps_output


def _diff_attention_steps(a: DiffAttentionSpec, p: Pass) -> _Steps:
    h = _heads(a)
    turned = h.d_q + h.d_k
    made = turned + h.d_v
    steps = [_projection_step(p, p.d_model, made, kept=p.made(p.d_model))]
    if a.rope is not None:
        steps.append(_rotation_step(p, turned, waiting=h.d_v))
    core, _ = _core_step(h, p, made=made, turned=0 if a.rope is None else turned, borrowed=False)
    steps.append(core)
    if a.norm == "head":
        steps.append(_norm_step(p, h.d_out, n_rows=a.n_heads))
    return (*steps, _output_step(p, h.d_out, kept=True))


def _rotation_step(p: Pass, turned: int, *, waiting: int) -> _Step:
    """RoPE, in float32: the gradients before and after it, beside the values' own."""
    return _Step(kept=0, work=2 * p.full(turned) + p.made(waiting))


def _output_step(p: Pass, d_in: int, *, kept: bool) -> _Step:
    """The projection into the stream, whose gradient is cast to halves."""
    return _Step(
        kept=p.made(d_in) if kept else 0, work=max(p.cast(p.d_model) + p.made(d_in), p.cast(d_in) + p.full(d_in))
    )


_Path = Literal["rows", "sdpa", "math", "masked", "blocks", "flash_attn", "flex"]


def _path(h: _Heads, p: Pass) -> _Path:
    """The kernel that `hybrid.ops.attention` takes; PyTorch's own on a GPU has no groups of heads in float32."""
    plain = h.n_k == h.n_v and h.head_dim == h.v_head_dim
    if not p.cuda:
        return "sdpa" if plain and h.window is None else "rows"
    window = h.window if h.window is not None and p.length > h.window.size + h.window.sink else None
    head_dims = (h.head_dim, h.v_head_dim)
    if p.fused and p.half and max(head_dims) <= _FLASH_ATTN_WIDEST_HEAD and (window is None or window.sink == 0):
        return "flash_attn"
    if p.fused and window is not None and min(head_dims) >= _FLEX_NARROWEST_HEAD:
        return "flex"
    if h.window is not None:
        return "masked" if p.length <= h.window.sink + 2 * h.window.size else "blocks"
    return "math" if plain and h.n_k < h.n_q and not p.half else "sdpa"


def _core_step(h: _Heads, p: Pass, *, made: int, turned: int, borrowed: bool) -> tuple[_Step, bool]:
    """Softmax attention proper, and whether its output projection's input is an array that it keeps anyway.

    Queries, keys and values are parts of the arrays that the projection made, `made` wide, and the rotation, `turned`
    wide (0: none), which a kernel keeps whole by keeping a part, unless it is given a copy of that.
    """
    path, n_v = _path(h, p), h.maps * h.n_v
    d_out = h.n_q * h.v_head_dim
    # Widths of the copies of queries, keys and values: 0 where there is none. Maps have their values one by one.
    q_copy, k_copy, v_copy = 0, 0, 0 if h.maps == 1 else n_v * h.v_head_dim
    if h.maps > 1 and h.n_k < h.n_q:
        q_copy = h.d_q
    keeps_output, mask = h.maps == 1, 0
    match path:
        case "rows":
            operands, (block, before) = p.full(h.d_q + h.d_k + h.d_v), _row_blocks(h, p)
            # While the next block's scores are made, there still are a block's maps, their sum, and the gradients of
            # that and of one map's scores; of the second map's too before.
            held = 3 if h.maps == 1 else 5
            scores = max((held + h.maps - 1) * block, (h.maps + 1) * block + held * before)
            work = operands + p.full(h.d_out) + p.cast(h.d_out) + scores
            return _Step(kept=operands, work=work), False
        case "math":
            operands, scores = p.made(2 * h.d_q + d_out), _FLOAT_BYTES * p.batch * h.n_q * p.length**2
            return _Step(kept=operands + scores, work=operands + p.made(d_out) + 2 * scores), False
        case "blocks":
            return _window_blocks_step(h, p)
        case "sdpa" | "masked":
            # Heads are repeated but where PyTorch's attention takes them in groups.
            grouped = path == "sdpa" and h.n_k == n_v and h.head_dim == h.v_head_dim
            k_copy = h.d_q if h.n_k < h.n_q and not grouped else 0
            v_copy = d_out if n_v < h.n_q and not grouped else v_copy
            mask = p.element_bytes * p.length**2 if path == "masked" else 0
        case "flash_attn":
            # It knows one width of heads, and as many keys as values.
            width = max(h.head_dim, h.v_head_dim)
            if h.head_dim < width:
                q_copy, k_copy = h.n_q * width, n_v * width
            elif h.n_k < n_v:
                k_copy = n_v * width
            if h.v_head_dim < width:
                v_copy, d_out, keeps_output = n_v * width, h.n_q * width, False
        case "flex":
            k_copy = n_v * h.head_dim if h.n_k < n_v else 0
        case _ as never:
            assert_never(never)
    kept = p.made(q_copy + k_copy + v_copy + d_out) + p.full(h.n_q) + mask
    keeps_turned = not q_copy or not (k_copy or borrowed)
    if turned and keeps_turned:
        kept += p.made(turned)
    if not (v_copy or borrowed) or (not turned and keeps_turned):
        kept += p.made(made)
    work = p.made(d_out + (q_copy or h.d_q) + (k_copy or h.d_k) + (v_copy or h.d_v)) + mask
    if p.cuda:
        # FlashAttention-2 adds up queries' gradients in float32, and has those of grouped keys and values once a head.
        work += p.full(h.d_q) + (p.made(h.d_q + d_out) if h.n_k < h.n_q else 0)
    return _Step(kept=kept, work=work), keeps_output


def _window_blocks_step(h: _Heads, p: Pass) -> tuple[_Step, bool]:
    """`windowed_sdpa`: blocks of queries, each with copies of the keys and values that it sees, and a mask."""
    assert h.window is not None
    size, seen = h.window.size, h.window.sink + 2 * h.window.size
    n_blocks = -(-p.length // size)
    block = p.element_bytes * p.batch * n_blocks
    operands = block * (size * h.d_q + seen * h.n_q * (h.head_dim + h.v_head_dim))
    output = block * size * h.n_q * h.v_head_dim
    sums = _FLOAT_BYTES * p.batch * n_blocks * size * h.n_q
    step = _Step(kept=operands + output + sums + block * size * seen, work=operands + output)
    return step, n_blocks * size == p.length


def _row_blocks(h: _Heads, p: Pass) -> tuple[int, int]:
    """Bytes of the scores of the largest block of rows on the CPU, and of the block before it."""
    size = _ROW_BLOCK if h.window is None or h.window.size > _NARROW_WINDOW else _NARROW_ROW_BLOCK
    rows = min(size, p.length)
    width = p.length if h.window is None else min(p.length, h.window.sink + h.window.size + rows)
    one_head = h.n_q // h.n_k * rows * width
    all_heads = p.batch * h.n_k // h.maps * one_head
    block = _FLOAT_BYTES * min(all_heads, max(one_head, _ROW_BLOCK_ELEMENTS))
    alike = all_heads > _ROW_BLOCK_ELEMENTS or (h.window is not None and p.length > rows)
    return block, block if alike else block * max(0, p.length - rows) // p.length


# --- recurrences and convolutions ---------------------------------------------------------------


def _convolution_step(p: Pass, channels: int, taps: int, *, silu: bool, input_bytes: int) -> _Step:
    """In float32, with what it is given to SiLU kept too; `input_bytes` are of the array that its input is part of."""
    if p.fused and 2 <= taps <= 4 and channels % _CONV_ALIGNMENT == 0:
        return _Step(kept=input_bytes, work=3 * p.made(channels))
    arrays = 1 if silu else 0
    kept = (p.full(channels) if p.half else input_bytes) + arrays * p.full(channels) + _FLOAT_BYTES * channels * taps
    return _Step(kept=kept, work=(3 + arrays) * p.full(channels))


def _mamba_steps(m: Mamba2Spec, p: Pass, *, own_input: bool, own_values: bool, output: bool) -> _Steps:
    """`own_input`: whether nobody else keeps what the input projection is given."""
    d_bc = 2 * m.n_groups * m.d_state
    channels = m.d_ssm + d_bc
    projected = m.d_ssm + (channels if own_values else d_bc) + m.n_heads
    waiting = p.made(m.d_ssm)  # the gradient of the gate
    convolved = p.made(projected if own_values else channels)
    # In float32 the gate is part of the projection's output, which the convolution keeps if it has its input from it.
    gate = p.full(m.d_ssm) if p.half else 0 if own_values else p.made(projected)
    if m.gate_norm == "none":
        gated = _Step(kept=2 * p.full(m.d_ssm) + gate, work=3 * p.full(m.d_ssm))
    else:
        n_rms = m.n_groups if m.gate_norm == "grouped" else 1
        gated = _Step(kept=p.full(m.d_ssm) + p.full(n_rms) + gate, work=8 * p.full(m.d_ssm))
    steps = (
        _projection_step(p, p.d_model, projected, kept=p.made(p.d_model) if own_input else 0),
        *_beside((_convolution_step(p, channels, m.d_conv, silu=True, input_bytes=convolved),), waiting),
        *_beside(_scan_steps(m, p, channels), waiting),
        gated,
    )
    return (*steps, _output_step(p, m.d_ssm, kept=True)) if output else steps


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """The chunked SSD: whether its arguments are padded to whole chunks, and folded by groups; bytes of a feature."""

    chunk_len: int
    padded: bool
    folded: bool
    row: int
    states: int

    @property
    def copied(self) -> bool:
        return self.padded or self.folded

    def whole(self, width: int) -> int:
        """Bytes of a float32 array at every position of whole chunks."""
        return self.row * width


def _scan(m: Mamba2Spec, p: Pass) -> _Scan:
    chunks = -(-p.length // p.ssd_chunk)
    chunk_len = -(-p.length // chunks)
    return _Scan(
        chunk_len=chunk_len,
        padded=chunks * chunk_len > p.length,
        folded=m.n_groups > 1 and p.batch > 1,
        row=_FLOAT_BYTES * p.batch * chunks * chunk_len,
        states=_FLOAT_BYTES * p.batch * chunks * m.d_state * m.d_ssm if chunks > 1 else 0,
    )


def _scan_steps(m: Mamba2Spec, p: Pass, channels: int) -> _Steps:
    """The step sizes and the SSD recurrence, then the skip D x, whose gradient waits for the recurrence's."""
    d_bc, scan = channels - m.d_ssm, _scan(m, p)
    waiting, rates = p.made(m.d_ssm), 2 * _FLOAT_BYTES * m.n_heads
    if p.fused and p.half:
        # States and their gradients in float32, then each in the dtype of products beside it; then products of chunks.
        scores = p.full(p.ssd_chunk * m.n_groups)
        of_states = 3 * scan.states + scores
        of_products = scan.states + p.made(m.d_ssm) + p.full(d_bc) + 3 * scores
        work = waiting + p.made(m.d_ssm) + p.made(d_bc) + max(of_states, of_products)
        decays = _FLOAT_BYTES * p.batch * -(-p.length // p.ssd_chunk) * p.ssd_chunk * m.n_heads
        return (_Step(kept=p.made(channels + m.d_ssm) + 2 * p.full(m.n_heads) + decays + rates, work=work),)
    kept = 2 * p.full(m.n_heads) + rates + scan.whole(m.n_heads + m.d_ssm) + scan.states
    kept += scan.whole(channels) if scan.copied or p.half else p.made(channels)
    kept += scan.whole(m.n_heads) if scan.copied else 0
    # Gradients in and out and the inputs of products; scores twice; B's and C's; the states' or a last product.
    work = p.full(m.d_ssm) + scan.whole(3 * m.d_ssm + 2 * scan.chunk_len * m.n_groups + d_bc + 8 * m.n_heads)
    work += max(3 * scan.states, 2 * scan.states + scan.whole(m.d_ssm))
    skip = _Step(kept=p.made(channels) if scan.copied or p.half else 0, work=3 * p.full(m.d_ssm))
    return (_Step(kept=kept, work=work + waiting), skip)


def _scan_forward(m: Mamba2Spec, p: Pass) -> int:
    """What the recurrence's forward holds: the projection's and the convolution's outputs too."""
    d_bc, scan = 2 * m.n_groups * m.d_state, _scan(m, p)
    given = p.made(2 * m.d_ssm + d_bc + m.n_heads) + p.made(m.d_ssm + d_bc) + p.full(m.n_heads)
    if p.fused and p.half:
        return given + p.made(m.d_ssm) + scan.states + scan.states // 2
    copies = scan.whole(m.d_ssm + d_bc) * ((scan.padded or p.half) + scan.folded)
    products = scan.whole(2 * m.d_ssm + scan.chunk_len * m.n_groups + 4 * m.n_heads)
    return given + copies + products + 3 * scan.states


def _diff_mamba_steps(d: DiffMambaSpec, p: Pass) -> _Steps:
    first = _mamba_steps(d.mamba, p, own_input=True, own_values=True, output=True)
    second = _mamba_steps(d.mamba, p, own_input=p.half, own_values=True, output=True)
    # The second's output is kept for the gradient of lambda. The first's gradient, then the second's, wait.
    steps = (*_beside(first, p.full(p.d_model)), *_beside(second, p.made(p.d_model)))
    difference = _Step(kept=p.made(p.d_model), work=2 * p.made(p.d_model))
    return (*steps, difference, _norm_step(p, p.d_model)) if d.norm == "output" else (*steps, difference)


def _intra_steps(i: IntraSpec, p: Pass) -> _Steps:
    d_attention, d_ssm = i.attention.d_v, i.mamba.d_ssm
    attention, attention_kept = _attention_steps(i.attention, p, output=False)
    mamba = _mamba_steps(i.mamba, p, own_input=p.half, own_values=i.value == "separate", output=False)
    steps = [*_beside(attention, p.full(p.d_model)), *_beside(mamba, p.made(d_attention))]
    # What is done to a module's output keeps it, unless that is kept already, and makes another, kept by what follows.
    if i.norm == "group":
        steps += _beside((_norm_step(p, d_ssm),), p.made(d_attention))
        steps += _beside((_norm_step(p, d_attention, own_input=p.half or not attention_kept),), p.full(d_ssm))
        attention_kept = False
    if i.scalar != "none":
        gate = p.full(2) + (p.made(p.d_model + 1) if p.half else 0) if i.scalar == "gate" else 0
        of_mamba = 0 if i.scalar == "diff_t" else p.full(d_ssm)
        kept = of_mamba + (0 if attention_kept else p.made(d_attention)) + gate
        steps.append(_Step(kept=kept, work=2 * p.full(d_ssm) + 2 * p.full(d_attention)))
        attention_kept = False
    attention_kept = attention_kept and i.attention_multiplier == 1.0
    if i.output == "joint":
        return (*steps, _output_step(p, d_ssm + d_attention if i.fusion == "concat" else d_ssm, kept=True))
    of_attention = _output_step(p, d_attention, kept=not attention_kept)
    return (*steps, *_beside((_output_step(p, d_ssm, kept=True),), p.made(d_attention)), of_attention)


# --- feed-forward networks ----------------------------------------------------------------------


def _ffn_steps(ffn: FfnSpec | None, p: Pass) -> _Steps:
    match ffn:
        case None:
            return ()
        case SwigluSpec():
            return _swiglu_steps(ffn.d_ffn, p, own_input=True)
        case Relu2Spec():
            return _relu2_steps(ffn, p)
        case MoeSpec():
            return _moe_steps(ffn, p)
        case _ as never:
            assert_never(never)


def _has_own_swiglu(d_ffn: int, p: Pass) -> bool:
    return not p.cuda and not p.half and d_ffn % _SWIGLU_STEP == 0


def _swiglu_steps(d_ffn: int, p: Pass, *, own_input: bool) -> _Steps:
    kept = p.made(p.d_model) if own_input else 0
    if _has_own_swiglu(d_ffn, p):
        return (_Step(kept=kept + 3 * p.full(d_ffn), work=2 * p.full(d_ffn) + p.full(p.d_model)),)
    return (
        _projection_step(p, p.d_model, 2 * d_ffn, kept=kept),
        _Step(kept=2 * p.made(d_ffn), work=3 * p.made(d_ffn)),  # SiLU, on half of the projection's output
        _Step(kept=p.made(d_ffn), work=3 * p.made(d_ffn)),  # times the other half
        _output_step(p, d_ffn, kept=True),
    )


def _relu2_steps(ffn: Relu2Spec, p: Pass) -> _Steps:
    if not p.cuda and not p.half:
        work = p.full(ffn.d_ffn) + p.full(p.d_model)
        return (_Step(kept=p.full(p.d_model) + 2 * p.full(ffn.d_ffn), work=work),)
    # A GPU's autocast squares in float32.
    squared = p.full(ffn.d_ffn) if p.cuda and p.half else 0
    return (
        _projection_step(p, p.d_model, ffn.d_ffn, kept=p.made(p.d_model)),
        _Step(kept=p.made(ffn.d_ffn) + squared, work=3 * (squared or p.made(ffn.d_ffn))),
        _output_step(p, ffn.d_ffn, kept=True),
    )


def _moe_steps(moe: MoeSpec, p: Pass) -> _Steps:
    """Routed experts, at `top_k` rows a position, then the shared ones."""
    k, d_ffn, d_model = moe.top_k, moe.d_ffn, p.d_model
    shared = _swiglu_steps(moe.n_shared * d_ffn, p, own_input=p.half) if moe.n_shared else ()
    if _has_own_swiglu(d_ffn, p):
        experts = _Step(kept=p.full(k * d_model) + 3 * p.full(k * d_ffn), work=p.full(2 * k * (d_ffn + d_model)))
    else:
        experts = _Step(
            kept=p.made(k * d_model) + 4 * p.made(k * d_ffn), work=p.made(k * d_model) + p.full(k * d_model)
        )
    # In float32, where the weights are.
    work = 2 * p.full(k * d_model) + p.cast(k * d_model) + (p.full(d_model) if p.half else 0)
    weighted = _Step(kept=p.made(k * d_model), work=work)
    return (
        _Step(kept=p.full(d_model) + _routing_bytes(moe, p), work=2 * p.full(d_model)),
        *_beside((experts, weighted), p.full(d_model) if shared else 0),
        *shared,
    )


def _routing_bytes(moe: MoeSpec, p: Pass) -> int:
    """Scores of all experts, weights of those chosen before and after their division by a sum, and three indices."""
    k = moe.top_k
    return p.full(moe.n_experts) + p.full(2 * k + 1 if k > 1 else 1) + 3 * k * _INT_BYTES * p.positions


# --- files --------------------------------------------------------------------------------------


def checkpoint_bytes(run: RunSpec) -> int:
    """One checkpoint on the disk: weights and AdamW's two moments in float32, its steps, and what stands around them.

    What `torch.save` writes around tensors is estimated, at what it writes around those of toy models.
    """
    around = _ARCHIVE_BYTES + _ARCHIVE_TENSOR_BYTES * _tensors(run)
    return 3 * _FLOAT_BYTES * run_cost(run).total_params + _buffer_bytes(run) + around


def final_weights_bytes(run: RunSpec) -> int:
    """The export of a finished run's weights in float32, tied weights once; names are estimated."""
    return _FLOAT_BYTES * run_cost(run).total_params + _buffer_bytes(run) + _EXPORT_TENSOR_BYTES * _tensors(run)


def _buffer_bytes(run: RunSpec) -> int:
    """Biases of experts."""
    moes = (block.ffn for block in distinct_blocks(run.model.blocks) if isinstance(block.ffn, MoeSpec))
    return _FLOAT_BYTES * sum(moe.n_experts for moe in moes)


def _tensors(run: RunSpec) -> int:
    """How many arrays a model's parameters are."""
    model = run.model
    blocks = sum(
        _mixer_tensors(block.mixer) + _ffn_tensors(block.ffn) + (1 if block.ffn is None else 2)
        for block in distinct_blocks(model.blocks)
    )
    return blocks + 2 + (0 if model.tie_embeddings else 1) + (1 if model.meta_tokens else 0)


def _mixer_tensors(mixer: MixerSpec) -> int:
    """Those of a mixer; of one from a user's file, which does not say, a guess."""
    match mixer:
        case AttentionSpec():
            return 2 if mixer.qkv_conv is None else 4
        case DiffAttentionSpec():
            return 7 if mixer.norm == "head" else 6
        case Mamba2Spec():
            return 7 if mixer.gate_norm == "none" else 8
        case DiffMambaSpec():
            return 2 * _mixer_tensors(mixer.mamba) + (2 if mixer.norm == "output" else 1)
        case IntraSpec():
            scalars = {"none": 0, "scale": 2, "diff_t": 4, "gate": 1}[mixer.scalar]
            # Of the modules' own output projections, none or one too many.
            outputs = -1 if mixer.output == "joint" else 0
            modules = _mixer_tensors(mixer.attention) + _mixer_tensors(mixer.mamba)
            return modules + outputs + scalars + (2 if mixer.norm == "group" else 0)
        case ShortConvSpec():
            return 2
        case OutsideSpec():
            return 4
        case _ as never:
            assert_never(never)


def _ffn_tensors(ffn: FfnSpec | None) -> int:
    match ffn:
        case None:
            return 0
        case SwigluSpec() | Relu2Spec():
            return 2
        case MoeSpec():
            return 5 if ffn.n_shared else 3
        case _ as never:
            assert_never(never)
