"""Every kind of figure of a request, from records made up for it; and what is said where nothing is recorded."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from analysis import stats
from analysis.__main__ import main
from analysis.claims.unequal import fraction_of, implementation_bound
from analysis.figures.command import COSTS, FORMATS
from analysis.figures.command import KINDS as NAMED_KINDS
from analysis.figures.draw import FORMATS as DRAWN
from analysis.figures.kinds import KINDS, default_kind
from analysis.figures.numbers import COST_AXES
from analysis.figures.ours import Asked, Ours
from analysis.figures.picture import HeatMap, Intervals, Lines, Picture, Points
from analysis.load import Results, load
from analysis.render import render
from analysis.tables import build_tables
from hybrid.spec import ConfigError
from sweeps.identity import run_id
from sweeps.index import Index

LENGTHS = (32, 64, 128, 256)
ROWS = {"Llama": "AAAA", "Mamba": "MMM", "Inter-H 1:1": "MAMA", "Inter-H 1:3": "MMMA"}


def evaluate(book: Any, spec: Any, kind: str, metrics: dict[str, Any]) -> None:
    identity = run_id(spec)
    record = {"schema": 1, "run_id": identity, "eval": {"kind": kind}, "metrics": metrics, "provenance": {}}
    book.store.publish_eval_record(identity, (kind.encode().hex() + "0" * 12)[:12], record)


@pytest.fixture
def evaluated(book: Any) -> Any:
    """Four rows of two seeds, with all that evaluations may record."""
    for i, (row, layout) in enumerate(ROWS.items()):
        for seed in (1, 2):
            spec = book.spec(layout, seed, probe=False)
            book.cell(spec, row, seed)
            speed = 300.0 * (i + 1) + seed
            book.record(spec, val_loss_nats=1.5 - 0.01 * i + 0.001 * seed, tokens_per_s=1000.0 * (i + 1) + seed)
            evaluate(
                book,
                spec,
                "throughput",
                {f"decode_tokens_per_s_at_{n}": speed * (32 / n) ** (0.3 * (3 - i)) for n in LENGTHS}
                | {"decode_tokens_per_s": speed},
            )
            places = [16 * k + 8 for k in range(12)]
            evaluate(
                book,
                spec,
                "position",
                {
                    "positions": places,
                    "bin_loss_nats": [
                        1.4 + 2 / (1 + p) ** 0.5 + (0.002 * (p - 64) * (3 - i) / 3 if p > 64 else 0) + 0.01 * seed
                        for p in places
                    ],
                },
            )
            grid = [
                [max(0.0, 100.0 - abs(d - 50) * 0.2 * i - max(0, n - 64) * (0.5 + 0.1 * i)) for n in range(16, 129, 16)]
                for d in range(0, 101, 10)
            ]
            if (row, seed) == ("Mamba", 1):
                grid[3][2] = math.nan
            evaluate(
                book,
                spec,
                "needle",
                {
                    "lengths": list(range(16, 129, 16)),
                    "depths_percent": list(range(0, 101, 10)),
                    "accuracy_percent": grid,
                },
            )
            if layout == "MAMA":
                weights = {"gated_blocks": [2, 4], "attention_weight": [0.4 + 0.02 * seed, 0.7]}
                evaluate(book, spec, "module_weights", weights)
    book.request("demo_text", report={"title": "Bytes"})
    return book


def ours(store: Any, **asked: Any) -> Ours:
    results = load(store, store.requests()[-1])
    return Ours(results=results, read=lambda _: store.metrics, asked=Asked(**asked))


def made(book: Any, kind: str, **asked: Any) -> Picture:
    return KINDS[kind].make(ours(book.store, **asked))


def words(picture: Picture) -> str:
    return " ".join(picture.caption)


def only(picture: Picture, kind: type) -> Any:
    (panel,) = [panel for panel in picture.panels if isinstance(panel, kind)]
    return panel


def test_the_names_of_the_command_are_those_there_are() -> None:
    assert tuple(KINDS) == NAMED_KINDS
    assert tuple(axis.name for axis in COST_AXES) == COSTS
    assert FORMATS == DRAWN


def test_final_values_have_the_intervals_of_the_table(evaluated: Any) -> None:
    results = load(evaluated.store, evaluated.store.requests()[0])
    pooling = stats.pool([group.numbers("val_loss_nats") for group in results.groups])
    panel = only(made(evaluated, "final"), Intervals)
    assert [row.label for row in panel.rows] == [f"{row} (n = 2)" for row in reversed(ROWS)]
    for row, group in zip(panel.rows, reversed(results.groups), strict=True):
        mean = stats.estimate(group.numbers("val_loss_nats"), pooling)
        assert mean is not None
        assert (row.mean, row.low, row.high) == (mean.mean, mean.low, mean.high)
        assert list(row.values) == group.numbers("val_loss_nats")


def test_the_spread_is_that_of_the_whole_request_whichever_rows_are_drawn(evaluated: Any) -> None:
    every = {row.label: row for row in only(made(evaluated, "final"), Intervals).rows}
    few = only(made(evaluated, "final", rows=("Inter-H *",)), Intervals).rows
    assert [row.label for row in few] == ["Inter-H 1:3 (n = 2)", "Inter-H 1:1 (n = 2)"]
    assert all(every[row.label] == row for row in few)


def test_speed_is_read_at_every_length_that_is_recorded(evaluated: Any) -> None:
    panel = only(made(evaluated, "throughput"), Lines)
    line = panel.lines[0]
    assert line.x == LENGTHS
    assert line.y[0] == pytest.approx(301.5)
    assert (line.low[0], line.high[0]) == (301, 302)
    assert line.n == 2


def test_quality_against_throughput_joins_the_ratios_of_a_kind_and_marks_the_front(evaluated: Any) -> None:
    panel = only(made(evaluated, "quality-throughput"), Points)
    assert [(point.family, point.label) for point in panel.points] == [
        ("Llama", "Llama"),
        ("Mamba", "Mamba"),
        ("Inter-H", "1:1"),
        ("Inter-H", "1:3"),
    ]
    assert panel.joined == ((0,), (1,), (2, 3))
    assert panel.front == (3,)
    last = panel.points[3]
    assert last.low is not None
    assert last.low < last.y < (last.high or 0)
    assert (last.x_low, last.x_high) == (1201, 1202)


def test_like_caches_and_unlike_speeds_are_said_to_compare_implementations(
    book: Any,
) -> None:
    for row, layout, speed in (("one", "AMAM", 100.0), ("two", "MAMA", 900.0)):
        spec = book.spec(layout, 1, probe=False)
        book.cell(spec, row, 1)
        book.record(spec, val_loss_nats=1.0)
        evaluate(book, spec, "throughput", {"decode_tokens_per_s_at_2048": speed})
    book.request("demo_text")
    assert "implementations measured, which are unequal: one, whose cache is" in words(made(book, "throughput"))
    assert "9.0 times as fast; what they move and compute would allow 1.00 times" in words(made(book, "throughput"))


@pytest.mark.parametrize(("shares", "marked"), [((0.1, 0.21), True), ((0.1, 0.19), False), ((0.3, 0.1), True)])
def test_shares_of_the_roofline_that_differ_by_more_than_two_are_marked(
    book: Any, shares: tuple[float, float], marked: bool
) -> None:
    """In figures and in tables alike; and where the shares are alike, twins that are unequal are not sought."""
    for row, layout, speed, share in (("one", "AMAM", 100.0, shares[0]), ("two", "MAMA", 900.0, shares[1])):
        spec = book.spec(layout, 1, probe=False)
        book.cell(spec, row, 1)
        book.record(spec, val_loss_nats=1.0)
        metrics = {"decode_tokens_per_s_at_2048": speed, "decode_roofline_fraction_at_2048": share}
        metrics |= {"decode_tokens_per_s": speed, "decode_roofline_fraction": share, "train_roofline_fraction": share}
        evaluate(book, spec, "throughput", metrics)
    book.request("demo_text")
    results = load(book.store, book.store.requests()[-1])
    slow, fast = ("one", "two") if shares[0] < shares[1] else ("two", "one")
    times = max(shares) / min(shares)
    said = f"implementation-bound: decoding to 2K tokens, {slow} reaches 10% of its roofline and {fast}"
    for kind in ("throughput", "quality-throughput"):
        caption = words(made(book, kind))
        assert (said in caption) is marked
        assert (f"{times:.1f} times as much" in caption) is marked
        assert "unequal" not in caption
    assert (f"implementation-bound: training, {slow} reaches 10%" in words(made(book, "training-cost"))) is marked
    table = render(build_tables(results, "decode_tokens_per_s"), "markdown")
    assert "of roofline" in table
    assert ("implementation-bound: in decoding tokens/s" in table) is marked
    assert "implementation-bound" not in render(build_tables(results, "val_loss_nats"), "markdown")


def test_one_share_alone_or_none_marks_nothing() -> None:
    assert implementation_bound("so", {}) is None
    assert implementation_bound("so", {"one": 0.001}) is None
    assert implementation_bound("so", {"one": 0.0, "two": 0.5}) is None
    assert implementation_bound("so", {"one": 0.2, "two": 0.4}) is None
    bound = implementation_bound("so", {"one": 0.2, "two": 0.41, "three": 0.3})
    assert bound is not None
    assert (bound.low, bound.high) == ("one", "two")
    assert fraction_of("throughput.prefill_tokens_per_s") == "throughput.prefill_roofline_fraction"
    assert fraction_of("decode_tokens_per_s_at_512") == "decode_roofline_fraction_at_512"
    assert fraction_of("tokens_per_s") is None


def test_losses_by_position_have_a_band_over_seeds_and_the_training_length(evaluated: Any) -> None:
    panel = only(made(evaluated, "position-loss"), Lines)
    assert [line.label for line in panel.lines] == list(ROWS)
    assert all(
        high - low == pytest.approx(0.01) for low, high in zip(panel.lines[0].low, panel.lines[0].high, strict=True)
    )
    assert [rule.value for rule in panel.upright] == [64]


def test_needles_are_a_mean_over_seeds_with_a_map_a_row(evaluated: Any) -> None:
    picture = made(evaluated, "needle")
    maps = [panel for panel in picture.panels if isinstance(panel, HeatMap)]
    assert [panel.title for panel in maps] == [f"{row} (n = 2)" for row in ROWS]
    assert (len(maps[0].values), len(maps[0].values[0])) == (11, 8)
    # One seed of it is NaN: the other one is drawn.
    assert maps[1].values[3][2] == pytest.approx(96.0)
    assert {(panel.low, panel.high) for panel in maps} == {(0, 100)}


def test_needles_that_no_seed_has_stay_empty(book: Any) -> None:
    spec = book.spec("AAAA", 1, probe=False)
    book.cell(spec, "a", 1)
    book.record(spec, val_loss_nats=1.0)
    grid = {"lengths": [1, 2], "depths_percent": [0], "accuracy_percent": [[None, 50.0]]}
    evaluate(book, spec, "needle", grid)
    book.request("demo_text")
    picture = made(book, "needle")
    assert only(picture, HeatMap).values == ((None, 50.0),)
    assert "Crossed out: not recorded." in picture.caption
    assert "Dashed: the training length." not in picture.caption, "it is longer than any needle's"
    assert not only(picture, HeatMap).upright


def test_needles_at_other_lengths_are_left_out_and_counted(book: Any) -> None:
    for seed in (1, 2):
        spec = book.spec("AAAA", seed, probe=False)
        book.cell(spec, "a", seed)
        book.record(spec, val_loss_nats=1.0)
        grid = {"lengths": [1, 1 + seed], "depths_percent": [0], "accuracy_percent": [[40.0 * seed, 50.0]]}
        evaluate(book, spec, "needle", grid)
    book.request("demo_text")
    picture = made(book, "needle")
    assert only(picture, HeatMap).values == ((40.0, 50.0),)
    assert "Not drawn: 1 run with other lengths or depths." in picture.caption


def test_weights_of_modules_are_drawn_of_the_rows_that_have_gates(evaluated: Any) -> None:
    picture = made(evaluated, "weights")
    (line,) = only(picture, Lines).lines
    assert (line.label, line.x) == ("Inter-H 1:1", (2, 4))
    assert line.y == pytest.approx((0.43, 0.7))
    assert "have no recorded weights of modules: Llama, Mamba, Inter-H 1:3" in words(picture)


def test_an_index_gives_the_same_figures_as_the_store(evaluated: Any) -> None:
    request = evaluated.store.requests()[0]
    index = Index(evaluated.store)
    for kind in ("throughput", "position-loss", "needle", "weights", "quality-throughput", "pareto", "final", "cache"):
        indexed = Ours(results=load(index, request), read=lambda _: evaluated.store.metrics, asked=Asked())
        assert KINDS[kind].make(indexed) == made(evaluated, kind)


def test_caches_are_those_of_the_cost_formulas_and_need_no_finished_run(book: Any) -> None:
    spec = book.spec("MAMA", 1, probe=False)
    book.cell(spec, "a", 1)
    book.store.publish_spec(spec)
    book.request("demo_text")
    results = load(book.store, book.store.requests()[0])
    panel = only(made(book, "cache"), Lines)
    at = panel.lines[0].x.index(spec.seq_len)
    assert panel.lines[0].y[at] * 2**20 == results.groups[0].cost("paper_cache_bytes")


def test_training_cost_is_of_one_device_and_says_what_is_left_out(evaluated: Any) -> None:
    spec = evaluated.spec("AAAA", 3, probe=False)
    path = evaluated.store.record_path(evaluated.record(spec, val_loss_nats=1.5, tokens_per_s=9e9))
    record = json.loads(path.read_text())
    record["provenance"]["device_name"] = "another"
    path.write_text(json.dumps(record))
    for i, (row, layout) in enumerate(ROWS.items()):
        for seed in (1, 2, 3) if not i else (1, 2):
            evaluated.cell(evaluated.spec(layout, seed, probe=False), row, seed)
    evaluated.request("demo_text", created_at="2026-11-21T10:00:00+00:00")
    picture = made(evaluated, "training-cost")
    flops, speed = [panel for panel in picture.panels if isinstance(panel, Intervals)]
    assert [row.n for row in speed.rows] == [2, 2, 2, 2]
    assert max(max(row.values) for row in speed.rows) < 9e9
    assert "1 run on other devices" in words(picture)
    assert "Not recorded: peak memory." in words(picture)
    assert all(row.low is None for row in flops.rows)


def test_placements_are_read_off_the_names_of_the_papers_rows(book: Any) -> None:
    losses = {"1:3 at 1": [1.6, 1.61], "1:3 at 3": [1.5, 1.51], "1:1 front": [1.55, 1.56], "1:1 end": [1.5, 1.5]}
    for (row, values), layout in zip(losses.items(), ("AMMM", "MMAM", "AMAM", "MAMA"), strict=True):
        book.losses(row, layout, values)
    book.request("placement")
    picture = made(book, "positions")
    single, several = [panel for panel in picture.panels if isinstance(panel, Lines)]
    assert (single.lines[0].x, single.lines[0].y) == ((1, 3), pytest.approx((1.605, 1.505)))
    assert single.lines[0].low
    assert [name for _, name in several.ticks] == ["front", "end"]
    assert "Means with 95% intervals" in words(picture)


def test_dimensions_are_by_the_share_of_the_width_that_is_attentions(book: Any) -> None:
    book.losses("1:0", "AAAA", [1.5, 1.51])
    book.losses("0:1", "MMM", [1.6, 1.61])
    book.request("dims")
    (line,) = only(made(book, "dimensions"), Lines).lines
    assert (line.x, line.names) == ((0.0, 1.0), ("0:1", "1:0"))
    assert line.y == pytest.approx((1.605, 1.505))


def test_one_seed_has_no_spread(book: Any) -> None:
    for i, layout in enumerate(("AAAA", "MMM")):
        book.losses(f"row {i}", layout, [1.5 + i])
    book.request("demo_text")
    for kind in ("curves", "final", "pareto"):
        picture = made(book, kind)
        assert "One seed a row: no interval." in words(picture), kind
        for panel in picture.panels:
            if isinstance(panel, Lines):
                assert all(not line.low for line in panel.lines)
            if isinstance(panel, Intervals):
                assert all(row.low is None for row in panel.rows)
            if isinstance(panel, Points):
                assert all(point.low is None for point in panel.points)


def test_a_nan_metric_is_in_no_mean_and_the_caption_names_the_run(book: Any) -> None:
    book.losses("a", "AAAA", [1.5, 1.6, 1.7])
    book.losses("b", "MMM", [1.4, 1.5])
    spec = book.spec("MMM", 3, probe=False)
    book.cell(spec, "b", 3)
    book.record(spec, val_loss_nats=math.nan)
    book.request("demo_text")
    for kind in ("final", "pareto"):
        picture = made(book, kind)
        assert "1 run is done without a finite val loss (nats), and in no mean: b/s3." in words(picture)
    best, _ = only(made(book, "final"), Intervals).rows
    assert (best.label, best.mean) == ("b (n = 2)", pytest.approx(1.45))


def test_runs_that_are_not_there_are_counted_in_every_caption(text: Any) -> None:
    for kind in ("curves", "final", "pareto", "training-cost"):
        assert "Not drawn: 1 run that diverged or have no result." in words(made(text, kind)), kind


def test_a_nan_in_a_curve_is_left_out_of_it(text: Any) -> None:
    results = load(text.store, text.store.requests()[0])
    broken = results.groups[0].done[0].run_id

    def metrics(run_id: str) -> list[Any]:
        lines = list(text.store.metrics(run_id))
        return [*lines[:-1], {**lines[-1], "val_loss_nats": math.nan}] if run_id == broken else lines

    picture = KINDS["curves"].make(Ours(results=results, read=lambda _: metrics, asked=Asked()))
    line = only(picture, Lines).lines[0]
    assert len(line.x) == len(only(made(text, "curves"), Lines).lines[0].x) - 1
    assert all(map(math.isfinite, (*line.y, *line.low, *line.high)))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("throughput", "decode_tokens_per_s_at_<length>"),
        ("quality-throughput", "mode=eval evals=[throughput] would"),
        ("position-loss", "mode=eval evals=[position] would"),
        ("needle", "mode=eval evals=[needle] would"),
        ("weights", "mode=eval records it of models with gated intra-hybrid blocks"),
        ("survival", "is no probe"),
        ("positions", "such as `1:12 at 7`"),
    ],
)
def test_what_nobody_recorded_is_named_with_what_would_record_it(text: Any, kind: str, said: str) -> None:
    with pytest.raises(ConfigError, match="demo_text") as error:
        made(text, kind)
    assert said in str(error.value)


def test_without_any_result_there_is_nothing_to_draw(book: Any) -> None:
    book.cell(book.spec("AAAA", 1, probe=False), "a", 1)
    book.request("demo_text")
    for kind in KINDS:
        with pytest.raises(ConfigError):
            made(book, kind)


def test_a_row_that_there_is_not_is_an_error_with_those_there_are(text: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean llama"):
        made(text, "final", rows=("lama",))


def test_a_figure_that_a_sweep_asks_for_is_drawn_or_refused(text: Any) -> None:
    results = load(text.store, text.store.requests()[0])

    def asking(figure: Any) -> Results:
        from dataclasses import replace

        return replace(results, report={"figure": figure})

    assert default_kind(asking("final")) == "final"
    assert default_kind(asking(True)) == "curves"
    with pytest.raises(ConfigError, match="did you mean curves"):
        default_kind(asking("curve"))


def test_runs_that_logged_nothing_while_they_trained_are_drawn_by_their_final_losses(book: Any, tmp_path: Path) -> None:
    spec = book.spec("AAAA", 1, probe=False)
    book.cell(spec, "a", 1)
    book.record(spec, val_loss_nats=1.0)
    book.request("demo_text")
    arguments = ["figures", "demo_text", "--store", str(book.store.root), "--out", str(tmp_path), "--format", "json"]
    assert main(arguments) == 0
    content = json.loads((tmp_path / "figure.json").read_text())
    assert content["name"] == "final"
    assert content["panels"][0]["rows"][0]["mean"] == 1.0
