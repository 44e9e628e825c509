"""How well a trained model does the synthetic task that it was trained on, also at sizes that it was not.

Scored tokens of one sequence are not independent, so there are two intervals of an accuracy: an exact binomial one, as
if they were, and one by resampling sequences. Sequences with every answer right are independent of each other. The
sequences are none that a stop rule or a validation during training saw.

Shapes: B sequences, L positions, S scored positions, E all sequences, G gaps.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.data import NOT_SCORED, Batch, SyntheticData, make_probe
from hybrid.evals.intervals import binomial_interval, ratio_interval
from hybrid.evals.nll import autocast
from hybrid.model import LanguageModel
from hybrid.probes import items_of, with_items
from hybrid.spec import ConfigError, ProbeSpec

FIRST: Final = 1 << 24
"""The number of the first held-out sequence that is used: those before are for measuring during training."""


@final
@dataclass(frozen=True, kw_only=True)
class Answers:
    """Of every held-out sequence: scored tokens, and those that were predicted; then both by gap.

    A gap is how many positions before the question the answer stands, the last time; (E, G), of powers of two up to
    `gaps`. None where the answer stands nowhere.
    """

    n_scored_E: NDArray[np.int64]
    n_right_E: NDArray[np.int64]
    gaps: tuple[int, ...]
    n_scored_EG: NDArray[np.int64] | None
    n_right_EG: NDArray[np.int64] | None

    @property
    def accuracy_percent(self) -> float:
        return 100.0 * int(self.n_right_E.sum()) / int(self.n_scored_E.sum())

    def interval_percent(self) -> tuple[float | None, float | None]:
        """By resampling sequences."""
        return _percent(ratio_interval(self.n_right_E.astype(np.float64), self.n_scored_E.astype(np.float64)))


@final
@dataclass(frozen=True, kw_only=True)
class RecallGrid:
    """What was answered at the size of training, and for each number of items (rows) and length (columns).

    `items` are (None,) where the length says how much there is to remember. What cannot be laid out is None.
    """

    own: Answers
    own_items: int | None
    lengths: tuple[int, ...]
    items: tuple[int | None, ...]
    grid: tuple[tuple[Answers | None, ...], ...]

    def metrics(self) -> dict[str, Any]:
        """As a record has it: percentages, with 95% intervals."""
        own = self.own
        n_right, n_scored, n = int(own.n_right_E.sum()), int(own.n_scored_E.sum()), len(own.n_right_E)
        n_whole = int((own.n_right_E == own.n_scored_E).sum())
        token_low, token_high = _percent(binomial_interval(n_right, n_scored))
        low, high = own.interval_percent()
        whole_low, whole_high = _percent(binomial_interval(n_whole, n))
        intervals = [[(None, None) if one is None else one.interval_percent() for one in row] for row in self.grid]
        return {
            "recall_accuracy_percent": own.accuracy_percent,
            "recall_accuracy_percent_low": low,
            "recall_accuracy_percent_high": high,
            "recall_accuracy_percent_binomial_low": token_low,
            "recall_accuracy_percent_binomial_high": token_high,
            "whole_sequences_percent": 100.0 * n_whole / n,
            "whole_sequences_percent_low": whole_low,
            "whole_sequences_percent_high": whole_high,
            "n_sequences": n,
            "n_scored": n_scored,
            "n_right": n_right,
            "lengths": list(self.lengths),
            "items": list(self.items),
            "accuracy_percent": [[None if one is None else one.accuracy_percent for one in row] for row in self.grid],
            "accuracy_percent_low": [[low for low, _ in row] for row in intervals],
            "accuracy_percent_high": [[high for _, high in row] for row in intervals],
            **self._by_length(),
            **_by_gap(own),
        }

    def _by_length(self) -> dict[str, float]:
        """A number for each length, of as many items as in training; nothing where those were not asked for."""
        row = self.grid[self.items.index(self.own_items)] if self.own_items in self.items else ()
        return {
            f"recall_accuracy_percent_at_{length}": one.accuracy_percent
            for length, one in zip(self.lengths, row, strict=False)
            if one is not None
        }


def _by_gap(answers: Answers) -> dict[str, Any]:
    scored_EG, right_EG = answers.n_scored_EG, answers.n_right_EG
    if scored_EG is None or right_EG is None:
        return {}
    there = [g for g in range(len(answers.gaps)) if scored_EG[:, g].any()]
    intervals = [
        _percent(ratio_interval(right_EG[:, g].astype(np.float64), scored_EG[:, g].astype(np.float64))) for g in there
    ]
    return {
        "gaps_up_to": [answers.gaps[g] for g in there],
        "gap_n_scored": [int(scored_EG[:, g].sum()) for g in there],
        "gap_accuracy_percent": [100.0 * int(right_EG[:, g].sum()) / int(scored_EG[:, g].sum()) for g in there],
        "gap_accuracy_percent_low": [low for low, _ in intervals],
        "gap_accuracy_percent_high": [high for _, high in intervals],
    }


def _percent(interval: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (100.0 * interval[0], 100.0 * interval[1])


def evaluate_recall(
    model: LanguageModel,
    probe: ProbeSpec,
    seq_len: int,
    *,
    lengths: tuple[int, ...],
    items: tuple[int, ...],
    examples: int,
    batch_tokens: int,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> RecallGrid:
    """The accuracy over so many sequences of each size; without `items`, of as many as in training.

    The model's mode is afterwards as it was.
    """
    own_items = items_of(probe)
    rows: tuple[int | None, ...] = items or (own_items,)
    datas = [[_made(probe, n, length) for length in lengths] for n in rows]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(dtype, model.embedding.device):
            found = {(own_items, seq_len): _answers(model, make_probe(probe, seq_len), seq_len, examples, batch_tokens)}
            for n, row in zip(rows, datas, strict=True):
                for length, data in zip(lengths, row, strict=True):
                    if data is not None and (n, length) not in found:
                        found[n, length] = _answers(model, data, length, examples, batch_tokens)
    finally:
        model.train(was_training)
    return RecallGrid(
        own=found[own_items, seq_len],
        own_items=own_items,
        lengths=lengths,
        items=rows,
        grid=tuple(tuple(found.get((n, length)) for length in lengths) for n in rows),
    )


def _made(probe: ProbeSpec, items: int | None, length: int) -> SyntheticData | None:
    """None where it cannot be laid out."""
    try:
        return make_probe(probe if items is None else with_items(probe, items), length)
    except ConfigError:
        return None


def _answers(model: LanguageModel, data: SyntheticData, length: int, examples: int, batch_tokens: int) -> Answers:
    gaps = tuple(1 << power for power in range(length.bit_length()))
    size = max(1, batch_tokens // length)
    parts = [
        _counted(model, data.held_out(FIRST + first, min(size, examples - first)), gaps)
        for first in range(0, examples, size)
    ]
    has_gaps = parts[0].n_scored_EG is not None
    return Answers(
        n_scored_E=np.concatenate([part.n_scored_E for part in parts]),
        n_right_E=np.concatenate([part.n_right_E for part in parts]),
        gaps=gaps,
        n_scored_EG=np.concatenate([part.n_scored_EG for part in parts if part.n_scored_EG is not None])
        if has_gaps
        else None,
        n_right_EG=np.concatenate([part.n_right_EG for part in parts if part.n_right_EG is not None])
        if has_gaps
        else None,
    )


def _counted(model: LanguageModel, batch: Batch, gaps: tuple[int, ...]) -> Answers:
    device = model.embedding.device
    scored_BL = batch.targets_BL != NOT_SCORED
    logits_SV = model(torch.from_numpy(batch.inputs_BL).to(device), torch.from_numpy(scored_BL).to(device))
    right_BL = np.zeros_like(scored_BL)
    right_BL[scored_BL] = logits_SV.argmax(-1).cpu().numpy() == batch.targets_BL[scored_BL]
    scored_EG = right_EG = None
    if batch.source_BL is not None:
        gap_BL = np.arange(batch.inputs_BL.shape[1]) - batch.source_BL
        bin_BL = np.searchsorted(gaps, gap_BL)
        scored_EG = np.stack([(scored_BL & (bin_BL == g)).sum(1) for g in range(len(gaps))], axis=1)
        right_EG = np.stack([(right_BL & (bin_BL == g)).sum(1) for g in range(len(gaps))], axis=1)
    return Answers(
        n_scored_E=scored_BL.sum(1), n_right_E=right_BL.sum(1), gaps=gaps, n_scored_EG=scored_EG, n_right_EG=right_EG
    )
