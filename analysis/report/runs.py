"""Every run by itself: how it stands, why it failed where it did, and where it was made."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from analysis.load import STATUS_WORDS, CellResult, Results
from analysis.report.cost import device_hours, device_unit, show_hours
from analysis.tables.table import Column, Table, Value
from analysis.tables.words import count, four_digits, metric_header, show, si, whole
from sweeps.store import Attempts, Store

MOST_RUNS: Final = 1000
MOST_FAILURES: Final = 50
_LOG_LINES: Final = 20
_LOG_BYTES: Final = 65536
_TRACEBACK_LINES: Final = 60
_ORDER: Final = ("failed", "lost", "damaged", "interrupted", "diverged", "running", "queued", "new", "untuned", "done")
_BAD: Final = ("failed", "lost", "damaged", "interrupted", "diverged")


@final
@dataclass(frozen=True, kw_only=True)
class RunLine:
    """A cell, and the label of its row."""

    label: str
    cell: CellResult


@final
@dataclass(frozen=True, kw_only=True)
class AttemptLine:
    """An attempt that came to no result: where it was made, its class of failure with the words of whoever found out,
    and what it logged last. Empty where it is not known."""

    number: int
    where: str
    began: str
    failure: str
    message: str
    traceback: str
    log: str


@final
@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that did not come to a good end. `problem` says what is wrong with its record, or why it diverged."""

    label: str
    name: str
    run_id: str
    status: str
    problem: str
    attempts: tuple[AttemptLine, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that records say of where they come from, and how many runs say so."""

    name: str
    values: tuple[tuple[str, int], ...]


def runs_table(results: Results, metric: str | None) -> Table[RunLine]:
    """A line a run; of many, those first that are not done."""
    lines = [RunLine(label=group.label, cell=cell) for group in results.groups for cell in group.cells]
    if len(lines) > MOST_RUNS:
        lines.sort(key=lambda line: _ORDER.index(line.cell.status))
    units = sorted({device_unit(line.cell.provenance) for line in lines if line.cell.final})
    left = len(lines) - MOST_RUNS
    return Table(
        name="runs",
        title="Every run",
        columns=tuple(_run_columns(metric, units)),
        rows=tuple(lines[:MOST_RUNS]),
        caption=(
            "One line a run. What a run is: python -m sweeps show RUN; what it logged: python -m sweeps logs RUN.",
        ),
        footnotes=(f"{left:,} more runs are left out here; those that are not done come first.",) if left > 0 else (),
    )


def _run_columns(metric: str | None, units: Sequence[str]) -> Iterator[Column[RunLine]]:
    yield Column[RunLine](key="row", header="row", value=lambda line: line.label, fmt=str)
    yield Column[RunLine](key="seed", header="seed", value=lambda line: line.cell.seed, fmt=show)
    yield Column[RunLine](key="run_id", header="run", value=lambda line: line.cell.run_id, fmt=str)
    yield Column[RunLine](key="status", header="status", value=lambda line: _word(line.cell.status), fmt=str)
    if metric is not None:
        header = metric_header(metric)
        yield Column[RunLine](key=metric, header=header, value=_metric(metric), fmt=four_digits)
    yield Column[RunLine](key="steps", header="steps", value=_metric("steps", of_all=True), fmt=_whole)
    yield Column[RunLine](key="tokens_per_s", header="tokens/s", value=_metric("tokens_per_s"), fmt=si)
    for unit in units:
        yield Column[RunLine](key=f"paid_{unit}", header=unit, value=_hours(unit), fmt=show_hours)
    yield Column[RunLine](key="host", header="host", value=_told("host"), fmt=str)
    yield Column[RunLine](key="device", header="device", value=_device, fmt=str)


def _metric(name: str, *, of_all: bool = False) -> Callable[[RunLine], Value]:
    return lambda line: line.cell.number(name) if of_all or not line.cell.diverged else None


def _hours(unit: str) -> Callable[[RunLine], Value]:
    def value(line: RunLine) -> Value:
        mine = line.cell.final and device_unit(line.cell.provenance) == unit
        return device_hours(line.cell) if mine else None

    return value


def _told(key: str) -> Callable[[RunLine], Value]:
    return lambda line: _text(line.cell.provenance.get(key)) or None


def _device(line: RunLine) -> Value:
    return _text(line.cell.provenance.get("device_name") or line.cell.provenance.get("device")) or None


def _whole(value: Value) -> str:
    return whole(int(value)) if isinstance(value, float) else whole(value)


def _word(status: str) -> str:
    return STATUS_WORDS.get(status, status)


def _text(value: object) -> str:
    return "" if value is None else str(value)


# --- failures -----------------------------------------------------------------------------------


def failures(results: Results, store: Store) -> tuple[tuple[Failure, ...], int]:
    """The runs that did not come to a good end, tuning runs last, and how many there are: of many, the first ones."""
    cells = [(group.label, cell) for group in results.groups for cell in group.cells]
    cells += [("tuning", cell) for one in results.tuning for cell in one.cells]
    bad = {cell.run_id: (label, cell) for label, cell in cells if cell.status in _BAD and cell.run_id is not None}
    ordered = sorted(bad.values(), key=lambda pair: _BAD.index(pair[1].status))
    return tuple(_failure(label, cell, store) for label, cell in ordered[:MOST_FAILURES]), len(ordered)


def _failure(label: str, cell: CellResult, store: Store) -> Failure:
    run_id = cell.run_id or ""
    problem = cell.problem or ""
    if cell.diverged:
        reason, steps = cell.metrics.get("reason"), cell.number("steps")
        at = "" if steps is None else f" at step {steps:,.0f}"
        problem = f"diverged{at}{f': {reason}' if reason else ''}"
    attempts = store.attempts(run_id)
    lines = [_attempt(attempts, number) for number in range(1, attempts.last() + 1)]
    # What went on to diverge had no failure of its own.
    lines = [line for line in lines if not cell.diverged or line.failure or line.log]
    return Failure(
        label=label, name=cell.name, run_id=run_id, status=cell.status, problem=problem, attempts=tuple(lines)
    )


def _attempt(attempts: Attempts, number: int) -> AttemptLine:
    job, error = attempts.job(number) or {}, attempts.error(number)
    slurm = job.get("slurm") or {}
    where = [f"job {slurm['job_id']} on {slurm.get('node') or '?'}"] if slurm.get("job_id") else []
    where += [f"host {job['host']}"] if job.get("host") else []
    silent = error is None and not attempts.ended(number)
    return AttemptLine(
        number=number,
        where=", ".join(where),
        began=_text(job.get("started_at")),
        failure="" if error is None else _text(error.get("class")),
        message="it has not said how it ended" if silent else _text((error or {}).get("message")),
        traceback=_last_lines(_text((error or {}).get("traceback")), _TRACEBACK_LINES),
        log=_log(attempts, number),
    )


def _log(attempts: Attempts, number: int) -> str:
    """The last lines that an attempt logged."""
    try:
        with open(attempts.path(number) / "log.txt", "rb") as file:
            file.seek(max(file.seek(0, 2) - _LOG_BYTES, 0))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return _last_lines(text, _LOG_LINES)


def _last_lines(text: str, most: int) -> str:
    lines = text.rstrip().splitlines()
    return "\n".join(lines if len(lines) <= most else [f"... {len(lines) - most} lines before", *lines[-most:]])


# --- where records come from --------------------------------------------------------------------


def facts(cells: Iterable[CellResult]) -> tuple[Fact, ...]:
    """What the records of these runs say of where they come from, a line each."""
    told = [cell.provenance for cell in cells if cell.final]
    found = [
        _fact("code", told, _code),
        _fact("versions", told, _versions),
        _fact("host", told, lambda p: _text(p.get("host"))),
        _fact("device", told, lambda p: _text(p.get("device_name") or p.get("device"))),
        _fact("processor", told, lambda p: _text(p.get("processor"))),
        _fact("platform", told, lambda p: _text(p.get("platform"))),
        _fact("user", told, lambda p: _text(p.get("user"))),
        _fact("command", told, lambda p: " ".join(map(str, p.get("command") or ()))),
    ]
    times = sorted(_text(p.get(key)) for p in told for key in ("started_at", "finished_at") if p.get(key))
    if times:
        found.append(Fact(name="made", values=((f"{_minute(times[0])} to {_minute(times[-1])} UTC", len(told)),)))
    return tuple(fact for fact in found if fact.values)


def code_note(cells: Iterable[CellResult]) -> str:
    """A sentence where the runs were not all made by one and the same code."""
    codes = {_code(cell.provenance) for cell in cells if cell.final} - {""}
    if len(codes) < 2:
        return ""
    return (
        f"The runs were made by {count(len(codes), 'version')} of the code, which say that their curves are the same."
    )


def _fact(name: str, told: Sequence[Mapping[str, Any]], text: Callable[[Mapping[str, Any]], str]) -> Fact:
    counts = Counter(found for provenance in told if (found := text(provenance)))
    return Fact(name=name, values=tuple(counts.most_common()))


def _code(provenance: Mapping[str, Any]) -> str:
    commit, changed = provenance.get("git_commit"), provenance.get("git_diff_sha")
    if not commit:
        return ""
    return f"commit {str(commit)[:12]}" + (
        f" with changes {changed} (diffs/{changed}.patch in the store)" if changed else ""
    )


def _minute(iso: str) -> str:
    return f"{iso[:10]} {iso[11:16]}"


def _versions(provenance: Mapping[str, Any]) -> str:
    versions = provenance.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if version)
