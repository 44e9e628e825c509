"""How far apart two runs of one model lie: the noise floor under every comparison of single runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from analysis import stats
from analysis.claims.parts import Metric, Row


@final
@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """The standard deviation of one run, its degrees of freedom, and where it is from.

    Two single runs differ by sqrt(2) times as much. `unit` is log for what is compared by ratios.
    """

    sd: float
    df: int
    unit: str
    source: str


@final
@dataclass(frozen=True, kw_only=True)
class SteadyRow:
    """Throughput by length of a model whose decoding costs the same at every length."""

    row: Row
    points: tuple[tuple[int, float], ...]


def replicate_noise(
    scale: str, metric: Metric, classes: Sequence[Sequence[Row]], values: Mapping[Row, float]
) -> NoiseFloor | None:
    """The spread among rows that are one model by symmetry, pooled over such models.

    It takes in whatever else tells two such rows apart: seeds, hardware, and the rounding of what is printed.
    """
    samples = [[values[row] for row in rows if row in values] for rows in classes]
    pooled = stats.pool(samples)
    if pooled.sd is None:
        return None
    count = sum(len(sample) for sample in samples if len(sample) > 1)
    table = classes[0][0].table
    models = sum(len(sample) > 1 for sample in samples)
    return NoiseFloor(
        sd=pooled.sd,
        df=pooled.df,
        unit=metric.unit,
        source=f"{count} rows of Table {table} ({scale}) that are {models} models by symmetry",
    )


def steady_noise(rows: Sequence[SteadyRow]) -> NoiseFloor | None:
    """The spread of log throughput over lengths around a line in log length, where the cost depends on none.

    A line, because what is measured may depend on the length by something that the cost does not count.
    """
    squares, df = 0.0, 0
    names = []
    for row in rows:
        if len(row.points) < 3:
            continue
        xs = [math.log(length) for length, _ in row.points]
        ys = [math.log(value) for _, value in row.points]
        squares += _residual_squares(xs, ys)
        df += len(xs) - 2
        names.append(row.row.label)
    if not df:
        return None
    return NoiseFloor(
        sd=math.sqrt(squares / df),
        df=df,
        unit="log",
        source=f"Table 13, around a line in the length, of {' and '.join(names)}, whose cache does not grow",
    )


def _residual_squares(xs: Sequence[float], ys: Sequence[float]) -> float:
    n = len(xs)
    x_mean, y_mean = math.fsum(xs) / n, math.fsum(ys) / n
    x_squares = math.fsum((x - x_mean) ** 2 for x in xs)
    slope = math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / x_squares
    return math.fsum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in zip(xs, ys, strict=True))
