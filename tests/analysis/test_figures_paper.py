"""The paper's figures from its printed numbers: the numbers that are printed, and what there is to say of them."""

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from analysis.figures.catalogue import FIGURES, figure_called, listing, names
from analysis.figures.kinds import KINDS
from analysis.figures.ours import Asked
from analysis.figures.paper import Paper
from analysis.figures.picture import Intervals, Lines, Picture, Points
from analysis.reference.compare import Place, Sweeps
from analysis.reference.printed import read_printed
from analysis.tables.layouts import LAYOUTS
from hybrid.cost import run_cost
from hybrid.spec import ConfigError
from sweeps.compose import Composer

PRINTED = [name for name, figure in FIGURES.items() if figure.printed]
NOT_PRINTED = [name for name, figure in FIGURES.items() if not figure.printed]


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    with Composer() as composer:
        yield composer


@pytest.fixture(scope="module")
def paper(composer: Composer) -> Paper:
    return Paper(composer)


@pytest.fixture(scope="module")
def pictures(paper: Paper) -> dict[str, Picture]:
    return {name: paper.picture(name, Asked()) for name in PRINTED}


def rows(table: str) -> Any:
    return read_printed().tables[table].rows


def words(picture: Picture) -> str:
    return " ".join(picture.caption)


def lines(picture: Picture) -> list[Lines]:
    return [panel for panel in picture.panels if isinstance(panel, Lines)]


def test_quality_against_throughput_has_the_printed_numbers(pictures: dict[str, Picture]) -> None:
    (panel,) = pictures["fig1b"].panels
    assert isinstance(panel, Points)
    assert len(panel.points) == len(rows("13")) == 16
    lengths = ("2k", "4k", "8k", "16k", "32k")
    for point, row in zip(panel.points, rows("13"), strict=True):
        assert point.family == row["models"]
        assert point.x == pytest.approx(sum(float(row[f"tp_{n}"]) for n in lengths) / 5)
    at_equal_flops = [
        float(row["dclm"]) for row in rows("9") if row["models"] == "Llama" or row["budget"] == "equal_flops"
    ]
    assert [point.y for point in panel.points] == at_equal_flops


def test_the_front_of_figure_1b_is_what_nothing_printed_beats(pictures: dict[str, Picture]) -> None:
    (panel,) = pictures["fig1b"].panels
    assert isinstance(panel, Points)
    front = [f"{panel.points[i].family} {panel.points[i].label}" for i in panel.front]
    assert front == ["Intra-H 1:1", "Intra-H 1:5", "Intra-H 1:12", "Mamba Mamba"]


def test_figures_of_throughput_say_that_implementations_are_compared(pictures: dict[str, Picture]) -> None:
    for name in ("fig1b", "fig3a"):
        assert (
            "which are unequal: SWA 0:1, whose cache is 18 MiB, is measured at 307 tokens/s at 32K and Mamba, with 13"
            in (words(pictures[name]))
        )


def test_noise_between_replicates_is_drawn_and_said(pictures: dict[str, Picture]) -> None:
    (panel,) = pictures["fig1b"].panels
    assert isinstance(panel, Points)
    assert panel.noise == pytest.approx(2.3646 * 0.0026 * math.sqrt(2), abs=2e-4)
    assert "differ by up to 0.0086 nats by chance (the bar)" in words(pictures["fig1b"])
    assert [p.noise for p in lines(pictures["dimensions"])] == pytest.approx([0.0086, 0.0059], abs=1e-4)
    for picture in pictures.values():
        assert "One run a row is printed: no interval." in words(picture) or picture.name in ("fig2", "fig3b")


def test_figure_3a_shows_the_five_models_of_the_paper_and_others_if_asked(paper: Paper) -> None:
    (panel,) = lines(paper.picture("fig3a", Asked()))
    assert [line.label for line in panel.lines] == ["Llama", "SWA 1:5", "Mamba", "Inter-H 1:5", "Intra-H 1:5"]
    assert panel.lines[0].y == (373, 214, 115, 60, 30)
    (panel,) = lines(paper.picture("fig3a", Asked(rows=("*",))))
    assert len(panel.lines) == 16
    assert len({line.look for line in panel.lines}) == 16
    with pytest.raises(ConfigError, match="did you mean Llama"):
        paper.picture("fig3a", Asked(rows=("LLama",)))


def test_figure_3b_is_computed_and_agrees_with_table_9(pictures: dict[str, Picture]) -> None:
    (panel,) = lines(pictures["fig3b"])
    at_8k = {line.label: line.y[line.x.index(8192)] for line in panel.lines}
    assert round(at_8k["Llama"]) == 256
    assert round(at_8k["Mamba"]) == 13
    assert "At 8K Table 9 prints 5 of these caches; 5 agree to the printed digit." in words(pictures["fig3b"])


def test_figure_2_has_the_flops_alone_and_says_what_is_not_printed(
    pictures: dict[str, Picture], composer: Composer
) -> None:
    (panel,) = pictures["fig2"].panels
    assert isinstance(panel, Intervals)
    sweeps = Sweeps(composer)
    for row in panel.rows:
        run = sweeps.run(Place(label=row.label, sweep="table2", row=row.label))
        assert row.mean == run_cost(run).paper_train_flops_per_sample
    assert "Step times and memory: not printed" in words(pictures["fig2"])


def test_positions_are_table_17(pictures: dict[str, Picture]) -> None:
    found = {panel.title: panel for panel in lines(pictures["positions"])}
    one = found["1B: one block, by its position"].lines[0]
    printed = [row for row in rows("17") if row["sizes"] == "1B" and row["pattern"] == "Single"]
    assert one.x == tuple(row["attn_idx"] for row in printed)
    assert one.y == tuple(float(row["dclm"]) for row in printed)
    several = found["350M: several blocks, by ratio"]
    assert {line.label for line in several.lines} == {"1:1", "1:3", "1:5"}
    assert [name for _, name in several.ticks] == ["front", "middle", "end"]
    assert {rule.label: rule.value for rule in found["1B: one block, by its position"].across} == {
        "Llama": 2.75,
        "Mamba": 2.758,
    }


def test_dimensions_are_table_20_by_the_share_of_the_width(pictures: dict[str, Picture]) -> None:
    at_1b, at_350m = lines(pictures["dimensions"])
    for panel, size in ((at_1b, "1B"), (at_350m, "350M")):
        printed = [row for row in rows("20") if row["sizes"] == size]
        shares = {float(Fraction(r["d_trans"], r["d_trans"] + r["d_mamba"])): float(r["dclm"]) for r in printed}
        assert dict(zip(panel.lines[0].x, panel.lines[0].y, strict=True)) == pytest.approx(shares)
        assert panel.lines[0].x == tuple(sorted(shares))
        assert panel.lines[0].names[0] == "0:1"


def test_every_measured_column_that_is_printed_may_be_drawn(paper: Paper) -> None:
    (panel,) = paper.picture("fig1b", Asked(metric="few_shot_accuracy_percent")).panels
    assert isinstance(panel, Points)
    assert panel.points[0].y == 52.0
    assert panel.y.better == "higher"
    assert "up to" in words(paper.picture("positions", Asked(metric="pg19_loss_nats")))
    lambada = paper.picture("positions", Asked(metric="lambada_accuracy_percent"))
    assert "Nothing printed tells how far runs of one model lie apart in LAMBADA %" in words(lambada)
    assert all(panel.noise is None for panel in lines(lambada))
    with pytest.raises(ConfigError, match="does not print it of"):
        paper.picture("window-positions", Asked(metric="lambada_accuracy_percent"))
    with pytest.raises(ConfigError, match="prints no such column"):
        paper.picture("fig1b", Asked(metric="loss"))
    with pytest.raises(ConfigError, match="shows no measure of quality"):
        paper.picture("fig3b", Asked(metric="val_loss_nats"))


@pytest.mark.parametrize("name", NOT_PRINTED)
def test_what_is_a_picture_in_the_paper_is_not_printed_and_says_what_of_ours_would_give_it(
    paper: Paper, name: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name}: paper: not printed") as error:
        paper.picture(name, Asked())
    assert "Of our own runs: " in str(error.value)


def test_the_figures_that_are_not_printed_are_those_without_a_table() -> None:
    assert NOT_PRINTED == ["fig3c", "fig4", "fig8"]


def test_every_figure_is_a_kind_of_a_sweep_that_there_is(repo: Path) -> None:
    for figure in FIGURES.values():
        assert figure.kind in KINDS
        assert (repo / "conf" / "sweep" / f"{figure.sweep}.yaml").is_file()


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("fig1b", "fig1b"),
        ("1b", "fig1b"),
        ("Figure 3a", "fig3a"),
        ("fig. 4", "fig4"),
        ("FIG_8", "fig8"),
        ("needle", "fig4"),
        ("position_loss", "fig3c"),
        ("dimensions", "dimensions"),
        ("fig3", None),
        ("12", None),
        ("demo", None),
    ],
)
def test_a_figure_is_known_by_what_a_reader_would_type(typed: str, name: str | None) -> None:
    assert figure_called(typed) == name


def test_no_sweep_is_taken_for_a_figure(repo: Path) -> None:
    sweeps = {path.stem for path in (repo / "conf" / "sweep").glob("*.yaml")} | set(LAYOUTS)
    assert not sweeps & {*names(), "all", "list"}
    assert not [sweep for sweep in sweeps if figure_called(sweep)]


def test_the_list_has_every_figure_and_every_name() -> None:
    listed = listing()
    assert all(name in listed for name in names())
    assert len(listed.splitlines()) == len(FIGURES) + 1


def test_every_number_of_a_printed_figure_is_finite_and_json(pictures: dict[str, Picture]) -> None:
    from analysis.figures.draw import as_json

    for picture in pictures.values():
        assert json.loads(as_json(picture))["name"] == picture.name
