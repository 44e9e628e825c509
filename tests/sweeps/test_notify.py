import json
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hybrid.config import Resolved
from hybrid.spec import ConfigError
from sweeps import notify
from sweeps.notify import NotifySettings, after_evaluation, after_run, notify_end, read_notify_settings
from sweeps.store import RECORD_SCHEMA, Cell, Request, Store, this_process

BOTH = ("end", "failure")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def request_of_two(store: Store) -> Request:
    cells = tuple(Cell(name=f"row{i}", row=f"row{i}", axes={}, seed=1, run_id=f"{i}" * 12) for i in (1, 2))
    made = Request(sweep="demo", overrides=("a=1",), created_at="2026-01-01", report={}, cells=cells)
    store.publish_request(made)
    return made


class Hook:
    """A web server that keeps what is posted to it and answers with `status`."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/json"
                hook.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/secret"


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def finish(store: Store, run_id: str, status: str = "done") -> None:
    store.run_dir(run_id).mkdir(parents=True, exist_ok=True)
    record = {"schema": RECORD_SCHEMA, "run_id": run_id, "status": status, "attempt": 1, "metrics": {}}
    assert store.publish_record(run_id, record)


def fail(store: Store, run_id: str, class_: str = "oom") -> None:
    attempt = store.claim(run_id, store.last_attempt(run_id))
    assert attempt is not None
    (attempt.directory / "error.json").write_text(json.dumps({"class": class_, "message": "no memory\nmore"}))


def told(store: Store, settings: NotifySettings, run_id: str) -> list[str]:
    lines: list[str] = []
    after_run(store, "demo", ("a=1",), run_id, asdict(settings), lines.append)
    return lines


def test_the_shipped_settings_tell_nobody(config: Mapping[str, Any]) -> None:
    settings = read_notify_settings(config["notify"])
    assert settings == NotifySettings(on=BOTH)
    assert not settings.wants("end")
    assert read_notify_settings({}) == NotifySettings()
    assert read_notify_settings(json.loads(json.dumps(asdict(settings)))) == settings


def test_notify_settings_say_nothing_of_a_cell(resolve: Callable[..., Resolved], expand_request: Callable) -> None:
    assert resolve("notify.url=https://example.org").run == resolve().run
    with_it = expand_request("+sweep=demo", "notify.command=date", "notify.on=[end]")
    assert with_it.request.cells == (without := expand_request("+sweep=demo")).request.cells
    assert with_it.request.overrides == without.request.overrides
    assert with_it.config["notify"] == {"command": "date", "url": None, "on": ["end"]}


def test_all_that_is_wrong_in_the_settings_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_notify_settings({"command": " ", "url": "ftp://example.org", "on": []})
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="on"):
        read_notify_settings({"command": None, "url": None, "on": ["ends"]})


@pytest.mark.usefixtures("request_of_two")
def test_the_end_is_told_when_the_last_run_has_ended_however_it_did(store: Store, hook: Hook) -> None:
    settings = NotifySettings(url=hook.url, on=("end",))
    finish(store, "1" * 12, "diverged")
    assert told(store, settings, "1" * 12) == []
    fail(store, "2" * 12)
    assert told(store, settings, "2" * 12) == ["notify: end: 127.0.0.1 was told (200)"]
    [facts] = hook.got
    assert facts["event"] == "end"
    assert facts["counts"] == {"diverged": 1, "failed": 1}
    assert facts["failed"] == [{"run": "2" * 12, "cell": "row2", "attempt": 1, "class": "oom", "message": "no memory"}]
    assert facts["text"] == "demo has ended, 2 runs: 1 diverged, 1 failed"
    # Tried again, it ends again.
    assert told(store, settings, "2" * 12) == []
    finish(store, "2" * 12)
    assert told(store, settings, "2" * 12) != []
    assert [facts["counts"] for facts in hook.got[1:]] == [{"diverged": 1, "done": 1}]


@pytest.mark.usefixtures("request_of_two")
def test_a_run_that_goes_on_later_ends_no_request(store: Store, hook: Hook) -> None:
    settings = NotifySettings(url=hook.url, on=BOTH)
    finish(store, "1" * 12)
    fail(store, "2" * 12, "preempted")
    assert told(store, settings, "2" * 12) == []
    assert not hook.got


def test_of_many_that_finish_at_once_exactly_one_tells(store: Store, request_of_two: Request, hook: Hook) -> None:
    for run_id in ("1" * 12, "2" * 12):
        finish(store, run_id)
    barrier = threading.Barrier(8)
    settings = NotifySettings(url=hook.url, on=BOTH)
    results: list[bool] = []

    def end() -> None:
        barrier.wait()
        results.append(notify_end(store, request_of_two, settings))

    threads = [threading.Thread(target=end) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]
    assert len(hook.got) == 1


@pytest.mark.usefixtures("request_of_two")
def test_a_failure_is_told_once_an_attempt(store: Store, hook: Hook) -> None:
    settings = NotifySettings(url=hook.url, on=("failure",))
    fail(store, "1" * 12)
    for _ in range(2):
        told(store, settings, "1" * 12)
    fail(store, "1" * 12, "code")
    told(store, settings, "1" * 12)
    assert [(facts["attempt"], facts["class"]) for facts in hook.got] == [(1, "oom"), (2, "code")]
    assert hook.got[0]["text"] == f"demo: row1 ({'1' * 12}) failed: oom: no memory"


@pytest.mark.usefixtures("request_of_two")
def test_of_a_run_that_died_without_a_word_the_next_that_ends_tells(store: Store, hook: Hook) -> None:
    settings = NotifySettings(url=hook.url, on=("failure",))
    dead = store.claim("1" * 12, 0)
    assert dead is not None
    owner = {**this_process(), "pid_started": "1", "lease_s": 5.0}
    (dead.directory / "job.json").write_text(json.dumps({**owner, "schema": RECORD_SCHEMA}))
    finish(store, "2" * 12)
    for _ in range(2):
        told(store, settings, "2" * 12)
    assert [(facts["run"], facts["class"]) for facts in hook.got] == [("1" * 12, "unknown")]


@pytest.mark.usefixtures("request_of_two")
def test_an_evaluation_that_fails_is_told_with_where_to_look(store: Store, hook: Hook) -> None:
    settings = asdict(NotifySettings(url=hook.url, on=("failure",)))
    after_evaluation(store, "demo", ("a=1",), "1" * 12, "see there", settings, print)
    assert hook.got[0]["text"] == f"demo: the evaluation of row1 ({'1' * 12}) failed: see there"
    after_evaluation(store, "demo", ("a=1",), "1" * 12, "see there", asdict(NotifySettings(url=hook.url)), print)
    assert len(hook.got) == 1


@pytest.mark.usefixtures("request_of_two")
def test_the_command_has_the_facts_on_stdin_and_in_its_environment(store: Store, tmp_path: Path) -> None:
    out = shlex.quote(str(tmp_path / "out"))
    settings = NotifySettings(command=f'cat > {out}; echo "$HYBRID_EVENT $HYBRID_RUN $HYBRID_STORE" >> {out}', on=BOTH)
    fail(store, "1" * 12)
    assert told(store, settings, "1" * 12) == ["notify: failure: the command was told"]
    facts, _, variables = (tmp_path / "out").read_text().partition("}")
    assert json.loads(facts + "}")["class"] == "oom"
    assert variables.strip() == f"failure {'1' * 12} {store.root}"


@pytest.mark.usefixtures("request_of_two")
def test_whatever_goes_wrong_is_logged_without_the_secret_and_fails_nothing(
    store: Store, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(settings: NotifySettings) -> str:
        fail(store, "1" * 12)
        return " ".join(told(store, settings, "1" * 12))

    hook.status = 500
    assert "answered 500" in failing(NotifySettings(url=hook.url, on=BOTH))
    assert "could not be told" in (said := failing(NotifySettings(url="http://127.0.0.1:1/secret", on=BOTH)))
    assert "secret" not in said
    assert "may not be set" in failing(NotifySettings(url="$NO_SUCH_HOOK", on=BOTH))
    monkeypatch.setenv("HOOK", hook.url)
    hook.status = 200
    assert "was told" in failing(NotifySettings(url="$HOOK", on=BOTH))
    assert "exit code 3: why" in failing(NotifySettings(command="echo why; exit 3", on=BOTH))
    monkeypatch.setattr(notify, "_COMMAND_S", 0.2)
    assert "was killed" in failing(NotifySettings(command="sleep 60 & sleep 60", on=BOTH))
    lines: list[str] = []
    after_run(store, "demo", (), "1" * 12, {"command": 7}, lines.append)
    assert "ConfigError" in lines[0]


@pytest.mark.usefixtures("request_of_two")
def test_a_webhook_that_never_answers_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(notify, "_WEBHOOK_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        fail(store, "1" * 12)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        [line] = told(store, NotifySettings(url=url, on=BOTH), "1" * 12)
    assert "timed out" in line
