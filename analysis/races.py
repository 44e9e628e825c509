"""Which runs reach a threshold sooner: permutation tests on log-rank scores, of two rows over several tasks, or of all
rows in one.

A run's score is whether it got there, less what was to be expected by its last step had all rows been alike (Peto &
Peto 1972); a row's sum of scores is the observed less the expected of the log-rank test. Under the hypothesis that rows
do not matter in any task, the runs of a task could as well change places among its rows; those of different tasks never
do. How the sums would then be spread is drawn `DRAWS` times with a fixed seed, or counted where there are few ways.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DRAWS: Final = 19_999
_SEED: Final = 1
_MOST_WAYS: Final = 20_000
_ROUNDING: Final = 1e-9


@final
@dataclass(frozen=True, kw_only=True)
class Race:
    """The runs of a row in a task: the steps at which each got there, or at which it was seen for the last time."""

    times: tuple[float, ...]
    events: tuple[bool, ...]


def log_rank_scores(races: Sequence[Race]) -> list[list[float]]:
    """The score of every run, by row: events less the Nelson-Aalen estimate of all rows together."""
    times = [time for race in races for time in race.times]
    events = [event for race in races for event in race.events]
    hazard, steps = 0.0, {}
    for time in sorted({t for t, event in zip(times, events, strict=True) if event}):
        happened = sum(event and t == time for t, event in zip(times, events, strict=True))
        hazard += happened / sum(t >= time for t in times)
        steps[time] = hazard

    def expected(until: float) -> float:
        return max((value for time, value in steps.items() if time <= until), default=0.0)

    return [[event - expected(time) for time, event in zip(race.times, race.events, strict=True)] for race in races]


def sooner(pairs: Sequence[tuple[Race, Race]]) -> float | None:
    """Two-sided p that two rows are alike in every task, each a pair of races; None where no task has runs of both."""
    import numpy as np

    generator = np.random.Generator(np.random.Philox(_SEED))
    observed, drawn = 0.0, np.zeros(DRAWS)
    used = [pair for pair in pairs if pair[0].times and pair[1].times]
    for pair in used:
        first, second = log_rank_scores(pair)
        observed += math.fsum(first)
        drawn += _sums(np.array([*first, *second]), len(first), generator)
    # Scores of a task add up to nothing, so that the sum is expected to be 0.
    return _share(np.abs(drawn) >= abs(observed) - _ROUNDING) if used else None


def any_differs(races: Sequence[Race]) -> float | None:
    """p that all rows are alike in one task; None of fewer than two rows with runs."""
    import numpy as np

    used = [race for race in races if race.times]
    if len(used) < 2:
        return None
    by_row = log_rank_scores(used)
    sizes = np.array([len(scores) for scores in by_row])
    begins = np.cumsum(sizes) - sizes
    scores = np.concatenate([np.array(row) for row in by_row])
    generator = np.random.Generator(np.random.Philox(_SEED))
    shuffled_DN = generator.permuted(np.tile(scores, (DRAWS, 1)), axis=1)
    drawn_D = (np.add.reduceat(shuffled_DN, begins, axis=1) ** 2 / sizes).sum(1)
    observed = float((np.add.reduceat(scores, begins) ** 2 / sizes).sum())
    return _share(drawn_D >= observed - _ROUNDING)


def _sums(scores: "NDArray[np.float64]", n: int, generator: "np.random.Generator") -> "NDArray[np.float64]":
    """Sums of `n` of the scores, drawn evenly from all ways to choose them."""
    import numpy as np

    if math.comb(len(scores), n) > _MOST_WAYS:
        shuffled = generator.permuted(np.tile(scores, (DRAWS, 1)), axis=1)
        return np.asarray(shuffled[:, :n].sum(1))
    every = np.array([math.fsum(chosen) for chosen in combinations(scores.tolist(), n)])
    return every[generator.integers(len(every), size=DRAWS)]


def _share(at_least: "NDArray[np.bool_]") -> float:
    """A share of draws to which what was observed is added, so that the test holds its level (Phipson & Smyth 2010)."""
    return (1 + int(at_least.sum())) / (1 + len(at_least))
