"""What a table is: columns that read rows, with the words that belong to them. How they look is for `render`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, TypeVar, final

from analysis import stats
from analysis.contrasts import Mark

RowT = TypeVar("RowT")


@final
@dataclass(frozen=True, kw_only=True)
class Shift:
    """How much more ours is than what stands beside it."""

    value: float


Value = str | int | float | stats.Estimate | stats.Proportion | stats.CensoredMedian | stats.MedianRange | Shift | None


def unmarked(row: object) -> None:
    """The mark of every row in a column that compares nothing."""


@final
@dataclass(frozen=True, kw_only=True)
class Column(Generic[RowT]):
    """What a column shows of a row. `fmt` is never given None; `better` says which way is good, if any is.

    `key` names the column for machines and carries unit and convention; `header` is for people. `mark` says how the row
    stands in this column: best and told apart from the others, equivalent to the best, or not told apart from it.
    """

    key: str
    header: str
    value: Callable[[RowT], Value]
    fmt: Callable[[Value], str]
    better: Literal["lower", "higher"] | None = None
    mark: Callable[[RowT], Mark | None] = unmarked


@final
@dataclass(frozen=True, kw_only=True)
class Table(Generic[RowT]):
    """A table of any rows. `name` is for files; `caption` and `footnotes` are whole sentences, one a line.

    `grouped`: neighbours that are equal in the first column belong together, and it need name them once only.
    """

    name: str
    title: str
    columns: tuple[Column[RowT], ...]
    rows: tuple[RowT, ...]
    caption: tuple[str, ...]
    footnotes: tuple[str, ...]
    grouped: bool = False

    @cached_property
    def values(self) -> tuple[tuple[Value, ...], ...]:
        """What each column shows of each row, by row."""
        return tuple(tuple(column.value(row) for column in self.columns) for row in self.rows)

    @cached_property
    def marks(self) -> tuple[tuple[Mark | None, ...], ...]:
        """The mark of every cell, by row."""
        return tuple(tuple(column.mark(row) for column in self.columns) for row in self.rows)
