"""What the store says, in words: requests and their cells, one run, two runs side by side, logs."""

import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from hybrid.decode import decode, did_you_mean
from hybrid.spec import ConfigError, RunSpec
from sweeps import in_slurm
from sweeps.hours import Ends, attempt_hours, record_hours
from sweeps.notes import NoteBook, notes_of
from sweeps.speed import prediction_text
from sweeps.standing import Evaluation, Standing, Standings
from sweeps.store import (
    FINAL,
    Attempts,
    Cell,
    CellStatus,
    Request,
    Store,
    StoreError,
    is_final,
    request_id,
)
from sweeps.submissions import ItemKind
from sweeps.text import amount, count, duration, hours_text, table
from sweeps.triage import find_out
from sweeps.trunks import branch_step, trunk_id
from sweeps.tune import UNTUNED, choose, settle, status_of
from sweeps.wanted import missing_names
from sweeps.watch import View

NEEDS_EVAL: Final[CellStatus] = "needs_eval"


def choose_requests(store: Store, sweep: str | None) -> list[Request]:
    """The stored requests of a sweep, the one of `sweep/hash`, or all. Raises ConfigError where there are none."""
    if sweep is not None and "/" in sweep:
        return [_named(store, sweep)]
    found = store.requests(sweep)
    if sweep is not None and not found:
        names = sorted({request.sweep for request in store.requests()})
        if not names:
            raise ConfigError(
                f"{sweep}: never asked for: {store.root} holds no requests yet; try python run.py -m +sweep={sweep}"
            )
        raise ConfigError(f"{sweep}: never asked for in {store.root}{did_you_mean(sweep, names)}")
    return found


def _named(store: Store, name: str) -> Request:
    """The request `sweep/hash`; its first digits do. Raises ConfigError."""
    sweep, _, digits = name.rpartition("/")
    if not re.fullmatch(r"[0-9a-f]+", digits):
        raise ConfigError(f"{name}: expected a sweep's name, or SWEEP/HASH with digits of a request's hash")
    known = {request_id(request): request for request in choose_requests(store, sweep)}
    found = [request for id_, request in known.items() if id_.startswith(name)]
    if len(found) != 1:
        what = "several requests begin so" if found else "no such request"
        raise ConfigError(f"{name}: {what} in {store.root} (valid: {', '.join(sorted(known))})")
    return found[0]


def requests_text(
    store: Store, requests: list[Request], standings: Standings | None = None, *, problems: bool = True
) -> str:
    """One line a request: how many of its cells are where."""
    if not requests:
        return f"{store.root}: no requests yet; try python run.py -m +sweep=demo"
    standings = standings or Standings(store, tolerant=True)
    named = Counter(request.sweep for request in requests)
    rows = []
    for request in requests:
        counts = Counter(_status(cell, standings, store) for cell in settle(request, choose(request, store)).cells)
        finished = sum(counts[status] for status in FINAL) + counts[NEEDS_EVAL]
        others = ", ".join(
            [
                *(f"{n} {status}" for status, n in counts.items() if status not in ("done", "queued", "running")),
                *_tuning(store, request),
            ]
        )
        rows.append(
            [
                request_id(request) if named[request.sweep] > 1 else request.sweep,
                textwrap.shorten(" ".join(request.overrides), 40, placeholder=" ...") or "-",
                request.created_at[:16],
                f"{finished}/{len(request.cells)}",
                str(counts["queued"] or "-"),
                str(counts["running"] or "-"),
                others or "-",
            ]
        )
    text = table(["request", "overrides", "first asked", "finished", "queued", "running", "not done"], rows)
    book = NoteBook(store)
    noted = [line for request in requests for line in _noted(book, request)]
    below = [*(standings.problems if problems else []), *(noted if problems else [])]
    return "\n".join([text, *(["", *below] if below else [])])


def _status(cell: Cell, standings: Standings, store: Store) -> CellStatus:
    if cell.run_id is None:
        return UNTUNED
    status = standings.of(cell.run_id).status
    return NEEDS_EVAL if status == "done" and missing_names(store, cell.run_id) else status


def _tuning(store: Store, request: Request) -> list[str]:
    """How many of the tuning runs have no result yet, if any."""
    runs = {cell.run_id: cell for tuning in request.tuning for cell in tuning.cells}.values()
    finished = sum(status_of(cell, store) in FINAL for cell in runs)
    return [f"tuning {finished}/{len(runs)}"] if finished < len(runs) else []


# --- the cells of a request ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CellState:
    """What became of one cell so far. None where it is not known, or does not apply.

    `left_s` is what the rest takes at the speed of the last line, `limit_s` what its job has left. Hours are those of
    its devices: `hours` of all its attempts, with what was lost, and `predicted_hours` as it was submitted or recorded.
    """

    name: str
    row: str
    run_id: str | None
    status: CellStatus
    attempt: int = 0
    step: int | None = None
    steps: int | None = None
    loss_nats: float | None = None
    tokens_per_s: float | None = None
    left_s: float | None = None
    limit_s: float | None = None
    node: str = ""
    owner: str = ""
    hours: float | None = None
    predicted_hours: float | None = None
    device: str = ""
    job: str = ""
    submission: int | None = None
    error_class: str = ""
    message: str = ""
    note: str = ""
    evaluation: Evaluation = ""
    evaluation_note: str = ""


@dataclass(frozen=True, kw_only=True)
class RequestState:
    """The cells of a request, tuning runs first, and whole sentences on its tuning and on what could not be read."""

    sweep: str
    cells: tuple[CellState, ...]
    sentences: tuple[str, ...]
    problems: tuple[str, ...]
    noted: tuple[str, ...] = ()

    @property
    def counts(self) -> Counter[CellStatus]:
        return Counter(cell.status for cell in self.cells)

    @property
    def evaluations(self) -> Counter[Evaluation]:
        """Of the cells whose evaluation was submitted."""
        return Counter(cell.evaluation for cell in self.cells if cell.evaluation)

    @property
    def is_active(self) -> bool:
        """Whether anything is queued or running."""
        return any(counts["queued"] or counts["running"] for counts in (self.counts, self.evaluations))


def look(store: Store, request: Request, standings: Standings | None = None) -> RequestState:
    """What became of every cell of the request; the scheduler is asked once."""
    standings = standings or Standings(store, tolerant=True)
    choices = choose(request, store)
    found: dict[str, CellState] = {}
    cells = []
    for cell in settle(request, choices).all_cells:
        if cell.run_id is None:
            cells.append(CellState(name=cell.name, row=cell.row, run_id=None, status=UNTUNED))
            continue
        if cell.run_id not in found:
            evaluation, note = standings.evaluation(cell.run_id)
            state = _cell_state(store, cell.run_id, standings.of(cell.run_id))
            state = replace(state, evaluation=evaluation, evaluation_note=note)
            lacking = missing_names(store, cell.run_id) if state.status == "done" else []
            if lacking:
                state = replace(
                    state,
                    status=NEEDS_EVAL,
                    note=f"to be evaluated (mode=eval request={request.sweep}): {', '.join(lacking)}",
                )
            found[cell.run_id] = state
        cells.append(replace(found[cell.run_id], name=cell.name, row=cell.row))
    return RequestState(
        sweep=request.sweep,
        cells=tuple(cells),
        sentences=tuple(choices.sentences),
        problems=tuple(standings.problems),
        noted=tuple(_noted(NoteBook(store), request, cells)),
    )


def _noted(book: NoteBook, request: Request, cells: Sequence[CellState] = ()) -> Iterator[str]:
    """What people say of the request and of its runs: `sweeps note` has the texts."""
    said = {request.sweep: book.of(request_id(request)).brief()}
    said |= {cell.name: book.of(cell.run_id).brief() for cell in cells if cell.run_id is not None}
    yield from (f"noted of {name}: {brief}" for name, brief in said.items() if brief)


def _cell_state(store: Store, run_id: str, standing: Standing) -> CellState:
    """What became of a run; of its name and row nothing yet."""
    record, owner, error = standing.record, standing.owner or {}, standing.error or {}
    attempts, ends = store.attempts(run_id), None
    job, item = standing.job, standing.item
    if record is not None:
        provenance, metrics = record.get("provenance", {}), record["metrics"]
        last = {**metrics, "step": metrics.get("steps")}
        steps = metrics.get("steps")
        execution, who = provenance.get("exec") or {}, provenance
    else:
        ends = attempts.ends(standing.attempt) if standing.attempt else (None, None, None)
        last, steps = ends[2] or _line_before(store, run_id, standing.attempt), None
        execution, who = owner.get("exec") or {}, owner
    predicted = None if item is None else item.predicted_hours
    if predicted is None and record is not None:
        predicted = _predicted_hours(record)
    state = CellState(
        name="",
        row="",
        run_id=run_id,
        status=standing.status,
        attempt=standing.attempt,
        step=last.get("step"),
        steps=steps,
        loss_nats=last.get("train_loss_nats"),
        node=((who.get("slurm") or {}).get("node") or who.get("host") or ""),
        owner=who.get("user") or "",
        hours=_device_hours(attempts, standing, ends),
        predicted_hours=predicted,
        device=str(execution.get("device", "")),
        job="" if job is None else job.job_id,
        submission=standing.submission,
        error_class=str(error.get("class", "")),
        message=_first_line(error.get("message")),
        note=standing.note,
    )
    if standing.status != "running":
        return state if is_final(standing.status) else replace(state, note=_waiting(store, run_id, standing))
    speed, steps, batch_tokens = last.get("tokens_per_s"), *_length(store, run_id)
    left_s = None
    if speed and steps is not None and batch_tokens is not None:
        left_s = (steps - last["step"]) * batch_tokens / speed
    limit_s = None if job is None else job.time_left_s
    return replace(state, steps=steps, tokens_per_s=speed, left_s=left_s, limit_s=limit_s)


def _first_line(message: object) -> str:
    return next(iter(str(message or "").splitlines()), "")


def _line_before(store: Store, run_id: str, attempt: int) -> dict[str, Any]:
    """The last line with a training loss of what a newest attempt went on from that has none yet."""
    lines = store.metrics(run_id) if attempt else []
    return next((line for line in reversed(lines) if "train_loss_nats" in line), {})


def _length(store: Store, run_id: str) -> tuple[int | None, int | None]:
    """Steps of the run, and tokens of each."""
    try:
        spec = store.spec(run_id) or {}
        return int(spec["train_tokens"]) // int(spec["batch_tokens"]), int(spec["batch_tokens"])
    except (StoreError, LookupError, TypeError, ValueError, ZeroDivisionError):
        return None, None


def _predicted_hours(record: Mapping[str, Any]) -> float | None:
    """As the preflight had it."""
    speed = record.get("provenance", {}).get("preflight_tokens_per_s")
    tokens = record["metrics"].get("tokens")
    return tokens / speed / 3600 if speed and tokens else None


def _device_hours(attempts: Attempts, standing: Standing, ends: Ends | None) -> float | None:
    """Hours of all devices over all attempts, with what they lost; None where nothing was begun."""
    if standing.attempt == 0 and standing.record is None:
        return None
    hours = [attempt_hours(attempts, number) for number in range(1, standing.attempt)]
    if standing.record is None:
        hours.append(attempt_hours(attempts, standing.attempt, job=standing.owner, ends=ends))
    else:
        hours.append(record_hours(standing.record))
    known = [one for one in hours if one is not None]
    return sum(known) if known else None


# --- as text ------------------------------------------------------------------------------------

_WIDTH = 160
_NAMES, _REASONS = 6, 20
_JOB = re.compile(r"\bjob \d+(_\d+)?")


def cells_text(store: Store, request: Request) -> str:
    """One line a cell, tuning runs first: where it is and how it goes; below, why the bad ones are bad."""
    return state_text(look(store, request))


def status_text(store: Store, requests: list[Request], *, as_json: bool) -> str:
    """The cells of the newest of these requests, and, where there are several, a line for each."""
    standings = Standings(store, tolerant=True)
    state = look(store, requests[-1], standings)
    if as_json:
        return state_json(state)
    text = state_text(state)
    if len(requests) == 1:
        return text
    return f"{requests_text(store, requests, standings, problems=False)}\n\nthe newest:\n{text}"


def state_text(state: RequestState, *, lines: int | None = None) -> str:
    """Counts, one line a cell, and why the bad ones are bad; within so many lines, those first that change."""
    counts = ", ".join(f"{n} {status}" for status, n in _by_order(state.counts))
    text = [f"{state.sweep}: {count(len(state.cells), 'cell')}: {counts}{_evaluations_text(state)}", ""]
    below = [*_reasons(state), *state.sentences, *state.problems, *state.noted]
    below = ["", *below] if below else []
    cells: Sequence[CellState] = state.cells
    if lines is not None:
        below = below[: max(lines // 3, 3)]
        room = max(lines - len(text) - len(below) - 3, 1)
        cells = sorted(cells, key=lambda cell: _ORDER.index(cell.status))
        if len(cells) > room:
            below = [f"... and {len(cells) - room} more", *below]
            cells = cells[:room]
    return "\n".join([*text, _table(cells), *below])


def _evaluations_text(state: RequestState) -> str:
    """How many evaluations are where, the jobs that were submitted for them; nothing where none was."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(state.evaluations.items()))
    return f"; evaluations: {counts}" if counts else ""


def view(state: RequestState) -> View:
    """The state as it is watched."""
    return View(
        text=lambda lines: state_text(state, lines=lines),
        essence=[(cell.name, cell.status, cell.attempt, cell.evaluation) for cell in state.cells],
        is_active=state.is_active,
    )


_ORDER: tuple[CellStatus, ...] = (
    *("running", "failed", "lost", "damaged", "interrupted", "queued"),
    *("new", "untuned", "needs_eval", "diverged", "done"),
)


def _by_order(counts: Mapping[CellStatus, int]) -> list[tuple[CellStatus, int]]:
    return sorted(counts.items(), key=lambda pair: _ORDER.index(pair[0]))


def _table(cells: Sequence[CellState]) -> str:
    on_gpus = any(cell.device.startswith("cuda") for cell in cells)
    unit = "GPU-h" if on_gpus else "CPU-h"
    header = ["cell", "run", "state", "attempt", "step", "loss", "tokens/s", "left", "node", "owner", unit, "planned"]
    header += ["evaluation"]
    rows = [
        [
            cell.name,
            cell.run_id or "",
            _said(cell),
            str(cell.attempt or ""),
            _step_text(cell),
            _number(cell.loss_nats),
            "" if cell.tokens_per_s is None else amount(cell.tokens_per_s),
            _left_text(cell),
            cell.node,
            cell.owner,
            "" if cell.hours is None else hours_text(cell.hours),
            "" if cell.predicted_hours is None else hours_text(cell.predicted_hours),
            cell.evaluation,
        ]
        for cell in cells
    ]
    kept = [i for i in range(len(header)) if i < 3 or any(row[i] for row in rows)]
    return _narrow([header[i] for i in kept], [[row[i] or "-" for i in kept] for row in rows])


def _narrow(header: Sequence[str], rows: Sequence[list[str]]) -> str:
    """A table of at most 160 columns if names of cells and what they wait for can be cut to that."""
    for column, least in ((2, 12), (0, 24)):
        text = table(header, rows)
        excess = max(map(len, text.splitlines())) - _WIDTH
        if excess <= 0:
            return text
        widest = max((len(row[column]) for row in rows), default=0)
        width = max(widest - excess, least)
        rows = [[_cut(cell, width) if i == column else cell for i, cell in enumerate(row)] for row in rows]
    return table(header, rows)


def _cut(text: str, width: int) -> str:
    """Beginning and end, for names differ there."""
    if len(text) <= width:
        return text
    end = (width - 3) // 2
    return f"{text[: width - 3 - end]}...{text[len(text) - end :]}"


def _said(cell: CellState) -> str:
    """The state, with what it waits for where that is its trunk."""
    return cell.note if "trunk " in cell.note else cell.status


def _step_text(cell: CellState) -> str:
    if cell.step is None:
        return ""
    return str(cell.step) if cell.steps is None or cell.status != "running" else f"{cell.step}/{cell.steps}"


def _left_text(cell: CellState) -> str:
    if cell.left_s is None:
        return "" if cell.limit_s is None else f"limit {duration(cell.limit_s)}"
    near = cell.limit_s is not None and cell.limit_s < cell.left_s
    return duration(cell.left_s) + (f" (limit {duration(cell.limit_s or 0.0)})" if near else "")


def _reasons(state: RequestState) -> list[str]:
    """Why the bad ones are bad, and what others wait for: those with one reason together, whatever their jobs."""
    reasons: dict[str, dict[str, str]] = {}
    for cell in state.cells:
        ended_badly = cell.status in ("failed", "interrupted", "lost", "damaged")
        parts = [f"{cell.error_class}: {cell.message}"] if ended_badly and cell.error_class else []
        parts += [cell.note] if cell.note and "trunk " not in cell.note and not _is_usual(cell) else []
        if cell.evaluation == "failed":
            parts.append(f"its evaluation came to nothing: {cell.evaluation_note}")
        if parts:
            reason = "; ".join(parts)
            reasons.setdefault(_JOB.sub("its job", reason), {})[cell.name] = reason
    lines = []
    for reason, of in reasons.items():
        names = [*of][:_NAMES]
        more = ", ..." if len(of) > _NAMES else ""
        lines += [
            f"{names[0]}: {of[names[0]]}" if len(of) == 1 else f"{len(of)} cells: {reason} ({', '.join(names)}{more})"
        ]
    return lines if len(lines) <= _REASONS else [*lines[:_REASONS], f"... and {len(lines) - _REASONS} other reasons"]


def _is_usual(cell: CellState) -> bool:
    """Whether there is nothing to say of a pending job: it waits for its turn."""
    usual = ("pending", "pending: None", "pending: Priority", "pending: Resources", "pending: JobArrayTaskLimit")
    return cell.note in usual


def state_json(state: RequestState) -> str:
    """All that `state_text` tells, in full precision."""
    content = {
        "sweep": state.sweep,
        "counts": dict(_by_order(state.counts)),
        "evaluations": dict(sorted(state.evaluations.items())),
        "cells": [asdict(cell) for cell in state.cells],
        "notes": list(state.sentences),
        "problems": list(state.problems),
        "noted": list(state.noted),
    }
    return json.dumps(content, indent=1)


def _trunk_of(store: Store, run_id: str) -> tuple[str, int] | None:
    """The trunk that the store has for a run, and the step at which it leaves it; None where there is none."""
    try:
        run = decode(RunSpec, store.spec(run_id))
    except (ConfigError, StoreError):
        return None  # not asked for yet, or by another version
    trunk = trunk_id(run)
    return None if trunk is None or not store.is_trunk(trunk) else (trunk, branch_step(run))


def _waiting(store: Store, run_id: str, standing: Standing) -> str:
    """What a run that is not under way waits for: how far its trunk is that has yet to reach where the run starts.

    A trunk that is done, or has diverged, makes no run wait.
    """
    status = standing.status
    found = _trunk_of(store, run_id) if (store.root / "trunks").is_dir() and status != "damaged" else None
    if found is None:
        return standing.note
    trunk, step = found
    if store.checkpoint_step(run_id) > 0 or step in store.trunk_points(trunk):
        return standing.note
    match store.trunk_status(trunk):
        case "running":
            return f"waits for trunk {trunk}: at step {_step_under_way(store, trunk)} of {step}"
        case "interrupted" | "lost" | "failed" as ended:
            said = f"trunk {trunk}: {ended} at step {store.trunk_saved_step(trunk, at_most=step)} of {step}"
            return said if status == "new" else f"{status}; {said}"
        case _:
            return standing.note


def _step_under_way(store: Store, trunk: str) -> int:
    """Where the trunk's newest attempt has got to, by its lines."""
    attempts = store.trunk_attempts(trunk)
    start, _, last = attempts.ends(attempts.last())
    return int(last["step"]) if last is not None else 0 if start is None else start.step


def _trunk_text(store: Store, run_id: str) -> list[str]:
    """What the run's trunk has come to, and where the run starts or would start."""
    found = _trunk_of(store, run_id)
    if found is None:
        return []
    trunk, step = found
    start = store.branched_from(run_id)
    began = (
        f"this run started from step {start.step}"
        if start is not None and start.trunk == trunk
        else f"this run leaves it at step {step}"
    )
    points = _listed(store.trunk_points(trunk))
    return [f"trunk {trunk}: {store.trunk_status(trunk)}; points at steps: {points}; {began}"]


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""


def show_text(store: Store, run_id: str) -> str:
    """Everything about one run: its spec, what it cost and came to, its attempts. Of a trunk likewise."""
    if store.is_trunk(run_id):
        return _show_trunk(store, run_id)
    standings = Standings(store, tolerant=True)
    status = standings.of(run_id).status
    parts: dict[str, Any] = {"run_id": run_id, "status": status, "spec": store.spec(run_id)}
    record = store.record(run_id)
    if record is not None:
        parts |= {key: record[key] for key in ("metrics", "cost", "provenance")}
    lines = [f"{key}: {_value(value)}" for key, value in flatten(parts)]
    predicted = None if record is None else prediction_text(record)
    lines += [] if predicted is None else [f"as predicted: {predicted}"]
    lines += _attempts_text(store.attempts(run_id), None if record is None else record.get("attempt"))
    lines += _submissions_text(standings, run_id)
    lines += _trunk_text(store, run_id)
    lines += notes_of(store, run_id).lines()
    requests = [
        f"{r.sweep}: {cell.name}"
        for r in store.requests()
        for cell in settle(r, choose(r, store)).all_cells
        if cell.run_id == run_id
    ]
    return "\n".join([*lines, "asked for by: " + ("; ".join(dict.fromkeys(requests)) or "no stored request")])


def _show_trunk(store: Store, trunk: str) -> str:
    spec = store.trunk_spec(trunk) or {}
    attempts = store.trunk_attempts(trunk)
    facts = {"trunk_id": trunk, "status": store.trunk_status(trunk), "spec": spec.get("run")}
    jobs = [attempts.job(number) or {} for number in range(1, attempts.last() + 1)]
    diverged_at = store.trunk_diverged_at(trunk)
    return "\n".join(
        [
            *(f"{key}: {_value(value)}" for key, value in flatten(facts)),
            *_attempts_text(attempts),
            *_submissions_text(Standings(store, tolerant=True), trunk),
            *([] if diverged_at is None else [f"diverged after step {diverged_at}"]),
            f"points at steps: {_listed(store.trunk_points(trunk))}",
            f"checkpoints on the way at steps: {_listed(store.trunk_checkpoints(trunk))}",
            *notes_of(store, trunk).lines(),
            f"made for the runs: {_listed(run for job in jobs for run in job.get('branches', ()))}",
        ]
    )


def _listed(items: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, items))) or "none"


def _attempts_text(attempts: Attempts, recorded: int | None = None) -> Iterator[str]:
    """A line an attempt: who made it, and how it ended, found out now where it died without a word; `recorded` is the
    one that came to the run's record."""
    for number in range(1, attempts.last() + 1):
        job, error = attempts.job(number) or {}, attempts.error(number)
        is_over = error is not None or number < attempts.last() or attempts.status() == "lost"
        if is_over and number != recorded:
            error = find_out(attempts, number)
        ending = f"{error['class']}: {error['message']}" if error else "no error"
        where = f"{job.get('host', '?')}, process {job.get('pid', '?')}"
        if job.get("slurm"):
            where = f"job {in_slurm.name(job['slurm'])} on {job['slurm'].get('node')}, {where}"
        yield f"attempt {number}: {where}, began {job.get('started_at', '?')}; {ending}"


def _submissions_text(standings: Standings, id_: str) -> list[str]:
    """A line a submission, and what could not be asked."""
    kinds: dict[ItemKind, str] = {"run": "", "trunk": "", "eval": " (evaluation)"}
    lines = [f"submission {of.submission}{kinds[of.kind]}: {of.text}" for of in standings.submitted(id_)]
    return lines + (standings.problems if lines else [])


def diff_text(store: Store, first: str, second: str) -> str:
    """Where two runs differ, in what they are and in what they came to. Raises ConfigError for a trunk."""
    trunks = [id_ for id_ in (first, second) if store.is_trunk(id_)]
    if trunks:
        raise ConfigError([f"{trunk}: is a trunk: expected a run" for trunk in trunks])
    sides = [_facts(store, run_id) for run_id in (first, second)]
    keys = list(dict.fromkeys([*sides[0], *sides[1]]))
    rows = [
        [key, _value(sides[0].get(key, "-")), _value(sides[1].get(key, "-"))]
        for key in keys
        if sides[0].get(key) != sides[1].get(key)
    ]
    return table(["", first, second], rows) if rows else "the same run"


def _facts(store: Store, run_id: str) -> dict[str, Any]:
    record = store.record(run_id) or {}
    parts = {
        "status": store.status(run_id),
        "spec": store.spec(run_id),
        "metrics": record.get("metrics"),
        "cost": record.get("cost"),
    }
    return dict(flatten(parts))


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested data with their dotted paths; the blocks of a model, which repeat, are counted, not listed."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        texts = [json.dumps(item, sort_keys=True) for item in value]
        begin = 0
        for i in range(1, len(texts) + 1):
            if i == len(texts) or texts[i] != texts[begin]:
                span = f"{begin + 1}" if i - begin == 1 else f"{begin + 1}-{i}"
                yield from flatten(value[begin], f"{path}[{span}]")
                begin = i
    else:
        yield path, value


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def logs_text(store: Store, run_id: str, attempt: int | None) -> str:
    """What the attempts at the run, or trunk, logged, or one of them."""
    is_trunk = store.is_trunk(run_id)
    name = f"{'trunk' if is_trunk else 'run'} {run_id}"
    attempts = store.trunk_attempts(run_id) if is_trunk else store.attempts(run_id)
    last = attempts.last()
    if attempt is not None and not 1 <= attempt <= last:
        raise ConfigError(f"--attempt {attempt}: {name} has attempts 1 to {last}" if last else f"{name}: never begun")
    numbers = range(1, last + 1) if attempt is None else [attempt]
    texts = []
    for number in numbers:
        path = attempts.path(number) / "log.txt"
        try:
            texts.append(f"--- attempt {number}\n{path.read_text(errors='replace').rstrip()}")
        except FileNotFoundError:
            texts.append(f"--- attempt {number}: no log")
    texts += _output_text(store, run_id, attempts, last) if attempt is None else []
    if not texts:
        raise ConfigError(f"{name}: never begun, so it has no log")
    return "\n".join(texts)


_OUTPUT_LINES = 200


def _output_text(store: Store, id_: str, attempts: Attempts, last: int) -> list[str]:
    """What the newest task of a run or trunk printed, where it died before it could log; else where that is."""
    standings = Standings(store, None, tolerant=True)
    submitted = [of for of in standings.submitted(id_) if of.output is not None]
    if not submitted:
        return []
    newest = submitted[-1]
    try:
        assert newest.output is not None
        printed = newest.output.read_text(errors="replace").rstrip()
    except OSError:
        return [f"--- submission {newest.submission} has printed nothing yet ({newest.output})"]
    began = (attempts.job(last) or {}).get("slurm") or {} if last else {}
    if began.get("submission") == newest.submission:
        return [f"--- its task printed, of all that it carries out, {newest.output}"]
    lines = printed.splitlines()
    cut = [f"... {len(lines) - _OUTPUT_LINES} lines before"] if len(lines) > _OUTPUT_LINES else []
    return [f"--- submission {newest.submission}: {newest.output}", *cut, *lines[-_OUTPUT_LINES:]]
