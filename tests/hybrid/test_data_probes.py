"""The tasks of MAD (arXiv 2403.17844) as they are published: who reads the definition alone is always right."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.data import NOT_SCORED, Batch, make_probe, open_data
from hybrid.data.synthetic import chosen
from hybrid.probes import check_probe, items_of, scored_positions, with_items
from hybrid.spec import (
    CompressionSpec,
    ConfigError,
    FuzzyRecallSpec,
    InContextRecallSpec,
    MemorisationSpec,
    NeedleSpec,
    ProbeSpec,
    RecallSpec,
    SelectiveCopyingSpec,
)

PLAIN = InContextRecallSpec(n_symbols=16, n_noise_symbols=0, noise_fraction=0.0, train_on="answers")
NOISY = InContextRecallSpec(n_symbols=14, n_noise_symbols=4, noise_fraction=0.4, train_on="answers")
FUZZY = FuzzyRecallSpec(n_symbols=12, key_size=3, value_size=2, train_on="answers")
COPYING = SelectiveCopyingSpec(n_symbols=9, n_copied=5)
COMPRESSION = CompressionSpec(n_symbols=8, n_compressed=6)
MEMORISATION = MemorisationSpec(n_symbols=32, map_seed=7)
MAD = (PLAIN, NOISY, FUZZY, COPYING, COMPRESSION, MEMORISATION)
EVERY = (*MAD, RecallSpec(n_symbols=16, n_pairs=3, power=0.5), NeedleSpec(n_needles=2, n_digits=1))
LENGTH = 32

kinds = pytest.mark.parametrize("spec", EVERY, ids=lambda spec: f"{spec.kind}-{spec.vocab_size}")


def joined(batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([b.inputs_BL for b in batches]), np.concatenate([b.targets_BL for b in batches])


def recalled(spec: InContextRecallSpec) -> Callable[[list[int]], dict[int, int]]:
    """The value of every key that was there before, read pair by pair."""
    n_keys, n_words = (spec.n_symbols - spec.n_noise_symbols) // 2, spec.n_symbols - spec.n_noise_symbols

    def solve(inputs: list[int]) -> dict[int, int]:
        known: dict[int, int] = {}
        answers = {}
        for at in range(0, len(inputs), 2):
            key, value = inputs[at : at + 2]
            if key >= n_words:
                assert value >= n_words
                continue
            assert key < n_keys <= value < n_words
            if key in known:
                answers[at] = known[key]
                assert value == known[key]
            known[key] = value
        return answers

    return solve


def fuzzily_recalled(spec: FuzzyRecallSpec) -> Callable[[list[int]], dict[int, int]]:
    """The value of every key that was there before: keys end where symbols of values begin."""
    padding = spec.n_symbols - 1
    n_keys = padding // 2

    def solve(inputs: list[int]) -> dict[int, int]:
        at = next(i for i, symbol in enumerate(inputs) if symbol != padding)
        assert padding not in inputs[at:]
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        answers = {}
        while at < len(inputs):
            begin = at
            while at < len(inputs) and inputs[at] < n_keys:
                at += 1
            key, first = tuple(inputs[begin:at]), at
            while at < len(inputs) and inputs[at] >= n_keys:
                at += 1
            value = tuple(inputs[first:at])
            assert len(set(key)) == len(key) <= spec.key_size
            assert len(set(value)) == len(value) <= spec.value_size
            if key in known:
                answers |= {first - 1 + i: symbol for i, symbol in enumerate(known[key])}
                assert known[key][: len(value)] == value
            elif at < len(inputs):
                known[key] = value
        return answers

    return solve


def copied(spec: SelectiveCopyingSpec) -> Callable[[list[int]], dict[int, int]]:
    def solve(inputs: list[int]) -> dict[int, int]:
        asks, blank = spec.n_symbols - 1, spec.n_symbols - 2
        at = inputs.index(asks)
        assert inputs[at - 1] != blank
        assert set(inputs[at + 1 :]) == {blank}
        symbols = [symbol for symbol in inputs[:at] if symbol != blank]
        return {at + 1 + i: symbol for i, symbol in enumerate(symbols)}

    return solve


def decompressed(spec: CompressionSpec) -> Callable[[list[int]], dict[int, int]]:
    def solve(inputs: list[int]) -> dict[int, int]:
        n = spec.n_compressed
        assert set(inputs[n:-n]) == {spec.n_symbols}
        assert max(inputs[:n]) < spec.n_symbols
        return {at: inputs[inputs[at] - spec.n_symbols - 1] for at in range(len(inputs) - n, len(inputs))}

    return solve


def right_of(spec: ProbeSpec, solve: Callable[[list[int]], dict[int, int]], batch: Batch) -> None:
    """The solver says what is to be said, wherever something is, and nothing elsewhere."""
    for inputs, targets in zip(batch.inputs_BL.tolist(), batch.targets_BL.tolist(), strict=True):
        assert solve(inputs) == {at: target for at, target in enumerate(targets) if target != NOT_SCORED}
        assert min(inputs) >= 0
        assert max(inputs) < spec.vocab_size


numbers = {"step": st.integers(0, 2**40), "seed": st.integers(0, 2**32 - 1)}


@settings(max_examples=40, deadline=None)
@given(
    words=st.integers(2, 20), noise=st.integers(0, 5), pairs=st.integers(2, 20), part=st.floats(0.01, 0.9), **numbers
)
def test_in_context_recall_asks_for_every_key_that_was_there(
    words: int, noise: int, pairs: int, part: float, step: int, seed: int
) -> None:
    spec = InContextRecallSpec(
        n_symbols=words + noise, n_noise_symbols=noise, noise_fraction=part if noise else 0.0, train_on="answers"
    )
    batch = make_probe(spec, 2 * pairs).train_batch(step, 3, seed)
    right_of(spec, recalled(spec), batch)
    assert (batch.targets_BL[:, -2] != NOT_SCORED).all()


@settings(max_examples=40, deadline=None)
@given(key=st.integers(1, 3), value=st.integers(1, 3), more=st.integers(0, 8), room=st.integers(0, 25), **numbers)
def test_fuzzy_recall_asks_for_every_key_that_was_there(
    key: int, value: int, more: int, room: int, step: int, seed: int
) -> None:
    spec = FuzzyRecallSpec(
        n_symbols=1 + max(2 * key, 2 * value - 1) + more, key_size=key, value_size=value, train_on="answers"
    )
    data = make_probe(spec, 2 * (key + value) + room)
    for batch in (data.train_batch(step, 3, seed), next(data.validation_batches(3, 3))):
        right_of(spec, fuzzily_recalled(spec), batch)
        assert (batch.targets_BL[:, -1] != NOT_SCORED).all()


@settings(max_examples=30, deadline=None)
@given(symbols=st.integers(4, 20), n=st.integers(1, 8), blanks=st.integers(1, 20), **numbers)
def test_selective_copying_asks_for_all_symbols_in_their_order(
    symbols: int, n: int, blanks: int, step: int, seed: int
) -> None:
    spec = SelectiveCopyingSpec(n_symbols=symbols, n_copied=n)
    right_of(spec, copied(spec), make_probe(spec, 2 * n + 1 + blanks).train_batch(step, 3, seed))


@settings(max_examples=30, deadline=None)
@given(symbols=st.integers(2, 20), n=st.integers(1, 10), more=st.integers(0, 20), **numbers)
def test_compression_asks_for_the_token_of_each_place(symbols: int, n: int, more: int, step: int, seed: int) -> None:
    spec = CompressionSpec(n_symbols=symbols, n_compressed=n)
    right_of(spec, decompressed(spec), make_probe(spec, 2 * n + 1 + more).train_batch(step, 3, seed))


def test_memorisation_has_one_map_in_training_and_held_out_sequences_that_a_seed_fixes() -> None:
    data = make_probe(MEMORISATION, LENGTH)
    train = joined([data.train_batch(0, 40, seed) for seed in (1, 2)])
    held_out = joined(list(data.validation_batches(40, 40)))
    facts = dict(zip(train[0][:, ::2].ravel().tolist(), train[1][:, 1::2].ravel().tolist(), strict=True))
    assert sorted(facts) == list(range(15))
    assert len(set(facts.values())) == 15
    assert set(facts.values()) <= set(range(15, 31))
    for inputs, targets in (train, held_out):
        assert (inputs[:, 1::2] == 31).all()
        assert (targets[:, ::2] == NOT_SCORED).all()
        assert targets[:, 1::2].tolist() == [[facts[key] for key in row] for row in inputs[:, ::2].tolist()]
    other = make_probe(MemorisationSpec(n_symbols=32, map_seed=8), LENGTH).train_batch(0, 40, 1)
    assert np.array_equal(other.inputs_BL, train[0][:40])
    assert not np.array_equal(other.targets_BL, train[1][:40])


@kinds
def test_sequences_depend_on_their_number_and_the_seed_alone(spec: ProbeSpec) -> None:
    data = make_probe(spec, LENGTH)
    whole = data.train_batch(0, 12, 1)
    parts = joined([make_probe(spec, LENGTH).train_batch(step, 4, 1) for step in range(3)])
    assert np.array_equal(parts[0], whole.inputs_BL)
    assert np.array_equal(parts[1], whole.targets_BL)
    assert not np.array_equal(data.train_batch(0, 12, 2).inputs_BL, whole.inputs_BL)


@kinds
def test_fewer_held_out_sequences_are_a_prefix_of_more_and_none_of_training(spec: ProbeSpec) -> None:
    data = make_probe(spec, LENGTH)
    more = joined(list(data.validation_batches(7, 60)))
    fewer = joined(list(data.validation_batches(20, 20)))
    assert np.array_equal(more[0][:20], fewer[0])
    assert np.array_equal(more[1][:20], fewer[1])
    assert np.array_equal(data.held_out(20, 40).inputs_BL, more[0][20:])
    held_out = {row.tobytes() for row in more[0]}
    assert held_out.isdisjoint(row.tobytes() for seed in range(4) for row in data.train_batch(0, 60, seed).inputs_BL)


@pytest.mark.parametrize("spec", MAD[:-1], ids=lambda spec: f"{spec.kind}-{spec.vocab_size}")
def test_the_source_of_an_answer_is_where_it_stands_the_last_time(spec: ProbeSpec) -> None:
    batch = make_probe(spec, LENGTH).train_batch(0, 200, 1)
    assert batch.source_BL is not None
    scored_BL = batch.targets_BL != NOT_SCORED
    assert np.array_equal(batch.source_BL != NOT_SCORED, scored_BL)
    rows, positions = np.nonzero(scored_BL)
    sources = batch.source_BL[scored_BL]
    assert (sources < positions).all()
    assert (batch.inputs_BL[rows, sources] == batch.targets_BL[scored_BL]).all()
    if spec in (PLAIN, NOISY):
        for row, at, source in zip(rows.tolist(), positions.tolist(), sources.tolist(), strict=True):
            keys = batch.inputs_BL[row, :at:2].tolist()
            assert source == 2 * max(i for i, key in enumerate(keys) if key == batch.inputs_BL[row, at]) + 1


def test_noise_comes_as_often_as_it_should_and_not_instead_of_every_pair() -> None:
    spec = InContextRecallSpec(n_symbols=12, n_noise_symbols=4, noise_fraction=0.8, train_on="answers")
    batch = make_probe(spec, 32).train_batch(0, 5000, 1)
    is_noise_BP = batch.inputs_BL[:, :-2:2] >= 8
    assert not is_noise_BP.all(1).any()
    # One pair of the fifteen is never noise; five standard deviations of the others.
    expected = 0.8 * 14 / 15
    assert abs(is_noise_BP.mean() - expected) < 5 * np.sqrt(0.8 * 0.2 / (5000 * 14))


def test_held_out_keys_of_fuzzy_recall_all_are_of_the_largest_size() -> None:
    data = make_probe(FUZZY, 40)

    def sizes(batch: Batch) -> set[int]:
        found = set()
        for row in batch.inputs_BL.tolist():
            text = "".join("k" if symbol < 5 else "v" for symbol in row if symbol != 11)
            found |= {len(run) for run in text.replace("v", " ").split()}
        return found

    assert sizes(next(data.validation_batches(100, 100))) == {3}
    assert sizes(data.train_batch(0, 100, 1)) == {1, 2, 3}


@pytest.mark.parametrize("spec", [PLAIN, NOISY, FUZZY], ids=["plain", "noisy", "fuzzy"])
def test_training_on_all_scores_every_next_token_and_leaves_validation_as_it_is(
    spec: InContextRecallSpec | FuzzyRecallSpec,
) -> None:
    answers, everything = make_probe(spec, LENGTH), make_probe(replace(spec, train_on="all"), LENGTH)
    some, every = answers.train_batch(0, 50, 1), everything.train_batch(0, 50, 1)
    assert np.array_equal(some.inputs_BL, every.inputs_BL)
    scored = some.targets_BL != NOT_SCORED
    assert np.array_equal(some.targets_BL[scored], every.targets_BL[scored])
    told = every.targets_BL[:, :-1] != NOT_SCORED
    assert np.array_equal(every.targets_BL[:, :-1][told], every.inputs_BL[:, 1:][told])
    assert (told | (every.inputs_BL[:, 1:] == spec.n_symbols - 1)).all()
    assert np.array_equal(answers.held_out(0, 50).targets_BL, everything.held_out(0, 50).targets_BL)
    assert scored_positions(replace(spec, train_on="all"), LENGTH) is None


@kinds
def test_no_sequence_has_more_scored_positions_than_is_planned_with(spec: ProbeSpec) -> None:
    most = scored_positions(spec, LENGTH)
    assert most is not None
    assert ((make_probe(spec, LENGTH).train_batch(0, 500, 1).targets_BL != NOT_SCORED).sum(1) <= most).all()


@pytest.mark.parametrize(
    ("spec", "golden"),
    list(
        zip(
            MAD,
            (
                "a1e39c7afb95e93a",
                "e972c5786720e2e9",
                "161b1e1dca7170ad",
                "74c509a948d92be6",
                "eb8f944ed51c60df",
                "068d4aa82bde90da",
            ),
            strict=True,
        )
    ),
    ids=["plain", "noisy", "fuzzy", "copying", "compression", "memorisation"],
)
def test_first_batch_is_the_golden_one(spec: ProbeSpec, golden: str) -> None:
    """A change here changes every curve: raise the spec's revision with it."""
    batch = make_probe(spec, LENGTH).train_batch(0, 32, 0)
    content = batch.inputs_BL.astype("<i8").tobytes() + batch.targets_BL.astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == golden


@pytest.mark.parametrize(
    ("spec", "seq_len", "problems"),
    [
        (PLAIN, 31, ["seq_len = 31: expected an even number, at least 4"]),
        (
            InContextRecallSpec(n_symbols=5, n_noise_symbols=4, noise_fraction=1.0, train_on="all"),
            2,
            ["seq_len = 2: expected", "n_symbols = 5: expected at least 6", "noise_fraction = 1.0: expected a number"],
        ),
        (
            InContextRecallSpec(n_symbols=16, n_noise_symbols=0, noise_fraction=0.5, train_on="all"),
            8,
            ["noise_fraction, n_noise_symbols = 0.5, 0: expected both above 0, or both 0"],
        ),
        (
            FuzzyRecallSpec(n_symbols=6, key_size=3, value_size=2, train_on="all"),
            32,
            ["n_symbols = 6: expected at least 7"],
        ),
        (
            FuzzyRecallSpec(n_symbols=16, key_size=0, value_size=9, train_on="all"),
            32,
            ["key_size = 0: expected 1 to 8", "value_size = 9"],
        ),
        (FUZZY, 9, ["seq_len = 9: expected at least 10"]),
        (COPYING, 11, ["seq_len = 11: expected at least 12"]),
        (SelectiveCopyingSpec(n_symbols=3, n_copied=0), 12, ["n_symbols = 3: expected at least 4", "n_copied = 0"]),
        (COMPRESSION, 12, ["seq_len = 12: expected at least 13"]),
        (CompressionSpec(n_symbols=1, n_compressed=0), 12, ["n_symbols = 1", "n_compressed = 0: expected at least 1"]),
        (
            MemorisationSpec(n_symbols=4, map_seed=-1),
            3,
            ["seq_len = 3", "n_symbols = 4: expected at least 5", "map_seed = -1"],
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, ProbeSpec) else None,
)
def test_what_cannot_be_laid_out_is_refused_with_every_reason(
    spec: ProbeSpec, seq_len: int, problems: list[str], tmp_path: Path
) -> None:
    for refuse in (lambda: check_probe(spec, seq_len), lambda: open_data(spec, seq_len, tmp_path)):
        with pytest.raises(ConfigError) as caught:
            refuse()
        assert len(caught.value.problems) == len(problems)
        for problem, expected in zip(caught.value.problems, problems, strict=True):
            assert expected in problem


@kinds
def test_the_smallest_that_is_allowed_can_be_made(spec: ProbeSpec) -> None:
    def allowed(seq_len: int) -> bool:
        try:
            check_probe(spec, seq_len)
        except ConfigError:
            return False
        return True

    least = next(seq_len for seq_len in range(1, 100) if allowed(seq_len))
    batch = make_probe(spec, least).train_batch(0, 50, 1)
    assert batch.inputs_BL.shape == (50, least)
    assert (batch.targets_BL != NOT_SCORED).any(1).all()


@kinds
def test_items_are_changed_where_a_setting_says_how_many_there_are(spec: ProbeSpec) -> None:
    items = items_of(spec)
    if items is None:
        with pytest.raises(ConfigError, match="follows from the length alone"):
            with_items(spec, 2)
        return
    assert with_items(spec, items) == spec
    assert items_of(with_items(spec, items - 1)) == items - 1
    if isinstance(spec, CompressionSpec):
        with pytest.raises(ConfigError, match="expected at most 6"):
            with_items(spec, 7)
        fewer = make_probe(with_items(spec, 4), LENGTH).train_batch(0, 1, 1)
        assert fewer.inputs_BL[0, -4:].tolist() == [9, 10, 11, 12]


def test_candidates_are_chosen_evenly_and_only_they() -> None:
    among_BC = np.tile(np.array([False, True, False, True, True]), (30_000, 1))
    found = np.bincount(chosen(np.random.default_rng(0).random(30_000), among_BC), minlength=5) / 30_000
    assert found[[0, 2]].tolist() == [0, 0]
    assert np.abs(found[[1, 3, 4]] - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 30_000)
    assert chosen(np.array([1 - 2**-53]), among_BC[:1]).tolist() == [4]
