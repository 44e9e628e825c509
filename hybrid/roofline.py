"""The time that training, prefill and decoding cannot beat on a device, and the share of it that a measurement reached.

A roofline (Williams et al. 2009) is the larger of two times: operations at the device's peak rate, and bytes at that of
its memory. Operations are those of the full convention (`hybrid.cost`), which counts attention over all pairs: a kernel
that leaves out what is masked may come to a share above one where attention is most of the work. Bytes are those that
must be moved at least, each once; activations are not counted, as they may stay on chip:

* training, of one step: each microbatch reads the float32 weights in its forward and in its backward, and adds to the
  gradients (one write, after the first microbatch a read too); AdamW then reads weights, gradients and two moments, and
  writes all but the gradients;
* prefill: the weights once, of the embedding the prompts' rows at most, and the states that are left at the end. Logits
  are made of the last position alone;
* decoding: `hybrid.decode_cost`.
"""

from dataclasses import dataclass
from typing import Final, final

from hybrid.cost import (
    full_block_forward_flops,
    full_train_flops_per_sample,
    model_state_bytes,
    run_cost,
)
from hybrid.decode_cost import DecodeCost, DeviceSpec, Roofline, decode_cost, weights_read
from hybrid.spec import ModelSpec, RunSpec

_FLOAT_BYTES: Final = 4
_MANY: Final = 1024  # tokens that are sure to be sent to all experts
_OPTIMIZER_PASSES: Final = 7  # AdamW: reads of weight, gradient and two moments, writes of weight and moments


@final
@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Rates of a device that nothing exceeds, in a dtype; `source` says whether they are published or were measured."""

    flops_per_s: float
    bytes_per_s: float
    source: str

    @classmethod
    def published(cls, device: DeviceSpec) -> "Peaks":
        """Those of a datasheet, for bfloat16."""
        return cls(
            flops_per_s=device.flops_per_s, bytes_per_s=device.bytes_per_s, source=f"published for the {device.name}"
        )


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations in the full convention, and the bytes that must be moved at least."""

    full_flops: int
    moved_bytes: int

    def roofline(self, peaks: Peaks) -> Roofline:
        """What the peaks imply."""
        return Roofline(
            compute_s=self.full_flops / peaks.flops_per_s,
            memory_s=self.moved_bytes / peaks.bytes_per_s,
        )


def train_work(run: RunSpec, microbatch: int | None) -> Work:
    """One step: forward and backward of a batch in parts of `microbatch` sequences (None: at once), and the update."""
    params = run_cost(run).total_params
    parts = 1 if microbatch is None else -(-run.batch_size // microbatch)
    of_weights = 2 * parts
    of_gradients = 2 * parts - 1
    return Work(
        full_flops=run.batch_size * full_train_flops_per_sample(run.model, run.seq_len),
        moved_bytes=_FLOAT_BYTES * params * (of_weights + of_gradients + _OPTIMIZER_PASSES),
    )


def prefill_work(model: ModelSpec, *, batch: int, length: int, element_bytes: int) -> Work:
    """Reading prompts of `length` tokens, up to the logits of the next."""
    positions = model.meta_tokens + length
    blocks = sum(full_block_forward_flops(block, model.d_model, positions) for block in model.blocks)
    rows = min(batch * length, model.vocab_size)
    states = batch * model_state_bytes(model, length, element_bytes)
    return Work(
        full_flops=batch * (blocks + 2 * model.d_model * model.vocab_size),
        moved_bytes=element_bytes * (weights_read(model, min(batch * length, _MANY)) + rows * model.d_model) + states,
    )


def decode_work(model: ModelSpec, *, batch: int, length: int, element_bytes: int) -> Work:
    """One step, at which every sequence comes to `length` tokens."""
    cost: DecodeCost = decode_cost(model, batch=batch, length=length, element_bytes=element_bytes)
    return Work(full_flops=cost.full_flops, moved_bytes=cost.moved_bytes)
