import base64
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from analysis.figures.numbers import MOST_POINTS, curve_of, pareto_front
from analysis.load import load
from analysis.report.cost import cost_table
from analysis.report.data import Options, Report, report_of
from analysis.report.page import json_text, page
from analysis.report.runs import failures
from hybrid.decode import encode
from sweeps.identity import run_id
from sweeps.store import Store, make_dir

AT = "2026-11-21T12:00:00Z"
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'<!--"
HERE = Path(__file__).resolve().parent.parent.parent / "analysis" / "report"


class Outline(HTMLParser):
    """The elements of a page, in order, with their attributes and the text within them."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in self.VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.elements[self.open[-1]][0] != tag:
            self.unbalanced.append(tag)
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for at in self.open:
            self.elements[at][2].append(data)

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items())
        ]


def report(store: Store, **options: Any) -> Report:
    return report_of(store, store.requests(), made_at=AT, options=Options(**options))


def outline(book: Any) -> Outline:
    return Outline(page(report(book.store)))


def attempt(book: Any, spec: Any, number: int, error: dict[str, Any] | None, log: str, **job: Any) -> None:
    directory = book.store.attempt_dir(book.store.publish_spec(spec), number)
    make_dir(directory)
    (directory / "job.json").write_text(json.dumps({"host": "node7", "lease_s": 60, **job}))
    (directory / "log.txt").write_text(log)
    if error is not None:
        (directory / "error.json").write_text(json.dumps(error))


@pytest.fixture
def hostile(book: Any) -> Any:
    """Names, messages and logs that would run if they could."""
    book.losses(EVIL, "AAAA", [1.5, 1.51])
    book.losses("plain", "MMMM", [1.6, 1.61])
    broken = book.spec("AMMA", 1, probe=False)
    book.cell(broken, EVIL, 9)
    error = {"class": "code", "message": EVIL, "traceback": f"Traceback\n  {EVIL}", "at": AT}
    attempt(book, broken, 1, error, f"begins\n{EVIL}\n\x1b[31mred\n", host=EVIL)
    book.request(EVIL.replace("/", "|"), overrides=(f"model.name={EVIL}",), report={"title": EVIL, "caption": EVIL})
    return book


# --- the file -----------------------------------------------------------------------------------


def test_the_page_names_nothing_outside_itself(demo: Any) -> None:
    text = page(report(demo.store))
    for tag, attributes, _ in Outline(text).elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", text)
    style, script = (HERE / "style.css").read_text(), (HERE / "script.js").read_text()
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import)\s*\(", script)
    assert "http" not in style + script.replace("http://www.w3.org/2000/svg", "")


def test_only_this_script_and_this_style_may_run(demo: Any) -> None:
    found = outline(demo)
    (policy,) = [a["content"] for a, _ in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    (script,) = [text for attributes, text in found.all("script") if attributes.get("type") is None]
    ((_, style),) = found.all("style")
    for text in (script, style):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert not any("style" in attributes for _, attributes, _ in found.elements)


def test_script_and_style_can_be_copied_into_a_page() -> None:
    for name in ("style.css", "script.js"):
        text = (HERE / name).read_text()
        assert not re.search(r"</(script|style)|<!--", text, re.IGNORECASE)


def test_every_element_that_is_opened_is_closed(demo: Any, hostile: Any) -> None:
    for book in (demo, hostile):
        found = outline(book)
        assert found.unbalanced == []
        assert found.open == []
        identities = [str(attributes["id"]) for _, attributes, _ in found.elements if "id" in attributes]
        assert len(identities) == len(set(identities))


def test_every_link_leads_to_a_place_on_the_page(demo: Any) -> None:
    found = outline(demo)
    places = {attributes["id"] for _, attributes, _ in found.elements if "id" in attributes}
    links = {str(attributes["href"])[1:] for attributes, _ in found.all("a")}
    assert len(links) > 5
    assert links <= places


def test_what_users_wrote_is_text_and_nothing_else(hostile: Any) -> None:
    text = page(report(hostile.store))
    found = Outline(text)
    assert [attributes.get("type") for attributes, _ in found.all("script")].count(None) == 1
    assert found.all("img") == []
    assert not any(name.startswith("on") for _, attributes, _ in found.elements for name in attributes)
    assert EVIL not in text
    assert "\x1b" not in text
    shown = "".join(text for _, text in found.all("main"))
    assert shown.count(EVIL) > 10  # row, title, overrides, caption, message, log, commands


@pytest.mark.parametrize("name", [EVIL, "<!--<script>", "]]>&amp;\u2028", "ü\ud800"])
def test_data_come_back_as_they_were(name: str) -> None:
    text = json_text({name: [1.5, None, name]})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {name: [1.5, None, name]}


def test_the_same_store_gives_the_same_bytes_but_for_the_time(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for epoch in ("1700000000", "1700000000", "1700000060"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        out = tmp_path / f"{len(written)}.html"
        assert main(["report", "--store", str(demo.store.root), "--claims", "none", "--out", str(out)]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1]
    different = [(a, b) for a, b in zip(written[0].splitlines(), written[2].splitlines(), strict=True) if a != b]
    assert len(different) == 1
    assert b"<time" in different[0][0]


def test_a_time_that_is_none_is_refused(demo: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert main(["report", "--store", str(demo.store.root), "--claims", "none"]) == 2
    assert "SOURCE_DATE_EPOCH = yesterday: expected seconds" in capsys.readouterr().err


def test_half_a_character_in_a_name_does_not_stop_the_page(book: Any, tmp_path: Path) -> None:
    book.losses("half \ud800", "AAAA", [1.5])
    book.request("odd")
    out = tmp_path / "report.html"
    assert main(["report", "--store", str(book.store.root), "--claims", "none", "--out", str(out)]) == 0
    assert "half" in out.read_text(encoding="utf-8")


# --- which requests -----------------------------------------------------------------------------


def test_an_empty_store_gives_a_page_that_says_so(book: Any, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", "--store", str(book.store.root), "--claims", "none", "--out", str(out)]) == 0
    assert "Nothing was asked for yet" in out.read_text()


def test_without_a_request_all_are_shown_the_newest_first(text: Any, tmp_path: Path) -> None:
    text.probe("row", "AMM", [300])
    path = text.store.publish_request(text.request("later"))
    where = ["--store", str(text.store.root), "--claims", "none", "--out", str(tmp_path / "r.html")]
    orders = []
    for second in (1_000_000_000, 4_000_000_000):
        os.utime(path, (second, second))
        assert main(["report", *where]) == 0
        found = Outline((tmp_path / "r.html").read_text())
        orders.append([title for attributes, title in found.all("h2") if str(attributes.get("id", "")).startswith("r")])
    assert orders == [["Bytes of the standard library", "later"], ["later", "Bytes of the standard library"]]


def test_several_requests_are_named_with_their_overrides(text: Any, tmp_path: Path, capsys: Any) -> None:
    text.losses("llama", "AAAA", [1.4], lr=0.01)
    text.request("demo_text", overrides=("optim.lr=0.01",))
    text.probe("row", "AMM", [300])
    text.request("other")
    where = ["--store", str(text.store.root), "--claims", "none", "--out", str(tmp_path / "r.html")]
    assert main(["report", "demo_text", "optim.lr=0.01", "other", *where]) == 0
    written = (tmp_path / "r.html").read_text()
    assert "2 requests of a store" in written
    assert main(["report", "demo_text", *where]) == 0  # the one without overrides is meant
    assert "optim.lr=0.01" not in (tmp_path / "r.html").read_text()
    assert main(["report", "optim.lr=0.01", "demo_text", *where]) == 2
    assert "expected a request before its overrides" in capsys.readouterr().err


def test_several_requests_under_one_name_are_listed(book: Any, tmp_path: Path, capsys: Any) -> None:
    for lr in (0.01, 0.02):
        book.losses("llama", "AAAA", [1.4], lr=lr)
        book.request("demo_text", overrides=(f"optim.lr={lr}",))
    where = ["--store", str(book.store.root), "--claims", "none", "--out", str(tmp_path / "r.html")]
    assert main(["report", "demo_text", *where]) == 2
    told = capsys.readouterr().err
    assert "  demo_text optim.lr=0.01\n  demo_text optim.lr=0.02" in told
    assert not (tmp_path / "r.html").exists()
    assert main(["report", *where]) == 0
    overview = Outline((tmp_path / "r.html").read_text()).all("section", id="overview")
    assert "optim.lr=0.01" in overview[0][1]
    assert "optim.lr=0.02" in overview[0][1]


def test_a_sweep_never_run_and_a_store_that_is_not_there_are_named(demo: Any, tmp_path: Path, capsys: Any) -> None:
    assert main(["report", "table4", "--store", str(demo.store.root)]) == 2
    assert "request = table4: no such request" in capsys.readouterr().err
    assert main(["report", "--store", str(tmp_path / "none")]) == 2
    assert "expected a directory" in capsys.readouterr().err


def test_a_damaged_request_is_named_on_the_page(demo: Any) -> None:
    path = demo.store.root / "requests" / "demo" / "0123456789ab.json"
    path.write_text("{")
    assert "0123456789ab.json: damaged" in page(report(demo.store))


def test_a_request_that_cannot_be_read_leaves_the_others_on_the_page(demo: Any) -> None:
    spec = demo.spec("AAAA", 1, probe=False)
    demo.cell(spec, "llama", 1)
    demo.request("odd", report="hello")
    demo.request("empty")
    made = report(demo.store)
    first, empty = sorted(made.requests, key=lambda request: ("demo", "empty").index(request.sweep))
    assert len(first.tables) == 2
    assert ["report = 'hello': expected settings" in problem for problem in made.problems] == [True]
    assert empty.problem == "it has no cells"
    assert "No table: it has no cells." in page(made)


def test_a_record_of_another_schema_is_named_as_damaged(text: Any) -> None:
    request = text.store.requests()[0]
    path = text.store.record_path(request.cells[0].run_id)
    record = json.loads(path.read_text()) | {"schema": 99}
    path.unlink()
    path.write_text(json.dumps(record))
    (shown,) = report(text.store).requests
    assert dict(shown.counts)["damaged"] == 1
    assert [failure.status for failure in shown.failures] == ["damaged", "diverged"]
    assert "schema" in shown.failures[0].problem


def test_a_metric_that_nobody_recorded_is_refused_with_those_that_are(text: Any, capsys: Any) -> None:
    arguments = ["report", "--store", str(text.store.root), "--claims", "none", "--metric", "val_los"]
    assert main(arguments) == 2
    assert "no run of this request has it; did you mean" in capsys.readouterr().err


# --- what it says -------------------------------------------------------------------------------


def test_the_numbers_of_the_page_are_those_of_the_table(text: Any) -> None:
    results = load(text.store, text.store.requests()[0])
    made = report(text.store)
    column = next(c for c in made.requests[0].tables[0].columns if c.key == "val_loss_nats")
    expected = [column.value(group) for group in results.groups]
    cells = [attributes for attributes, _ in Outline(page(made)).all("td") if "data-low" in attributes]
    assert [float(str(a["data-value"])) for a in cells] == [value.mean for value in expected if value is not None]


def test_the_best_row_is_said_with_how_sure_that_is(text: Any) -> None:
    (finding, *others) = report(text.store).requests[0].findings
    assert finding.startswith("Best val loss (nats): inter, 1.47")
    assert "told apart from every other row" in finding
    assert others == []


def test_one_seed_a_row_tells_nothing_apart(book: Any) -> None:
    book.losses("llama", "AAAA", [1.5])
    book.losses("mamba", "MMMM", [1.4])
    book.request("demo_text")
    (request,) = report(book.store).requests
    assert request.findings == (
        "Best val loss (nats): mamba, 1.4000 (1 seed). One seed a row: nothing can be told apart.",
    )
    (ranges,) = [plot for plot in request.plots if plot.name == "ranges"]
    assert [row["low"] for row in ranges.data["rows"]] == [None, None]


def test_a_metric_that_is_no_number_is_in_no_figure_and_breaks_none(book: Any) -> None:
    book.losses("llama", "AAAA", [1.5, 1.51])
    book.losses("mamba", "MMMM", [1.4, 1.41])
    spec = book.spec("MMMM", 7, probe=False)
    book.cell(spec, "mamba", 7)
    book.record(spec, val_loss_nats=float("nan"))
    book.request("demo_text")
    found = outline(book)
    for attributes, text in found.all("script"):
        if attributes.get("type") == "application/json":
            json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert "done without a finite" in "".join(text for _, text in found.all("main"))


def test_missing_and_failed_runs_are_counted_and_listed(demo: Any) -> None:
    (request,) = report(demo.store).requests
    assert dict(request.counts) == {"done": 22, "diverged": 1, "failed": 1, "not started": 1}
    assert request.runs is not None
    assert len(request.runs.rows) == 25
    assert "1 of 25 runs" not in request.findings
    assert "2 of 25 runs have no result yet: what is said here may change." in request.findings


def test_a_failure_is_shown_with_its_triage_and_what_it_logged_last(book: Any) -> None:
    book.losses("llama", "AAAA", [1.5])
    spec = book.spec("AAAA", 2, probe=False)
    book.cell(spec, "llama", 2)
    error = {"class": "oom", "message": "CUDA out of memory", "traceback": "Traceback\n  here", "at": AT}
    slurm = {"slurm": {"job_id": "4711", "node": "n3"}}
    attempt(book, spec, 1, error, "".join(f"line {n:02d}\n" for n in range(60)), **slurm)
    book.request("demo_text")
    (request,) = report(book.store).requests
    assert request.n_failures == 1
    (failure,) = request.failures
    (only,) = failure.attempts
    assert (only.failure, only.message) == ("oom", "CUDA out of memory")
    assert only.where == "job 4711 on n3, host node7"
    assert only.log.splitlines()[0] == "... 40 lines before"
    assert only.log.splitlines()[1:] == [f"line {n}" for n in range(40, 60)]
    shown = outline(book).all("details", **{"class": "failure"})[0][1]
    assert "oom: CUDA out of memory" in shown
    assert f"python -m sweeps logs {run_id(spec)}" in shown


def test_a_triage_that_knows_better_is_believed(book: Any) -> None:
    spec = book.spec("AAAA", 2, probe=False)
    book.cell(spec, "llama", 2)
    attempt(book, spec, 1, {"class": "code", "message": "a pipe broke", "at": AT}, "")
    known = {"class": "node_fail", "message": "node n3 failed", "job": None, "at": AT}
    (book.store.attempt_dir(run_id(spec), 1) / "triage.json").write_text(json.dumps(known))
    request = book.request("demo_text")
    ((failure,), _) = failures(load(book.store, request), book.store)
    assert failure.attempts[0].failure == "node_fail"


def test_what_was_paid_is_added_up_and_what_is_left_is_predicted(book: Any) -> None:
    """Hours by hand: two runs of 30 minutes on 2 GPUs; one attempt of an hour, for nothing; a run that is missing."""
    base = book.spec("AAAA", 1, probe=False)
    on_two = {"device": "cuda", "nodes": 1, "gpus_per_node": 2}
    for seed in (1, 2, 3):
        spec = book.spec("AAAA", seed, probe=False)
        book.cell(spec, "llama", seed)
        if seed == 3:
            error = {"class": "oom", "message": "no", "at": "2026-11-20T11:00:00+00:00"}
            attempt(book, spec, 1, error, "", started_at="2026-11-20T10:00:00+00:00", exec=on_two)
            continue
        tokens_per_s = base.train_tokens / 1800
        record = {
            "schema": 1,
            "run_id": book.store.publish_spec(spec),
            "status": "done",
            "attempt": 1,
            "spec": encode(spec),
            "cost": {"paper_train_flops": 10**15, "full_train_flops": 3 * 10**15},
            "metrics": {"tokens": base.train_tokens, "tokens_per_s": tokens_per_s, "val_loss_nats": 1.5, "wall_s": 1.0},
            "provenance": {
                "exec": on_two,
                "started_at": "2026-11-20T10:00:00+00:00",
                "finished_at": "2026-11-20T10:30:00+00:00",
                "preflight_tokens_per_s": tokens_per_s * 2,
            },
        }
        assert book.store.publish_record(run_id(spec), record)
    table = cost_table(load(book.store, book.request("demo_text")), book.store, book.store)
    found = {line.part: {c.key: c.value(line) for c in table.columns} for line in table.rows}
    paid, lost = found["paid: runs with a result"], found["paid: attempts without a result so far"]
    left = found["left to pay: runs without a result"]
    assert paid["runs"] == 2
    assert paid["paid_GPU-hours"] == pytest.approx(2.0)
    assert paid["predicted_GPU-hours"] == pytest.approx(1.0)
    assert paid["paper_train_flops"] == 2 * 10**15
    assert paid["full_train_flops"] == 6 * 10**15
    assert lost["paid_GPU-hours"] == pytest.approx(2.0)
    assert left["runs"] == 1
    assert left["predicted_GPU-hours"] == pytest.approx(1.0)


def test_of_a_run_that_came_to_its_end_only_the_attempts_before_were_for_nothing(book: Any) -> None:
    spec = book.spec("AAAA", 1, probe=False)
    book.cell(spec, "llama", 1)
    ended = {"class": "preempted", "message": "stopped", "at": "2026-11-20T10:15:00+00:00"}
    attempt(book, spec, 1, ended, "", started_at="2026-11-20T10:00:00+00:00")
    attempt(book, spec, 2, None, "", started_at="2026-11-20T11:00:00+00:00")
    book.record(spec, val_loss_nats=1.5, wall_s=3600.0)
    request = book.request("demo_text")
    table = cost_table(load(book.store, request), book.store, book.store)
    (column,) = [c for c in table.columns if c.key == "paid_CPU-hours"]
    assert [(line.part, line.runs, column.value(line)) for line in table.rows[1:]] == [
        ("paid: runs with a result", 1, 1.0),
        ("paid: attempts without a result so far", 1, 0.25),
    ]
    assert failures(load(book.store, request), book.store) == ((), 0)


def test_a_run_that_two_cells_ask_for_is_paid_once(book: Any) -> None:
    spec = book.spec("AAAA", 1, probe=False)
    for row in ("llama", "the same"):
        book.cell(spec, row, 1)
    book.record(spec, val_loss_nats=1.5)
    table = cost_table(load(book.store, book.request("demo_text")), book.store, book.store)
    assert [(line.part, line.runs) for line in table.rows] == [
        ("asked for, in full", 1),
        ("paid: runs with a result", 1),
    ]


def test_where_records_come_from_is_said_with_how_many_say_so(text: Any) -> None:
    (request,) = report(text.store).requests
    facts = {fact.name: fact.values for fact in request.facts}
    assert facts["host"] == (("here", 9),)
    assert facts["device"] == (("cpu", 9),)


def test_every_command_is_one_that_a_shell_reads_as_meant(hostile: Any) -> None:
    import shlex

    (request,) = report(hostile.store).requests
    for command in request.commands:
        assert shlex.split(command.text)[0] == "python"
    (run,) = [command.text for command in request.commands if "run.py" in command.text]
    assert shlex.split(run) == ["python", "run.py", "-m", f"+sweep={request.sweep}", *request.overrides]


# --- figures ------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_and_the_range_over_seeds(text: Any) -> None:
    results = load(text.store, text.store.requests()[0])
    group = results.groups[0]
    lines = {cell.run_id: text.store.metrics(cell.run_id) for cell in group.done}
    curve = curve_of(group, lines, "val_loss_nats")
    assert curve is not None
    last = [lines[cell.run_id][-1]["val_loss_nats"] for cell in group.done]
    assert (curve.low[-1], curve.high[-1], curve.n) == (min(last), max(last), 3)
    assert curve.mean[-1] == pytest.approx(sum(last) / 3)


def test_a_long_curve_is_thinned_out_and_keeps_its_ends(text: Any) -> None:
    group = load(text.store, text.store.requests()[0]).groups[0]
    lines = [{"tokens": n, "val_loss_nats": 1 / n} for n in range(1, 5001)]
    curve = curve_of(group, {cell.run_id: lines for cell in group.done}, "val_loss_nats")
    assert curve is not None
    assert len(curve.x) == MOST_POINTS
    assert (curve.x[0], curve.x[-1]) == (1, 5000)
    assert list(curve.x) == sorted(set(curve.x))


def test_the_pareto_front_is_what_nothing_dominates() -> None:
    rng = random.Random(3)
    for _, x_better, y_better in itertools.product(range(40), ("lower", "higher"), ("lower", "higher")):
        points = [(rng.randrange(6) / 2, rng.randrange(6) / 2) for _ in range(rng.randrange(1, 9))]
        signed = [(x if x_better == "lower" else -x, y if y_better == "lower" else -y) for x, y in points]
        free = [
            i for i, (x, y) in enumerate(signed) if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in signed)
        ]
        assert sorted(pareto_front(points, x_better=x_better, y_better=y_better)) == free  # type: ignore[arg-type]


def test_of_very_many_rows_those_on_the_front_stay(book: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    for i in range(12):
        spec = book.spec("AAAA", 1, lr=(i + 1) / 1000, probe=False)
        book.cell(spec, f"row {i}", 1)
        book.record(spec, val_loss_nats=rng.uniform(1, 2), tokens_per_s=rng.uniform(1, 2), wall_s=rng.uniform(1, 2))
    book.request("demo_text")

    def fronts() -> list[list[str]]:
        (pareto,) = [plot for plot in report(book.store).requests[0].plots if plot.name == "pareto"]
        return [[one["points"][i]["label"] for i in one["front"]] for one in pareto.data["choices"]]

    whole = fronts()
    monkeypatch.setattr("analysis.figures.numbers.MOST_DOTS", 3)
    assert fronts() == whole
    assert len(whole) == 2


def test_a_probe_is_set_against_what_it_spent_and_not_what_it_might_have(demo: Any) -> None:
    (request,) = report(demo.store).requests
    (pareto,) = [plot for plot in request.plots if plot.name == "pareto"]
    flops = {point["label"]: point["x"] for point in pareto.data["choices"][0]["points"]}
    column = next(c for c in request.tables[0].columns if c.key == "mean_spent_paper_train_flops")
    for group in load(demo.store, demo.store.requests()[0]).groups:
        assert flops[group.label] == pytest.approx(column.value(group), rel=1e-5)


def test_a_probe_has_a_survival_curve_that_ends_at_the_share_unsolved(demo: Any) -> None:
    (request,) = report(demo.store).requests
    (survival,) = [plot for plot in request.plots if plot.name == "survival"]
    series = {one["label"]: one for one in survival.data["series"]}
    assert series["attention last"]["y"][-1] == pytest.approx(0.6)
    assert series["attention last"]["marks"] == [1200, 1200, 1200]


# --- claims and the command ---------------------------------------------------------------------


def test_every_claim_is_there_with_its_verdict_by_each_source_and_its_evidence(text: Any, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["report", "demo_text", "--store", str(text.store.root), "--out", str(out)]) == 0
    claims = Outline(out.read_text()).all("details", **{"class": "claim"})
    assert len(claims) == 39
    for attributes, shown in claims:
        assert len(str(attributes["data-verdicts"]).split()) == 2
        assert "By the paper's numbers: " in shown
        assert "By this store: " in shown
        assert "python -m analysis claims --source paper --claim" in shown


def test_a_report_needs_neither_torch_nor_hydra_nor_matplotlib_nor_pandas(demo: Any, tmp_path: Path) -> None:
    arguments = [
        "report",
        "demo",
        "--store",
        str(demo.store.root),
        "--claims",
        "none",
        "--out",
        str(tmp_path / "r.html"),
    ]
    code = (
        "import sys\nfrom analysis.__main__ import main\n"
        f"assert main({arguments!r}) == 0\n"
        "print('loaded', [name for name in ('torch', 'hydra', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert done.stderr == f"wrote {tmp_path / 'r.html'}\n"


def test_nothing_is_written_into_the_store(demo: Any, tmp_path: Path) -> None:
    def tree() -> Iterator[tuple[str, int]]:
        return ((str(path), path.stat().st_mtime_ns) for path in sorted(demo.store.root.rglob("*")))

    before = list(tree())
    out = str(tmp_path / "r.html")
    assert main(["report", "--store", str(demo.store.root), "--claims", "none", "--out", out]) == 0
    assert list(tree()) == before
