"""Negative log-likelihood and accuracy on held-out sequences.

Shapes: B sequences, L positions, S scored positions, D documents.
"""

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hybrid.data import NOT_SCORED, Batch, DataSource, DocumentSource, SyntheticData
from hybrid.evals.intervals import ratio_interval
from hybrid.evals.progress import progress
from hybrid.model import LanguageModel, scored_loss
from hybrid.spec import ExecSpec
from hybrid.train.parallel import Ranks

ENDLESS_SPLIT_EXAMPLES: Final = 16384
"""How many sequences stand for the whole split of data that are made, not stored."""

_TOKENS_A_PASS: Final = 16384


@final
@dataclass(frozen=True, kw_only=True)
class NllResult:
    """Means over scored positions. `bits_per_byte`: None where tokens are no text.

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
        max_examples = ENDLESS_SPLIT_EXAMPLES if isinstance(data, SyntheticData) else sys.maxsize
    ranks = ranks or Ranks.alone()
    bytes_of = _bytes_of(data)
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
                if bytes_of is not None:
                    n_bytes += int(bytes_of[batch.targets_BL[batch.targets_BL != NOT_SCORED]].sum())
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
        bits_per_byte=loss_nats / math.log(2.0) / int(n_bytes) if n_bytes else None,
    )


@final
@dataclass(frozen=True, kw_only=True)
class NllByDocument:
    """A loss, and its 95% intervals by resampling documents (sequences, where the data have none).

    None of a single document; of few they are too narrow.
    """

    mean: NllResult
    n_documents: int
    loss_nats_interval: tuple[float, float] | None
    bits_per_byte_interval: tuple[float, float] | None

    def metrics(self, name: str | None) -> dict[str, Any]:
        """As a record has it; of other data than the run's own under names that begin with theirs."""
        prefix = "" if name is None else f"{name}_"
        found: dict[str, Any] = {
            "loss_nats": self.mean.loss_nats,
            **_named_interval("loss_nats", self.loss_nats_interval),
            "accuracy": self.mean.accuracy,
            "n_scored": self.mean.n_scored,
            "bits_per_byte": self.mean.bits_per_byte,
            **_named_interval("bits_per_byte", self.bits_per_byte_interval),
            "n_documents": self.n_documents,
        }
        return {f"{prefix}{key}": value for key, value in found.items()}


def evaluate_nll_by_document(
    model: LanguageModel,
    data: DataSource,
    *,
    max_examples: int | None,
    batch_size: int,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> NllByDocument:
    """`evaluate_nll`, with intervals: a document's losses are summed in float64, wherever its windows were cut."""
    if max_examples is None:
        max_examples = ENDLESS_SPLIT_EXAMPLES if isinstance(data, SyntheticData) else sys.maxsize
    bytes_of, device = _bytes_of(data), model.embedding.device
    sums: dict[int, NDArray[np.float64]] = {}
    was_training = model.training
    model.eval()
    try:
        cuda = [device] if device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=cuda),
            torch.no_grad(),
            autocast(dtype, device),
            progress("nll", None, "windows") as told,
        ):
            for batch in data.validation_batches(batch_size, max_examples):
                told(len(batch.inputs_BL))
                _add_documents(sums, model, batch, bytes_of, max(sums, default=-1) + 1)
    finally:
        model.train(was_training)
    if not sums:
        raise ValueError("validation: no position is scored, so there is no loss to take the mean of")
    loss_D, n_D, correct_D, bytes_D = np.array([sums[number] for number in sorted(sums)]).T
    loss_nats, n_scored, n_bytes = math.fsum(loss_D), int(n_D.sum()), int(bytes_D.sum())
    bits_D = loss_D / math.log(2.0)
    return NllByDocument(
        mean=NllResult(
            loss_nats=loss_nats / n_scored,
            accuracy=float(correct_D.sum()) / n_scored,
            n_scored=n_scored,
            bits_per_byte=loss_nats / math.log(2.0) / n_bytes if n_bytes else None,
        ),
        n_documents=len(sums),
        loss_nats_interval=ratio_interval(loss_D, n_D),
        bits_per_byte_interval=ratio_interval(bits_D, bytes_D) if n_bytes else None,
    )


def _add_documents(
    sums: dict[int, NDArray[np.float64]],
    model: LanguageModel,
    batch: Batch,
    bytes_of: NDArray[np.int64] | None,
    first_free: int,
) -> None:
    """Add a batch's loss, scored positions, correct ones and bytes to those of the documents they belong to."""
    scored_BL = batch.targets_BL != NOT_SCORED
    if not scored_BL.any():
        return
    device = model.embedding.device
    logits_SV = model(torch.from_numpy(batch.inputs_BL).to(device), torch.from_numpy(scored_BL).to(device))
    targets_S = torch.from_numpy(batch.targets_BL[scored_BL]).to(device)
    logits_SV = logits_SV.float() if logits_SV.dtype in (torch.float16, torch.bfloat16) else logits_SV
    loss_S = F.cross_entropy(logits_SV, targets_S, reduction="none").double().cpu().numpy()
    correct_S = (logits_SV.argmax(-1) == targets_S).cpu().numpy()
    if batch.document_BL is None:
        rows_B = first_free + np.arange(len(batch.inputs_BL))
        document_S = np.broadcast_to(rows_B[:, None], batch.inputs_BL.shape)[scored_BL]
    else:
        document_S = batch.document_BL[scored_BL]
    bytes_S = np.zeros(len(loss_S)) if bytes_of is None else bytes_of[batch.targets_BL[scored_BL]]
    numbers_D, index_S = np.unique(document_S, return_inverse=True)
    columns = (loss_S, np.ones(len(loss_S)), correct_S.astype(np.float64), bytes_S)
    added_D4 = np.stack([np.bincount(index_S, weights=column) for column in columns], axis=1)
    for number, added in zip(numbers_D.tolist(), added_D4, strict=True):
        sums[number] = sums[number] + added if number in sums else added


def _bytes_of(data: DataSource) -> NDArray[np.int64] | None:
    """How many bytes of text each token stands for; None where the data are no text."""
    return data.token_bytes_V if isinstance(data, DocumentSource) else None


def _named_interval(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = (None, None) if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}
