"""Classes of failures. What Slurm's commands are shown to print here, a real one printed (22.05)."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from sweeps import triage
from sweeps.stopping import Stopped
from sweeps.store import Attempts, Store, StoreError, publish, this_process
from sweeps.triage import JobEnd, classify, classify_ended, find_out, read_lives

GIB = 2**30


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


class DistBackendError(RuntimeError):
    """As torch calls its own."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "oom"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "oom"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
            "oom",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
        (OSError(errno.ENOSPC, "No space left on device"), "io"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "io"),
        (OSError(errno.EROFS, "Read-only file system"), "io"),
        (OSError(errno.EIO, "Input/output error"), "io"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "store/data"), "io"),
        (StoreError("store/format.json: unreadable"), "io"),
        (
            RuntimeError("[enforce fail at inline_container.cc:659] PytorchStreamWriter failed writing file data/3"),
            "io",
        ),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "io"),
        (DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:2395, remote process exited"), "node_fail"),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "node_fail"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "node_fail"),
        (KeyboardInterrupt(), "cancelled"),
        (Stopped("stopped at step 3: signal SIGTERM", 3), "cancelled"),
        (RuntimeError("CUDA error: device-side assert triggered"), "code"),
        (ValueError("heads"), "code"),
    ],
)
def test_an_exception_has_a_class(error: BaseException, expected: str) -> None:
    assert classify(error) == expected


REQUEUED = """\
41034495|REQUEUED|0:0|n1||512M
41034495.batch|CANCELLED|0:15|n1|12252K|
41034495.0|CANCELLED|0:9|n1|14140K|
41034495|COMPLETED|0:0|n2||512M
41034495.batch|COMPLETED|0:0|n2||
41034495.0|COMPLETED|0:0|n2|320580K|
"""


def test_each_life_of_a_job_is_told_apart() -> None:
    first, second = read_lives(REQUEUED, "41034495")
    assert (first.state, first.node, first.peak_bytes, first.asked_bytes) == ("REQUEUED", "n1", 14140 * 1024, 2**29)
    assert (second.state, second.node, second.exit_code, second.peak_bytes) == ("COMPLETED", "n2", 0, 320580 * 1024)


def test_of_an_array_whose_id_is_an_elements_raw_id_only_that_element_counts() -> None:
    text = "41034501|CANCELLED by 0|0:0|n1||512M\n41034501.0|CANCELLED|0:9|n1|9K|\n41034497|FAILED|1:0|n2||512M\n"
    (life,) = read_lives(text, "41034497")
    assert (life.state, life.node, life.peak_bytes) == ("FAILED", "n2", None)
    (other,) = read_lives(text, "41034501")
    assert (other.state, other.by) == ("CANCELLED", "0")


def test_the_signal_that_ended_a_step_is_that_of_the_job_which_only_has_an_exit_code() -> None:
    text = "7|FAILED|137:0|n1||1G\n7.batch|FAILED|137:0|n1|9K|\n7.0|CANCELLED|0:9|n1|9K|\n"
    assert read_lives(text, "7")[0].signal == 9


def test_a_step_that_ran_out_of_memory_makes_its_job_one_that_did() -> None:
    text = "7|FAILED|1:0|n1||1G\n7.0|OUT_OF_MEMORY|0:125|n1|1000K|\n"
    assert read_lives(text, "7")[0].state == "OUT_OF_MEMORY"


def end(state: str, *, code: int | None = 0, signal: int | None = 0, **more: Any) -> JobEnd:
    return JobEnd(**{"state": state, "by": "", "node": "n2", "exit_code": code, "signal": signal, **more})


@pytest.mark.parametrize(
    ("job", "log", "expected", "words"),
    [
        (end("OUT_OF_MEMORY", peak_bytes=4 * GIB, asked_bytes=4 * GIB), "", "oom", "4GiB of 4GiB asked for"),
        (end("TIMEOUT"), "", "timeout", "time limit"),
        (end("NODE_FAIL"), "Killed", "node_fail", "n2"),
        (end("PREEMPTED"), "", "preempted", "before it had saved"),
        (end("REQUEUED"), "", "preempted", "queued again"),
        (end("CANCELLED", by="1000"), "", "cancelled", "by user 1000"),
        (end("FAILED", code=137, signal=None, peak_bytes=GIB, asked_bytes=GIB), "", "oom", "killed"),
        (end("FAILED", signal=9, peak_bytes=GIB // 2, asked_bytes=GIB), "", "unknown", "out of memory (dmesg on n2)"),
        (end("FAILED", code=1, peak_bytes=GIB, asked_bytes=GIB), "", "unknown", "exit code 1"),
        (end("FAILED", signal=7), "", "unknown", "bus error"),
        (end("FAILED", signal=11), "", "code", "signal 11"),
        (end("FAILED", code=1), "step 3\nterminate called: std::bad_alloc\n", "oom", "std::bad_alloc"),
        (end("COMPLETED"), "", "unknown", "COMPLETED, exit code 0"),
        (None, "OSError: [Errno 28] No space left on device: 'metrics.jsonl'", "io", "No space left"),
        (None, "begins, 600 steps", "unknown", "without a word"),
    ],
)
def test_what_died_without_a_word_has_the_class_that_scheduler_and_log_together_give(
    job: JobEnd | None, log: str, expected: str, words: str
) -> None:
    found = classify_ended(job, log)
    assert found is not None
    assert found[0] == expected
    assert words in found[1]


@pytest.mark.parametrize(
    ("own", "job", "expected"),
    [
        ("code", end("FAILED", code=1), None),
        ("code", end("OUT_OF_MEMORY"), "oom"),
        ("io", end("NODE_FAIL"), "node_fail"),
        ("preempted", end("TIMEOUT"), "timeout"),
        ("preempted", end("CANCELLED"), "cancelled"),
        ("cancelled", end("PREEMPTED"), "preempted"),
        ("timeout", end("REQUEUED"), None),
        ("code", end("CANCELLED"), None),
        ("oom", end("CANCELLED"), None),
        ("code", None, None),
    ],
)
def test_what_an_attempt_says_of_itself_stands_unless_the_scheduler_knows_better(
    own: str, job: JobEnd | None, expected: str | None
) -> None:
    found = classify_ended(job, "", {"class": own, "message": "as it saw it"})
    assert (None if found is None else found[0]) == expected


# --- written down -------------------------------------------------------------------------------


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    store = Store(tmp_path / "store")
    store.prepare()
    return store.attempts("0123456789ab")


FACTS = {"job_id": "7", "array_job_id": None, "array_task_id": None, "restart_count": 0, "node": "n1", "cluster": "c"}


def attempt(attempts: Attempts, *, slurm: bool = True, error: str | None = None, **job: Any) -> int:
    """One that died without a word, unless it said `error`."""
    made = attempts.claim(attempts.last())
    assert made is not None
    facts = {**this_process(), "lease_s": 1, "slurm": FACTS if slurm else None, **job}
    publish(made.directory / "job.json", json.dumps(facts))
    if error is not None:
        publish(made.directory / "error.json", json.dumps({"class": error, "message": "as it saw it"}))
    return made.number


def says(monkeypatch: pytest.MonkeyPatch, *answers: JobEnd | None) -> list[Any]:
    """Have the scheduler know so much of a job; gives the questions."""
    asked: list[Any] = []

    def job_end(facts: Any) -> JobEnd | None:
        asked.append(facts)
        return answers[min(len(asked), len(answers)) - 1]

    monkeypatch.setattr(triage, "job_end", job_end)
    return asked


def test_what_was_found_out_is_written_down_once_and_nobody_is_asked_again(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = attempt(attempts)
    asked = says(monkeypatch, end("NODE_FAIL"), end("OUT_OF_MEMORY"))
    for _ in range(3):
        found = find_out(attempts, number)
        assert found is not None
        assert (found["class"], found["job"]["state"]) == ("node_fail", "NODE_FAIL")
    assert len(asked) == 1
    assert attempts.error(number) == found
    assert attempts.status() == "interrupted"


def test_an_attempts_own_words_are_kept_and_corrected(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    number = attempt(attempts, error="code")
    before = (attempts.path(number) / "error.json").read_bytes()
    says(monkeypatch, end("OUT_OF_MEMORY"))
    found = find_out(attempts, number)
    assert found is not None
    assert found["class"] == "oom"
    assert found["message"].endswith("it said as it saw it")
    assert (attempts.path(number) / "error.json").read_bytes() == before


def test_where_the_scheduler_agrees_it_is_not_asked_again(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    number = attempt(attempts, error="code")
    asked = says(monkeypatch, end("FAILED", code=1))
    for _ in range(2):
        assert (find_out(attempts, number) or {})["message"] == "as it saw it"
    assert len(asked) == 1


def test_while_the_job_lives_nothing_is_written(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    number = attempt(attempts)
    says(monkeypatch, end("RUNNING"))
    assert find_out(attempts, number) is None
    assert not (attempts.path(number) / "triage.json").exists()


def test_where_nobody_can_be_asked_the_log_speaks_and_a_guess_is_not_written(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = says(monkeypatch, None)
    mute, full = attempt(attempts), attempt(attempts)
    (attempts.path(full) / "log.txt").write_text("x\n" * 9000 + "RuntimeError: CUDA out of memory\n")
    assert (find_out(attempts, mute) or {})["class"] == "unknown"
    assert not (attempts.path(mute) / "triage.json").exists()
    assert (find_out(attempts, full) or {})["class"] == "oom"
    assert (attempts.path(full) / "triage.json").exists()
    find_out(attempts, mute)
    assert len(asked) == 3


def test_a_host_that_was_restarted_is_a_node_that_failed(attempts: Attempts) -> None:
    number = attempt(attempts, slurm=False, boot_id="another")
    assert (find_out(attempts, number) or {})["class"] == "node_fail"
    assert attempts.status() == "interrupted"


def test_an_attempt_that_came_to_its_end_has_nothing_to_find_out(attempts: Attempts) -> None:
    number = attempt(attempts)
    publish(attempts.path(number) / "end.json", "{}")
    assert find_out(attempts, number) is None


def test_a_stop_that_the_scheduler_explained_is_not_looked_into_again(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = says(monkeypatch, end("TIMEOUT"))
    number = attempt(attempts)
    said = {"class": "preempted", "message": "", "stopped": {"step": 3, "known": True}}
    publish(attempts.path(number) / "error.json", json.dumps(said))
    assert find_out(attempts, number) == said
    assert not asked
