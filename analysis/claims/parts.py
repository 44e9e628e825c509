"""What a claim is made of: comparisons of rows, facts that have no noise, and how they combine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, final

from analysis.decide import Direction

LENGTHS: Final = (2048, 4096, 8192, 16384, 32768)


@final
@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a row: the columns that print it, the metric that a run records, and what is too small to matter.

    Throughputs are compared by their ratios: `logarithmic`, and `margin` is then of the logarithm. `average`: the mean
    of all columns is meant, else the first that is printed. `of_device`: it compares runs on one device alone.
    """

    name: str
    label: str
    unit: str
    better: Direction
    margin: float
    digits: int
    columns: tuple[str, ...]
    recorded: str | None
    logarithmic: bool = False
    average: bool = False
    of_device: bool = False


DCLM: Final = Metric(
    name="dclm",
    label="validation loss",
    unit="nats",
    better="less",
    margin=0.005,  # about what parameters that are matched to a twentieth leave open
    digits=3,
    columns=("dclm", "dclm_nll"),
    recorded="val_loss_nats",
)
PG19: Final = Metric(
    name="pg19",
    label="loss on PG19",
    unit="nats",
    better="less",
    margin=0.005,
    digits=3,
    columns=("pg19",),
    recorded="pg19_loss_nats",
)
ACCURACY: Final = Metric(
    name="avg",
    label="average accuracy",
    unit="points",
    better="greater",
    margin=0.5,
    digits=1,
    columns=("avg", "acc"),
    recorded="few_shot_accuracy_percent",
)
THROUGHPUT: Final[Mapping[int, Metric]] = {
    length: Metric(
        name=f"tp_{length // 1024}k",
        label=f"throughput at {length // 1024}K",
        unit="tokens/s",
        better="greater",
        margin=0.05,
        digits=0,
        columns=(f"tp_{length // 1024}k",),
        recorded=f"decode_tokens_per_s_at_{length}",
        logarithmic=True,
    )
    for length in LENGTHS
}
FRACTION: Final[Mapping[int, Metric]] = {
    length: Metric(
        name=f"fraction_{length // 1024}k",
        label=f"share of the roofline at {length // 1024}K",
        unit="",
        better="greater",
        margin=0.05,
        digits=3,
        columns=(),
        recorded=f"decode_roofline_fraction_at_{length}",
    )
    for length in LENGTHS
}
MEAN_THROUGHPUT: Final = Metric(
    name="tp_mean",
    label="throughput averaged over 2K to 32K",
    unit="tokens/s",
    better="greater",
    margin=0.05,
    digits=0,
    columns=tuple(f"tp_{length // 1024}k" for length in LENGTHS),
    recorded="decode_tokens_per_s",
    logarithmic=True,
    average=True,
)
TRAINING_SPEED: Final = Metric(
    name="train_tokens_per_s",
    label="training speed",
    unit="tokens/s",
    better="greater",
    margin=0.05,
    digits=0,
    columns=(),
    recorded="tokens_per_s",
    logarithmic=True,
    of_device=True,
)
TRAINING_MEMORY: Final = Metric(
    name="train_memory_bytes",
    label="peak memory",
    unit="bytes",
    better="less",
    margin=0.05,
    digits=0,
    columns=(),
    recorded="peak_memory_bytes",
    logarithmic=True,
    of_device=True,
)
METRICS: Final = (DCLM, PG19, ACCURACY, *THROUGHPUT.values(), MEAN_THROUGHPUT, TRAINING_SPEED, TRAINING_MEMORY)


@final
@dataclass(frozen=True, order=True)
class Row:
    """A printed row: the number of its table and what it is called there (`analysis.reference.compare.Place.label`)."""

    table: str
    label: str

    def __str__(self) -> str:
        return f"Table {self.table}: {self.label}"


@final
@dataclass(frozen=True, kw_only=True)
class Compare:
    """The sum of `weight` times the metric over the rows of `plus`, minus that over those of `minus`.

    better: it lies on the better side of zero, by at least `by`. not worse: not on the worse side of the margin.
    same: within the margin of zero.
    """

    text: str
    plus: tuple[Row, ...]
    minus: tuple[Row, ...]
    metric: Metric
    wants: Literal["better", "not worse", "same"] = "better"
    weight: float = 1.0
    by: float = 0.0

    @property
    def rows(self) -> tuple[Row, ...]:
        return (*self.plus, *self.minus)

    def weights(self) -> dict[Row, float]:
        total: dict[Row, float] = {}
        for rows, sign in ((self.plus, self.weight), (self.minus, -self.weight)):
            for row in rows:
                total[row] = total.get(row, 0.0) + sign
        return total


@final
@dataclass(frozen=True, kw_only=True)
class Quoted:
    """A size that the text quotes, `value` to so many `digits`, for a comparison.

    Of printed numbers it is arithmetic: it is what they come to, or it is not. Of records it has to be reached to
    within its rounding, as every comparison has, in the face of noise.
    """

    compare: Compare
    value: float
    digits: int


@final
@dataclass(frozen=True, kw_only=True)
class Exact:
    """A fact without noise: what is claimed, what is found, and whether it is so."""

    text: str
    true: bool
    found: str
    numbers: Mapping[str, object] = field(default_factory=dict)


@final
@dataclass(frozen=True, kw_only=True)
class Estimated:
    """A number with a standard error of its own, which is not made of rows: claimed below zero."""

    text: str
    estimate: float
    std_error: float
    df: int
    unit: str
    margin: float
    numbers: Mapping[str, object]
    wants: Literal["better", "not worse", "same"] = "better"


@final
@dataclass(frozen=True, kw_only=True)
class Unknown:
    """Nothing is printed or recorded of this part: what is missing, and what would give it."""

    text: str
    missing: str
    needs: str


@final
@dataclass(frozen=True, kw_only=True)
class Remark:
    """What the numbers of a claim show beside it; it decides nothing."""

    text: str
    numbers: Mapping[str, object] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class All:
    parts: tuple["Part", ...]


@final
@dataclass(frozen=True)
class Any_:
    parts: tuple["Part", ...]


Leaf = Compare | Quoted | Exact | Estimated | Unknown | Remark
Part = Leaf | All | Any_


def all_of(parts: Iterable[Part]) -> All:
    return All(tuple(parts))


def any_of(parts: Iterable[Part]) -> Any_:
    return Any_(tuple(parts))


def leaves(part: Part) -> tuple[Leaf, ...]:
    """Every part that has none of its own, in order."""
    if isinstance(part, All | Any_):
        return tuple(leaf for inner in part.parts for leaf in leaves(inner))
    return (part,)


def better(a: Row, b: Row, metric: Metric, *, setting: str = "") -> Compare:
    """One row better than another."""
    where = f", {setting}" if setting else ""
    sign = "<" if metric.better == "less" else ">"
    return Compare(text=f"{a.label} {sign} {b.label} in {metric.label}{where}", plus=(a,), minus=(b,), metric=metric)


def mean_better(a: Sequence[Row], b: Sequence[Row], metric: Metric, text: str) -> Compare:
    """The rows of `a` better than those of `b`, which pair with them, on average."""
    return Compare(text=text, plus=tuple(a), minus=tuple(b), metric=metric, weight=1 / len(a))
