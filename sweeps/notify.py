"""A command or a webhook that is told when a request has come to its end, or a run of it fails.

    notices/<sweep>-<hash>-<digest>.json     the end of a request has been told; published once, by whoever tells it
    runs/.../attempts/003/told.json          so has the failure of this attempt

A request has ended when each of its runs is done, has diverged or has failed. Where failed runs are tried again, it
ends again. What goes wrong with telling is logged, and no reason for a run to fail.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from hybrid.decode import decode, digest
from hybrid.durable import make_dir
from hybrid.spec import ConfigError
from sweeps.store import RESUMABLE_CLASSES, Request, Store, now, publish, request_id
from sweeps.text import count
from sweeps.tune import choose, settle

Occasion = Literal["end", "failure"]
_COMMAND_S: Final = 60.0
_WEBHOOK_S: Final = 10.0
_ENDED: Final = ("done", "diverged", "failed", "damaged")


@dataclass(frozen=True, kw_only=True)
class NotifySettings:
    """The `notify` settings: a shell command, an address (a variable such as $HOOK is put in when it is used), when."""

    command: str | None = None
    url: str | None = None
    on: tuple[Occasion, ...] = ()

    def wants(self, occasion: Occasion) -> bool:
        return occasion in self.on and (self.command is not None or self.url is not None)


def read_notify_settings(config: object) -> NotifySettings:
    """Read the `notify` section of a configuration, or what `asdict` made of one: an empty one tells nobody.

    Raises ConfigError with everything that is wrong in it.
    """
    if config == {}:
        return NotifySettings()
    settings = decode(NotifySettings, config, "notify")
    problems = []
    if settings.command is not None and not settings.command.strip():
        problems.append("notify.command = '': expected a shell command, or null")
    if settings.url is not None and not settings.url.startswith("$") and not _is_address(settings.url):
        problems.append(
            f"notify.url = {settings.url!r}: expected an address that begins with http:// or https://, the name of a "
            "variable that holds one, such as $HOOK, or null"
        )
    if problems:
        raise ConfigError(problems)
    return settings


def _is_address(url: str) -> bool:
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    return False


def after_run(
    store: Store,
    sweep: str,
    overrides: Sequence[str],
    run_id: str,
    settings: Mapping[str, Any] | NotifySettings,
    log: Callable[[str], object],
) -> None:
    """Tell what there is to tell once a run has ended, however it did, in whatever process; never raises.

    `sweep` and `overrides` are those of the request that it was trained for.
    """
    try:
        chosen = settings if isinstance(settings, NotifySettings) else read_notify_settings(dict(settings))
        if not (chosen.wants("end") or chosen.wants("failure")):
            return
        asked = [request for request in store.requests(sweep) if request.overrides == tuple(overrides)]
        if chosen.wants("failure"):
            request = asked[-1] if asked else None
            number = store.last_attempt(run_id)
            ended = {run_id: store.error(run_id, number) if number else None, **_died(store, request)}
            for id_, error in ended.items():
                _tell_failure(store, sweep, overrides, request, id_, error, chosen, log)
        if asked and chosen.wants("end"):
            notify_end(store, asked[-1], chosen, log)
    except Exception as error:  # whatever it is: a run's result must not hang on who hears of it
        with contextlib.suppress(Exception):
            log(f"notify: {type(error).__name__}: {error}")


def after_evaluation(
    store: Store,
    sweep: str,
    overrides: Sequence[str],
    run_id: str,
    message: str,
    settings: Mapping[str, Any],
    log: Callable[[str], object],
) -> None:
    """Tell that a run's evaluation failed; never raises."""
    try:
        chosen = read_notify_settings(dict(settings))
        if chosen.wants("failure"):
            asked = [request for request in store.requests(sweep) if request.overrides == tuple(overrides)]
            cell = _cell_name(asked[-1] if asked else None, run_id)
            facts = _facts(store, "failure", sweep, overrides, request_id(asked[-1]) if asked else None)
            what = f"the evaluation of {cell} ({run_id}) failed"
            _tell(
                {**facts, "run": run_id, "cell": cell, "message": message, "text": f"{sweep}: {what}: {message}"},
                chosen,
                log,
            )
    except Exception as error:
        with contextlib.suppress(Exception):
            log(f"notify: {type(error).__name__}: {error}")


def _died(store: Store, request: Request | None) -> dict[str, Mapping[str, Any] | None]:
    """How other runs of the request ended, also those that were killed, or died with their node, without a word."""
    if request is None:
        return {}
    from sweeps.standing import Standings

    standings = Standings(store, tolerant=True)
    ids = dict.fromkeys(cell.run_id for cell in request.all_cells if cell.run_id is not None)
    return {id_: standings.of(id_).error for id_ in ids if standings.of(id_).status in ("failed", "lost")}


def _cell_name(request: Request | None, run_id: str) -> str:
    cells = () if request is None else request.all_cells
    return next((cell.name for cell in cells if cell.run_id == run_id), run_id)


def notify_end(
    store: Store, request: Request, settings: NotifySettings, log: Callable[[str], object] = lambda _: None
) -> bool:
    """Tell that a request has ended, if it has, and nobody has told it; gives whether this call did. Raises OSError."""
    cells = settle(request, choose(request, store)).all_cells
    statuses: dict[str, str] = {}
    for cell in cells:
        if cell.run_id is None:
            return False  # its tuning is not over
        if cell.run_id not in statuses:
            status = store.status(cell.run_id)
            if status not in _ENDED:
                return False
            statuses[cell.run_id] = status
    bad = {run: store.last_attempt(run) for run, status in statuses.items() if status in ("failed", "damaged")}
    how = digest(json.dumps([sorted(statuses.items()), sorted(bad.items())]))
    name = request_id(request)
    directory = store.root / "notices"
    make_dir(directory)
    # Marked first: of all that see the end, one tells it.
    if not publish(directory / f"{name.replace('/', '-')}-{how}.json", json.dumps({"at": now()}) + "\n"):
        return False
    counts = Counter(statuses.values())
    said = ", ".join(f"{counts[status]} {status}" for status in _ENDED if counts[status])
    names = {cell.run_id: cell.name for cell in cells}
    facts = {
        **_facts(store, "end", request.sweep, request.overrides, name),
        "counts": dict(counts),
        "failed": [
            {"run": run, "cell": names[run], **_failure(number, store.error(run, number) if number else None)}
            for run, number in bad.items()
        ],
        "text": f"{request.sweep} has ended, {count(len(statuses), 'run')}: {said}",
    }
    _tell(facts, settings, log)
    return True


def _tell_failure(
    store: Store,
    sweep: str,
    overrides: Sequence[str],
    request: Request | None,
    run_id: str,
    error: Mapping[str, Any] | None,
    settings: NotifySettings,
    log: Callable[[str], object],
) -> None:
    number = store.last_attempt(run_id)
    if number == 0 or error is None or error.get("class") in RESUMABLE_CLASSES or store.record_path(run_id).exists():
        return
    if not publish(store.attempt_dir(run_id, number) / "told.json", json.dumps({"at": now()}) + "\n"):
        return
    cell = _cell_name(request, run_id)
    failure = _failure(number, error)
    facts = {
        **_facts(store, "failure", sweep, overrides, None if request is None else request_id(request)),
        "run": run_id,
        "cell": cell,
        **failure,
        "text": f"{sweep}: {cell} ({run_id}) failed: {failure['class']}: {failure['message']}",
    }
    _tell(facts, settings, log)


def _facts(store: Store, event: Occasion, sweep: str, overrides: Sequence[str], request: str | None) -> dict[str, Any]:
    return {
        "event": event,
        "store": str(store.root.absolute()),
        "sweep": sweep,
        "overrides": list(overrides),
        "request": request,
        "at": now(),
    }


def _failure(number: int, error: Mapping[str, Any] | None) -> dict[str, Any]:
    error = error or {}
    message = str(error.get("message") or "damaged").splitlines()[0]
    return {"attempt": number, "class": error.get("class", "unknown"), "message": message}


def _tell(facts: Mapping[str, Any], settings: NotifySettings, log: Callable[[str], object]) -> None:
    """Run the command, and ask the webhook; each whatever became of the other."""
    text = json.dumps(facts, sort_keys=True)
    if settings.command is not None:
        log(f"notify: {facts['event']}: {_command(settings.command, facts, text)}")
    if settings.url is not None:
        log(f"notify: {facts['event']}: {_webhook(os.path.expandvars(settings.url), text)}")


def _command(command: str, facts: Mapping[str, Any], text: str) -> str:
    """Run it with the facts as JSON on stdin, and one by one as HYBRID_ variables; gives how that went."""
    plain = {key: value for key, value in facts.items() if isinstance(value, str | int)}
    variables = {f"HYBRID_{key.upper()}": str(value) for key, value in plain.items()}
    # $HYBRID_STORE is the store that commands take unless told otherwise: it is this one.
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | variables,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        return f"the command could not be started: {error}"
    try:
        said, _ = process.communicate(text, timeout=_COMMAND_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"the command did not end within {_COMMAND_S:.0f} s and was killed"
    if process.returncode == 0:
        return "the command was told"
    return f"the command ended with exit code {process.returncode}: {said.strip()[-500:]}"


def _webhook(url: str, text: str) -> str:
    """Send it as JSON; gives how that went. The address, which often holds a secret, is not repeated."""
    if not _is_address(url):
        return "the webhook's address is none: a variable in it may not be set here"
    host = urllib.parse.urlsplit(url).hostname
    request = urllib.request.Request(
        url, data=text.encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_WEBHOOK_S) as answer:
            return f"{host} was told ({answer.status})"
    except urllib.error.HTTPError as error:
        error.close()
        return f"{host} answered {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return f"{host} could not be told: {re.sub(re.escape(url), host or '', str(reason))}"
