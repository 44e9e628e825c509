import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hybrid.decode import digest
from hybrid.spec import ConfigError
from sweeps.store import (
    Attempts,
    Candidate,
    Cell,
    Request,
    Store,
    StoreError,
    Tuning,
    owner_alive,
    publish,
    request_id,
    this_process,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def known(store: Store, resolve) -> str:
    return store.publish_spec(resolve("model.depth=2").run)


def record(run_id: str, **more: object) -> dict[str, object]:
    return {"schema": 1, "run_id": run_id, "status": "done", "metrics": {}, **more}


def test_a_spec_is_written_once_and_compared_whole_afterwards(store: Store, known: str, resolve) -> None:
    run = resolve("model.depth=2").run
    assert store.publish_spec(run) == known
    store.spec_path(known).write_text(store.spec_path(known).read_text().replace("0.95", "0.96"))
    with pytest.raises(StoreError, match="not the description"):
        store.publish_spec(run)


def test_the_first_record_stands_and_is_never_modified(store: Store, known: str) -> None:
    assert store.publish_record(known, record(known, first=True))
    assert not store.publish_record(known, record(known, first=False))
    found = store.record(known)
    assert found is not None
    assert found["first"] is True
    assert store.status(known) == "done"


def test_of_many_that_publish_at_once_exactly_one_wins_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    texts = [json.dumps({"writer": i, "filler": "x" * 100_000}) for i in range(16)]
    wins: list[int] = []
    barrier = threading.Barrier(16)

    def write(i: int) -> None:
        barrier.wait()
        # Threads share a pid; the clock in the temporary name keeps them apart.
        if publish(path, texts[i]):
            wins.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert path.read_text() == texts[wins[0]]
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_process_killed_at_any_moment_of_publishing_leaves_no_record_or_a_whole_one(tmp_path: Path) -> None:
    """Each call that publish() makes of the operating system is in turn the one at which the process is killed."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        import sweeps.store as store

        die_at, calls = int(sys.argv[2]), 0

        def dying(function):
            def call(*arguments, **options):
                global calls
                calls += 1
                if calls == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)
            return call

        for name in ("link", "unlink", "fsync", "open", "close"):
            setattr(os, name, dying(getattr(os, name)))
        store.open = dying(open)
        store.publish(Path(sys.argv[1]), "{" + " " * 50_000 + "}")
        """
    )
    died = 0
    for die_at in range(1, 30):
        path = tmp_path / f"{die_at}" / "record.json"
        path.parent.mkdir()
        code = subprocess.run([sys.executable, "-c", script, str(path), str(die_at)], check=False).returncode
        if path.exists():
            assert len(path.read_text()) == 50_002
        if code == 0:
            assert path.exists()
            break
        assert code == -signal.SIGKILL
        died += 1
    assert died >= 6
    assert code == 0


def test_exactly_one_of_two_claims_the_next_attempt(store: Store, known: str) -> None:
    first, second = store.claim(known, 0), store.claim(known, 0)
    assert first is not None
    assert first.number == 1
    assert second is None
    assert store.last_attempt(known) == 1


def test_a_run_goes_from_new_to_running_to_failed_to_done(store: Store, known: str) -> None:
    assert store.status(known) == "new"
    attempt = store.claim(known, 0)
    assert attempt is not None
    assert store.status(known) == "lost"  # claimed, and died before it could say who it is
    publish(attempt.directory / "job.json", json.dumps({**this_process(), "lease_s": 60}))
    assert store.status(known) == "running"
    publish(attempt.directory / "error.json", json.dumps({"class": "code", "message": "boom"}))
    assert store.status(known) == "failed"
    store.publish_record(known, record(known))
    assert store.status(known) == "done"


def test_a_process_that_is_gone_or_a_zombie_does_not_count_as_alive() -> None:
    code = "import json; from sweeps.store import this_process; print(json.dumps(this_process()), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    job = json.loads(child.stdout.readline())
    assert owner_alive(job) is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet reaped
    assert owner_alive(job) is False
    child.communicate()
    assert owner_alive(job) is False


def test_a_recycled_pid_is_another_process() -> None:
    assert owner_alive({**this_process(), "pid_started": "1"}) is False


def test_a_process_of_another_host_cannot_be_judged_from_here() -> None:
    assert owner_alive({**this_process(), "host": "elsewhere"}) is None


def test_half_a_record_is_said_and_nothing_is_lost(store: Store, known: str) -> None:
    store.publish_record(known, record(known))
    text = store.record_path(known).read_text()
    store.record_path(known).write_text(text[: len(text) // 2])
    assert store.status(known) == "damaged"
    with pytest.raises(StoreError, match=r"damaged.*Nothing was changed"):
        store.record(known)
    assert store.record_path(known).read_text() == text[: len(text) // 2]


def test_a_record_of_a_newer_schema_is_refused(store: Store, known: str) -> None:
    store.publish_record(known, record(known, schema=2))
    with pytest.raises(StoreError, match="schema 2"):
        store.record(known)


def test_a_store_of_a_newer_version_is_refused_and_left_alone(store: Store) -> None:
    path = store.root / "format.json"
    path.write_text('{"format": 2}\n')
    with pytest.raises(StoreError, match="format 2, this version reads format 1"):
        store.prepare()
    assert path.read_text() == '{"format": 2}\n'


def test_metrics_of_attempts_join_at_the_step_of_the_resume(store: Store, known: str) -> None:
    def write(number: int, *lines: str) -> None:
        attempt = store.claim(known, number - 1)
        assert attempt is not None
        (attempt.directory / "metrics.jsonl").write_text("\n".join(lines))

    write(1, *(json.dumps({"step": step, "from": 1}) for step in (10, 20, 30, 40)), '{"step": 5')
    write(2, '{"resumed_at_step": 20}', *(json.dumps({"step": step, "from": 2}) for step in (30, 40, 50)))
    write(3)
    assert [(m["step"], m["from"]) for m in store.metrics(known)] == [(10, 1), (20, 1), (30, 2), (40, 2), (50, 2)]
    write(4, json.dumps({"step": 10, "from": 4}))  # no checkpoint was left: began again
    assert [(m["step"], m["from"]) for m in store.metrics(known)] == [(10, 4)]


def attempt_with(attempts: Attempts, *lines: dict[str, object]) -> None:
    attempt = attempts.claim(attempts.last())
    assert attempt is not None
    (attempt.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_metrics_follow_the_attempts_that_were_gone_on_from_into_the_trunk(store: Store, known: str) -> None:
    """The trunk's second attempt went back to fill in a gap; its fourth went on from the end of the first."""
    trunk = store.trunk_attempts("ba5eba5eba5e")

    def lines(number: int, *steps: int) -> list[dict[str, object]]:
        return [{"step": step, "from": number} for step in steps]

    attempt_with(trunk, *lines(1, 10, 20, 30, 40))
    attempt_with(trunk, {"resumed_at_step": 15, "of_attempt": 1}, *lines(2, 20, 30))
    attempt_with(trunk)
    attempt_with(trunk, {"resumed_at_step": 40, "of_attempt": 1}, *lines(4, 50, 60))

    def branched(step: int, attempt: int) -> dict[str, object]:
        return {"branched_at_step": step, "of_attempt": attempt, "trunk": "ba5eba5eba5e", "wall_s": 1.5}

    def curve() -> list[tuple[int, int]]:
        return [(line["step"], line["from"]) for line in store.metrics(known)]

    run = store.attempts(known)
    attempt_with(run, branched(25, 2), *lines(7, 30))
    assert curve() == [(10, 1), (20, 2), (30, 7)]
    attempt_with(run, branched(55, 4), *lines(8, 60, 70))
    assert curve() == [(10, 1), (20, 1), (30, 1), (40, 1), (50, 4), (60, 8), (70, 8)]
    attempt_with(run, {"resumed_at_step": 60, "of_attempt": 2}, *lines(9, 70))
    assert curve() == [(10, 1), (20, 1), (30, 1), (40, 1), (50, 4), (60, 8), (70, 9)]
    start = store.branched_from(known)
    assert start is not None
    assert (start.trunk, start.step, start.attempt, start.wall_s) == ("ba5eba5eba5e", 55, 4, 1.5)
    first = store.branched_from(known, 1)
    assert first is not None
    assert first.step == 25


def test_an_attempt_that_came_to_its_end_is_over_and_neither_failed_nor_running(store: Store) -> None:
    attempts = store.trunk_attempts("ba5eba5eba5e")
    assert store.trunk_status("ba5eba5eba5e") == "new"
    attempt = attempts.claim(0)
    assert attempt is not None
    publish(attempt.directory / "job.json", json.dumps({**this_process(), "lease_s": 60}))
    assert (store.trunk_status("ba5eba5eba5e"), attempts.ended(1)) == ("running", False)
    publish(attempt.directory / "end.json", "{}")
    assert (store.trunk_status("ba5eba5eba5e"), attempts.ended(1)) == ("done", True)
    store.publish_divergence("ba5eba5eba5e", 7, {})
    assert (store.trunk_status("ba5eba5eba5e"), store.trunk_diverged_at("ba5eba5eba5e")) == ("diverged", 7)
    store.publish_divergence("ba5eba5eba5e", 8, {})
    assert store.trunk_diverged_at("ba5eba5eba5e") == 7


def test_a_point_is_there_once_it_is_published_and_while_its_checkpoint_is(store: Store) -> None:
    directory = store.trunk_checkpoints_dir("ba5eba5eba5e")
    directory.mkdir(parents=True)
    for name in ("point00000040.ckpt", "point00000080.ckpt", "step00000090-a001.ckpt", "notes.txt"):
        (directory / name).touch()
    assert store.trunk_points("ba5eba5eba5e") == ()
    for step in (80, 80, 120):
        store.publish_point("ba5eba5eba5e", step, {"attempt": 1})
    assert store.trunk_points("ba5eba5eba5e") == (80,)
    assert store.trunk_checkpoints("ba5eba5eba5e") == (90,)


def test_asking_for_the_same_request_again_keeps_the_first(store: Store) -> None:
    cells = (Cell(name="a/s1", row="a", axes={}, seed=1, run_id="0" * 12),)
    request = Request(sweep="demo", overrides=(), created_at="2026-01-01", report={}, cells=cells)
    again = Request(sweep="demo", overrides=(), created_at="2027-01-01", report={}, cells=cells)
    assert store.publish_request(request) == store.publish_request(again)
    assert store.requests("demo") == [request]


def test_a_request_is_called_by_all_that_it_asks_for_and_by_nothing_that_is_not_there(store: Store) -> None:
    """As the first stores called it: by the JSON of its fields, those that came later left out where they are empty."""
    candidates = tuple(
        Candidate(values={"optim.lr": lr}, run_id=digit * 12) for lr, digit in ((1e-3, "1"), (2e-3, "2"))
    )
    cells = (
        Cell(name="a/s1", row="a", axes={"depth": [1, {"of": 2}]}, seed=1, run_id="0" * 12),
        Cell(name="a/s2", row="a", axes={}, seed=None, run_id=None, candidates=candidates),
    )
    tried = Cell(name="a/tune", row="a", axes={}, seed=1001, run_id="1" * 12, tuned={"optim.lr": 1e-3})
    tuning = Tuning(settings={"optim.lr": (1e-3, 2e-3)}, per="row", metric="loss", cells=(tried,))
    request = Request(
        sweep="demo", overrides=("seed=1",), created_at="2026", report={"title": "t"}, cells=cells, tuning=(tuning,)
    )
    for asked in (request, replace(request, tuning=())):
        fields = asdict(asked)
        for cell in (*fields["cells"], *(cell for one in fields["tuning"] for cell in one["cells"])):
            for name in ("tuned", "candidates"):
                if not cell[name]:
                    del cell[name]
        written = {
            name: value for name, value in fields.items() if name != "created_at" and (name != "tuning" or value)
        }
        assert request_id(asked) == f"demo/{digest(json.dumps(written, sort_keys=True))}"
        store.publish_request(asked)
    assert store.requests() == [request, replace(request, tuning=())]


def test_a_damaged_request_is_named_and_hides_no_other(store: Store) -> None:
    cells = (Cell(name="a", row="a", axes={}, seed=1, run_id="0" * 12),)
    good, bad = (
        Request(sweep=name, overrides=(), created_at="2026-01-01", report={}, cells=cells) for name in ("good", "bad")
    )
    store.publish_request(good)
    path = store.publish_request(bad)
    path.write_text(path.read_text()[:40])
    assert store.requests() == [good]
    assert str(path) in store.damaged_requests()[0]
    with pytest.raises(StoreError, match="damaged"):
        store.publish_request(bad)


def test_new_directories_of_a_group_writable_store_are_group_writable(tmp_path: Path, resolve) -> None:
    root = tmp_path / "team"
    root.mkdir()
    root.chmod(0o2775)
    before = os.umask(0o022)
    try:
        run_id = Store(root).publish_spec(resolve().run)
        attempt = Store(root).claim(run_id, 0)
    finally:
        os.umask(before)
    assert attempt is not None
    for path in (Store(root).run_dir(run_id), attempt.directory):
        assert path.stat().st_mode & stat.S_IWGRP
        assert path.stat().st_mode & stat.S_ISGID


def test_run_ids_are_found_by_their_first_digits(store: Store, known: str) -> None:
    assert store.find(known[:4]) == known
    assert list(store.run_ids()) == [known]
    with pytest.raises(ConfigError, match="no run or trunk of this id"):
        store.find("zzzz")


def test_trunks_are_found_by_their_first_digits_too(store: Store, known: str) -> None:
    trunk = known[:3] + ("0" if known[3] != "0" else "1") + known[4:]
    store.publish_trunk(trunk, "{}")
    assert store.find(trunk[:4]) == trunk
    assert store.find(known) == known
    assert (store.is_trunk(trunk), store.is_trunk(known)) == (True, False)
    with pytest.raises(ConfigError, match="several ids begin so") as error:
        store.find(known[:3])
    assert trunk in str(error.value)
    assert known in str(error.value)


def test_a_place_that_cannot_hold_a_store_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # a file where a directory should be stops even root, whom chmod does not
    with pytest.raises(StoreError, match=r"cannot be written to.*store\.root=DIR"):
        Store(tmp_path / "file" / "store").prepare()
