"""What the store says, in words: requests and their cells, one run, two runs side by side, logs."""

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError
from sweeps.store import FINAL, Request, Store, StoreError
from sweeps.text import duration, table


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
        counts = Counter(store.status(cell.run_id) for cell in request.cells)
        finished = sum(counts[status] for status in FINAL)
        others = ", ".join(f"{n} {status}" for status, n in counts.items() if status != "done")
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


def cells_text(store: Store, request: Request) -> str:
    """One line a cell: status, attempt, where it is, how it went, and why the bad ones are bad."""
    rows, reasons = [], []
    for cell in request.cells:
        status = store.status(cell.run_id)
        number = store.last_attempt(cell.run_id)
        step, loss, wall = _latest(store, cell.run_id)
        rows.append([cell.name, cell.run_id, status, str(number) if number else "-", step, loss, wall])
        error = store.error(cell.run_id, number) if number and status in ("failed", "interrupted") else None
        if status == "failed" and error:
            reasons.append(f"{cell.name}: {error.get('class')}: {str(error.get('message')).splitlines()[0]}")
    text = table(["cell", "run", "status", "attempts", "step", "loss", "time"], rows)
    return text + ("\n\n" + "\n".join(reasons) if reasons else "")


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
    """Everything about one run: its spec, what it cost and came to, its attempts."""
    parts: dict[str, Any] = {"run_id": run_id, "status": store.status(run_id), "spec": store.spec(run_id)}
    record = store.record(run_id)
    if record is not None:
        parts |= {key: record[key] for key in ("metrics", "cost", "provenance")}
    lines = [f"{key}: {_value(value)}" for key, value in flatten(parts)]
    for number in range(1, store.last_attempt(run_id) + 1):
        job, error = store.job(run_id, number) or {}, store.error(run_id, number)
        ending = f"{error['class']}: {error['message']}" if error else "no error"
        where = f"{job.get('host', '?')}, process {job.get('pid', '?')}"
        lines.append(f"attempt {number}: {where}, began {job.get('started_at', '?')}; {ending}")
    requests = [f"{r.sweep}: {cell.name}" for r in store.requests() for cell in r.cells if cell.run_id == run_id]
    return "\n".join([*lines, "asked for by: " + ("; ".join(dict.fromkeys(requests)) or "no stored request")])


def diff_text(store: Store, first: str, second: str) -> str:
    """Where two runs differ, in what they are and in what they came to."""
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
    """What the run's attempts logged, or one of them."""
    last = store.last_attempt(run_id)
    if attempt is not None and not 1 <= attempt <= last:
        raise ConfigError(
            f"--attempt {attempt}: run {run_id} has attempts 1 to {last}" if last else f"run {run_id}: never begun"
        )
    numbers = range(1, last + 1) if attempt is None else [attempt]
    texts = []
    for number in numbers:
        path = store.attempt_dir(run_id, number) / "log.txt"
        try:
            texts.append(f"--- attempt {number}\n{path.read_text(errors='replace').rstrip()}")
        except FileNotFoundError:
            texts.append(f"--- attempt {number}: no log")
    if not texts:
        raise ConfigError(f"run {run_id}: never begun, so it has no log")
    return "\n".join(texts)
