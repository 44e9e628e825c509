import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.spec import TrapezoidSpec
from hybrid.train.schedule import learning_rate


def rates(warmup: int, stable: int, cooldown: int, batch_tokens: int, peak: float = 1.0, rest: int = 0) -> list[float]:
    """Every update's learning rate; the three phases in batches, `rest` in tokens."""
    steps = warmup + stable + cooldown
    schedule = TrapezoidSpec(warmup_tokens=warmup * batch_tokens, cooldown_tokens=cooldown * batch_tokens)
    return [
        learning_rate(
            step, peak=peak, schedule=schedule, train_tokens=steps * batch_tokens + rest, batch_tokens=batch_tokens
        )
        for step in range(steps)
    ]


PHASE = st.integers(0, 60)
BATCH = st.integers(1, 100_000)


def test_values_are_those_of_the_definition() -> None:
    assert rates(4, 2, 4, batch_tokens=512) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_without_ramps_every_update_has_the_peak() -> None:
    assert rates(0, 5, 0, batch_tokens=7, peak=3e-4) == [3e-4] * 5


@given(warmup=PHASE, stable=PHASE, cooldown=PHASE, batch_tokens=BATCH)
def test_the_sum_is_the_area_of_the_trapezoid_and_half_a_step_for_each_ramp(
    warmup: int, stable: int, cooldown: int, batch_tokens: int
) -> None:
    half_steps = (warmup + (warmup > 0)) / 2 + (cooldown + (cooldown > 0)) / 2
    assert math.fsum(rates(warmup, stable, cooldown, batch_tokens)) == pytest.approx(stable + half_steps, rel=1e-12)


@given(warmup=PHASE, stable=PHASE, cooldown=PHASE, batch_tokens=BATCH)
def test_it_jumps_nowhere_and_no_update_has_zero(warmup: int, stable: int, cooldown: int, batch_tokens: int) -> None:
    values = rates(warmup, stable, cooldown, batch_tokens)
    rise = 1 / warmup if warmup else 0.0
    fall = 1 / cooldown if cooldown else 0.0
    for before, after in itertools.pairwise(values):
        assert -fall - 1e-12 <= after - before <= rise + 1e-12
    assert all(0.0 < value <= 1.0 for value in values)
    assert not values or max(values) == 1.0


@given(warmup=PHASE, stable=PHASE, cooldown=PHASE, longer=PHASE, batch_tokens=BATCH, peak=st.floats(1e-6, 1e-1))
def test_before_its_cooldown_a_run_shares_every_bit_with_a_longer_one(
    warmup: int, stable: int, cooldown: int, longer: int, batch_tokens: int, peak: float
) -> None:
    short = rates(warmup, stable, cooldown, batch_tokens, peak)
    long = rates(warmup, stable + longer, cooldown, batch_tokens, peak)
    assert short[: warmup + stable] == long[: warmup + stable]


@given(warmup=PHASE, stable=PHASE, cooldown=PHASE, batch_tokens=BATCH, data=st.data())
def test_tokens_that_fill_no_batch_do_not_count(
    warmup: int, stable: int, cooldown: int, batch_tokens: int, data: st.DataObject
) -> None:
    rest = data.draw(st.integers(0, batch_tokens - 1))
    assert rates(warmup, stable, cooldown, batch_tokens, rest=rest) == rates(warmup, stable, cooldown, batch_tokens)
