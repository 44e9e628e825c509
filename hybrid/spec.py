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
class AttentionSpec:
    """Causal grouped-query attention; no biases. `rope: null` means no position encoding (NoPE)."""

    kind: ClassVar[str] = "attention"
    revision: ClassVar[int] = 1

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: RopeSpec | None


@dataclass(frozen=True, kw_only=True)
class Mamba2Spec:
    """Mamba-2 (Dao & Gu 2024): in-projection, short convolution, SSD, gated RMSNorm, out-projection.

    `d_ssm` is the inner width (n_heads * head_dim). A is drawn from [a_init_min, a_init_max] and
    negated; the initial step sizes are log-uniform in [dt_init_min, dt_init_max].
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

    @property
    def n_heads(self) -> int:
        return self.d_ssm // self.head_dim


MixerSpec = AttentionSpec | Mamba2Spec


# --- feed-forward networks, blocks, model -------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SwigluSpec:
    """SwiGLU feed-forward network (Shazeer 2020) of inner width `d_ffn`; no biases."""

    kind: ClassVar[str] = "swiglu"
    revision: ClassVar[int] = 1

    d_ffn: int


FfnSpec = SwigluSpec


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One pre-norm residual block: a mixer, then a feed-forward network if there is one."""

    mixer: MixerSpec
    ffn: FfnSpec | None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A causal language model: embedding, blocks in order, final RMSNorm, head."""

    revision: ClassVar[int] = 1

    d_model: int
    vocab_size: int
    tie_embeddings: bool
    norm_eps: float
    init_std: float
    blocks: tuple[BlockSpec, ...]


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
class HubSpec:
    """A remote corpus at a declared revision, with the tokenizer that it is read through."""

    kind: ClassVar[str] = "hub"
    revision: ClassVar[int] = 1

    name: str
    corpus_revision: str
    tokenizer: str
    vocab_size: int


DataSpec = StdlibSpec | RecallSpec | HubSpec


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
    time between checkpoints, `eval_every_tokens` the distance between validations during training (null: only
    at the end); `lease_s` is how long a silent copy of a run is given before another takes it over.
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
