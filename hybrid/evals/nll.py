"""Negative log-likelihood and accuracy on held-out sequences.

Shapes: B sequences, L positions, S scored positions.
"""

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Literal, final

import torch
from torch import Tensor

from hybrid.data import NOT_SCORED, Batch, DataSource
from hybrid.data.recall import RecallData
from hybrid.data.stdlib import StdlibData
from hybrid.model import LanguageModel, scored_loss
from hybrid.spec import ExecSpec
from hybrid.train.parallel import Ranks

ENDLESS_SPLIT_EXAMPLES: Final = 16384
"""How many sequences stand for the whole split of data that are made, not stored."""

_BYTE_TOKENS: Final = 256
_TOKENS_A_PASS: Final = 16384


@final
@dataclass(frozen=True, kw_only=True)
class NllResult:
    """Means over scored positions. `bits_per_byte`: None where tokens are not bytes.

    It divides the loss of all tokens, document borders included, by the number of bytes among them.
    """

    loss_nats: float
    accuracy: float
    n_scored: int
    bits_per_byte: float | None


def autocast(dtype: Literal["float32", "bfloat16"], device: torch.device) -> AbstractContextManager[object]:
    """What a forward pass of a run of this dtype runs under; parameters are float32 either way."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def batch_loss(model: LanguageModel, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of losses in nats, scored positions, correct ones: scalars on `device`; nothing waits on a CPU tensor."""
    inputs_BL = torch.from_numpy(batch.inputs_BL).to(device, non_blocking=True)
    targets_BL = torch.from_numpy(batch.targets_BL)
    scored_BL = targets_BL != NOT_SCORED
    if bool(scored_BL.all()):
        return scored_loss(model(inputs_BL), targets_BL.to(device, non_blocking=True))
    targets_S = targets_BL[scored_BL]
    logits_SV = model(inputs_BL, scored_BL.to(device, non_blocking=True))
    return scored_loss(logits_SV, targets_S.to(device, non_blocking=True))


def evaluation_batch_size(execution: ExecSpec, seq_len: int) -> int:
    """Sequences in a forward pass without gradients: the microbatch if one is set, else some thousands of tokens."""
    return execution.microbatch or max(1, _TOKENS_A_PASS // seq_len)


def evaluate_nll(
    model: LanguageModel,
    data: DataSource,
    *,
    max_examples: int | None,
    batch_size: int,
    dtype: Literal["float32", "bfloat16"] = "float32",
    ranks: Ranks | None = None,
) -> NllResult:
    """Loss and accuracy over the first `max_examples` validation sequences (None: the whole split).

    Every scored position weighs the same, whatever the batches; sums are kept in float64. Several ranks take turns at
    the batches, and have one result. The model's mode and the
    global random state are afterwards as they were before. Raises ValueError if no position is scored.
    """
    if max_examples is None:
        max_examples = ENDLESS_SPLIT_EXAMPLES if isinstance(data, RecallData) else sys.maxsize
    ranks = ranks or Ranks.alone()
    count_bytes = isinstance(data, StdlibData)
    n_bytes = torch.zeros(1, dtype=torch.int64)
    device = model.embedding.device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    try:
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.no_grad(), autocast(dtype, device):
            for i, batch in enumerate(data.validation_batches(batch_size, max_examples)):
                if i % ranks.world_size != ranks.rank:
                    continue
                sums += torch.stack([total.double() for total in batch_loss(model, batch, device)])
                if count_bytes:
                    n_bytes += int(((batch.targets_BL >= 0) & (batch.targets_BL < _BYTE_TOKENS)).sum())
            ranks.sum_([sums])
            ranks.sum_([n_bytes])
    finally:
        model.train(was_training)
    loss_nats, n_scored, n_correct = sums.tolist()
    if n_scored == 0:
        raise ValueError("validation: no position is scored, so there is no loss to take the mean of")
    return NllResult(
        loss_nats=loss_nats / n_scored,
        accuracy=n_correct / n_scored,
        n_scored=int(n_scored),
        bits_per_byte=loss_nats / math.log(2.0) / int(n_bytes) if count_bytes and n_bytes else None,
    )
