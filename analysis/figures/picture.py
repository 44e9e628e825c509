"""A figure as data: panels of numbers with their words. `draw` gives it its looks, or writes it as it stands (JSON)."""

from dataclasses import dataclass
from typing import Final, Literal, final

Format = Literal["number", "tokens", "whole", "percent", "bytes", "flops"]
Better = Literal["lower", "higher"]

# Nothing with more is read: the best rows are drawn, and the caption says how many there are besides.
MOST_LINES: Final = 40
# Of more points than these only those on the front are drawn in full, and named.
MOST_NAMED: Final = 30


@final
@dataclass(frozen=True, kw_only=True)
class Axis:
    """`shown` is the range to draw, where that of the numbers is not meant. `powers` marks an axis at powers of two."""

    label: str
    format: Format = "number"
    log: bool = False
    powers: bool = False
    better: Better | None = None
    shown: tuple[float, float] | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Rule:
    """A line across the panel at one value: a length, another model."""

    value: float
    label: str


@final
@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a request. `low` and `high`, or empty: the least and the greatest of its `n` seeds, or its interval.

    `marks` are places on the line that stand out: seeds censored there. `names` stand beside its numbers, one each, or
    are empty. `look` numbers colour, dashes and marker.
    """

    label: str
    look: int
    n: int
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    marks: tuple[tuple[float, float], ...] = ()
    names: tuple[str, ...] = ()
    note: str = ""


@final
@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines over a common axis. `names`: how a reader learns which is which; "beside" where another panel says it.

    `ticks` name places of x. `points`: every number gets a marker, because there are few. `spread` is how `low` and
    `high` are drawn. `noise`: how far two points may lie apart in y by chance alone, where that is known.
    """

    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    title: str = ""
    names: Literal["ends", "legend", "beside"] = "ends"
    steps: bool = False
    points: bool = False
    spread: Literal["band", "bars"] = "band"
    noise: float | None = None
    ticks: tuple[tuple[float, str], ...] = ()
    across: tuple[Rule, ...] = ()
    upright: tuple[Rule, ...] = ()


@final
@dataclass(frozen=True, kw_only=True)
class Interval:
    """A row's mean with its interval, None where there is none, and every seed; a row without a value has no mean."""

    label: str
    look: int
    n: int
    mean: float | None
    low: float | None
    high: float | None
    values: tuple[float, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Rows from top to bottom."""

    x: Axis
    rows: tuple[Interval, ...]
    title: str = ""


@final
@dataclass(frozen=True, kw_only=True)
class Point:
    """A row in two measures. `label` stands beside it; `family` is what it shares colour and marker with."""

    label: str
    family: str
    look: int
    n: int
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    x_low: float | None = None
    x_high: float | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Points:
    """`front` are the places of those that nothing dominates, in the order of x; `joined` lines between points.

    `noise` is how far two points may lie apart in y by chance alone, where that is known.
    """

    x: Axis
    y: Axis
    points: tuple[Point, ...]
    front: tuple[int, ...]
    joined: tuple[tuple[int, ...], ...] = ()
    noise: float | None = None
    title: str = ""


@final
@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """`values[i][j]` at y[i] and x[j], between `low` and `high`; None where nothing is recorded."""

    title: str
    x: Axis
    y: Axis
    at_x: tuple[float, ...]
    at_y: tuple[float, ...]
    values: tuple[tuple[float | None, ...], ...]
    colour: Axis
    low: float
    high: float
    upright: tuple[Rule, ...] = ()


Panel = Lines | Intervals | Points | HeatMap


@final
@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure: `name` is that of its files, `caption` whole sentences. `widths` are those of the columns."""

    name: str
    title: str
    caption: tuple[str, ...]
    panels: tuple[Panel, ...]
    widths: tuple[float, ...] = (1.0,)
