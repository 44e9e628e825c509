"""The frozen descriptions that a run is made of.

A `RunSpec` says everything that may change a loss curve and nothing else; its canonical JSON
(`hybrid.decode.canonical_json`) is what a run's id is the hash of. An `ExecSpec` says how the run is
carried out, and may change the curve by floating-point noise only.

Three rules keep ids alive for ever:

* a field added to a spec after its birth is declared with `added(birth_value)`: while it has that
  value it is left out of the canonical JSON, so that older ids do not move;
* defaults that a user may want to change live in conf/, never here;
* a fix that changes the curves of a kind raises its `revision`.

Sizes are whole numbers: lengths of training in tokens, never in fractions of something else.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


def added(birth_value: Any) -> Any:
    """A spec field younger than its class: left out of the identity while it has `birth_value`."""
    return dataclasses.field(default=birth_value, metadata={"birth": birth_value})


class ConfigError(ValueError):
    """What a user typed cannot be meant: says where, what was given, and what would do.

    `problems` holds one line for each thing wrong; all of one object are gathered before raising.
    """

    def __init__(self, problems: str | list[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


# --- mixers -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Llama3RopeScalingSpec:
    """Llama 3's rescaling of the rotary frequencies for contexts beyond `original_seq_len`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_seq_len: int


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding over the whole head (Su et al. 2021)."""

    theta: float
    scaling: Llama3RopeScalingSpec | None


@dataclass(frozen=True, kw_only=True)
class WindowSpec:
    """Sliding window with a sink: row i sees the keys i - size + 1 to i, and the first `sink` keys of the sequence."""

    size: int
    sink: int


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Causal grouped-query attention; no biases. `rope: null` means no position encoding (NoPE).

    `head_dim` is that of queries and keys; that of values is `value_head_dim`, if given. `n_value_heads`, if given, is
    a multiple of `n_kv_heads`, which is then the number of key heads. `qkv_conv` is the number of taps of a short
    causal depthwise convolution, without activation, on queries, keys and values (So et al. 2021, "Primer").
    `softmax_scale: null` is 1 / sqrt(head_dim). With `borrows_kv` there are no key and value projections: the keys and
    values are those of the nearest block before that has its own (Dong et al. 2024, "Hymba").
    """

    kind: ClassVar[str] = "attention"
    revision: ClassVar[int] = 1

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    window: WindowSpec | None = added(None)
    value_head_dim: int | None = added(None)
    n_value_heads: int | None = added(None)
    qkv_conv: int | None = added(None)
    softmax_scale: float | None = added(None)
    borrows_kv: bool = added(False)

    @property
    def v_head_dim(self) -> int:
        """Width of a value head."""
        return self.head_dim if self.value_head_dim is None else self.value_head_dim

    @property
    def n_v_heads(self) -> int:
        """Value heads before they are repeated for the query heads."""
        return self.n_kv_heads if self.n_value_heads is None else self.n_value_heads

    @property
    def d_qk(self) -> int:
        """Width of all queries."""
        return self.n_heads * self.head_dim

    @property
    def d_v(self) -> int:
        """Width of what the heads return, before the output projection."""
        return self.n_heads * self.v_head_dim


@dataclass(frozen=True, kw_only=True)
class DiffAttentionSpec:
    """Differential attention (Ye et al. 2024, arXiv 2410.05258): the difference of two softmax maps over one value.

    `n_heads` counts pairs of query heads, `n_kv_heads` pairs of key heads; `head_dim` is that of one query, a value
    head is twice as wide. The second map is weighted by lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init with
    learned vectors, lambda_init = 0.8 - 0.6 exp(-0.3 (depth - 1)) and `depth` counted from 1. `norm: head` is the
    published form: RMSNorm of every head, times 1 - lambda_init; `none` is the form of arXiv 2510.04800, Table 5,
    without both. `fusion: add` adds the second map (v3, Table 18).
    """

    kind: ClassVar[str] = "diff_attention"
    revision: ClassVar[int] = 1

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    depth: int
    norm: Literal["head", "none"]
    fusion: Literal["diff", "add"]


@dataclass(frozen=True, kw_only=True)
class Mamba2Spec:
    """Mamba-2 (Dao & Gu 2024): in-projection, short convolution, SSD, gated RMSNorm, out-projection.

    `d_ssm` is the inner width (n_heads * head_dim). A is drawn from [a_init_min, a_init_max] and
    negated; the initial step sizes are log-uniform in [dt_init_min, dt_init_max]. The output is multiplied by silu(z)
    and then normalised as `gate_norm` says: `rms` over its whole width, `grouped` over each of the `n_groups` parts of
    it, `none` not at all.
    """

    kind: ClassVar[str] = "mamba2"
    revision: ClassVar[int] = 1

    d_ssm: int
    head_dim: int
    d_state: int
    n_groups: int
    d_conv: int
    a_init_min: float
    a_init_max: float
    dt_init_min: float
    dt_init_max: float
    gate_norm: Literal["rms", "grouped", "none"] = added("rms")

    @property
    def n_heads(self) -> int:
        return self.d_ssm // self.head_dim


@dataclass(frozen=True, kw_only=True)
class DiffMambaSpec:
    """Differential Mamba (Schneider et al. 2025, arXiv 2507.06204): the difference of two Mamba-2 mixers.

    `mamba` describes each of the two, with output projections of their own. The second is weighted by lambda =
    sigmoid(sum of a learned vector) + lambda_init, lambda_init = 0.8 - 0.6 exp(-0.3 (depth - 1)) and `depth` counted
    from 1. `norm: output` is the authors' form: RMSNorm of the difference, times 1 - lambda_init; `none` leaves out
    both.
    """

    kind: ClassVar[str] = "diff_mamba"
    revision: ClassVar[int] = 1

    mamba: Mamba2Spec
    depth: int
    norm: Literal["output", "none"]


@dataclass(frozen=True, kw_only=True)
class IntraSpec:
    """Attention and Mamba-2 side by side in one block (arXiv 2510.04800, section 3.2).

        y = W_out (a_ssm Norm(M_ssm(x)) (+) a_attn Norm(M_attn(x)))

    M_attn are the heads of `attention` before an output projection, M_ssm the gated output of `mamba` before its own;
    Mamba's inner norm is `mamba.gate_norm`. `norm: group` is an RMSNorm of each module's whole output.
    `scalar: scale` is a learned vector for each module; `diff_t` one learned scalar on the attention module,
    parametrised as lambda in the Differential Transformer with `lambda_depth` as depth; `gate` a learned weight
    g = sigmoid(w . x) for each token, g on attention and 1 - g on Mamba. `value: shared` makes attention's values, each
    head repeated, the input x of the recurrence. `fusion: diff` is Mamba minus attention. `output: joint` is one
    projection, `separate` one for each module. The multipliers are constants on each module's output.
    """

    kind: ClassVar[str] = "intra"
    revision: ClassVar[int] = 1

    attention: AttentionSpec
    mamba: Mamba2Spec
    norm: Literal["group", "none"]
    scalar: Literal["none", "scale", "diff_t", "gate"]
    fusion: Literal["add", "diff", "concat"]
    value: Literal["separate", "shared"]
    output: Literal["joint", "separate"]
    lambda_depth: int | None
    attention_multiplier: float
    mamba_multiplier: float


@dataclass(frozen=True, kw_only=True)
class ShortConvSpec:
    """A causal depthwise convolution of `d_conv` taps on the block's input, with a bias, and nothing else."""

    kind: ClassVar[str] = "short_conv"
    revision: ClassVar[int] = 1

    d_conv: int


@dataclass(frozen=True, kw_only=True)
class OutsideSetting:
    """One setting of a mixer from a user's own file; `value` is its JSON text, in which 1, 1.0 and true are three."""

    name: str
    value: str


@dataclass(frozen=True, kw_only=True)
class OutsideSpec:
    """A mixer of a user's own file (`hybrid.outside`); `version` is what its author raises when curves change."""

    kind: ClassVar[str] = "outside"
    revision: ClassVar[int] = 1

    name: str
    version: int
    settings: tuple[OutsideSetting, ...]


MixerSpec = AttentionSpec | Mamba2Spec | DiffAttentionSpec | DiffMambaSpec | IntraSpec | ShortConvSpec | OutsideSpec


# --- feed-forward networks, blocks, model -------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SwigluSpec:
    """SwiGLU feed-forward network (Shazeer 2020) of inner width `d_ffn`; no biases."""

    kind: ClassVar[str] = "swiglu"
    revision: ClassVar[int] = 1

    d_ffn: int


@dataclass(frozen=True, kw_only=True)
class Relu2Spec:
    """W_down relu(W_up x)^2 of inner width `d_ffn` (So et al. 2021); no biases."""

    kind: ClassVar[str] = "relu2"
    revision: ClassVar[int] = 1

    d_ffn: int


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """Mixture of SwiGLU experts: `n_shared` that see every token and the `top_k` best of `n_experts` routed ones.

    Scores are sigmoids. Experts are chosen by score plus bias, and no token is dropped; outputs are weighted by the
    scores alone, which for `top_k` above 1 are divided by their sum. After every optimiser step the bias of an expert
    moves by `bias_step` towards the mean load (Wang et al. 2024, arXiv 2408.15664). `d_ffn` is one expert's width.
    """

    kind: ClassVar[str] = "moe"
    revision: ClassVar[int] = 1

    d_ffn: int
    n_experts: int
    top_k: int
    n_shared: int
    bias_step: float


FfnSpec = SwigluSpec | Relu2Spec | MoeSpec


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One pre-norm residual block: a mixer, then a feed-forward network if there is one.

    Blocks of a model with the same `tie` are equal and have one set of parameters.
    """

    mixer: MixerSpec
    ffn: FfnSpec | None
    tie: str | None = added(None)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A causal language model: embedding, blocks in order, final RMSNorm, head.

    `meta_tokens` learned vectors stand before every sequence; nothing is predicted at them. The multipliers are
    constants: on the embedding's output, on what every mixer and ffn adds to the residual stream, and on the logits.
    """

    revision: ClassVar[int] = 1

    d_model: int
    vocab_size: int
    tie_embeddings: bool
    norm_eps: float
    init_std: float
    blocks: tuple[BlockSpec, ...]
    meta_tokens: int = added(0)
    embedding_multiplier: float = added(1.0)
    residual_multiplier: float = added(1.0)
    logit_multiplier: float = added(1.0)


# --- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StdlibSpec:
    """Bytes of the Python standard library's own sources.

    `fingerprint` identifies the content (the library differs between installations): the first 16
    hex digits of a SHA-256 over the sorted (path, content hash) pairs. Token ids: the 256 byte
    values, then bos and eos. `val_percent` of the bytes, by whole clusters of near-duplicates, is
    held out for validation.
    """

    kind: ClassVar[str] = "stdlib"
    revision: ClassVar[int] = 1

    fingerprint: str
    val_percent: float

    @property
    def vocab_size(self) -> int:
        return 258


@dataclass(frozen=True, kw_only=True)
class RecallSpec:
    """Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv 2312.04927).

    `n_pairs` key-value pairs with distinct keys, then every key asked for again once. Symbol 0 is the filler, the
    rest of the first half of the `n_symbols` symbols are keys, the second half values. The gap before a query is
    drawn with probability proportional to gap ** (power - 1): 1 is uniform, small values ask soon.
    """

    kind: ClassVar[str] = "recall"
    revision: ClassVar[int] = 1

    n_symbols: int
    n_pairs: int
    power: float

    @property
    def vocab_size(self) -> int:
        return self.n_symbols


@dataclass(frozen=True, kw_only=True)
class NeedleSpec:
    """Needles in a haystack of random letters, over bytes: "K417;" at `n_needles` places, each asked for at the end.

    The K are different capital letters, and `n_digits` digits of each are to be predicted.
    """

    kind: ClassVar[str] = "needle"
    revision: ClassVar[int] = 1

    n_needles: int
    n_digits: int

    @property
    def vocab_size(self) -> int:
        return 256


@dataclass(frozen=True, kw_only=True)
class InContextRecallSpec:
    """In-context recall, plain and noisy, of MAD (Poli et al. 2024, arXiv 2403.17844): `hybrid.data.in_context_recall`.

    The last `n_noise_symbols` of the `n_symbols` are noise, of the others the first half are keys, the rest values. A
    pair is noise with probability `noise_fraction`. `train_on` says which of a training sequence's tokens are
    predicted: the `answers`, as in validation, or `all`, which is the published training.
    """

    kind: ClassVar[str] = "in_context_recall"
    revision: ClassVar[int] = 1

    n_symbols: int
    n_noise_symbols: int
    noise_fraction: float
    train_on: Literal["answers", "all"]

    @property
    def vocab_size(self) -> int:
        return self.n_symbols


@dataclass(frozen=True, kw_only=True)
class FuzzyRecallSpec:
    """Fuzzy in-context recall of MAD (Poli et al. 2024, arXiv 2403.17844): `hybrid.data.fuzzy_recall`.

    Keys and values are of one to `key_size` and `value_size` symbols. Of the `n_symbols` the last is padding, of the
    others the first half make keys, the rest values. `train_on` is as in `InContextRecallSpec`.
    """

    kind: ClassVar[str] = "fuzzy_recall"
    revision: ClassVar[int] = 1

    n_symbols: int
    key_size: int
    value_size: int
    train_on: Literal["answers", "all"]

    @property
    def vocab_size(self) -> int:
        return self.n_symbols


@dataclass(frozen=True, kw_only=True)
class SelectiveCopyingSpec:
    """Selective copying of MAD (Poli et al. 2024, arXiv 2403.17844): `hybrid.data.selective_copying`.

    `n_copied` symbols are to be said again in order. Of the `n_symbols` the last asks for that, and the one before is
    blank.
    """

    kind: ClassVar[str] = "selective_copying"
    revision: ClassVar[int] = 1

    n_symbols: int
    n_copied: int

    @property
    def vocab_size(self) -> int:
        return self.n_symbols


@dataclass(frozen=True, kw_only=True)
class CompressionSpec:
    """Compression, after MAD (Poli et al. 2024, arXiv 2403.17844), for language models: `hybrid.data.compression`.

    `n_compressed` of `n_symbols` symbols are asked for after a compression token, by a symbol for each of their places.
    """

    kind: ClassVar[str] = "compression"
    revision: ClassVar[int] = 1

    n_symbols: int
    n_compressed: int

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + 1 + self.n_compressed


@dataclass(frozen=True, kw_only=True)
class MemorisationSpec:
    """Memorisation of MAD (Poli et al. 2024, arXiv 2403.17844): `hybrid.data.memorisation`.

    The value of each key is fixed by `map_seed`, in all sequences of all runs. Of the `n_symbols` the last stands where
    a value is asked for, of the others the first half are keys, the rest values.
    """

    kind: ClassVar[str] = "memorisation"
    revision: ClassVar[int] = 1

    n_symbols: int
    map_seed: int

    @property
    def vocab_size(self) -> int:
        return self.n_symbols


ProbeSpec = (
    RecallSpec
    | NeedleSpec
    | InContextRecallSpec
    | FuzzyRecallSpec
    | SelectiveCopyingSpec
    | CompressionSpec
    | MemorisationSpec
)


@dataclass(frozen=True, kw_only=True)
class HubSpec:
    """A remote corpus at a declared revision, with the tokenizer that it is read through."""

    kind: ClassVar[str] = "hub"
    revision: ClassVar[int] = 1

    name: str
    corpus_revision: str
    tokenizer: str
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """Shards that `python -m hybrid.data prepare` made, wherever they lie: identified by what is in them.

    `fingerprint` is that of their manifest: of the tokens of both splits, in order, with bos, eos and `vocab_size`.
    """

    kind: ClassVar[str] = "corpus"
    revision: ClassVar[int] = 1

    fingerprint: str
    vocab_size: int


DataSpec = StdlibSpec | ProbeSpec | HubSpec | CorpusSpec


# --- training -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AdamWSpec:
    """AdamW (Loshchilov & Hutter 2019); weight decay on matrices only, gradients clipped by global norm."""

    kind: ClassVar[str] = "adamw"
    revision: ClassVar[int] = 1

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip: float


@dataclass(frozen=True, kw_only=True)
class TrapezoidSpec:
    """Linear warmup, constant, linear cooldown to zero; lengths in tokens (whole batches)."""

    kind: ClassVar[str] = "trapezoid"
    revision: ClassVar[int] = 1

    warmup_tokens: int
    cooldown_tokens: int


@dataclass(frozen=True, kw_only=True)
class StopSpec:
    """End the run early, as solved, once a validation metric reaches a threshold.

    `metric` is measured every `every_tokens` on the same `examples` held-out sequences.
    """

    metric: Literal["accuracy"]
    threshold: float
    every_tokens: int
    examples: int


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The identity of a run: everything that may change its loss curve, resolved."""

    model: ModelSpec
    data: DataSpec
    optim: AdamWSpec
    schedule: TrapezoidSpec
    stop: StopSpec | None
    train_tokens: int
    batch_tokens: int
    seq_len: int
    dtype: Literal["float32", "bfloat16"]
    init_seed: int
    data_seed: int

    @property
    def train_steps(self) -> int:
        return self.train_tokens // self.batch_tokens

    @property
    def batch_size(self) -> int:
        """Sequences in a batch."""
        return self.batch_tokens // self.seq_len


@dataclass(frozen=True, kw_only=True)
class ExecSpec:
    """How a run is carried out; never part of its identity.

    `microbatch` is sequences per forward pass (null: the whole batch); `checkpoint_every_s` is wall
    time between checkpoints, `kernels` the implementation of its operations (`hybrid.ops.kernels`), `mixers` files that
    define outside mixers, `eval_every_tokens` the distance between validations during training (null: only
    at the end); `lease_s` is how long a silent copy of a run is given before another takes it over. With `trunks`, runs
    that differ only in their length train the phase that they share once.
    """

    device: str
    microbatch: int | None
    threads: int
    ssd_chunk: int
    checkpoint_every_s: float
    log_every_steps: int
    eval_every_tokens: int | None
    heartbeat_s: float
    lease_s: float
    activation_checkpointing: bool
    kernels: Literal["torch", "fused", "auto"]
    mixers: tuple[str, ...]
    trunks: bool
    nodes: int
    gpus_per_node: int
