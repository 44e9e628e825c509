"""What is drawn: the same files each time, names that are taken for nothing else, labels that cover nothing."""

import colorsys
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.figures.draw import FORMATS, as_float, style, write
from analysis.figures.labels import Box, beside, beside_with_room, spread, within
from analysis.figures.looks import COLOURS, DASHES, MARKERS, look
from analysis.figures.page import figure_of
from analysis.figures.picture import (
    MOST_LINES,
    Axis,
    HeatMap,
    Interval,
    Intervals,
    Line,
    Lines,
    Panel,
    Picture,
    Point,
    Points,
    Rule,
)
from hybrid.spec import ConfigError

NASTY = (
    "$x_1$ & $y$",
    r"\frac{a}{b} $",
    "<script>alert(1)</script>",
    "50% of {a} #2 ~^",
    "bell\x07 and \x1b[31m",
    "half \ud800 a sign",
    "層 and 🙂",
    "a" * 90,
    "",
)


def line(label: str, look: int, *, n: int = 5, low: bool = False, slope: float = 1.0) -> Line:
    x = tuple(float(2**i) for i in range(n))
    y = tuple(1.0 + slope * i for i in range(n))
    below, above = tuple(v - 0.1 for v in y), tuple(v + 0.1 for v in y)
    return Line(label=label, look=look, n=2, x=x, y=y, low=below if low else (), high=above if low else ())


def lines(labels: tuple[str, ...], **options: Any) -> Lines:
    return Lines(
        x=Axis(label="length $x$", format="whole", log=True, powers=True),
        y=Axis(label="loss"),
        lines=tuple(line(label, i, slope=0.1 * i) for i, label in enumerate(labels)),
        **options,
    )


def points(labels: tuple[str, ...]) -> Points:
    rng = random.Random(1)
    made = tuple(
        Point(label=label, family=label, look=i, n=3, x=rng.random() + 1, y=rng.random(), low=None, high=None)
        for i, label in enumerate(labels)
    )
    return Points(x=Axis(label="cost", better="lower"), y=Axis(label="loss", better="lower"), points=made, front=(0,))


def intervals(labels: tuple[str, ...]) -> Intervals:
    rows = tuple(
        Interval(label=label, look=i, n=2, mean=1.0 + i, low=0.9 + i, high=1.1 + i, values=(0.95 + i, 1.05 + i))
        for i, label in enumerate(labels)
    )
    none = Interval(label="none", look=9, n=0, mean=None, low=None, high=None, values=())
    return Intervals(x=Axis(label="final"), rows=(*rows, none))


def heat_map(title: str) -> HeatMap:
    return HeatMap(
        title=title,
        x=Axis(label="length", format="whole"),
        y=Axis(label="depth"),
        at_x=(1.0, 2.0, 4.0),
        at_y=(0.0, 50.0),
        values=((0.0, 50.0, 100.0), (10.0, None, 20.0)),
        colour=Axis(label="found"),
        low=0.0,
        high=100.0,
        upright=(Rule(value=2.0, label="training length"),),
    )


def picture(
    *panels: Panel, title: str = "a title", caption: tuple[str, ...] = ("One sentence.",), columns: int = 1
) -> Picture:
    return Picture(name="p", title=title, caption=caption, panels=panels, widths=(1.0,) * columns)


def every_panel(labels: tuple[str, ...]) -> tuple[Panel, ...]:
    return (
        lines(labels),
        lines(labels, names="legend", steps=True),
        lines(labels, spread="bars", noise=0.2, across=(Rule(value=1.0, label=labels[0]),)),
        points(labels),
        intervals(labels),
        heat_map(labels[0]),
    )


# --- files --------------------------------------------------------------------------------------


def test_the_same_picture_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from analysis.figures.draw import FORMATS, write\n"
        "from drawn import every_panel, picture\n"
        "write(picture(*every_panel(('one', 'two')), columns=2), Path(sys.argv[1]), formats=FORMATS)\n"
    )
    shutil.copy(__file__, tmp_path / "drawn.py")
    env = {**os.environ, "PYTHONHASHSEED": "17", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=env)
    paths = write(picture(*every_panel(("one", "two")), columns=2), tmp_path / "here", formats=FORMATS)
    assert len(paths) == 4
    for path in paths:
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name


def test_no_file_holds_a_date_or_a_type_3_font(tmp_path: Path) -> None:
    write(picture(lines(("one", "two"))), tmp_path, formats=("svg", "pdf", "png"))
    pdf = (tmp_path / "p.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf
    assert "<dc:date>" not in (tmp_path / "p.svg").read_text()


def test_json_is_the_numbers_unrounded(tmp_path: Path) -> None:
    drawn = picture(replace(lines(("one",)), y=Axis(label="loss", better="lower")))
    write(drawn, tmp_path, formats=("json",))
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["panels"][0]["kind"] == "Lines"
    panel = drawn.panels[0]
    assert isinstance(panel, Lines)
    assert content["panels"][0]["lines"][0]["y"] == list(panel.lines[0].y)


def test_width_is_that_of_the_file(tmp_path: Path) -> None:
    for width in (3.25, 7.0):
        write(picture(lines(("one", "two"))), tmp_path, formats=("svg",), width_in=width)
        svg = xml.dom.minidom.parse(str(tmp_path / "p.svg")).documentElement
        assert svg is not None
        assert float(svg.getAttribute("width").removesuffix("pt")) == pytest.approx(72 * width)


def test_without_a_caption_the_words_are_left_to_latex(tmp_path: Path) -> None:
    drawn = picture(lines(("one",)), title="50% of a_1", caption=("See {x} & $y$.",))
    write(drawn, tmp_path, formats=("svg",), captioned=False)
    svg = (tmp_path / "p.svg").read_text()
    assert "50%" not in svg
    assert "See" not in svg
    tex = (tmp_path / "p.tex").read_text()
    assert r"\includegraphics[width=7in]{p}" in tex
    assert r"\caption{50\% of a\_1. See \{x\} \& \$y\$.}" in tex


@pytest.mark.slow
def test_the_float_compiles_with_any_words_and_the_pdf_in_it(pdflatex: str, tmp_path: Path) -> None:
    drawn = picture(lines(NASTY[:4]), title=" ".join(NASTY[:4]), caption=NASTY[:4])
    write(drawn, tmp_path, formats=("pdf",), captioned=False, width_in=4.5)
    document = "\\documentclass{article}\\usepackage{graphicx}\\begin{document}\\input{p.tex}\\end{document}"
    (tmp_path / "d.tex").write_text(document)
    done = subprocess.run(
        [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "d.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode("latin-1")[-2000:]
    assert (tmp_path / "d.pdf").stat().st_size > 10_000


def test_axes_say_which_way_is_better(tmp_path: Path) -> None:
    write(picture(points(("one", "two"))), tmp_path, formats=("svg",))
    written = (tmp_path / "p.svg").read_text()
    assert ">cost\u00a0↓<" in written
    assert ">loss\u00a0↓<" in written
    assert "\ufffd" not in written


# --- names --------------------------------------------------------------------------------------


def test_names_are_taken_neither_for_mathematics_nor_for_markup(tmp_path: Path) -> None:
    write(picture(*every_panel(NASTY), title=NASTY[0], caption=NASTY, columns=2), tmp_path, formats=FORMATS)
    document = xml.dom.minidom.parse(str(tmp_path / "p.svg"))
    assert not document.getElementsByTagName("script")
    shown = " ".join(
        "".join(node.data for node in text.childNodes if isinstance(node, xml.dom.minidom.Text))
        for text in document.getElementsByTagName("text")
    )
    # In the title, in the caption, above the panel of the heat map, in a legend, beside four panels of rows.
    assert shown.count("$x_1$ & $y$") >= 8
    assert shown.count(r"\frac{a}{b} $") >= 6
    assert "\x07" not in shown


# --- panels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, MOST_LINES])
def test_any_number_of_rows_can_be_drawn(tmp_path: Path, n: int) -> None:
    labels = tuple(f"row {i}" for i in range(n))
    for width in (3.0, 7.0):
        write(picture(*every_panel(labels)[:5], columns=2), tmp_path, formats=("svg",), width_in=width)
        written = (tmp_path / "p.svg").read_text()
        # In two panels or more, or, where lines are too many to be named at their ends, in the legend and one panel.
        assert written.count(f">row {n - 1}<") >= (4 if n == 1 else 2)


def test_of_very_many_points_those_on_the_front_are_named(tmp_path: Path) -> None:
    write(picture(points(tuple(f"row {i}" for i in range(400)))), tmp_path, formats=("svg",))
    written = (tmp_path / "p.svg").read_text()
    assert ">row 0<" in written
    assert ">row 1<" not in written


def test_a_single_point_and_a_flat_line_can_be_drawn(tmp_path: Path) -> None:
    flat = replace(line("one", 0), y=(2.0,) * 5)
    single = replace(line("one", 0, n=1), x=(0.0,), y=(0.0,))
    for i, one in enumerate((flat, single)):
        for log in (False, True):
            axis = Axis(label="y", log=log)
            panel = Lines(x=Axis(label="x", format="tokens"), y=axis, lines=(one,), noise=None if log else 0.1)
            write(picture(panel), tmp_path, name=f"{i}{log}", formats=("svg",))
    assert len(list(tmp_path.iterdir())) == 4


def test_too_narrow_a_page_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--width 0\.5"):
        write(picture(lines(("a rather long name of a row", "two"))), tmp_path, formats=("svg",), width_in=0.5)
    assert not list(tmp_path.iterdir())


def test_lines_are_told_apart_without_colour() -> None:
    looks = [look(i) for i in range(len(COLOURS) * len(DASHES))]
    assert len({(colour, str(dashes)) for colour, dashes, _ in looks}) == len(looks)
    for a, b in itertools.pairwise(looks):
        assert a[0] != b[0]
        assert str(a[1]) != str(b[1])
        assert a[2] != b[2]
    assert len(set(MARKERS)) == len(MARKERS)
    # Light enough to be told from black, dark enough to be told from paper.
    for colour in COLOURS:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        assert colorsys.rgb_to_yiq(red, green, blue)[0] < 0.7


def test_the_sequential_colours_of_heat_maps_only_get_lighter_in_grey() -> None:
    import matplotlib

    colours = matplotlib.colormaps["cividis"]([i / 20 for i in range(21)])
    grey = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b, _ in colours]
    assert grey == sorted(grey)


def test_the_front_is_drawn_in_steps_that_hold_what_can_be_had() -> None:
    for better, drawn in (("lower", "steps-post"), ("higher", "steps-pre")):
        made = tuple(Point(label=str(i), family=str(i), look=i, n=1, x=1.0 + i, y=2.0 - i) for i in range(2))
        panel = Points(
            x=Axis(label="x", better=better),  # type: ignore[arg-type]
            y=Axis(label="y", better="lower"),
            points=made,
            front=(0, 1),
        )
        with style():
            figure = figure_of(picture(panel), 7.0, True)
            (steps,) = [one for one in figure.axes[0].lines if one.get_linewidth() == 3]
        # Where less cost is better, the quality of the cheaper row holds up to the next one's cost.
        assert steps.get_drawstyle() == drawn


def test_end_labels_of_lines_that_end_together_do_not_touch() -> None:
    labels = tuple(f"a row of number {i}" for i in range(10))
    panel = Lines(x=Axis(label="x"), y=Axis(label="y"), lines=tuple(line(label, i) for i, label in enumerate(labels)))
    with style():
        figure = figure_of(picture(panel), 7.0, True)
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts if text.get_text() in labels]
    assert len(boxes) == 10
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_words_stay_on_the_page_and_off_the_panels() -> None:
    for width in (3.0, 7.0):
        for panel in every_panel(("one", "a longer name of a row", "three")):
            long = "a label that says very much of what is measured on this axis, and then some"
            with style():
                panel = replace(panel, x=replace(panel.x, label=long))  # type: ignore[type-var]
                drawn = picture(panel, title="A title " * 12, caption=("A caption of some length. " * 12,))
                figure = figure_of(drawn, width, True)
                renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
                page = figure.bbox
                for text in figure.texts:
                    box = text.get_window_extent(renderer)
                    assert page.x0 <= box.x0
                    assert box.x1 <= page.x1
                    assert page.y0 <= box.y0
                    assert box.y1 <= page.y1
                    for axes in figure.axes:
                        inside = axes.get_tightbbox(renderer)
                        assert inside is None or not box.overlaps(inside), (type(panel).__name__, width)


# --- labels -------------------------------------------------------------------------------------


def test_spread_moves_as_little_as_it_can_and_keeps_order_and_gap() -> None:
    rng = random.Random(2)
    for _ in range(200):
        places = [rng.uniform(0, 10) for _ in range(rng.randrange(1, 12))]
        gap = rng.uniform(0.1, 1.5)
        moved = spread(places, gap)
        order = sorted(range(len(places)), key=lambda i: places[i])
        assert all(moved[b] - moved[a] >= gap - 1e-9 for a, b in itertools.pairwise(order))
        if all(places[b] - places[a] >= gap for a, b in itertools.pairwise(order)):
            assert moved == pytest.approx(places)
        # Blocks lie around the mean of where their labels would be.
        assert math.fsum(moved) == pytest.approx(math.fsum(places))
        best = math.fsum((m - p) ** 2 for m, p in zip(moved, places, strict=True))
        for _ in range(20):
            shift = [rng.gauss(0, 0.1) for _ in places]
            other = [m + s for m, s in zip(moved, shift, strict=True)]
            if all(other[b] - other[a] >= gap for a, b in itertools.pairwise(order)):
                assert math.fsum((m - p) ** 2 for m, p in zip(other, places, strict=True)) >= best - 1e-9


def test_within_keeps_labels_between_the_bounds_where_there_is_room() -> None:
    rng = random.Random(3)
    for _ in range(200):
        n = rng.randrange(1, 9)
        places = [rng.uniform(0, 10) for _ in range(n)]
        moved = within(places, 1.0, 0.0, 10.0)
        assert all(-1e-9 <= place <= 10 + 1e-9 for place in moved)
        assert all(b - a >= 1.0 - 1e-9 for a, b in itertools.pairwise(sorted(moved)))


def test_names_beside_points_cover_neither_each_other_nor_points() -> None:
    rng = random.Random(4)
    for _ in range(20):
        anchors = [(rng.uniform(50, 950), rng.uniform(50, 650)) for _ in range(16)]
        taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in anchors]
        bounds = Box(0, 0, 1000, 700)
        boxes = beside(anchors, [(60.0, 14.0)] * 16, taken, bounds, 7.0)
        covered = math.fsum(a.overlap(b) for a, b in itertools.combinations(boxes, 2))
        covered += math.fsum(a.overlap(b) for a in boxes for b in taken)
        assert covered == 0
        assert all(box.overlap(bounds) == pytest.approx(box.area) for box in boxes)


def test_a_name_without_room_is_left_out_unless_it_is_needed() -> None:
    anchors = [(100.0 + i, 100.0) for i in range(30)]
    wanted = [(anchor, (150.0, 60.0), i == 7) for i, anchor in enumerate(anchors)]
    taken = [Box(x - 5, 95, x + 5, 105) for x, _ in anchors]
    found = beside_with_room(wanted, taken, Box(0, 0, 300, 220), 7.0)
    boxes = [box for box in found if box is not None]
    assert found[7] is not None
    assert 1 < len(boxes) < 30
    for box in boxes:
        assert sum(box.overlap(other) for other in boxes if other is not box) <= 0.12 * box.area


def test_a_float_names_the_file_and_a_label() -> None:
    tex = as_float(picture(lines(("one",))), "fig1b", 3.3)
    assert r"\includegraphics[width=3.3in]{fig1b}" in tex
    assert r"\label{fig:fig1b}" in tex
    assert r"\caption{a title. One sentence.}" in tex
