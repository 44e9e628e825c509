"""What the store says, in words: requests and their cells, one run, two runs side by side, logs."""

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hybrid.decode import decode, did_you_mean
from hybrid.spec import ConfigError, RunSpec
from sweeps.speed import prediction_text
from sweeps.store import FINAL, Attempts, Cell, Request, Status, Store, StoreError, is_final
from sweeps.text import duration, table
from sweeps.trunks import branch_step, trunk_id
from sweeps.tune import UNTUNED, choose, settle, status_of


def choose_requests(store: Store, sweep: str | None) -> list[Request]:
    """The stored requests of a sweep, or all. Raises ConfigError where there are none of that name."""
    found = store.requests(sweep)
    if sweep is not None and not found:
        names = sorted({request.sweep for request in store.requests()})
        if not names:
            raise ConfigError(
                f"{sweep}: never asked for: {store.root} holds no requests yet; try python run.py -m +sweep={sweep}"
            )
        raise ConfigError(f"{sweep}: never asked for in {store.root}{did_you_mean(sweep, names)}")
    return found


def requests_text(store: Store, requests: list[Request]) -> str:
    """One line a request: how many of its cells are where."""
    if not requests:
        return f"{store.root}: no requests yet; try python run.py -m +sweep=demo"
    rows = []
    for request in requests:
        counts = Counter(status_of(cell, store) for cell in settle(request, choose(request, store)).cells)
        finished = sum(counts[status] for status in FINAL)
        others = ", ".join(
            [*(f"{n} {status}" for status, n in counts.items() if status != "done"), *_tuning(store, request)]
        )
        rows.append(
            [
                request.sweep,
                textwrap.shorten(" ".join(request.overrides), 40, placeholder=" ...") or "-",
                request.created_at[:16],
                f"{finished}/{len(request.cells)}",
                others or "-",
            ]
        )
    return table(["request", "overrides", "first asked", "finished", "not done"], rows)


def _tuning(store: Store, request: Request) -> list[str]:
    """How many of the tuning runs have no result yet, if any."""
    runs = {cell.run_id: cell for tuning in request.tuning for cell in tuning.cells}.values()
    finished = sum(status_of(cell, store) in FINAL for cell in runs)
    return [f"tuning {finished}/{len(runs)}"] if finished < len(runs) else []


def cells_text(store: Store, request: Request) -> str:
    """One line a cell, tuning runs first: status, attempt, where it is, how it went, and why the bad ones are bad."""
    rows, reasons = [], []
    choices = choose(request, store)
    for cell in (*_tuning_cells(request), *settle(request, choices).cells):
        if cell.run_id is None:
            rows.append([cell.name, "-", UNTUNED, "-", "-", "-", "-"])
            continue
        status = store.status(cell.run_id)
        number = store.last_attempt(cell.run_id)
        step, loss, wall = _latest(store, cell.run_id)
        said = status if is_final(status) or status in ("running", "damaged") else _waiting(store, cell.run_id, status)
        rows.append([cell.name, cell.run_id, said, str(number) if number else "-", step, loss, wall])
        error = store.error(cell.run_id, number) if number and status in ("failed", "interrupted") else None
        if status == "failed" and error:
            reasons.append(f"{cell.name}: {error.get('class')}: {str(error.get('message')).splitlines()[0]}")
    text = table(["cell", "run", "status", "attempts", "step", "loss", "time"], rows)
    reasons += choices.sentences
    return text + ("\n\n" + "\n".join(reasons) if reasons else "")


def _trunk_of(store: Store, run_id: str) -> tuple[str, int] | None:
    """The trunk that the store has for a run, and the step at which it leaves it; None where there is none."""
    try:
        run = decode(RunSpec, store.spec(run_id))
    except (ConfigError, StoreError):
        return None  # not asked for yet, or by another version
    trunk = trunk_id(run)
    return None if trunk is None or not store.is_trunk(trunk) else (trunk, branch_step(run))


def _waiting(store: Store, run_id: str, status: Status) -> str:
    """The status of a run that is not under way, and how far its trunk is that has yet to reach where the run starts.

    A trunk that is done, or has diverged, makes no run wait.
    """
    found = _trunk_of(store, run_id)
    if found is None:
        return status
    trunk, step = found
    if store.checkpoint_step(run_id) > 0 or step in store.trunk_points(trunk):
        return status
    match store.trunk_status(trunk):
        case "running":
            return f"waits for trunk {trunk}: at step {_step_under_way(store, trunk)} of {step}"
        case "interrupted" | "lost" | "failed" as ended:
            said = f"trunk {trunk}: {ended} at step {store.trunk_saved_step(trunk, at_most=step)} of {step}"
            return said if status == "new" else f"{status}; {said}"
        case _:
            return status


def _step_under_way(store: Store, trunk: str) -> int:
    """Where the trunk's newest attempt has got to, by its lines."""
    attempts = store.trunk_attempts(trunk)
    start, lines = attempts.metrics(attempts.last())
    return int(lines[-1]["step"]) if lines else 0 if start is None else start.step


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


def _latest(store: Store, run_id: str) -> tuple[str, str, str]:
    """Step, training loss in nats and wall time of a run: from its record, else from its last metric line."""
    try:
        record = store.record(run_id)
    except StoreError:
        return "-", "-", "-"
    if record is not None:
        metrics = record["metrics"]
        return str(metrics["steps"]), _number(metrics.get("train_loss_nats")), duration(metrics["wall_s"])
    lines = [line for line in store.metrics(run_id) if "train_loss_nats" in line]
    if not lines:
        return "-", "-", "-"
    return str(lines[-1]["step"]), _number(lines[-1]["train_loss_nats"]), duration(lines[-1]["wall_s"])


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-"


def show_text(store: Store, run_id: str) -> str:
    """Everything about one run: its spec, what it cost and came to, its attempts. Of a trunk likewise."""
    if store.is_trunk(run_id):
        return _show_trunk(store, run_id)
    parts: dict[str, Any] = {"run_id": run_id, "status": store.status(run_id), "spec": store.spec(run_id)}
    record = store.record(run_id)
    if record is not None:
        parts |= {key: record[key] for key in ("metrics", "cost", "provenance")}
    lines = [f"{key}: {_value(value)}" for key, value in flatten(parts)]
    predicted = None if record is None else prediction_text(record)
    lines += [] if predicted is None else [f"as predicted: {predicted}"]
    lines += _attempts_text(store.attempts(run_id))
    lines += _trunk_text(store, run_id)
    requests = [
        f"{r.sweep}: {cell.name}" for r in store.requests() for cell in _cells(store, r) if cell.run_id == run_id
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
            *([] if diverged_at is None else [f"diverged after step {diverged_at}"]),
            f"points at steps: {_listed(store.trunk_points(trunk))}",
            f"checkpoints on the way at steps: {_listed(store.trunk_checkpoints(trunk))}",
            f"made for the runs: {_listed(run for job in jobs for run in job.get('branches', ()))}",
        ]
    )


def _listed(items: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, items))) or "none"


def _attempts_text(attempts: Attempts) -> Iterator[str]:
    """A line an attempt: who made it, and how it ended."""
    for number in range(1, attempts.last() + 1):
        job, error = attempts.job(number) or {}, attempts.error(number)
        ending = f"{error['class']}: {error['message']}" if error else "no error"
        where = f"{job.get('host', '?')}, process {job.get('pid', '?')}"
        yield f"attempt {number}: {where}, began {job.get('started_at', '?')}; {ending}"


def _tuning_cells(request: Request) -> list[Cell]:
    return [cell for tuning in request.tuning for cell in tuning.cells]


def _cells(store: Store, request: Request) -> list[Cell]:
    """All cells of a request, its tuning runs too; those whose choice is made with their run."""
    return [*_tuning_cells(request), *settle(request, choose(request, store)).cells]


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
    if not texts:
        raise ConfigError(f"{name}: never begun, so it has no log")
    return "\n".join(texts)
