"""Tables as data: columns that read rows, with the words that belong to them; how they look is for `render`.

Two kinds. A *probe* table is for runs that race to a threshold (a stop rule): seeds solved, steps needed, what was
spent, and exact tests between rows. An *estimate* table is for a number measured at the end, such as the
validation loss.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Generic, Literal, TypeVar, assert_never, final

from analysis import stats
from analysis.load import STATUS_WORDS, CellResult, Group, Results, TuningRuns, axis_text
from hybrid.decode import did_you_mean
from hybrid.layout import compact
from hybrid.spec import ConfigError, HubSpec, RecallSpec, RunSpec, StdlibSpec
from sweeps.identity import short_keys

Value = str | int | float | stats.Estimate | stats.Proportion | stats.CensoredMedian | None
RowT = TypeVar("RowT")

SOLVED: Final = "solved"
VAL_LOSS: Final = "val_loss_nats"
LONGEST_LAYOUT: Final = 16
MATCHED: Final = 0.05


@final
@dataclass(frozen=True, kw_only=True)
class Column(Generic[RowT]):
    """What a column shows of a row. `fmt` is never given None; `better` says which way is good, if any is.

    `key` names the column for machines and carries unit and convention; `header` is for people.
    """

    key: str
    header: str
    value: Callable[[RowT], Value]
    fmt: Callable[[Value], str]
    better: Literal["lower", "higher"] | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Table(Generic[RowT]):
    """A table of any rows. `name` is for files; `caption` and `footnotes` are whole sentences, one a line."""

    name: str
    title: str
    columns: tuple[Column[RowT], ...]
    rows: tuple[RowT, ...]
    caption: tuple[str, ...]
    footnotes: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Fisher's exact test between two rows; p is None if either has no result or they share a run."""

    first: Group
    second: Group
    p: float | None
    p_holm: float | None


def build_tables(results: Results, metric: str | None = None) -> tuple[Table[Group] | Table[Comparison], ...]:
    """The tables of a request: the main one, and for a probe the comparisons between its rows.

    `metric` defaults to what the sweep's report asks for, else to `solved` for runs with a stop rule and to the
    validation loss for others. Raises ConfigError for a metric that no run has.
    """
    chosen = metric_of(results, metric)
    if chosen != SOLVED:
        return (estimate_table(results, chosen),)
    if len(results.groups) < 2:
        return (probe_table(results),)
    return probe_table(results), comparison_table(results)


def metric_of(results: Results, metric: str | None) -> str:
    """The metric that a table or figure of these results is about. Raises ConfigError if no run has it."""
    chosen = metric or results.report.get("metric")
    if chosen is None:
        return SOLVED if results.is_probe else VAL_LOSS
    done = [cell for group in results.groups for cell in group.done]
    valid = dict.fromkeys(name for cell in done for name in cell.metrics if cell.number(name) is not None)
    if results.is_probe:
        valid[SOLVED] = None
    if chosen not in valid and (metric or valid):
        raise ConfigError(f"metric = {chosen}: no run of this request has it{did_you_mean(chosen, valid)}")
    return str(chosen)


def probe_table(results: Results) -> Table[Group]:
    """Seeds solved, median steps to the threshold and what was spent, a line a row."""
    columns = (
        *_row_columns(results),
        *_tuned_columns(results),
        *_setting_columns(results),
        *_architecture_columns(results, run_flops=False),
        Column[Group](key=SOLVED, header="solved", value=solved, fmt=show, better="higher"),
        Column[Group](key="steps_to_threshold", header="median steps", value=_median_steps, fmt=show, better="lower"),
        _mean_column("tokens", "tokens / run", lambda cell: cell.number("tokens"), fmt=_si, diverged=True),
        _mean_column("spent_paper_train_flops", "FLOPs / run", _spent_flops, fmt=_flops, diverged=True),
        _mean_column("wall_s", "wall s / run", lambda cell: cell.number("wall_s"), fmt=_three_digits, diverged=True),
        *_notes_column(results),
    )
    caption = [
        "solved: seeds that reached the threshold, of those with a result, with the 95% Clopper-Pearson interval.",
        "median steps: Kaplan-Meier, unsolved seeds censored at the last step, with the 95% log-log interval; "
        ">n: not reached in n steps.",
        "Tokens, FLOPs (paper convention, training) and wall time are what was spent, a mean over the runs.",
    ]
    footnotes = []
    if any(cell.diverged for cell in results.cells):
        footnotes.append("A diverged run counts as unsolved, censored at the last step it was allowed.")
    if any(not cell.final for cell in results.cells):
        footnotes.append(
            "Not all runs have a result yet. Solved runs end sooner than unsolved ones: until all have, "
            "k/n leans towards solved."
        )
    return _table(results, columns, caption=caption, footnotes=footnotes)


def comparison_table(results: Results) -> Table[Comparison]:
    """Every pair of rows, tested on solved against unsolved; Holm over all of them."""
    pairs = list(itertools.combinations(results.groups, 2))
    p_values = [_fisher(a, b) for a, b in pairs]
    tested = [p for p in p_values if p is not None]
    adjusted = iter(stats.holm(tested))
    rows = tuple(
        Comparison(first=a, second=b, p=p, p_holm=None if p is None else next(adjusted))
        for (a, b), p in zip(pairs, p_values, strict=True)
    )
    caption = [f"Fisher's exact test, two-sided, on solved against unsolved; Holm over {_count(len(tested), 'pair')}."]
    sizes = [len(group.final) for group in results.groups if group.final]
    if len(sizes) >= 2:
        least = stats.smallest_fisher_p(*sorted(sizes)[-2:])
        after = show_p(min(1.0, len(tested) * least))
        caption.append(
            f"With {max(sizes)} seeds a row no p can fall below {show_p(least)} ({after} after Holm over so many); "
            "a large p does not show that two rows are equal."
        )
    shared = any(_share_a_run(a, b) for a, b in pairs)
    return Table(
        name="comparisons",
        title="Comparisons between rows",
        columns=(
            Column[Comparison](key="first", header="row", value=lambda c: c.first.label, fmt=str),
            Column[Comparison](key="second", header="against", value=lambda c: c.second.label, fmt=str),
            Column[Comparison](key="first_solved", header="solved", value=lambda c: _k_of_n(c.first), fmt=str),
            Column[Comparison](
                key="second_solved", header="solved (against)", value=lambda c: _k_of_n(c.second), fmt=str
            ),
            Column[Comparison](key="p", header="p", value=lambda c: c.p, fmt=_p),
            Column[Comparison](key="p_holm", header="p (Holm)", value=lambda c: c.p_holm, fmt=_p),
        ),
        rows=rows,
        caption=tuple(caption),
        footnotes=("Rows that share runs are not compared.",) if shared else (),
    )


def estimate_table(results: Results, metric: str) -> Table[Group]:
    """The mean of a metric over seeds with its interval, a line a row."""
    pooling = stats.pool([group.numbers(metric) for group in results.groups])
    header, better = _METRICS.get(metric, (metric, None))
    columns = [
        *_row_columns(results),
        *_tuned_columns(results),
        *_setting_columns(results),
        *_architecture_columns(results, run_flops=True),
        Column[Group](
            key=metric,
            header=header,
            value=lambda group: stats.estimate(group.numbers(metric), pooling),
            fmt=show,
            better=better,
        ),
        Column[Group](key="n", header="n", value=lambda group: len(group.numbers(metric)), fmt=str),
    ]
    footnotes = []
    specs = results.specs
    if metric == VAL_LOSS and specs and all(isinstance(spec.data, StdlibSpec) for spec in specs):
        columns.append(
            Column[Group](
                key="val_bits_per_byte", header="bits per byte", value=_bits_per_byte, fmt=_four_digits, better="lower"
            )
        )
        footnotes.append(
            "Bits per byte: the loss of all tokens, document borders included, over the number of bytes among them."
        )
    if metric != "wall_s":
        columns.append(
            _mean_column("wall_s", "wall s", lambda cell: cell.number("wall_s"), fmt=_three_digits, diverged=False)
        )
    if metric != "tokens_per_s":
        columns.append(
            _mean_column("tokens_per_s", "tokens/s", lambda cell: cell.number("tokens_per_s"), fmt=_si, diverged=False)
        )
    columns.extend(_notes_column(results))
    if any(cell.diverged for cell in results.cells):
        footnotes.append("Diverged runs are counted in the notes and enter no mean; n says how many runs did.")
    if any(not cell.final for cell in results.cells):
        footnotes.append("Not all runs have a result yet.")
    caption = ["" if results.is_probe else _flops_line(results), *_interval_lines(results, metric, pooling)]
    return _table(results, tuple(columns), caption=caption, footnotes=footnotes)


def solved(group: Group) -> stats.Proportion | None:
    """Seeds solved of those with a result; a diverged run is unsolved. None without results."""
    if not group.final:
        return None
    return stats.clopper_pearson(sum(_is_solved(cell) for cell in group.final), len(group.final))


def survival(group: Group) -> stats.SurvivalCurve | None:
    """Kaplan-Meier curve of the steps to the threshold; None without results.

    An unsolved run is censored at its last step. A diverged one will never solve the task within the steps it was
    allowed, so it is censored there and not where it broke off, which would take it out of the count.
    """
    times, events = [], []
    for cell in group.final:
        steps = cell.number("steps_to_threshold") if _is_solved(cell) else cell.number("steps")
        if cell.diverged and cell.spec is not None:
            steps = float(cell.spec.train_steps)
        if steps is not None:
            times.append(steps)
            events.append(_is_solved(cell))
    return stats.kaplan_meier(times, events) if times else None


def settings_line(results: Results) -> str:
    """What all runs have in common, for a caption; empty before the first result."""
    parts = []
    for setting in _SETTINGS:
        values = {setting.value(spec) for spec in results.specs}
        if len(values) == 1 and None not in values:
            parts.append(setting.phrase.format(setting.text(values.pop())))
    return f"All runs: {', '.join(parts)}." if parts else ""


def title_of(results: Results) -> str:
    """The report's title, else the request as it was typed."""
    return str(results.report.get("title") or " ".join((results.sweep or "unnamed request", *results.overrides)))


def report_caption(results: Results) -> list[str]:
    """The lines that the sweep's report wants under its table and figure."""
    own = results.report.get("caption") or []
    return [own] if isinstance(own, str) else [str(line) for line in own]


def show(value: Value) -> str:
    """A value as a person reads it."""
    match value:
        case None:
            return ""
        case stats.Estimate(mean=mean, half=None):
            return f"{mean:.4f}"
        case stats.Estimate(mean=mean, half=half):
            digits = min(8, max(0, 1 - math.floor(math.log10(half)))) if half else 4
            return f"{mean:.{digits}f} ± {half:.{digits}f}"
        case stats.Proportion(k=k, n=n, low=low, high=high):
            return f"{k}/{n}" if low is None or high is None else f"{k}/{n} [{_percent(low)}, {_percent(high)}]"
        case stats.CensoredMedian(time=time, low=low, high=high, last=last):
            beyond = f">{last:.0f}"
            if time is None and low is None:
                return beyond
            bounds = f"[{'?' if low is None else f'{low:.0f}'}, {beyond if high is None else f'{high:.0f}'}]"
            return f"{beyond if time is None else f'{time:.0f}'} {bounds}"
        case str():
            return value
        case int() | float():
            return f"{value:g}"
        case _ as never:
            assert_never(never)


def show_p(p: float) -> str:
    """A p value to two digits; small ones as a bound."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


# Words for the usual metrics; any other metric is shown under its own name.
_METRICS: Final[dict[str, tuple[str, Literal["lower", "higher"] | None]]] = {
    VAL_LOSS: ("val loss (nats)", "lower"),
    "train_loss_nats": ("train loss (nats)", "lower"),
    "val_accuracy": ("val accuracy", "higher"),
    "tokens_per_s": ("tokens/s", "higher"),
    "wall_s": ("wall s", "lower"),
    "steps_to_threshold": ("steps to threshold", "lower"),
}


def metric_header(metric: str) -> str:
    """The words for a metric, with its unit."""
    return _METRICS.get(metric, (metric, None))[0]


@final
@dataclass(frozen=True, kw_only=True)
class _Setting:
    """A setting of a run that a reader must know: in the caption if equal in all rows, else a column."""

    key: str
    header: str
    phrase: str
    value: Callable[[RunSpec], str | int | float | None]
    text: Callable[[Value], str]


def _whole(value: Value) -> str:
    return f"{value:,}" if isinstance(value, int) else show(value)


_SETTINGS: Final = (
    _Setting(key="data", header="data", phrase="{}", value=lambda spec: _data_text(spec), text=show),
    _Setting(key="lr", header="lr", phrase="learning rate {}", value=lambda spec: spec.optim.lr, text=show),
    _Setting(
        key="batch_size",
        header="batch",
        phrase="batches of {} sequences",
        value=lambda spec: spec.batch_size,
        text=_whole,
    ),
    _Setting(
        key="seq_len", header="seq len", phrase="{} tokens a sequence", value=lambda spec: spec.seq_len, text=_whole
    ),
    _Setting(
        key="train_tokens",
        header="tokens",
        phrase="{} training tokens",
        value=lambda spec: spec.train_tokens if spec.stop is None else None,
        text=lambda value: _si(value),
    ),
    _Setting(
        key="max_steps",
        header="max steps",
        phrase="at most {} steps",
        value=lambda spec: None if spec.stop is None else spec.train_steps,
        text=_whole,
    ),
    _Setting(key="stop", header="threshold", phrase="solved at {}", value=lambda spec: _stop_text(spec), text=show),
)


def _data_text(spec: RunSpec) -> str:
    match spec.data:
        case RecallSpec(n_symbols=symbols, n_pairs=pairs):
            return f"recall of {pairs} pairs over {symbols} symbols"
        case StdlibSpec():
            return "bytes of the Python standard library"
        case HubSpec(name=name, corpus_revision=revision):
            return f"{name} at {revision}"
        case _ as never:
            assert_never(never)


def _stop_text(spec: RunSpec) -> str | None:
    if spec.stop is None:
        return None
    every = max(1, spec.stop.every_tokens // spec.batch_tokens)
    return f"{spec.stop.metric} {spec.stop.threshold:g} (measured every {_count(every, 'step')})"


def _row_columns(results: Results) -> list[Column[Group]]:
    columns = []
    if results.several_rows or not results.axes:
        header = str(results.report.get("row_header", "row"))
        columns.append(Column[Group](key="row", header=header, value=lambda group: group.row, fmt=str))
    short = [name.rpartition(".")[2] for name in results.axes]
    for name, last in zip(results.axes, short, strict=True):
        header = last if short.count(last) == 1 else name
        columns.append(Column[Group](key=name, header=header, value=_axis_value(name), fmt=show))
    return columns


def _axis_value(name: str) -> Callable[[Group], Value]:
    def value(group: Group) -> Value:
        given = group.axes.get(name)
        return given if isinstance(given, int | float) and not isinstance(given, bool) else axis_text(given)

    return value


def _setting_columns(results: Results) -> list[Column[Group]]:
    """The settings that differ between rows and that no axis shows already."""
    columns = []
    for setting in _SETTINGS:
        values = [{setting.value(spec) for spec in group.specs} for group in results.groups if group.specs]
        if len(set().union(*values)) < 2 or any(_shows(results, axis, setting) for axis in results.axes):
            continue
        if any(_shows_tuned(results, key, setting) for key in _tuned_settings(results)):
            continue
        columns.append(
            Column[Group](key=setting.key, header=setting.header, value=_setting_value(setting), fmt=setting.text)
        )
    return columns


def _shows(results: Results, axis: str, setting: _Setting) -> bool:
    return all(setting.value(spec) == group.axes.get(axis) for group in results.groups for spec in group.specs)


def _shows_tuned(results: Results, key: str, setting: _Setting) -> bool:
    return all(setting.value(spec) == group.tuned.get(key) for group in results.groups for spec in group.specs)


def _tuned_settings(results: Results) -> list[str]:
    return list(dict.fromkeys(key for tuning in results.tuning for key in tuning.settings))


def _tuned_columns(results: Results) -> list[Column[Group]]:
    """What tuning chose for each row: always shown, as a reader cannot know it from the request."""
    shorts = short_keys(_tuned_settings(results))
    return [
        Column[Group](key=f"tuned.{key}", header=f"{short} (tuned)", value=_tuned_value(key), fmt=show)
        for key, short in shorts.items()
    ]


def _tuned_value(key: str) -> Callable[[Group], Value]:
    def value(group: Group) -> Value:
        if key not in group.tuned:
            return None
        chosen = group.tuned[key]
        return chosen if isinstance(chosen, int | float) and not isinstance(chosen, bool) else axis_text(chosen)

    return value


def _tuning_line(tuning: TuningRuns) -> str:
    """What was tried, by what it was judged, and what it cost: none of it is in the rows."""
    shorts = short_keys(list(tuning.settings))
    tried = "; ".join(f"{shorts[key]} {', '.join(map(axis_text, values))}" for key, values in tuning.settings.items())
    seeds = list(dict.fromkeys(cell.seed for cell in tuning.cells))
    runs = {cell.run_id: cell for cell in tuning.cells}.values()
    spent = [flops for cell in runs if (flops := _spent_flops(cell)) is not None]
    tokens = {cell.spec.train_tokens for cell in runs if cell.spec is not None and cell.spec.stop is None}
    each = f" of {_si(tokens.pop())} tokens" if len(tokens) == 1 else ""
    so_far = "" if all(cell.final for cell in runs) else " so far"
    return (
        f"Tuned: {tried}, {'one choice for all rows' if tuning.per == 'sweep' else 'each row its own choice'}, by "
        f"{metric_header(tuning.metric)} on {_count(len(seeds), 'other seed')} ({', '.join(map(str, seeds))}): "
        f"{_count(len(tuning.cells) // tuning.rows, 'run')} a row{each}, "
        f"{_flops(sum(spent))} FLOPs in all{so_far}, counted nowhere else."
    )


def _tuning_notes(results: Results) -> list[str]:
    """A sentence for every choice that a reader should doubt, and for every row that waits for its choice."""
    return [f"{line}." for line in results.choices.sentences]


def _setting_value(setting: _Setting) -> Callable[[Group], Value]:
    def value(group: Group) -> Value:
        found = list(dict.fromkeys(setting.value(spec) for spec in group.specs))
        if len(found) == 1:
            return found[0]
        return ", ".join(setting.text(item) for item in found if item is not None) or None

    return value


def _architecture_columns(results: Results, *, run_flops: bool) -> list[Column[Group]]:
    columns = [
        Column[Group](key="layout", header="layout", value=lambda group: group.layout(), fmt=_layout),
        _cost_column("non_embedding_params", "N-emb params", _si),
    ]
    if run_flops:
        columns.append(_cost_column("paper_train_flops", "train FLOPs", _flops))
    return [column for column in columns if len(_known(results, column)) > 1]


def _cost_column(key: str, header: str, fmt: Callable[[Value], str]) -> Column[Group]:
    return Column[Group](key=key, header=header, value=lambda group: group.cost(key), fmt=fmt)


def _mean_column(
    key: str, header: str, number: Callable[[CellResult], float | None], *, fmt: Callable[[Value], str], diverged: bool
) -> Column[Group]:
    """A plain mean over the runs with a result; `diverged` says whether those that diverged are among them."""

    def mean(group: Group) -> Value:
        runs = group.final if diverged else group.done
        values = [value for cell in runs if (value := number(cell)) is not None]
        return fmean(values) if values else None

    return Column[Group](key=f"mean_{key}", header=header, value=mean, fmt=fmt)


def _notes_column(results: Results) -> list[Column[Group]]:
    if not any(group.notes() for group in results.groups):
        return []
    return [Column[Group](key="notes", header="notes", value=lambda group: group.notes(), fmt=str)]


def _known(results: Results, column: Column[Group]) -> list[Value]:
    """The distinct values of a column, without the rows that have none yet."""
    values = (column.value(group) for group in results.groups)
    return list(dict.fromkeys(value for value in values if value is not None))


def _table(
    results: Results, columns: Sequence[Column[Group]], *, caption: Sequence[str], footnotes: Sequence[str]
) -> Table[Group]:
    lines = [
        *report_caption(results),
        _runs_line(results),
        settings_line(results),
        *map(_tuning_line, results.tuning),
        _architecture_line(results),
        *caption,
    ]
    unreadable = sum(cell.final and cell.spec is None for cell in results.cells)
    notes = [*_tuning_notes(results), *footnotes]
    if unreadable:
        notes.append(f"{_count(unreadable, 'record')} describe a run in a way that this version cannot read.")
    final = [cell.provenance for cell in results.cells if cell.final]
    machines = {(str(provenance.get("host")), str(provenance.get("device"))) for provenance in final}
    if len(machines) > 1:
        notes.append(f"The runs were made on {len(machines)} machines or devices: their times do not compare.")
    return Table(
        name="table",
        title=title_of(results),
        columns=tuple(columns),
        rows=results.groups,
        caption=tuple(line for line in lines if line),
        footnotes=tuple(notes),
    )


def _runs_line(results: Results) -> str:
    counts = Counter(STATUS_WORDS.get(cell.status, cell.status) for cell in results.cells)
    total = len(results.cells)
    states = "all done" if counts == {"done": total} else ", ".join(f"{n} {word}" for word, n in counts.most_common())
    return f"{_count(len(results.groups), 'row')}, {_count(total, 'run')}: {states}.{_seeds(results)}"


def _seeds(results: Results) -> str:
    seeds = [[cell.seed for cell in group.cells if cell.seed is not None] for group in results.groups]
    if not seeds[0] or any(row != seeds[0] for row in seeds):
        return ""
    listed = ", ".join(map(str, seeds[0]))
    if len(seeds[0]) > 2 and seeds[0] == list(range(seeds[0][0], seeds[0][-1] + 1)):
        listed = f"{seeds[0][0]} to {seeds[0][-1]}"
    return f" Seed{'s' * (len(seeds[0]) > 1)} {listed} in every row."


def _architecture_line(results: Results) -> str:
    layouts = list(dict.fromkeys(layout for group in results.groups if (layout := group.layout()) is not None))
    params = [value for group in results.groups if (value := group.cost("non_embedding_params")) is not None]
    parts = [f"Layout {_layout(layouts[0])}."] if len(layouts) == 1 else []
    if params:
        mismatch = max(params) / min(params) - 1
        if mismatch == 0:
            parts.append(f"{_si(params[0])} parameters without embedding{' in every row' * (len(params) > 1)}.")
        else:
            verdict = "matched within" if mismatch <= MATCHED else "not matched: they differ by"
            parts.append(f"Parameters (without embedding) {verdict} {100 * mismatch:.1f}%.")
    return " ".join(parts)


def _flops_line(results: Results) -> str:
    flops = {value for group in results.groups if (value := group.cost("paper_train_flops")) is not None}
    amount = f"{_flops(flops.pop())} a run, " if len(flops) == 1 else ""
    return f"Training FLOPs: {amount}paper convention (embedding and head excluded)." if amount or flops else ""


def _interval_lines(results: Results, metric: str, pooling: stats.Pooling) -> list[str]:
    samples = [group.numbers(metric) for group in results.groups]
    if not any(samples):
        return []
    if max(map(len, samples)) < 2:
        return ["One seed a row: no interval."]
    name = metric_header(metric)
    if pooling.used and pooling.sd is not None:
        line = f"{name}: mean over n seeds ± 95% t interval from the seed SD pooled over rows, "
        line += f"{pooling.sd:.2g} ({pooling.df} degrees of freedom): {pooling.reason}."
    else:
        line = f"{name}: mean over n seeds ± 95% t interval from each row's own SD; not pooled: {pooling.reason}"
        line += f" (pooled SD {pooling.sd:.2g}, {pooling.df} degrees of freedom)." if pooling.sd is not None else "."
    single = any(len(sample) == 1 for sample in samples)
    return [line, *(["A row of one seed has no interval."] if single else [])]


def _is_solved(cell: CellResult) -> bool:
    return not cell.diverged and cell.number("steps_to_threshold") is not None


def _median_steps(group: Group) -> Value:
    curve = survival(group)
    return None if curve is None else stats.median_time(curve)


def _spent_flops(cell: CellResult) -> float | None:
    """Training FLOPs of the tokens that were trained on, which a stop rule makes fewer than planned."""
    planned, tokens = cell.cost.get("paper_train_flops"), cell.number("tokens")
    if planned is None or tokens is None or cell.spec is None:
        return None
    return planned * tokens / cell.spec.train_tokens


def _bits_per_byte(group: Group) -> Value:
    values = group.numbers("val_bits_per_byte")
    return fmean(values) if values else None


def _share_a_run(a: Group, b: Group) -> bool:
    of_a = {cell.run_id for cell in a.cells if cell.run_id is not None}
    return not of_a.isdisjoint(cell.run_id for cell in b.cells)


def _fisher(a: Group, b: Group) -> float | None:
    first, second = solved(a), solved(b)
    if first is None or second is None or _share_a_run(a, b):
        return None
    return stats.fisher_exact(first.k, first.n, second.k, second.n)


def _k_of_n(group: Group) -> str | None:
    found = solved(group)
    return None if found is None else f"{found.k}/{found.n}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _number(value: Value) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise TypeError(f"a column of numbers holds {value!r}")


def _si(value: Value) -> str:
    """Three digits with a suffix: 12.3M."""
    number = _number(value)
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * factor:
            return _three_digits(number / factor) + suffix
    return _three_digits(number)


def _three_digits(value: Value) -> str:
    number = _number(value)
    return f"{number:.0f}" if abs(number) >= 99.95 else f"{number:.3g}"


def _four_digits(value: Value) -> str:
    return f"{_number(value):.4f}"


def _flops(value: Value) -> str:
    mantissa, _, exponent = f"{_number(value):.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _p(value: Value) -> str:
    return show_p(_number(value))


def _layout(value: Value) -> str:
    text = show(value)
    return text if len(text) <= LONGEST_LAYOUT else compact(text)
