import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.spec import ConfigError
from sweeps.__main__ import main
from sweeps.notes import (
    NoteBook,
    add_note,
    change_tags,
    notes_of,
    notes_of_request,
    pin,
    publish_event,
    subject_of,
    unpin,
)
from sweeps.store import Cell, Request, Store, StoreError

RUN, OTHER = "0123456789ab", "ba9876543210"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def request(sweep: str = "demo", *runs: str) -> Request:
    cells = tuple(Cell(name=run, row=run, axes={}, seed=1, run_id=run) for run in runs)
    return Request(sweep=sweep, overrides=(), created_at="2026-01-01T00:00:00+00:00", report={}, cells=cells)


def test_what_is_noted_is_read_back_with_who_said_it_in_the_order_in_which_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    add_note(store, [RUN], "loss spikes at 400")
    add_note(store, [RUN, OTHER], "same batch")
    found = notes_of(store, RUN).notes
    assert [(note.text, note.user) for note in found] == [("loss spikes at 400", "ada"), ("same batch", "ada")]
    assert [note.text for note in notes_of(store, OTHER).notes] == ["same batch"]


def test_a_tag_is_put_on_taken_off_and_put_on_again(store: Store) -> None:
    change_tags(store, RUN, ["+old", "+baseline"])
    assert notes_of(store, RUN).tags == ("baseline", "old")
    change_tags(store, RUN, ["-old", "+new"])
    assert notes_of(store, RUN).tags == ("baseline", "new")
    change_tags(store, RUN, ["+old"])
    assert notes_of(store, RUN).tags == ("baseline", "new", "old")


def test_all_that_is_wrong_with_tags_is_said_at_once_and_nothing_is_written(store: Store) -> None:
    with pytest.raises(ConfigError) as caught:
        change_tags(store, RUN, ["plain", "+", "+a", "-a"])
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="expected one of its tags: it has none"):
        change_tags(store, RUN, ["-absent"])
    assert not (store.root / "notes").exists()


def test_a_pin_is_put_on_once_and_taken_off_whoever_put_it_on(store: Store) -> None:
    assert pin(store, [RUN, OTHER]) == [RUN, OTHER]
    assert pin(store, [RUN]) == []
    assert len(list((store.root / "notes").iterdir())) == 1
    assert unpin(store, [RUN]) == [RUN]
    assert NoteBook(store).pinned() == {OTHER}


def test_events_are_published_once_under_numbers_without_gaps_however_many_write(store: Store) -> None:
    barrier = threading.Barrier(8)

    def write(i: int) -> None:
        barrier.wait()
        add_note(store, [RUN], str(i))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted(path.name for path in (store.root / "notes").iterdir())
    assert names == [f"{number:08d}.json" for number in range(1, 9)]
    assert {note.text for note in notes_of(store, RUN).notes} == set(map(str, range(8)))


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["left", "right"]), st.sampled_from("+-"), st.sampled_from(["a", "b", "pin"])),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(operations=OPERATIONS)
def test_what_holds_of_two_merged_stores_does_not_depend_on_which_is_merged_into_which(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, str, str]]
) -> None:
    root = tmp_path_factory.mktemp("stores")
    sides = {side: Store(root / side) for side in ("left", "right", "left first", "right first")}
    for side, sign, what in operations:
        if what == "pin":
            (pin if sign == "+" else unpin)(sides[side], [RUN])
        elif sign == "+" or what in notes_of(sides[side], RUN).tags:
            change_tags(sides[side], RUN, [sign + what])
    for first, second in (("left", "right"), ("right", "left")):
        for event in (*NoteBook(sides[first]).events(), *NoteBook(sides[second]).events()):
            publish_event(sides[f"{first} first"], event)
    one, other = (notes_of(sides[f"{side} first"], RUN) for side in ("left", "right"))
    assert one == other
    alone = [notes_of(sides[side], RUN) for side in ("left", "right")]
    # Nothing was undone that its writer had not seen.
    assert set(one.tags) == {tag for notes in alone for tag in notes.tags}
    assert (one.pinned_by is None) == all(notes.pinned_by is None for notes in alone)


def test_a_request_is_noted_under_what_it_asks_for_and_found_by_its_name(store: Store) -> None:
    asked = request("demo", RUN)
    path = store.publish_request(asked)
    subject, text = subject_of(store, "demo")
    assert subject == f"demo/{path.stem}"
    assert subject_of(store, subject[:9]) == (subject, text)
    add_note(store, [subject], "for the paper")
    later = replace(asked, created_at="2027-01-01T00:00:00+00:00")
    assert [note.text for note in notes_of_request(store, later).notes] == ["for the paper"]
    with pytest.raises(ConfigError, match="nor is there a request"):
        subject_of(store, "dema")


def test_an_event_of_a_newer_version_is_told_of_and_the_others_hold(store: Store) -> None:
    add_note(store, [RUN], "mine")
    path = store.root / "notes" / "00000002.json"
    path.write_text(json.dumps({"schema": 2}))
    book = NoteBook(store)
    assert [note.text for note in book.of(RUN).notes] == ["mine"]
    assert len(book.problems) == 1
    assert "use the version that wrote it" in book.problems[0]


def test_a_store_that_cannot_be_written_to_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written to"):
        add_note(Store(tmp_path / "store"), [RUN], "text")


def test_the_commands_note_tag_and_pin(store: Store, resolve: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    run = store.publish_spec(resolve("model.depth=2").run)
    at = ["--store", str(store.root)]
    assert main(["tag", run[:4], "+new-baseline", "+old", *at]) == 0
    assert main(["tag", *at, run[:4], "-old"]) == 0
    assert main(["note", run[:4], "worth a look", *at]) == 0
    assert main(["pin", run[:4], *at]) == 0
    capsys.readouterr()
    assert main(["note", run[:4], *at]) == 0
    said = capsys.readouterr().out
    assert "tags: new-baseline\n" in said
    assert "pinned by" in said
    assert said.rstrip().endswith(": worth a look")
    assert main(["pin", "zzzz", "yyyy", *at]) == 2
    assert "zzzz" in (error := capsys.readouterr().err)
    assert "yyyy" in error


def test_status_and_show_tell_what_is_noted(
    store: Store, resolve: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    run = store.publish_spec(resolve("model.depth=2").run)
    path = store.publish_request(request("demo", run))
    change_tags(store, f"demo/{path.stem}", ["+paper"])
    add_note(store, [run], "worth a look")
    at = ["--store", str(store.root)]
    assert main(["show", run, *at]) == 0
    assert ": worth a look\n" in capsys.readouterr().out
    assert main(["status", "demo", *at]) == 0
    said = capsys.readouterr().out
    assert "noted of demo: +paper" in said
    assert f"noted of {run}: 1 note" in said
    assert main(["status", *at]) == 0
    assert "noted of demo: +paper" in capsys.readouterr().out
