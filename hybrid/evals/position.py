"""Loss by position in long documents, each read by itself from its beginning (arXiv 2510.04800, Figure 3c).

Documents go through the model in pieces, with states: what is held beside those is of one piece, so that the memory of
a model without attention does not grow with the length. Positions beyond the training length are simply further ones:
rotary frequencies are as in training.

Shapes: B documents, L positions, D all documents, N bins, R resamples.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hybrid.evals.intervals import percentile_interval, ratio_interval, resampled_ratios
from hybrid.evals.nll import autocast
from hybrid.evals.progress import progress
from hybrid.model import LanguageModel
from hybrid.spec import ConfigError

PIECE_POSITIONS: Final = 1024
_LOGITS_AT_ONCE: Final = 1 << 27


@final
@dataclass(frozen=True, kw_only=True)
class PositionLoss:
    """Mean losses of bins over documents, with 95% intervals by resampling documents; None of a single document.

    The first target is the second token of a document: position 1 is where that is predicted. `within` are the
    positions up to the training length, `beyond` those after it, `last_within` the training length's last bin.
    `n_too_short` documents were left out.
    """

    bin: int
    training_length: int
    loss_nats_DN: NDArray[np.float64]
    n_too_short: int

    def metrics(self) -> dict[str, Any]:
        """As a record has it; `positions` are the middles of the bins."""
        n_documents, n_bins = self.loss_nats_DN.shape
        ones_D = np.ones(n_documents)
        intervals = [ratio_interval(self.loss_nats_DN[:, i], ones_D) for i in range(n_bins)]
        return {
            "positions": [self.bin * i + (self.bin + 1) / 2 for i in range(n_bins)],
            "bin_loss_nats": self.loss_nats_DN.mean(0).tolist(),
            "bin_loss_nats_low": [None if interval is None else interval[0] for interval in intervals],
            "bin_loss_nats_high": [None if interval is None else interval[1] for interval in intervals],
            "bin": self.bin,
            "n_documents": n_documents,
            "n_documents_too_short": self.n_too_short,
            "training_length": self.training_length,
            **self._beyond(),
        }

    def _beyond(self) -> dict[str, float | None]:
        """How the loss goes on after the training length: less the last bin within it, of the same documents."""
        n_within = self.training_length // self.bin
        n_documents, n_bins = self.loss_nats_DN.shape
        found: dict[str, float | None] = dict.fromkeys(
            ("beyond_loss_nats", "beyond_minus_within_nats", "beyond_minus_within_nats_low",
             "beyond_minus_within_nats_high")
        )  # fmt: skip
        if not 0 < n_within < n_bins:
            return found
        beyond_D = self.loss_nats_DN[:, -(-self.training_length // self.bin) :].mean(1)
        difference_D = beyond_D - self.loss_nats_DN[:, n_within - 1]
        found |= {"beyond_loss_nats": beyond_D.mean(), "beyond_minus_within_nats": difference_D.mean()}
        if n_documents > 1:
            low, high = percentile_interval(resampled_ratios(difference_D, np.ones(n_documents)))
            found |= {"beyond_minus_within_nats_low": low, "beyond_minus_within_nats_high": high}
        return {name: None if value is None else float(value) for name, value in found.items()}


def long_documents(documents: Iterable[NDArray[np.int64]], length: int, at_most: int) -> tuple[NDArray[np.int64], int]:
    """The first tokens, length + 1 of them, of the first `at_most` documents that have as many; how many had not.

    (D, length + 1). Raises ConfigError where no document is long enough.
    """
    chosen: list[NDArray[np.int64]] = []
    n_too_short = longest = 0
    for tokens in documents:
        if len(tokens) <= length:
            n_too_short, longest = n_too_short + 1, max(longest, len(tokens))
            continue
        chosen.append(tokens[: length + 1])
        if len(chosen) == at_most:
            break
    if not chosen:
        raise ConfigError(
            f"eval.position.length = {length}: expected at most {max(longest - 1, 0)}, as the longest of "
            f"{n_too_short} documents has {longest} tokens; or longer documents (eval.position.texts)"
        )
    return np.stack(chosen), n_too_short


def evaluate_positions(
    model: LanguageModel,
    documents: Iterable[NDArray[np.int64]],
    *,
    length: int,
    bin_width: int,
    max_documents: int,
    training_length: int,
    batch_size: int,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> PositionLoss:
    """Loss by position over `length` positions, a multiple of `bin_width`, of documents that begin with bos.

    The model's mode is afterwards as it was. Raises ConfigError where no document is long enough.
    """
    tokens_DT, n_too_short = long_documents(documents, length, max_documents)
    device = model.embedding.device
    batches_BN: list[NDArray[np.float64]] = []
    was_training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            autocast(dtype, device),
            progress("position", tokens_DT[:, 1:].size, "tokens") as told,
        ):
            for first in range(0, len(tokens_DT), batch_size):
                tokens_BT = torch.from_numpy(tokens_DT[first : first + batch_size]).to(device)
                pieces_BL = []
                for piece_BL in streamed_losses(model, tokens_BT, dtype=dtype):
                    pieces_BL.append(piece_BL)
                    told(piece_BL.numel())
                loss_BL = torch.cat(pieces_BL, dim=1)
                batches_BN.append(loss_BL.double().unflatten(1, (-1, bin_width)).mean(-1).cpu().numpy())
    finally:
        model.train(was_training)
    return PositionLoss(
        bin=bin_width,
        training_length=training_length,
        loss_nats_DN=np.concatenate(batches_BN),
        n_too_short=n_too_short,
    )


def streamed_losses(
    model: LanguageModel, tokens_BT: Tensor, *, dtype: Literal["float32", "bfloat16"], piece: int | None = None
) -> Iterator[Tensor]:
    """The losses in nats of all tokens but the first, (B, L) of so many positions at a time, float32 at least."""
    n_documents, n_tokens = tokens_BT.shape
    if piece is None:
        piece = max(1, min(PIECE_POSITIONS, _LOGITS_AT_ONCE // (n_documents * model.spec.vocab_size)))
    # Wider states would be converted at every step, and hold no more.
    state = model.init_state(n_documents, n_tokens - 1, torch.bfloat16 if dtype == "bfloat16" else None)
    for first in range(0, n_tokens - 1, piece):
        inputs_BL = tokens_BT[:, first : min(first + piece, n_tokens - 1)]
        targets_BL = tokens_BT[:, first + 1 : first + 1 + inputs_BL.shape[1]]
        logits_BLV, state = model.step(inputs_BL, state)
        logits_BLV = logits_BLV.float() if logits_BLV.dtype in (torch.float16, torch.bfloat16) else logits_BLV
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="none")
        yield loss.unflatten(0, (n_documents, -1))


def position_batch_size(model: LanguageModel, length: int, n_tokens: int = 1 << 16) -> int:
    """Documents that are read side by side: as many as have so many tokens together, and whose logits of some
    positions are not too many."""
    by_logits = _LOGITS_AT_ONCE // (model.spec.vocab_size * math.isqrt(PIECE_POSITIONS))
    return max(1, min(n_tokens // length, by_logits))
