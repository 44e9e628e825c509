from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from hybrid.config import Resolved
from hybrid.data import NOT_SCORED, make_probe
from hybrid.eval_config import EvalSettings, read_evals
from hybrid.eval_spec import RecallEvalSpec, eval_id
from hybrid.evals.intervals import binomial_interval, ratio_interval
from hybrid.evals.recall import FIRST, RecallGrid, evaluate_recall
from hybrid.model import LanguageModel
from hybrid.spec import (
    AttentionSpec,
    BlockSpec,
    CompressionSpec,
    ConfigError,
    InContextRecallSpec,
    MemorisationSpec,
    ModelSpec,
    ProbeSpec,
    RecallSpec,
    RunSpec,
    SelectiveCopyingSpec,
)

RECALL = RecallSpec(n_symbols=16, n_pairs=2, power=0.5)
PLAIN = InContextRecallSpec(n_symbols=6, n_noise_symbols=0, noise_fraction=0.0, train_on="answers")
LENGTH = 16


def model(vocab_size: int) -> LanguageModel:
    mixer = AttentionSpec(n_heads=2, n_kv_heads=2, head_dim=8, rope=None)
    built = LanguageModel(
        ModelSpec(
            d_model=16,
            vocab_size=vocab_size,
            tie_embeddings=True,
            norm_eps=1e-5,
            init_std=0.5,
            blocks=(BlockSpec(mixer=mixer, ffn=None),) * 2,
        )
    )
    built.init_weights(1)
    return built


class Solver(torch.nn.Module):
    """Says what its function of a sequence says is to be said at each position."""

    def __init__(self, solve: Callable[[np.ndarray], np.ndarray], vocab_size: int) -> None:
        super().__init__()
        self.embedding = torch.zeros(1)
        self._solve, self._vocab_size = solve, vocab_size

    def forward(self, inputs_BL: torch.Tensor, scored_BL: torch.Tensor) -> torch.Tensor:
        said_BL = torch.from_numpy(np.stack([self._solve(row) for row in inputs_BL.numpy()]))
        return torch.nn.functional.one_hot(said_BL[scored_BL], self._vocab_size).float()


def measured(
    probe: ProbeSpec,
    lengths: tuple[int, ...] = (LENGTH,),
    items: tuple[int, ...] = (),
    asked: Any = None,
    batch_tokens: int = 1000,
) -> RecallGrid:
    return evaluate_recall(
        model(probe.vocab_size) if asked is None else cast(LanguageModel, asked),
        probe,
        LENGTH,
        lengths=lengths,
        items=items,
        examples=50,
        batch_tokens=batch_tokens,
    )


def counted(probe: ProbeSpec, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and scored positions by sequence, each read alone, all of its logits made."""
    batch = make_probe(probe, length).held_out(FIRST, 50)
    built = model(probe.vocab_size).eval()
    right, scored = [], []
    for inputs, targets in zip(batch.inputs_BL, batch.targets_BL, strict=True):
        with torch.no_grad():
            said = built(torch.from_numpy(inputs)[None])[0].argmax(-1).numpy()
        right.append(int(((said == targets) & (targets != NOT_SCORED)).sum()))
        scored.append(int((targets != NOT_SCORED).sum()))
    return np.array(right), np.array(scored)


@pytest.mark.parametrize("probe", [RECALL, PLAIN], ids=lambda probe: probe.kind)
def test_accuracies_and_intervals_are_those_of_a_direct_count(probe: ProbeSpec) -> None:
    grid = measured(probe, lengths=(LENGTH, 3 * LENGTH), batch_tokens=7 * LENGTH)
    metrics = grid.metrics()
    for j, length in enumerate(grid.lengths):
        right, scored = counted(probe, length)
        assert right.sum() > 0
        assert metrics["accuracy_percent"][0][j] == 100 * right.sum() / scored.sum()
        assert metrics[f"recall_accuracy_percent_at_{length}"] == metrics["accuracy_percent"][0][j]
        interval = ratio_interval(right.astype(float), scored.astype(float))
        assert interval is not None
        assert (metrics["accuracy_percent_low"][0][j], metrics["accuracy_percent_high"][0][j]) == pytest.approx(
            [100 * bound for bound in interval]
        )
    right, scored = counted(probe, LENGTH)
    assert metrics["recall_accuracy_percent"] == metrics["accuracy_percent"][0][0]
    assert (metrics["n_right"], metrics["n_scored"], metrics["n_sequences"]) == (right.sum(), scored.sum(), 50)
    exact = [100 * bound for bound in binomial_interval(int(right.sum()), int(scored.sum()))]
    assert [metrics[f"recall_accuracy_percent_binomial_{end}"] for end in ("low", "high")] == exact
    assert metrics["whole_sequences_percent"] == 100 * (right == scored).mean()
    assert sum(metrics["gap_n_scored"]) == scored.sum()
    by_gap = zip(metrics["gap_n_scored"], metrics["gap_accuracy_percent"], strict=True)
    assert sum(n * percent / 100 for n, percent in by_gap) == pytest.approx(right.sum())


def test_gaps_tell_apart_what_a_short_memory_answers() -> None:
    """One that remembers four positions says what was asked for there, and the blank elsewhere."""
    probe = SelectiveCopyingSpec(n_symbols=6, n_copied=3)

    def last(row: np.ndarray) -> np.ndarray:
        at = int(np.argmax(row == 5))
        kept = [(i, symbol) for i, symbol in enumerate(row[:at]) if symbol != 4]
        said = np.full(len(row), 4)
        for j, (i, symbol) in enumerate(kept):
            if at + 1 + j - i <= 4:
                said[at + 1 + j] = symbol
        return said

    metrics = measured(probe, asked=Solver(last, 6)).metrics()
    by_gap = dict(zip(metrics["gaps_up_to"], metrics["gap_accuracy_percent"], strict=True))
    assert by_gap == {gap: 100.0 if gap <= 4 else 0.0 for gap in by_gap}
    assert {4, 8} <= set(by_gap)


def test_a_solver_of_the_task_is_always_right_at_every_size() -> None:
    probe = CompressionSpec(n_symbols=8, n_compressed=5)

    def look_back(row: np.ndarray) -> np.ndarray:
        return np.where(row > 8, row[np.maximum(row - 9, 0)], 0)

    grid = measured(probe, lengths=(11, LENGTH, 64), items=(1, 3, 5), asked=Solver(look_back, probe.vocab_size))
    metrics = grid.metrics()
    assert metrics["accuracy_percent"] == [[100.0] * 3] * 3
    assert metrics["whole_sequences_percent"] == 100.0
    assert metrics["recall_accuracy_percent_binomial_low"] == 100 * binomial_interval(250, 250)[0]
    assert metrics["items"] == [1, 3, 5]


def test_sizes_that_do_not_fit_are_left_empty() -> None:
    grid = measured(RECALL, lengths=(8, 24), items=(1, 2, 6))
    assert [[one is None for one in row] for row in grid.grid] == [[False, False], [False, False], [True, False]]
    metrics = grid.metrics()
    assert [[value is None for value in row] for row in metrics["accuracy_percent"]][2] == [True, False]
    assert [[value is None for value in row] for row in metrics["accuracy_percent_low"]][2] == [True, False]


def test_what_stands_nowhere_has_no_gap_and_the_model_is_left_in_its_mode() -> None:
    probe = MemorisationSpec(n_symbols=9, map_seed=1)
    asked = model(9).train()
    metrics = measured(probe, asked=asked).metrics()
    assert asked.training
    assert "gaps_up_to" not in metrics
    assert metrics["items"] == [None]


def test_no_sequence_was_seen_in_validation_or_by_a_stop_rule() -> None:
    data = make_probe(RecallSpec(n_symbols=64, n_pairs=4, power=0.1), 32)
    used = {row.tobytes() for row in data.held_out(FIRST, 2000).inputs_BL}
    assert used.isdisjoint(row.tobytes() for row in data.held_out(0, 2000).inputs_BL)


@pytest.fixture
def read(config: dict[str, Any]) -> Callable[..., EvalSettings]:
    def read(**settings: object) -> EvalSettings:
        merged = {**config["eval"], "recall": {**config["eval"]["recall"], **settings}}
        return read_evals(["recall"], merged, stdlib_fingerprint=lambda: "0" * 16)

    return read


@pytest.fixture
def run(resolve: Callable[..., Resolved]) -> RunSpec:
    return resolve("data=recall", "seq_len=32", "batch_tokens=1024", "model.window.size=8", "model.window.sink=2").run


def test_the_shipped_settings_are_lengths_up_to_four_times_that_of_training(
    read: Callable[..., EvalSettings], run: RunSpec
) -> None:
    (spec,) = read().of(run)
    assert spec == RecallEvalSpec(examples=1024, lengths=(32, 64, 128), items=())
    assert eval_id(spec) == "63e13228e8aa"
    assert read(lengths=[64, 48], items=[8, 4]).of(run) == (
        RecallEvalSpec(examples=1024, lengths=(48, 64), items=(4, 8)),
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"examples": 0}, r"eval\.recall\.examples = 0: expected at least 1"),
        ({"lengths": [1]}, r"eval\.recall\.lengths\[0\] = 1: expected at least 2"),
        ({"lengths": []}, r"eval\.recall\.lengths = \[\]: expected different numbers, at least one"),
        ({"items": [2, 2]}, r"eval\.recall\.items = \[2, 2\]: expected different numbers"),
        ({"lengths": [8, 64]}, r"eval\.recall\.lengths = \[8, 64\]: seq_len = 8: expected at least 16"),
        ({"items": [4, 40]}, r"eval\.recall\.items = \[4, 40\]: data\.n_pairs = 40: expected at most 31"),
    ],
)
def test_bad_settings_are_refused(
    read: Callable[..., EvalSettings], run: RunSpec, settings: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(**settings).of(run)


def test_items_are_refused_of_a_task_that_has_none(read: Callable[..., EvalSettings], run: RunSpec) -> None:
    with pytest.raises(ConfigError, match=r"eval\.recall\.items = \[4\]: data\.kind = in_context_recall: how much"):
        read(items=[4]).of(replace(run, data=PLAIN))


def test_a_run_on_text_is_refused(read: Callable[..., EvalSettings], resolve: Callable[..., Resolved]) -> None:
    with pytest.raises(ConfigError, match=r"evals = recall: data\.kind = stdlib: expected a run on a synthetic task"):
        read().of(resolve().run)
