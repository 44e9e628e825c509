import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.data import NOT_SCORED, Batch, open_data
from hybrid.data.recall import FILLER, RecallData
from hybrid.spec import ConfigError, RecallSpec


def source(n_symbols: int = 64, n_pairs: int = 4, power: float = 0.01, seq_len: int = 32) -> RecallData:
    return RecallData(RecallSpec(n_symbols=n_symbols, n_pairs=n_pairs, power=power), seq_len)


def same(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.inputs_BL, b.inputs_BL) and np.array_equal(a.targets_BL, b.targets_BL)


def joined(batches: list[Batch]) -> Batch:
    return Batch(
        inputs_BL=np.concatenate([batch.inputs_BL for batch in batches]),
        targets_BL=np.concatenate([batch.targets_BL for batch in batches]),
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_sequence_is_answerable_from_its_past(data: st.DataObject) -> None:
    n_pairs = data.draw(st.integers(1, 6), "n_pairs")
    n_symbols = data.draw(st.integers(2 * n_pairs + 2, 40), "n_symbols")
    seq_len = data.draw(st.integers(4 * n_pairs, 4 * n_pairs + 20), "seq_len")
    power = data.draw(st.floats(0, 10), "power")
    step, seed = data.draw(st.integers(0, 2**40), "step"), data.draw(st.integers(0, 2**32 - 1), "seed")
    batch = source(n_symbols, n_pairs, power, seq_len).train_batch(step, 3, seed)
    assert batch.inputs_BL.shape == batch.targets_BL.shape == (3, seq_len)
    assert batch.inputs_BL.dtype == batch.targets_BL.dtype == np.int64
    for inputs, targets in zip(batch.inputs_BL.tolist(), batch.targets_BL.tolist(), strict=True):
        keys, values = inputs[0 : 2 * n_pairs : 2], inputs[1 : 2 * n_pairs : 2]
        assert len(set(keys)) == len(set(values)) == n_pairs
        assert all(FILLER < key < n_symbols // 2 for key in keys)
        assert all(n_symbols // 2 <= value < n_symbols for value in values)
        asked = [at for at in range(seq_len) if targets[at] != NOT_SCORED]
        assert sorted(inputs[at] for at in asked) == sorted(keys)
        assert all(at >= 2 * n_pairs for at in asked)
        value_of = dict(zip(keys, values, strict=True))
        assert all(targets[at] == value_of[inputs[at]] for at in asked)
        assert all(inputs[at] == FILLER for at in range(2 * n_pairs, seq_len) if at not in asked)


def test_a_batch_depends_on_its_arguments_only() -> None:
    used = source()
    used.train_batch(5, 32, 0)
    list(used.validation_batches(8, 20))
    assert same(used.train_batch(3, 32, 1), source().train_batch(3, 32, 1))


def test_training_sequences_do_not_depend_on_how_they_are_batched() -> None:
    data = source()
    assert same(joined([data.train_batch(step, 4, 7) for step in range(6)]), joined([data.train_batch(0, 24, 7)]))


def test_steps_and_data_seeds_give_different_sequences() -> None:
    data = source()
    batches = [data.train_batch(step, 64, seed) for step in range(3) for seed in range(3)]
    rows = {row.tobytes() for batch in batches for row in batch.inputs_BL}
    assert len(rows) == 9 * 64


def test_validation_is_the_same_however_batched_and_never_seen_in_training() -> None:
    data = source()
    whole = joined(list(data.validation_batches(256, 256)))
    assert same(joined(list(source().validation_batches(100, 256))), whole)
    assert same(joined(list(data.validation_batches(7, 50))), joined(list(data.validation_batches(50, 50))))
    assert [len(batch.inputs_BL) for batch in data.validation_batches(100, 256)] == [100, 100, 56]
    held_out = {row.tobytes() for row in whole.inputs_BL}
    assert len(held_out) == 256
    for seed in range(4):
        assert held_out.isdisjoint(row.tobytes() for row in data.train_batch(0, 256, seed).inputs_BL)


def test_guessing_among_the_values_seen_scores_one_in_n_pairs() -> None:
    n_pairs = 4
    batch = source(n_pairs=n_pairs).train_batch(0, 8192, 0)
    seen_BN = batch.inputs_BL[:, 1 : 2 * n_pairs : 2]
    first_asked_B = np.argmax(batch.targets_BL != NOT_SCORED, axis=1)
    in_random_order_B = seen_BN[np.arange(8192), np.random.default_rng(0).integers(n_pairs, size=8192)]
    answer_B = batch.targets_BL[np.arange(8192), first_asked_B]
    # 5 standard deviations of a proportion over 8192 draws
    assert abs(np.mean(in_random_order_B == answer_B) - 1 / n_pairs) < 5 * np.sqrt(0.25 * 0.75 / 8192)


@pytest.mark.parametrize("power", [0.01, 1.0, 2.0])
def test_gap_of_the_first_key_follows_the_power_law(power: float) -> None:
    n, count, n_slots = 3, 20_000, 9
    batch = source(n_symbols=16, n_pairs=n, power=power, seq_len=2 * n + 2 * n_slots).train_batch(0, count, 0)
    asked_B = np.argmax(batch.inputs_BL[:, 2 * n :] == batch.inputs_BL[:, :1], axis=1)
    assert np.all(asked_B % 2 == 0)
    found = np.bincount(asked_B // 2, minlength=n_slots) / count
    weights = np.arange(1, n_slots + 1) ** (power - 1)
    expected = weights / weights.sum()
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / count))


def test_keys_and_values_are_drawn_uniformly() -> None:
    batch = source(n_symbols=13, n_pairs=2, seq_len=8).train_batch(0, 30_000, 0)
    for column, symbols in ((0, range(1, 6)), (2, range(1, 6)), (1, range(6, 13)), (3, range(6, 13))):
        found = np.bincount(batch.inputs_BL[:, column], minlength=13) / 30_000
        expected = 1 / len(symbols)
        assert np.all(np.abs(found[list(symbols)] - expected) < 5 * np.sqrt(expected * (1 - expected) / 30_000))


def test_first_batch_is_the_golden_one() -> None:
    """A change here changes every curve: raise `RecallSpec.revision` with it."""
    batch = source().train_batch(0, 32, 0)
    content = batch.inputs_BL.astype("<i8").tobytes() + batch.targets_BL.astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "ebd4725934d03c9b"


def test_open_data_makes_recall_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    spec = RecallSpec(n_symbols=64, n_pairs=4, power=0.01)
    assert same(open_data(spec, 32, tmp_path).train_batch(0, 2, 0), source().train_batch(0, 2, 0))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="seq_len = 15"):
        open_data(spec, 15, tmp_path)
