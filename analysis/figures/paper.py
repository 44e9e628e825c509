"""The paper's figures from what it prints, or, where they follow from its models, computed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

from analysis import stats
from analysis.claims.checks import timed_rows
from analysis.claims.parts import ACCURACY, DCLM, LENGTHS, PG19, THROUGHPUT, Metric, Row
from analysis.claims.source import Entry, PaperRows, PrintedSource
from analysis.figures.against_cost import (
    family_looks,
    family_of,
    flops_panel,
    quality_throughput_panel,
    within_family,
)
from analysis.figures.blocks import DIMENSIONS_LINE, Placed, dimensions_panel, placed, positions_panels
from analysis.figures.catalogue import FIGURES, PaperFigure, title_of_figure
from analysis.figures.lengths import cache_line, cache_panel, throughput_panel, unequal_line
from analysis.figures.ours import Asked, chosen_rows, front_line
from analysis.figures.picture import Line, Panel, Picture, Point, Rule
from analysis.figures.recorded import GIVEN_BY, NEEDED
from analysis.reference.compare import EQUAL_FLOPS, Place, Sweeps
from analysis.reference.printed import read_printed
from analysis.tables.layouts import MEASURED, Measured, printed_rows
from analysis.tables.layouts import Printed as PrintedPlace
from analysis.tables.words import VAL_LOSS
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError
from sweeps.compose import Composer

_ONE_RUN: Final = "One run a row is printed: no interval."
_TITLES: Final[Mapping[str, str]] = {"fig2": "Training cost: FLOPs (of Figure 2)"}
_AT_1_5: Final = ("Llama", "SWA 1:5", "Mamba", "Inter-H 1:5", "Intra-H 1:5")
_NOISE: Final[Mapping[str, Metric]] = {str(metric.recorded): metric for metric in (DCLM, PG19, ACCURACY)}


@final
class Paper:
    """What is printed, and the models that it is printed of. Composes sweeps, so that it needs a composer."""

    def __init__(self, composer: Composer) -> None:
        self._rows = PaperRows(read_printed(), Sweeps(composer))
        self._source = PrintedSource(self._rows)

    def picture(self, name: str, asked: Asked) -> Picture:
        """The figure of this name. Raises ConfigError where the paper prints no numbers of it, or not what is asked."""
        figure = FIGURES[name]
        if not figure.printed:
            raise ConfigError(
                f"{name}: paper: not printed, the figure is a picture without numbers. Of our own runs: "
                f"{GIVEN_BY[NEEDED[figure.kind]]}"
            )
        if asked.metric is not None and figure.kind in ("training-cost", "throughput", "cache"):
            raise ConfigError(f"--metric {asked.metric}: {name} shows no measure of quality")
        panels, caption = _MAKERS[figure.kind](self, name, asked)
        return Picture(
            name=name,
            title=_TITLES.get(name, title_of_figure(name)),
            caption=tuple(filter(None, (f"From arXiv 2510.04800, {_sources(figure)}.", *caption))),
            panels=tuple(panels),
            widths=(1.0,) * min(2, len(panels)),
        )

    # --- Figures 1b, 2, 3 -----------------------------------------------------------------------

    def _quality_throughput(self, _: str, asked: Asked) -> tuple[list[Panel], list[str]]:
        measured = _measured(asked)
        rows = self._labelled("13", asked.rows)
        looks = family_looks([label for label, _ in self._labelled("13", ())])
        points = []
        for label, row in rows:
            speeds = [value.mean for length in LENGTHS if (value := self._source.value(row, THROUGHPUT[length]))]
            quality = self._rows.entry(Row("9", label + ("" if label == "Llama" else EQUAL_FLOPS))).printed
            points.append(
                Point(
                    label=within_family(label),
                    family=family_of(label),
                    look=looks[family_of(label)],
                    n=1,
                    x=math.fsum(speeds) / len(speeds),
                    y=float(quality[_key(measured)]),
                )
            )
        gap, line = self._noise("1B", measured)
        panel = quality_throughput_panel(points, _label(measured), measured.better, gap)
        setting = "1B models at the FLOPs that Llama spends on 60B tokens; batch 4, prompt 512, mean over 2K to 32K."
        near = "Rows nearer than the bar may not be told apart." if gap is not None else ""
        return [panel], [setting, front_line(panel), f"{_ONE_RUN} {line} {near}".strip(), self._unequal()]

    def _throughput(self, _: str, asked: Asked) -> tuple[list[Panel], list[str]]:
        every = [label for label, _ in self._labelled("13", ())]
        lines = []
        rows = self._labelled("13", asked.rows or _AT_1_5)
        for label, row in rows:
            found = [(float(n), value.mean) for n in LENGTHS if (value := self._source.value(row, THROUGHPUT[n]))]
            look = _AT_1_5.index(label) if label in _AT_1_5 else len(_AT_1_5) + every.index(label)
            lines.append(Line(label=label, look=look, n=1, x=tuple(x for x, _ in found), y=tuple(y for _, y in found)))
        return [throughput_panel(lines)], ["1B models; batch 4, prompt 512.", _ONE_RUN, self._unequal()]

    def _cache(self, _: str, asked: Asked) -> tuple[list[Panel], list[str]]:
        every = [label for label, _ in self._labelled("13", ())]
        lines, agreed, printed = [], 0, 0
        for label, row in self._labelled("13", asked.rows or _AT_1_5):
            look = _AT_1_5.index(label) if label in _AT_1_5 else len(_AT_1_5) + every.index(label)
            line = cache_line(look, label, self._rows.run(row).model, LENGTHS)
            number = self._of_table_9(label).printed.get("cache")
            if number is not None:
                printed += 1
                agreed += abs(float(number) - line.y[LENGTHS.index(8192)]) <= 0.5
            lines.append(line)
        caption = [
            "1B models. Computed, in the paper's convention: one sequence, bf16.",
            f"At 8K Table 9 prints {printed} of these caches; {agreed} agree to the printed digit.",
        ]
        return [cache_panel(lines, (Rule(value=8192, label="training length"),))], caption

    def _training_cost(self, _: str, asked: Asked) -> tuple[list[Panel], list[str]]:
        labels = chosen_rows(["Llama", "SWA", "Mamba", "Inter-H", "Intra-H"], asked.rows)
        models = [
            (look, label, self._rows.sweeps.run(Place(label=label, sweep="table2", row=label)))
            for look, label in enumerate(labels)
        ]
        caption = [
            "1B models at 8K, computed in the paper's convention: embedding and head excluded.",
            "Step times and memory: not printed, they are in Figure 2 alone. Records of our own runs have them.",
        ]
        return [flops_panel(models)], caption

    # --- beside Tables 4 and 5 ------------------------------------------------------------------

    def _positions(self, name: str, asked: Asked) -> tuple[list[Panel], list[str]]:
        figure, measured = FIGURES[name], _measured(asked)
        sizes = self._by_size(figure, asked)
        single: list[Panel] = []
        several: list[Panel] = []
        lines = []
        for size, rows in sizes.items():
            found = [one for row in rows if (one := _placed(row, measured)) is not None]
            gap, line = self._noise(size.upper(), measured)
            lines.append(line)
            across = self._homogeneous(size, measured) if figure.sweep == "placement" else ()
            panels = positions_panels(
                found,
                _label(measured),
                measured.better,
                size=size.upper() if len(sizes) > 1 else "",
                noise=gap,
                across=across,
            )
            for panel in panels:
                (single if "position" in panel.x.label else several).append(panel)
        reference = (
            "Horizontal lines: models of one kind of block alone (Table 4)." if figure.sweep == "placement" else ""
        )
        return [*single, *several], ["60B tokens, 8K.", reference, _ONE_RUN, *lines]

    def _dimensions(self, name: str, asked: Asked) -> tuple[list[Panel], list[str]]:
        measured = _measured(asked)
        panels: list[Panel] = []
        lines = []
        sizes = self._by_size(FIGURES[name], asked)
        for size, rows in sizes.items():
            gap, line = self._noise(size.upper(), measured)
            lines.append(line)
            shares = [
                (
                    row.place.row,
                    float(row.row["d_trans"]) / float(row.row["d_trans"] + row.row["d_mamba"]),
                    _single(row, measured),
                )
                for row in rows
            ]
            panels.append(dimensions_panel(shares, _label(measured), measured.better, title=size.upper(), noise=gap))
        setting = "Every block is intra-hybrid; 60B tokens, 8K. Parameters are matched, FLOPs and caches are not."
        return panels, [setting, DIMENSIONS_LINE, _ONE_RUN, *lines]

    # --- parts ----------------------------------------------------------------------------------

    def _labelled(self, table: str, patterns: Sequence[str]) -> list[tuple[str, Row]]:
        rows = {row.label: row for row in self._rows.of(table)}
        return [(label, rows[label]) for label in chosen_rows(list(rows), patterns)]

    def _of_table_9(self, label: str) -> Entry:
        """A row of Table 9 at equal data, or at equal FLOPs where it has no other: its cache is the same."""
        labels = {row.label: row for row in self._rows.of("9")}
        return self._rows.entry(labels.get(label) or labels[label + EQUAL_FLOPS])

    def _unequal(self) -> str:
        """Of all rows that are printed, not of those alone that are drawn: it is the measurement that is in doubt."""
        return unequal_line(timed_rows(self._source))

    def _noise(self, size: str, measured: Measured) -> tuple[float | None, str]:
        """How far two single runs of one model lie apart by chance, and a sentence that says so."""
        metric = _NOISE.get(measured.metric)
        noise = None if metric is None else self._source.noise(size, metric)
        if metric is None or noise is None:
            return None, f"Nothing printed tells how far runs of one model lie apart in {measured.header} at {size}."
        gap = stats.t_quantile(noise.df) * noise.sd * math.sqrt(2)
        digits = 4 if metric.unit == "nats" else 1
        return gap, (
            f"At {size} two single runs of one model differ by up to {gap:.{digits}f} {metric.unit} by chance (the "
            f"bar): {noise.source} have an SD of {noise.sd:.2g}, with {noise.df} degrees of freedom."
        )

    def _by_size(self, figure: PaperFigure, asked: Asked) -> dict[str, list[PrintedPlace]]:
        rows = printed_rows(figure.sweep)
        chosen = set(chosen_rows(list(dict.fromkeys(row.place.row for row in rows)), asked.rows))
        sizes: dict[str, list[PrintedPlace]] = {}
        for row in rows:
            if row.place.row in chosen:
                sizes.setdefault(row.scale, []).append(row)
        return sizes

    def _homogeneous(self, size: str, measured: Measured) -> tuple[Rule, ...]:
        names = {"1:0": "Llama", "0:1": "Mamba"}
        rows = [row for row in printed_rows("table4") if row.scale == size and row.place.row in names]
        key = _key(measured)
        numbers = [(names[row.place.row], row.number(key)) for row in rows]
        return tuple(Rule(value=float(number), label=name) for name, number in numbers if number is not None)


def _measured(asked: Asked) -> Measured:
    """The measured column that has the metric. Raises ConfigError for one that is not printed."""
    metric = asked.metric or VAL_LOSS
    found = next((measured for measured in MEASURED.values() if measured.metric == metric), None)
    if found is None:
        known = [measured.metric for measured in MEASURED.values()]
        raise ConfigError(f"--metric {metric}: the paper prints no such column{did_you_mean(metric, known)}")
    return found


def _key(measured: Measured) -> str:
    return next(key for key, one in MEASURED.items() if one is measured)


def _label(measured: Measured) -> str:
    unit = "" if "%" in measured.header else " (nats)"
    return f"{measured.header}{unit}"


def _placed(row: PrintedPlace, measured: Measured) -> Placed | None:
    return placed(row.place.row, _single(row, measured))


def _single(row: PrintedPlace, measured: Measured) -> stats.Estimate:
    """Raises ConfigError where the column is not printed of the row."""
    number = row.number(_key(measured))
    if number is None:
        raise ConfigError(f"--metric {measured.metric}: Table {row.table.number} does not print it of {row.place.row}")
    return stats.Estimate(mean=float(number), half=None, sd=None, n=1)


def _sources(figure: PaperFigure) -> str:
    computed = {"training-cost": "models of Table 2", "cache": "models of v3, Table 9"}
    return computed.get(figure.kind, figure.printed)


_MAKERS: Final[Mapping[str, Callable[[Paper, str, Asked], tuple[list[Panel], list[str]]]]] = {
    "quality-throughput": Paper._quality_throughput,
    "training-cost": Paper._training_cost,
    "throughput": Paper._throughput,
    "cache": Paper._cache,
    "positions": Paper._positions,
    "dimensions": Paper._dimensions,
}
