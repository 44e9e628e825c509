"""What is said above and below the table of a request, and the table that it makes with its columns."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from analysis import stats
from analysis.load import STATUS_WORDS, Group, Results, TuningRuns, axis_text
from analysis.tables.columns import spent_flops
from analysis.tables.settings import SETTINGS
from analysis.tables.table import Column, Table
from analysis.tables.words import count, listed, metric_header, show_flops, show_layout, si
from hybrid.equivalence import equivalence_classes
from hybrid.spec import ModelSpec, RunSpec
from sweeps.identity import short_keys

MATCHED: Final = 0.05
_NOT_ALIKE: Final = ("model", "init_seed", "data_seed")
# What has a column or a line of its own, and what seeds and architectures differ in by their nature.
_SHOWN: Final = frozenset(
    {
        *("model", "model.blocks", "model.vocab_size", "data", "optim", "optim.lr", "schedule", "stop"),
        *("train_tokens", "batch_tokens", "seq_len", "init_seed", "data_seed"),
    }
)
_PROBLEMS_SHOWN: Final = 3


def request_table(
    results: Results, columns: Sequence[Column[Group]], *, caption: Sequence[str], footnotes: Sequence[str]
) -> Table[Group]:
    """A line a group of cells, with what there is to say of any request around it."""
    above, notes = around(results)
    return Table(
        name="table",
        title=title_of(results),
        columns=tuple(columns),
        rows=results.groups,
        caption=(*above, *(line for line in caption if line)),
        footnotes=(*notes, *footnotes),
        grouped=results.several_rows and bool(results.axes),
    )


def around(results: Results) -> tuple[list[str], list[str]]:
    """Lines above and notes below that the table of any request has, whatever its columns."""
    lines = [
        *report_caption(results),
        _runs_line(results),
        settings_line(results),
        *map(_tuning_line, results.tuning),
        _architecture_line(results),
    ]
    unreadable = sum(cell.final and cell.spec is None for cell in results.cells)
    notes = _tuning_notes(results)
    if unreadable:
        notes.append(f"{count(unreadable, 'record')} describe a run in a way that this version cannot read.")
    notes += _problem_notes(results)
    notes += _symmetry_notes(results)
    notes += _unshown_notes(results)
    final = [cell.provenance for cell in results.cells if cell.final]
    machines = {(str(provenance.get("host")), str(provenance.get("device"))) for provenance in final}
    if len(machines) > 1:
        notes.append(f"The runs were made on {len(machines)} machines or devices: their times do not compare.")
    return [line for line in lines if line], notes


def missing_notes(results: Results, metric: str, name: str) -> list[str]:
    """Runs that are done and have no finite value of the metric: in no mean, so that they have to be named."""
    without = [cell.name for group in results.groups for cell in group.without(metric)]
    if not without or len(without) == sum(len(group.done) for group in results.groups):
        return []
    return [
        f"{count(len(without), 'run')} {'is' if len(without) == 1 else 'are'} done without a finite {name}, "
        f"and in no mean: {listed(without)}."
    ]


def _symmetry_notes(results: Results) -> list[str]:
    """Rows that are one model, trained alike: what tells their results apart is chance."""
    alike: dict[tuple[object, ...], dict[str, ModelSpec]] = {}
    runs: dict[str, str | None] = {}
    settings = [one.name for one in fields(RunSpec) if one.name not in _NOT_ALIKE]
    for group in results.groups:
        spec = next(iter(group.specs), None)
        if spec is not None:
            rest = tuple(getattr(spec, name) for name in settings)
            alike.setdefault(rest, {})[group.label] = spec.model
            runs[group.label] = group.cells[0].run_id
    notes = []
    for models in alike.values():
        for one in equivalence_classes(models):
            if len({runs[name] for name in one.names}) > 1:
                reasons = "; ".join(dict.fromkeys(one.reasons))
                names = " = ".join(one.names)
                notes.append(f"One model by symmetry, so that only chance tells them apart: {names} ({reasons}).")
    return notes


def _unshown_notes(results: Results) -> list[str]:
    """Settings that differ between rows and that no column shows: a reader has to know that they do.

    An axis of scales changes many, and says so by itself.
    """
    if "scale" in results.axes:
        return []
    found: dict[str, dict[object, None]] = {}
    firsts = [spec for group in results.groups for spec in group.specs[:1]]
    for name in ("optim", "schedule", "model", ""):
        # Most rows have most of their parts in common.
        parts = dict.fromkeys(getattr(spec, name) for spec in firsts) if name else firsts
        for kind in dict.fromkeys(map(type, parts)):
            for one, key in _unshown(name, kind):
                of_kind = (getattr(part, one) for part in parts if type(part) is kind)
                found.setdefault(key, {}).update(dict.fromkeys(of_kind))
    shown = {*results.axes, *(key for tuning in results.tuning for key in tuning.settings)}
    differing = [
        f"{key} ({', '.join(map(axis_text, values)) if len(values) <= 4 else f'{len(values)} values'})"
        for key, values in found.items()
        if len(values) > 1 and key not in shown
    ]
    return [f"Rows differ too in {', '.join(differing)}."] if differing else []


def _unshown(name: str, kind: type[Any]) -> list[tuple[str, str]]:
    """The fields of a part of a spec that no column shows, and what they are called in full."""
    keys = ((one.name, f"{name}.{one.name}".lstrip(".")) for one in fields(kind))
    return [(one, key) for one, key in keys if key not in _SHOWN]


def _problem_notes(results: Results) -> list[str]:
    """What is wrong with records that cannot be read; the first few in full."""
    problems = list(dict.fromkeys(cell.problem for cell in results.cells if cell.problem is not None))
    left = len(problems) - _PROBLEMS_SHOWN
    shown = [f"Unreadable: {problem}." for problem in problems[:_PROBLEMS_SHOWN]]
    return [*shown, *([f"{left} more records cannot be read."] if left > 0 else [])]


def settings_line(results: Results) -> str:
    """What all runs have in common, for a caption; empty before the first result."""
    parts = []
    for setting in SETTINGS:
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


def _runs_line(results: Results) -> str:
    counts = Counter(STATUS_WORDS.get(cell.status, cell.status) for cell in results.cells)
    total = len(results.cells)
    states = "all done" if counts == {"done": total} else ", ".join(f"{n} {word}" for word, n in counts.most_common())
    return f"{count(len(results.groups), 'row')}, {count(total, 'run')}: {states}.{_seeds(results)}"


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
    parts = [f"Layout {show_layout(layouts[0])}."] if len(layouts) == 1 else []
    if params:
        mismatch = max(params) / min(params) - 1
        if mismatch == 0:
            parts.append(f"{si(params[0])} parameters without embedding{' in every row' * (len(params) > 1)}.")
        else:
            verdict = "matched within" if mismatch <= MATCHED else "not matched: they differ by"
            parts.append(f"Parameters (without embedding) {verdict} {100 * mismatch:.1f}%.")
    return " ".join(parts)


def flops_line(results: Results) -> str:
    flops = {value for group in results.groups if (value := group.cost("paper_train_flops")) is not None}
    amount = f"{show_flops(flops.pop())} a run, " if len(flops) == 1 else ""
    return f"Training FLOPs: {amount}paper convention (embedding and head excluded)." if amount or flops else ""


def interval_lines(results: Results, metric: str, pooling: stats.Pooling, name: str) -> list[str]:
    """From what spread the intervals of the column of this name are."""
    samples = [group.numbers(metric) for group in results.groups]
    if not any(samples):
        return []
    if max(map(len, samples)) < 2:
        return ["One seed a row: no interval."]
    if pooling.used and pooling.sd is not None:
        line = f"{name}: mean over n seeds ± 95% t interval from the seed SD pooled over rows, "
        line += f"{pooling.sd:.2g} ({pooling.df} degrees of freedom): {pooling.reason}."
    else:
        line = f"{name}: mean over n seeds ± 95% t interval from each row's own SD; not pooled: {pooling.reason}"
        line += f" (pooled SD {pooling.sd:.2g}, {pooling.df} degrees of freedom)." if pooling.sd is not None else "."
    single = any(len(sample) == 1 for sample in samples)
    return [line, *(["A row of one seed has no interval."] if single else [])]


def _tuning_line(tuning: TuningRuns) -> str:
    """What was tried, by what it was judged, and what it cost: none of it is in the rows."""
    shorts = short_keys(list(tuning.settings))
    tried = "; ".join(f"{shorts[key]} {', '.join(map(axis_text, values))}" for key, values in tuning.settings.items())
    seeds = list(dict.fromkeys(cell.seed for cell in tuning.cells))
    runs = {cell.run_id: cell for cell in tuning.cells}.values()
    spent = [flops for cell in runs if (flops := spent_flops(cell)) is not None]
    tokens = {cell.spec.train_tokens for cell in runs if cell.spec is not None and cell.spec.stop is None}
    each = f" of {si(tokens.pop())} tokens" if len(tokens) == 1 else ""
    so_far = "" if all(cell.final for cell in runs) else " so far"
    return (
        f"Tuned: {tried}, {'one choice for all rows' if tuning.per == 'sweep' else 'each row its own choice'}, by "
        f"{metric_header(tuning.metric)} on {count(len(seeds), 'other seed')} ({', '.join(map(str, seeds))}): "
        f"{count(len(tuning.cells) // tuning.rows, 'run')} a row{each}, "
        f"{show_flops(sum(spent))} FLOPs in all{so_far}, counted nowhere else."
    )


def _tuning_notes(results: Results) -> list[str]:
    """A sentence for every choice that a reader should doubt, and for every row that waits for its choice."""
    return [f"{line}." for line in results.choices.sentences]
