"""Hours are those that attempts say of themselves, on each of their devices, and each once."""

import json
from pathlib import Path
from typing import Any

import pytest

from sweeps.hours import attempt_hours, devices, record_hours
from sweeps.store import Attempts, Store

RUN = "a" * 12
EIGHT = {"exec": {"device": "cuda", "nodes": 2, "gpus_per_node": 4}}
BEGAN = {"started_at": "2026-01-01T00:00:00+00:00"}


def line(step: int, wall_s: float) -> dict[str, Any]:
    return {"step": step, "tokens": step * 64, "train_loss_nats": 2.0, "tokens_per_s": 640.0, "wall_s": wall_s}


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    store = Store(tmp_path / "store")
    store.prepare()
    return store.attempts(RUN)


def attempt(attempts: Attempts, *lines: dict[str, Any], **files: object) -> int:
    claimed = attempts.claim(attempts.last())
    assert claimed is not None
    (claimed.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in files.items():
        (claimed.directory / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return claimed.number


@pytest.mark.parametrize("ending", ["error", "end"])
def test_an_attempt_took_from_its_beginning_to_its_end_on_each_of_its_devices(attempts: Attempts, ending: str) -> None:
    said = {"class": "oom", "message": "m", "at": "2026-01-01T00:30:00+00:00"}
    number = attempt(attempts, line(10, 1.0), job={**BEGAN, **EIGHT}, **{ending: said})
    assert attempt_hours(attempts, number) == pytest.approx(8 * 0.5)


def test_without_an_end_its_lines_tell_and_what_attempts_before_it_took_is_not_in_them(attempts: Attempts) -> None:
    attempt(attempts, line(36000, 3600.0), job=BEGAN)
    resumed = {"resumed_at_step": 36000, "of_attempt": 1}
    number = attempt(attempts, resumed, line(36010, 3601.0), line(54000, 5400.0), job=BEGAN)
    assert attempt_hours(attempts, number) == pytest.approx(0.5)


def test_what_others_found_out_later_is_no_time_of_the_attempt(attempts: Attempts) -> None:
    found = {"class": "node_fail", "message": "gone", "at": "2026-01-09T00:00:00+00:00"}
    number = attempt(attempts, line(10, 1.0), line(18000, 1800.0), job=BEGAN, triage=found)
    assert attempt_hours(attempts, number) == pytest.approx(0.5)


def test_what_says_nothing_or_is_damaged_has_no_hours(attempts: Attempts) -> None:
    assert attempt_hours(attempts, attempt(attempts)) is None
    assert attempt_hours(attempts, attempt(attempts, {"train_loss_nats": 1.0}, job="{", error="{")) is None


def test_a_record_is_of_its_own_attempt_and_of_no_trunk() -> None:
    finished = {**EIGHT, **BEGAN, "finished_at": "2026-01-01T01:00:00+00:00"}
    assert record_hours({"metrics": {"wall_s": 1.0}, "provenance": finished}) == pytest.approx(8.0)
    older = {"trunk": {"id": "b" * 12, "wall_s": 1800.0}}
    assert record_hours({"metrics": {"wall_s": 3600.0}, "provenance": older}) == pytest.approx(0.5)
    assert record_hours({"metrics": {}}) is None


def test_where_devices_were_not_said_it_was_one() -> None:
    assert [devices(facts) for facts in ({}, {"exec": None}, {"exec": {"device": "cpu"}}, EIGHT)] == [1, 1, 1, 8]
