"""What one decoding step costs at a given batch and length, and the time that it cannot beat on a given device.

A step takes the last of `length` tokens of every sequence of the batch and makes the logits of the next. Its operations
are counted in the full convention of `hybrid.cost`: matrix products and convolutions of one token as the reference code
executes them, attention over the keys that are visible, the recurrence as products with B and C. Its bytes are those
that must pass between memory and the processor if each is moved once:

* weights, each read once for the whole batch, in the model's dtype; tied blocks at each of their places; of the
  embedding the batch's rows. Of n routed experts those that the batch is sent to: with tokens independent of each other
  and experts equally likely, n (1 - (1 - k / n)^batch) are expected, rounded to whole bytes;
* keys and values: those visible are read (the new ones among them), the new ones written; a block that borrows reads
  its lender's and writes none;
* states of recurrences (float32 at least) and convolutions, read and written.

Activations and logits are not counted: they are small and may stay on chip. Meta tokens are positions like others.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from hybrid import outside
from hybrid.cost import (
    active_ffn_params,
    block_params,
    convolution_flops,
    expert_params,
    parts,
    recurrent_state_bytes,
)
from hybrid.spec import BlockSpec, MixerSpec, ModelSpec, MoeSpec, OutsideSpec


@dataclass(frozen=True, kw_only=True)
class DecodeCost:
    """Operations and bytes of one step of a whole batch."""

    full_flops: int
    weight_bytes: int
    kv_bytes: int
    state_bytes: int

    @property
    def moved_bytes(self) -> int:
        """All that a step reads and writes."""
        return self.weight_bytes + self.kv_bytes + self.state_bytes


def decode_cost(model: ModelSpec, *, batch: int, length: int, element_bytes: int) -> DecodeCost:
    """The cost of the step at which every sequence of `batch` comes to `length` tokens.

    `element_bytes` is the size of the model's dtype: weights, keys, values and the inputs of convolutions.
    """
    d_model, positions = model.d_model, model.meta_tokens + length
    flops, kv, state = 2 * d_model * model.vocab_size, 0, 0
    for block in model.blocks:
        flops += _block_flops(block, d_model, positions)
        kv += _kv_elements(block.mixer, d_model, positions)
        state += 2 * _state_bytes(block.mixer, d_model, positions, element_bytes)
    return DecodeCost(
        full_flops=batch * flops,
        weight_bytes=element_bytes * (weights_read(model, batch) + batch * d_model),
        kv_bytes=batch * element_bytes * kv,
        state_bytes=batch * state,
    )


def _block_flops(block: BlockSpec, d_model: int, positions: int) -> int:
    """Operations of one token. An outside mixer counts its forward of one position, whatever came before."""
    ffn = 2 * active_ffn_params(block.ffn, d_model)
    if isinstance(block.mixer, OutsideSpec):
        return outside.forward_flops(block.mixer, d_model, 1) + ffn
    p = parts(block.mixer, d_model)
    softmax = sum(2 * s.visible(positions) * (s.d_qk + s.full_d_v) for s in p.softmaxes)
    scan = sum(4 * m.d_ssm * m.d_state for m in p.scans)  # (dt x) B^T, which is added to the state; h C
    return 2 * p.matrices + convolution_flops(p) + softmax + scan + ffn


def weights_read(model: ModelSpec, tokens: int) -> int:
    """Parameters that a pass over so many tokens reads: head, blocks and norms; not the embedding's rows."""
    blocks = sum(_weights_read(block, model.d_model, tokens) for block in model.blocks)
    return model.d_model * (1 + model.vocab_size) + blocks


def _weights_read(block: BlockSpec, d_model: int, batch: int) -> int:
    params = block_params(block, d_model)
    if not isinstance(block.ffn, MoeSpec):
        return params
    untouched = block.ffn.n_experts - expected_experts(block.ffn, batch)
    return params - round(untouched * expert_params(block.ffn, d_model))


def expected_experts(moe: MoeSpec, tokens: int) -> Fraction:
    """How many different routed experts `tokens` independent tokens are sent to, if all are equally likely."""
    missed = Fraction(moe.n_experts - moe.top_k, moe.n_experts) ** tokens
    return moe.n_experts * (1 - missed)


def _kv_elements(mixer: MixerSpec, d_model: int, positions: int) -> int:
    """Elements of keys and values read and written for one sequence; an outside mixer's are part of its state."""
    if isinstance(mixer, OutsideSpec):
        return 0
    return sum(s.d_kv * (s.visible(positions) + (0 if s.borrowed else 1)) for s in parts(mixer, d_model).softmaxes)


def _state_bytes(mixer: MixerSpec, d_model: int, positions: int, element_bytes: int) -> int:
    if isinstance(mixer, OutsideSpec):
        return outside.state_bytes(mixer, d_model, positions, element_bytes)
    return recurrent_state_bytes(parts(mixer, d_model), element_bytes)


# --- roofline -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """Peak rates of a device: dense matrix operations in `dtype`, and bytes of its memory, a second.

    `memory_bytes` is the published size in units of 1000: of it a driver keeps some, and a card may have a little more.
    `reported_names` are those by which the driver, hence torch, calls this very device; the driver's README lists them
    (appendix A, "Supported NVIDIA GPU Products"). Cards of the same chip on another board have other rates.
    """

    name: str
    reported_names: tuple[str, ...]
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: int
    dtype: Literal["bfloat16"]


A100_80GB_SXM = DeviceSpec(
    name="A100 80GB SXM",
    reported_names=("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
    flops_per_s=312e12,
    bytes_per_s=2.039e12,
    memory_bytes=80 * 10**9,
    dtype="bfloat16",
)
"""NVIDIA A100 Tensor Core GPU datasheet: 312 TFLOPS without sparsity, 2,039 GB/s, 80 GB."""

H100_SXM = DeviceSpec(
    name="H100 SXM",
    reported_names=("NVIDIA H100 80GB HBM3",),
    flops_per_s=989.4e12,
    bytes_per_s=3.35e12,
    memory_bytes=80 * 10**9,
    dtype="bfloat16",
)
"""NVIDIA H100 Tensor Core GPU Architecture (whitepaper): 989.4 TFLOPS without sparsity; its datasheet: 3.35 TB/s,
80 GB."""

H200_SXM = DeviceSpec(
    name="H200 SXM",
    reported_names=("NVIDIA H200",),
    flops_per_s=989.4e12,
    bytes_per_s=4.8e12,
    memory_bytes=141 * 10**9,
    dtype="bfloat16",
)
"""NVIDIA H200 Tensor Core GPU datasheet: the rates of the H100 (1,979 TFLOPS with sparsity), 4.8 TB/s, 141 GB."""


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds that a step takes at least (Williams et al. 2009): for its operations, and for its bytes."""

    compute_s: float
    memory_s: float

    @property
    def time_s(self) -> float:
        """The larger of the two, as they may overlap."""
        return max(self.compute_s, self.memory_s)


def roofline(cost: DecodeCost, device: DeviceSpec) -> Roofline:
    """The time that the device's peak rates imply; launches, synchronisation and imperfect kernels come on top."""
    return Roofline(compute_s=cost.full_flops / device.flops_per_s, memory_s=cost.moved_bytes / device.bytes_per_s)
