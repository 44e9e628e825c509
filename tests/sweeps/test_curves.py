import json
import math
from pathlib import Path
from typing import Any

import pytest

from hybrid.spec import ConfigError
from sweeps.__main__ import main
from sweeps.curves import POINTS, Curve, Spike, curves, curves_json, curves_text, sparkline, spikes
from sweeps.store import Cell, Request, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def request(**seeds: int) -> Request:
    """Rows with so many seeds each."""
    cells = tuple(
        Cell(name=f"{row}/s{seed}", row=row, axes={}, seed=seed, run_id=run_of(row, seed))
        for row, n in seeds.items()
        for seed in range(1, n + 1)
    )
    return Request(sweep="s", overrides=(), created_at="2026-01-01", report={}, cells=cells)


def run_of(row: str, seed: int = 1) -> str:
    return f"{ord(row[0]):06x}{seed:06x}"


def line(step: int, loss: float, grad_norm: float = 1.0) -> dict[str, Any]:
    return {"step": step, "tokens": step * 100, "train_loss_nats": loss, "grad_norm": grad_norm, "wall_s": 1.0}


def train(store: Store, run_id: str, *lines: dict[str, Any]) -> None:
    """An attempt that ended with an error, so that nobody waits for its lease to run out."""
    attempt = store.claim(run_id, store.last_attempt(run_id))
    assert attempt is not None
    (attempt.directory / "error.json").write_text(json.dumps({"class": "code", "message": "as it was told"}))
    (attempt.directory / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))


def of(store: Store, asked: Request, against: str | None = None) -> dict[str, Curve]:
    return {curve.name: curve for curve in curves(store, asked, against)[0]}


def test_rows_are_compared_over_the_tokens_that_both_have_reached(store: Store) -> None:
    train(store, run_of("a"), *(line(step, 4 - step / 100) for step in range(1, 301)))
    train(store, run_of("b"), *(line(step, 3.5 - step / 100) for step in range(1, 101)))  # a third as far
    found = of(store, request(a=1, b=1))
    assert (found["a"].tokens[-1], found["b"].tokens[-1]) == (30_000, 10_000)
    assert found["a"].against_nats == ()
    assert found["b"].against_tokens[-1] == 10_000
    assert found["b"].against_nats == pytest.approx([-0.5] * POINTS)
    other = of(store, request(a=1, b=1), "b")
    assert other["a"].against_nats == pytest.approx([0.5] * POINTS)
    assert next(iter(other)) == "b"


def test_lines_that_are_logged_at_other_steps_are_compared_at_equal_tokens(store: Store) -> None:
    train(store, run_of("a"), *(line(step, 5 - step / 100) for step in range(1, 401)))
    train(store, run_of("b"), *(line(step, 5 - step / 100) for step in range(70, 401, 70)))
    differences = of(store, request(a=1, b=1))["b"].against_nats
    assert len(differences) == 33  # from the first line of the slower one
    assert max(map(abs, differences)) < 0.1


def test_seeds_are_averaged_with_their_spread_up_to_where_the_slowest_is(store: Store) -> None:
    train(store, run_of("a", 1), *(line(step, 2.0) for step in range(1, 101)))
    train(store, run_of("a", 2), *(line(step, 4.0) for step in range(1, 81)))
    curve = of(store, request(a=2))["a"]
    assert (curve.seeds, curve.tokens[-1]) == (2, 8_000)
    assert curve.loss_nats == (3.0,) * POINTS
    assert curve.spread_nats == pytest.approx([math.sqrt(2)] * POINTS)


def test_seeds_that_are_an_axis_of_a_grid_are_averaged_too(store: Store) -> None:
    cells = tuple(
        Cell(
            name=f"{rate}/{seed}",
            row="",
            axes={"optim.lr": rate, "init_seed": seed},
            seed=None,
            run_id=run_of(rate, seed),
        )
        for rate in ("1e-3", "2e-3")
        for seed in (1, 2)
    )
    for cell in cells:
        train(store, cell.run_id or "", line(1, 2.0), line(2, 1.0))
    asked = Request(sweep="own", overrides=(), created_at="", report={}, cells=cells)
    assert {curve.name: curve.seeds for curve in curves(store, asked)[0]} == {"lr=1e-3": 2, "lr=2e-3": 2}


def test_resumed_attempts_are_one_curve(store: Store) -> None:
    train(store, run_of("a"), *(line(step, 9.0) for step in range(1, 51)))
    train(store, run_of("a"), {"resumed_at_step": 20, "of_attempt": 1}, *(line(step, 1.0) for step in range(21, 41)))
    curve = of(store, request(a=1))["a"]
    assert (curve.tokens[-1], curve.loss_nats[0], curve.loss_nats[-1]) == (4_000, 9.0, 1.0)


def test_rows_that_have_not_begun_are_left_out_and_a_baseline_that_has_not_is_said(store: Store) -> None:
    assert curves_text(*curves(store, request(a=1, b=1))) == "no run has a line of metrics yet"
    train(store, run_of("b"), line(1, 2.0), line(2, 1.0))
    text = curves_text(*curves(store, request(a=1, b=1)))
    assert "a, the baseline, has no line of metrics yet" in text
    assert text.splitlines()[2].split()[:2] == ["b", "1"]


def test_an_unknown_baseline_is_refused_with_the_rows_that_there_are(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"--against lama: no such row; did you mean llama"):
        curves(store, request(llama=1, mamba=1), "lama")


def losses_with(**at: float) -> list[float]:
    calm = [3.0 + 0.01 * (step % 3) for step in range(60)]
    for key, loss in at.items():
        calm[int(key[1:])] = loss
    return calm


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        (losses_with(), []),
        (losses_with(s30=3.15), []),  # beyond the spread, and too small to matter
        (losses_with(s30=3.5), [30]),
        (losses_with(s30=3.5, s31=5.0, s32=4.0), [30]),  # neighbours are one
        (losses_with(s30=3.5, s40=4.5), [30, 40]),
        (losses_with(s30=math.nan), [30]),
        (losses_with(s2=9.0), []),  # nothing to compare with yet
        ([5.0 - step / 20 for step in range(60)], []),  # falling
        ([4.0 - step / 100 if step != 55 else 4.05 for step in range(60)], [55]),  # above its neighbours alone
        ([3.0] * 20 + [4.0] * 40, [20]),  # up, and it stays there
        ([3.0 + 0.5 * (step % 2) for step in range(30)], []),  # noise of its own size
    ],
)
def test_a_spike_is_far_above_the_median_of_the_lines_before(losses: list[float], steps: list[int]) -> None:
    assert [spike.step for spike in spikes("r", list(range(60)), losses[:60] + [3.0] * (60 - len(losses)))] == steps


def test_spikes_are_named_with_their_run_and_how_far_above(store: Store) -> None:
    train(
        store, run_of("a"), *(line(step, 8.0 if step == 50 else 3.0, 40.0 if step == 50 else 1.0) for step in range(99))
    )
    found, baseline = curves(store, request(a=1))
    assert found[0].spikes == (Spike(run="a/s1", step=50, above_nats=5.0),)
    assert (found[0].grad_norm_median, found[0].grad_norm_max) == (1.0, 40.0)
    assert "a/s1: spikes at steps 50 (+5.00)" in curves_text(found, baseline)


def test_json_has_no_number_that_json_does_not_have(store: Store) -> None:
    train(store, run_of("a"), line(1, 2.0), line(2, math.nan, math.inf))
    said = json.loads(curves_json(*curves(store, request(a=1))), parse_constant=pytest.fail)
    assert said["curves"][0]["spikes"] == [{"run": "a/s1", "step": 2, "above_nats": None}]
    assert said["against"] == "a"


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([1.0], "▁"), ([2.0, 1.0, 1.5], "█▁▅"), ([1.0, math.nan, 2.0], "▁×█"), ([3.0, 3.0], "▁▁")],
)
def test_a_sparkline_reaches_from_its_least_to_its_greatest(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars


def test_the_command_prints_curves_and_its_help_says_what_a_spike_is(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.publish_request(request(a=1, b=1))
    for row in ("a", "b"):
        train(store, run_of(row), *(line(step, 3.0) for step in range(1, 50)))
    assert main(["curves", "s", "--against", "b", "--store", str(store.root)]) == 0
    text = capsys.readouterr().out
    assert [row.split()[0] for row in text.splitlines()[2:]] == ["b", "a"]
    assert max(map(len, text.splitlines())) <= 160
    assert main(["curves", "s", "--against", "b", "--watch", "0.1", "--store", str(store.root)]) == 0
    assert text in capsys.readouterr().out, "nothing is queued or running: once is enough"
    with pytest.raises(SystemExit):
        main(["curves", "--help"])
    assert "times their spread" in " ".join(capsys.readouterr().out.split())
