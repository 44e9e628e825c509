"""How long attempts kept devices busy, by what they said themselves: an hour on four devices is four hours.

When an attempt began and ended, it wrote down by one clock. Where it could not say that it ended, its metric lines tell
until when it trained at least; what became of it afterwards, and what others found out of it later, is not counted.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sweeps.store import Attempts, Start, StoreError, read_json

S_AN_HOUR: Final = 3600.0

Ends = tuple[Start | None, dict[str, Any] | None, dict[str, Any] | None]
"""What `Attempts.ends` says of an attempt."""


def devices(facts: Mapping[str, Any]) -> int:
    """The devices of a record's provenance, or of an attempt's job: one, where it was not said yet."""
    execution = facts.get("exec")
    if not isinstance(execution, Mapping):
        return 1
    return int(execution.get("nodes", 1)) * int(execution.get("gpus_per_node", 1))


def record_hours(record: Mapping[str, Any]) -> float | None:
    """Hours of all devices of the attempt that made the record; None where it does not say.

    Where it does not say when that was, those of attempts before it, from which it went on, are among them.
    """
    provenance: Mapping[str, Any] = record.get("provenance") or {}
    seconds = _between(provenance.get("started_at"), provenance.get("finished_at"))
    if seconds is None and isinstance(wall_s := record["metrics"].get("wall_s"), int | float):
        seconds = wall_s - float((provenance.get("trunk") or {}).get("wall_s", 0.0))
    return None if seconds is None else seconds / S_AN_HOUR * devices(provenance)


def attempt_hours(
    attempts: Attempts, number: int, *, job: Mapping[str, Any] | None = None, ends: Ends | None = None
) -> float | None:
    """Hours of all devices of an attempt; None where it says nothing of them.

    `job` and `ends`: what is known of it already.
    """
    job = attempts.job(number) or {} if job is None else job
    seconds = None
    for name in ("error.json", "end.json"):
        try:
            said = read_json(attempts.path(number) / name) or {}
        except StoreError:
            continue
        if seconds is None:
            seconds = _between(job.get("started_at"), said.get("at"))
    if seconds is None:
        seconds = _trained_s(attempts.ends(number) if ends is None else ends)
    return None if seconds is None else seconds / S_AN_HOUR * devices(job)


def _trained_s(ends: Ends) -> float | None:
    """From where an attempt went on until its last line: `wall_s` goes on from that of attempts before."""
    start, first, last = ends
    if first is None or last is None:
        return None
    try:
        # The first line tells of all steps since the start; nothing tells of those after the last one.
        since = first["tokens"] * (first["step"] - (0 if start is None else start.step)) / max(first["step"], 1)
        speed = first.get("tokens_per_s")
        return float(last["wall_s"] - first["wall_s"] + (since / speed if speed else 0.0))
    except (LookupError, TypeError):
        return None


def _between(began: object, ended: object) -> float | None:
    """Seconds between two times that one process wrote down."""
    try:
        return (datetime.fromisoformat(str(ended)) - datetime.fromisoformat(str(began))).total_seconds()
    except (ValueError, TypeError):
        return None
