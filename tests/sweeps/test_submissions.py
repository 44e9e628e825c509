"""Intents and answers: written once, numbered without gaps, and read whole."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.store import Store, StoreError
from sweeps.submissions import Answer, Intent, Item, Submissions

ITEM = Item(kind="run", run_id="0123456789ab", name="Llama/s1", row="Llama", seed=1, predicted_hours=2.5)
TRUNK = replace(ITEM, kind="trunk", trunk_id="ba9876543210", points=(10, 20), branches=("0123456789ab", "0123456789ac"))
INTENT = Intent(
    job_name="table4-0011aabb",
    created_at="2026-11-21T12:00:00+00:00",
    owner={"host": "login", "pid": 17, "user": "ada"},
    sweep="table4",
    overrides=("scale=toy",),
    tasks=((ITEM, replace(ITEM, run_id="0123456789ac", seed=2)), (TRUNK,)),
    execution={"device": "cpu", "mixers": []},
    resources={"partition": "gpu"},
    snapshot="00aa11bb22cc33dd",
    checkpoints="/scratch/checkpoints",
    data="/scratch/data",
    dependency="afterany:17_0",
    command=("run.py", "-m"),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_was_published_is_read_as_it_was(store: Store) -> None:
    assert Submissions(store).publish(1, INTENT)
    (found,) = Submissions(store).all()
    assert found.intent == INTENT
    assert found.answer is None
    assert [(index, item.kind) for index, item in found.items()] == [(0, "run"), (0, "run"), (1, "trunk")]


def test_of_many_that_publish_a_number_exactly_one_has_it(store: Store) -> None:
    intents = [replace(INTENT, job_name=f"table4-{place}") for place in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda intent: Submissions(store).publish(1, intent), intents))
    assert won.count(True) == 1
    assert Submissions(store).get(1).intent == intents[won.index(True)]
    assert Submissions(store).last() == 1


def test_the_first_answer_stands_and_the_second_is_told_so(store: Store) -> None:
    submissions = Submissions(store)
    submissions.publish(1, INTENT)
    assert submissions.get(1).answer is None
    assert submissions.publish_answer(1, Answer(job_id=None, message="never reached the scheduler")).job_id is None
    assert Submissions(store).publish_answer(1, Answer(job_id="17")).job_id is None
    assert submissions.get(1).task_job_id(0) is None


def test_an_answer_gives_each_task_its_name(store: Store) -> None:
    submissions = Submissions(store)
    submissions.publish(1, INTENT)
    submissions.publish_answer(1, Answer(job_id="17"))
    assert submissions.get(1).task_job_id(1) == "17_1"


def test_a_submission_that_is_gone_or_damaged_is_said(store: Store) -> None:
    submissions = Submissions(store)
    with pytest.raises(StoreError, match="has the store been moved"):
        submissions.get(1)
    submissions.publish(1, INTENT)
    path = store.root / "submissions" / "00000001.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(StoreError, match="damaged"):
        Submissions(store).get(1)
    path.write_text('{"schema": 1}')
    with pytest.raises(StoreError, match="damaged"):
        Submissions(store).get(1)
    path.write_text('{"schema": 2}')
    with pytest.raises(StoreError, match="use the version that wrote it"):
        Submissions(store).get(1)
