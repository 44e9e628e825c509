"""The report in a real browser: Debian's Chromium, driven by Playwright.

REQUIRE_CHROMIUM=1 makes the absence of either a failure.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from sweeps.store import make_dir

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "</script><script>alert(1)</script><img src=http://example.org/x onerror=alert(2)>\"'<!--"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}

# What lies outside the window without lying in a box that scrolls by itself.
OUTSIDE = """() => [...document.querySelectorAll('body *')].filter((element) => {
  if (element.closest('.skip, .unseen, .tip, svg') !== null) return false;
  const scrolls = (parent) => ['auto', 'scroll', 'hidden'].includes(getComputedStyle(parent).overflowX);
  for (let parent = element.parentElement; parent !== null && parent !== document.body; parent = parent.parentElement) {
    if (scrolls(parent)) return false;
  }
  const box = element.getBoundingClientRect();
  return box.width > 0 && box.right > window.innerWidth + 1;
}).map((element) => `${element.tagName}.${element.className}`)"""

# The least contrast of any text with what is behind it (WCAG 2), and where.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at !== null; at = at.parentElement) {
      const rgba = parse(getComputedStyle(at).backgroundColor);
      if (rgba.length === 3 || rgba[3] === 1) return rgba.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let least = [21, ''];
  for (const element of document.querySelectorAll('main *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim() !== '');
    if (!own || element.closest('svg, script') !== null || element.getBoundingClientRect().width === 0) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color).slice(0, 3)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const words = element.textContent.slice(0, 30);
    if (ratio < least[0]) least = [ratio, `${element.tagName}.${element.className}: ${words}`];
  }
  return least;
}"""


@dataclass
class Opened:
    """A page, and what should not have happened while it was open."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def column(self, key: str) -> list[str]:
        """The words of a column of the first table, from the top."""
        found = self.page.evaluate(
            """(key) => {
              const table = document.querySelector('section.table table');
              const at = table.querySelector(`th[data-key="${key}"]`).cellIndex;
              return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[at].textContent);
            }""",
            key,
        )
        return list(found)

    def focused(self) -> str:
        return str(self.page.evaluate("() => document.activeElement.textContent"))


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    missing = [] if CHROMIUM else ["chromium (apt-get install chromium)"]
    missing += [] if importlib.util.find_spec("playwright") else ["playwright (pip install playwright)"]
    if missing:
        if os.environ.get("REQUIRE_CHROMIUM") == "1":
            pytest.fail(f"REQUIRE_CHROMIUM=1, and there is no {' and no '.join(missing)}")
        pytest.skip(f"there is no {' and no '.join(missing)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root Chromium has no sandbox; the page is our own.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a file, and sees to it that nothing was asked for, said to the console, or put up as a dialog."""
    made: list[tuple[Any, Opened]] = []

    def open_file(path: Path, **settings: Any) -> Opened:
        context = browser.new_context(**{"viewport": DESK, **settings})
        opened = Opened(page=context.new_page())
        made.append((context, opened))

        def answer(route: Any) -> None:
            opened.requests.append(route.request.url)
            if route.request.url == path.as_uri():
                route.continue_()
            else:
                route.abort()

        context.route("**/*", answer)
        opened.page.on("console", lambda said: opened.errors.append(said.text) if said.type == "error" else None)
        opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.page.on("dialog", lambda dialog: (opened.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        opened.page.goto(path.as_uri())
        return opened

    yield open_file
    for context, opened in made:
        assert opened.errors == []
        assert len(opened.requests) <= 1, opened.requests
        context.close()


@pytest.fixture
def asked(book: Any) -> Any:
    """A request with done, diverged and failed runs, one of them with a name that would run if it could."""
    book.losses("llama", "AAAA", [1.5012, 1.5071, 1.4983])
    book.losses("a mamba with a name that is rather long for a table", "MMM", [1.4876, 1.4912, 1.4893])
    book.losses("inter", "MMAM", [1.4701, 1.4766])
    diverged = book.spec("MMAM", 3, probe=False)
    book.cell(diverged, "inter", 3)
    book.record(diverged, "diverged", steps=400, reason="loss is nan")
    broken = book.spec("AMMA", 1, probe=False)
    book.cell(broken, EVIL, 1)
    directory = book.store.attempt_dir(book.store.publish_spec(broken), 1)
    make_dir(directory)
    (directory / "error.json").write_text(json.dumps({"class": "oom", "message": EVIL, "traceback": f"{EVIL}\n" * 9}))
    (directory / "log.txt").write_text(f"begins {'x' * 300}\n{EVIL}\n")
    book.request("demo_text", overrides=("sweep.seeds=3",), report={"title": "Bytes <i>of</i> the library"})
    return book


@pytest.fixture
def report(asked: Any, tmp_path: Path) -> Path:
    return written(asked, tmp_path)


def written(book: Any, tmp_path: Path, claims: str = "none") -> Path:
    out = tmp_path / "a page.html"
    arguments = ["--store", str(book.store.root), "--claims", claims, "--out", str(out)]
    assert main(["report", "demo_text", "sweep.seeds=3", *arguments]) == 0
    return out


# --- opening ------------------------------------------------------------------------------------


def test_it_opens_from_disk_and_asks_for_nothing(report: Path, open_page: Open) -> None:
    opened = open_page(report)
    assert opened.page.title() == "Bytes <i>of</i> the library"
    assert opened.page.locator("figure.plot svg[role=img]").count() == 3
    assert opened.page.locator("img, main i").count() == 0
    assert opened.requests == [report.as_uri()] or opened.requests == []


def test_what_is_injected_could_not_run_either(report: Path, open_page: Open) -> None:
    """Were something left unescaped after all, the policy of the page would stop it."""
    spoilt = report.with_name("spoilt.html")
    script = "<script>document.title = 'ran'</script><p id=by onclick=\"document.title = 'ran'\">x</p>"
    spoilt.write_text(report.read_text().replace("<main", f"{script}<main", 1))
    opened = open_page(spoilt)
    opened.page.locator("#by").click()
    assert opened.page.title() != "ran"
    assert sum("Content Security Policy" in error for error in opened.errors) == 2
    opened.errors.clear()


def test_without_its_script_everything_can_still_be_read(report: Path, open_page: Open) -> None:
    opened = open_page(report, java_script_enabled=False)
    assert opened.page.locator("section.table table").first.is_visible()
    summary = opened.page.locator("details.failure > summary").first
    summary.click()
    assert opened.page.locator("details.failure pre").first.is_visible()


# --- tables -------------------------------------------------------------------------------------


def test_a_table_sorts_by_number_both_ways_and_back_with_nothing_last(report: Path, open_page: Open) -> None:
    opened = open_page(report)
    before = opened.column("row")
    head = opened.page.locator('th[data-key="val_loss_nats"]').first
    orders = []
    for expected in ("ascending", "descending", None):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == expected
        orders.append(opened.column("row"))
    assert [name[:7] for name in orders[0]] == ["inter", "a mamba", "llama", "</scrip"]
    assert [name[:7] for name in orders[1]] == ["llama", "a mamba", "inter", "</scrip"]
    assert orders[2] == before


def test_a_filter_leaves_the_rows_with_all_its_words(report: Path, open_page: Open) -> None:
    opened = open_page(report)
    section = opened.page.locator("section.table").first
    section.get_by_label("Filter rows").fill("MAMBA long")
    assert [name[:7] for name in opened.column("row")] == ["a mamba"]
    assert section.get_by_role("status").text_content() == "1 of 4 rows"
    section.get_by_label("Filter rows").fill("")
    assert len(opened.column("row")) == 4


def test_columns_that_are_the_same_in_all_rows_can_be_hidden(book: Any, tmp_path: Path, open_page: Open) -> None:
    book.losses("llama", "AAAA", [1.5012, 1.5071])
    book.losses("mamba", "MMMM", [1.4876, 1.4912])
    book.request("demo_text", overrides=("sweep.seeds=3",))
    opened = open_page(written(book, tmp_path))
    section = opened.page.locator("section.table").first
    heads = section.locator("th")
    same = section.locator("th:not([data-differs])")
    assert same.count() > 0
    toggle = section.get_by_role("button", name="Only columns that differ")
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "true"
    assert all(not same.nth(i).is_visible() for i in range(same.count()))
    shown = sum(heads.nth(i).is_visible() for i in range(heads.count()))
    assert shown == heads.count() - same.count()
    toggle.click()
    assert all(heads.nth(i).is_visible() for i in range(heads.count()))


def test_a_command_and_a_table_can_be_copied(report: Path, open_page: Open) -> None:
    opened = open_page(report, permissions=["clipboard-read", "clipboard-write"])
    command = opened.page.locator(".commands .command").first
    command.get_by_role("button").click()
    opened.page.wait_for_function("() => document.getElementById('said').textContent === 'Copied'")
    read = "() => navigator.clipboard.readText()"
    assert opened.page.evaluate(read) == command.locator("code").text_content()
    opened.page.locator("section.table").first.get_by_role("button", name="Copy as CSV").click()
    opened.page.wait_for_function(f"async () => (await ({read})()).startsWith('row,')")
    lines = str(opened.page.evaluate(read)).splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("llama,AAAA,")


# --- evidence -----------------------------------------------------------------------------------


def test_a_failed_run_opens_to_its_triage_and_log(report: Path, open_page: Open) -> None:
    opened = open_page(report)
    failure = opened.page.locator("details.failure").first
    log = failure.locator("pre").first
    assert not log.is_visible()
    failure.locator("summary").first.click()
    assert log.is_visible()
    assert EVIL in str(log.text_content())


def test_the_evidence_of_a_claim_is_one_click_away(asked: Any, tmp_path: Path, open_page: Open) -> None:
    opened = open_page(written(asked, tmp_path, claims="paper"))
    claims = opened.page.locator("details.claim")
    assert claims.count() == 39
    evidence = claims.first.locator("table.evidence").first
    assert not evidence.is_visible()
    claims.first.locator("summary").click()
    assert evidence.is_visible()
    opened.page.get_by_label("Verdict").select_option("fails")
    shown = [i for i in range(39) if claims.nth(i).is_visible()]
    assert 0 < len(shown) < 39
    assert all(claims.nth(i).get_attribute("data-verdicts") == "fails" for i in shown)
    opened.page.get_by_label("Filter claims").fill("no claim has these words")
    assert opened.page.get_by_text("0 of 39 claims").is_visible()


# --- by keyboard --------------------------------------------------------------------------------


def test_everything_is_reached_by_keyboard_in_the_order_of_the_page(report: Path, open_page: Open) -> None:
    opened = open_page(report)
    focusable = opened.page.locator("a, button, input, select, summary, [tabindex='0']").count()
    places = []
    for _ in range(focusable):
        opened.page.keyboard.press("Tab")
        at = opened.page.evaluate("() => [...document.querySelectorAll('*')].indexOf(document.activeElement)")
        if at <= (places[-1] if places else 0):
            break  # around, or out of the page
        places.append(at)
    names = opened.page.evaluate(
        "(places) => places.map((at) => document.querySelectorAll('*')[at].tagName.toLowerCase())", places
    )
    assert {"a", "button", "input", "summary", "svg", "select"} <= set(names)
    closed = opened.page.locator("details:not([open]) :is(a, button, input, select, summary, [tabindex='0'])").count()
    own = opened.page.locator("details:not([open]) > summary").count()
    nested = opened.page.locator("details:not([open]) details summary").count()
    assert len(places) == focusable - closed + own - nested


def test_a_table_is_sorted_and_a_failure_opened_by_keyboard(report: Path, open_page: Open) -> None:
    opened = open_page(report)
    opened.page.keyboard.press("Tab")
    assert opened.focused() == "Skip to the content"
    head = opened.page.locator('th[data-key="val_loss_nats"]').first
    head.get_by_role("button").focus()
    opened.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    opened.page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    summary = opened.page.locator("details.failure > summary").first
    summary.focus()
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("details.failure pre").first.is_visible()


def test_a_figure_tells_its_values_by_keyboard_and_under_the_pointer(report: Path, open_page: Open) -> None:
    opened = open_page(report)
    figure = opened.page.locator('figure[data-name="curves"]')
    plot, tip = figure.locator("svg[role=img]"), figure.locator(".tip")
    plot.focus()
    opened.page.keyboard.press("End")
    assert tip.is_visible()
    assert "llama: 1.5" in str(tip.text_content())
    assert "llama: 1.5" in str(opened.page.locator("#said").text_content())
    opened.page.keyboard.press("Escape")
    assert not tip.is_visible()
    opened.page.locator("h1").click()
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert tip.is_visible()
    lines = plot.locator("path.line").count()
    button = figure.locator(".legend button").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert plot.locator("path.line").count() == lines - 1


# --- widths, colours, paper ---------------------------------------------------------------------


def test_on_a_phone_the_page_itself_never_scrolls_sideways(report: Path, open_page: Open) -> None:
    opened = open_page(report, viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
    for _ in range(2):  # closed, then with all details open
        assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]
        assert opened.page.evaluate("() => window.innerWidth") == PHONE["width"]
        assert opened.page.evaluate(OUTSIDE) == []
        opened.page.evaluate("() => document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    widths = opened.page.evaluate(
        "() => [...document.querySelectorAll('.scroll')].map((b) => b.scrollWidth - b.clientWidth)"
    )
    assert max(widths) > 0, "no table is wide enough to show anything"


def test_a_figure_is_drawn_anew_when_the_window_becomes_narrow(report: Path, open_page: Open) -> None:
    opened = open_page(report)
    plot = opened.page.locator("figure.plot svg[role=img]").first
    wide = plot.get_attribute("viewBox")
    opened.page.set_viewport_size(PHONE)
    opened.page.wait_for_function(
        "(wide) => document.querySelector('figure.plot svg[role=img]').getAttribute('viewBox') !== wide", arg=wide
    )
    assert int(str(plot.get_attribute("viewBox")).split()[2]) <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_in_light_and_in_the_dark(report: Path, open_page: Open, scheme: str) -> None:
    opened = open_page(report, color_scheme=scheme)
    opened.page.evaluate("() => document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    ground = opened.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    least, where = opened.page.evaluate(CONTRAST)
    assert least >= 4.5, where


def test_on_paper_everything_is_open_and_the_page_is_as_before(report: Path, open_page: Open) -> None:
    opened = open_page(report, color_scheme="dark")
    closed = opened.page.locator("details:not([open])").count()
    assert closed > 1
    opened.page.evaluate(
        "() => window.addEventListener('beforeprint', () => "
        "{ window.closedOnPaper = document.querySelectorAll('details:not([open])').length; })"
    )
    paper = opened.page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert opened.page.evaluate("() => window.closedOnPaper") == 0
    assert opened.page.locator("details:not([open])").count() == closed
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.page.locator(".tools").first.is_visible()
