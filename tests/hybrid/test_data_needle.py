import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.data import NOT_SCORED, Batch, open_data
from hybrid.data.needle import NeedleData
from hybrid.spec import ConfigError, NeedleSpec


def source(n_needles: int = 3, n_digits: int = 2, seq_len: int = 60) -> NeedleData:
    return NeedleData(NeedleSpec(n_needles=n_needles, n_digits=n_digits), seq_len)


def joined(batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([b.inputs_BL for b in batches]), np.concatenate([b.targets_BL for b in batches])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_question_is_answerable_from_its_past(data: st.DataObject) -> None:
    n, n_digits = data.draw(st.integers(1, 26)), data.draw(st.integers(1, 9))
    seq_len = 2 * n * (n_digits + 2) + data.draw(st.integers(0, 30))
    batch = source(n, n_digits, seq_len).train_batch(data.draw(st.integers(0, 2**40)), 3, data.draw(st.integers(0, 99)))
    assert batch.inputs_BL.shape == batch.targets_BL.shape == (3, seq_len)
    for inputs, targets in zip(batch.inputs_BL, batch.targets_BL, strict=True):
        scored = targets != NOT_SCORED
        assert (targets[:-1] == inputs[1:])[scored[:-1]].all()
        text = bytes(inputs.astype(np.uint8)) + b";"
        haystack, asked = text[: -n * (n_digits + 2)], text[-n * (n_digits + 2) :]
        hidden = re.findall(rb"[A-Z]\d{%d};" % n_digits, haystack)
        assert len({needle[:1] for needle in hidden}) == len(hidden) == n
        assert re.sub(rb"[A-Z]\d+;", b"", haystack).islower() or len(haystack) == n * (n_digits + 2)
        assert sorted(re.findall(rb"[A-Z]\d{%d};" % n_digits, asked)) == sorted(hidden)
        assert bytes(targets[scored].astype(np.uint8)) == b"".join(re.findall(rb"\d+", asked))


def test_sequences_depend_on_their_number_and_the_seed_alone() -> None:
    data = source()
    whole = data.train_batch(0, 12, 1)
    parts = joined([source().train_batch(step, 4, 1) for step in range(3)])
    assert np.array_equal(parts[0], whole.inputs_BL)
    assert np.array_equal(parts[1], whole.targets_BL)
    assert not np.array_equal(data.train_batch(0, 12, 2).inputs_BL, whole.inputs_BL)
    held_out = joined(list(data.validation_batches(5, 12)))
    assert np.array_equal(held_out[0], joined(list(data.validation_batches(12, 12)))[0])
    assert not np.array_equal(held_out[0], whole.inputs_BL)


def test_places_and_digits_are_drawn_evenly() -> None:
    batch = source(n_needles=1, n_digits=1, seq_len=15).train_batch(0, 20000, 1)
    places = np.argmax(np.isin(batch.inputs_BL, range(ord("A"), ord("Z") + 1)), axis=1)
    assert np.bincount(places, minlength=11) == pytest.approx(np.full(11, 20000 / 11), rel=0.15)
    digits = batch.targets_BL[batch.targets_BL != NOT_SCORED] - ord("0")
    assert np.bincount(digits, minlength=10) == pytest.approx(np.full(10, 2000), rel=0.15)


def test_it_is_opened_by_its_spec_and_refused_where_it_does_not_fit() -> None:
    assert isinstance(open_data(NeedleSpec(n_needles=3, n_digits=2), 60, Path("nowhere")), NeedleData)
    for spec, seq_len, message in (
        (NeedleSpec(n_needles=3, n_digits=2), 23, "seq_len = 23: expected at least 24"),
        (NeedleSpec(n_needles=27, n_digits=2), 900, "n_needles = 27: expected 1 to 26"),
        (NeedleSpec(n_needles=3, n_digits=0), 900, "n_digits = 0: expected 1 to 9"),
    ):
        with pytest.raises(ConfigError, match=message):
            NeedleData(spec, seq_len)
