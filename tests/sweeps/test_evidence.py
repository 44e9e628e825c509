"""What seeds can show: noise from records, the smallest difference, and what two rows would need."""

import math
import statistics
from typing import Any

import pytest

from hybrid.spec import ConfigError
from sweeps.evidence import Evidence, evidence, rows_of
from sweeps.plan_text import as_text
from sweeps.power import Noise, detectable_nats, seeds_to_separate

from .conftest import TINY, Planned, Planner

ROWS = "+sweep.rows={a:{optim.lr:1e-3},b:{optim.lr:2e-3},c:{optim.lr:3e-3}}"
KNOWN = ("plan.noise.sd_nats=0.01", "plan.noise.dof=8", "plan.noise.source=elsewhere")


def shown(planned: Planned, plan_of: Planner, metric: str | None = None) -> Evidence:
    (found,) = evidence(planned.plan, planned.settings, plan_of.store, metric)
    return found


def text_of(planned: Planned, found: Evidence) -> str:
    return as_text(planned.plan, planned.settings, [found], title="")


def test_noise_that_is_given_decides(plan_of: Planner) -> None:
    planned = plan_of(*TINY, ROWS, *KNOWN, "sweep.seeds=2")
    found = shown(planned, plan_of)
    noise = Noise(sd_nats=0.01, dof=8, source="elsewhere")
    assert found.noise == noise
    assert (found.seeds, found.pairs) == (2, 3)
    assert [d.seeds for d in found.detectable] == [1, 2, 3, 5]
    for d in found.detectable:
        assert d.two_rows_nats == detectable_nats(noise, d.seeds, alpha=0.05, power=0.8)
        assert d.any_pair_nats == detectable_nats(noise, d.seeds, alpha=0.05, power=0.8, comparisons=3)
    text = text_of(planned, found)
    assert "standard deviation 0.01 nats, degrees of freedom: 8 (elsewhere)" in text
    assert "2 (asked for)" in text


def test_noise_is_pooled_from_the_requests_own_finished_runs(plan_of: Planner, finish: Any) -> None:
    losses = {"a": [1.0, 1.2, 1.1], "b": [2.0, 2.3]}
    planned = plan_of(*TINY, ROWS, "sweep.seeds=3")
    for row in rows_of(planned.plan):
        for cell, loss in zip(row.cells, losses.get(row.label, []), strict=False):
            finish(cell.run, val_loss_nats=loss)
    finish(rows_of(planned.plan)[2].cells[0].run, status="diverged", val_loss_nats=9.0)
    planned = plan_of(*TINY, ROWS, "sweep.seeds=3")
    found = shown(planned, plan_of)
    assert found.noise is not None
    pooled = math.sqrt((2 * statistics.variance(losses["a"]) + statistics.variance(losses["b"])) / 3)
    assert found.noise.sd_nats == pytest.approx(pooled)
    assert found.noise.dof == 3
    assert "5 runs of 2 models" in found.noise.source
    # Two of the rows are compared: what they know of the noise, they bring to the comparison themselves.
    alone = Noise(sd_nats=found.noise.sd_nats, dof=0, source="")
    assert found.detectable[0].two_rows_nats == math.inf
    assert found.detectable[1].two_rows_nats == detectable_nats(alone, 3, alpha=0.05, power=0.8)


def test_noise_may_be_had_from_other_runs_of_the_same_data_and_length(plan_of: Planner, finish: Any) -> None:
    other = (*TINY, "optim.weight_decay=0.3", "sweep.seeds=[7,8]", "budget.tokens=6400,12800")
    short, long = ([cell.run for cell in row.cells] for row in rows_of(plan_of(*other).plan))
    for run, loss in zip(long, (1.0, 5.0), strict=True):
        finish(run, val_loss_nats=loss)
    unknown = shown(plan_of(*TINY, ROWS), plan_of)
    assert unknown.noise is None
    assert unknown.unknown is not None
    assert unknown.detectable == ()
    for run, loss in zip(short, (1.0, 1.02), strict=True):
        finish(run, val_loss_nats=loss)
    planned = plan_of(*TINY, ROWS)
    found = shown(planned, plan_of)
    assert found.noise is not None
    assert found.noise.sd_nats == pytest.approx(0.02 / math.sqrt(2))
    assert found.noise.dof == 1
    assert "other finished runs" in found.noise.source
    assert found.detectable[0].two_rows_nats == detectable_nats(found.noise, 1, alpha=0.05, power=0.8)


def test_two_rows_are_separated_by_the_seeds_that_it_takes(plan_of: Planner, finish: Any) -> None:
    arguments = ("+sweep=table4", "sweep.seeds=2", "plan.separate=[1:0,0:1]", "plan.difference_nats=0.004")
    planned = plan_of(*arguments)
    separation = shown(planned, plan_of).separation
    assert separation is not None
    noise = planned.settings.noise
    assert noise is not None
    seeds = seeds_to_separate(noise, 0.004, alpha=0.05, power=0.8)
    assert separation.seeds == seeds
    assert separation.runs == 2 * separation.seeds
    hours = [cell.hours(cell.spec.train_steps) for cell in planned.plan.cells[::2]]
    assert separation.hours == pytest.approx(separation.seeds * (hours[0] + hours[1]))
    finish(planned.plan.cells[0].run, val_loss_nats=2.0)
    less = shown(plan_of(*arguments), plan_of).separation
    assert less is not None
    assert (less.seeds, less.runs) == (separation.seeds, separation.runs - 1)
    assert less.hours == pytest.approx(separation.hours - hours[0])
    text = text_of(plan_of(*arguments), shown(plan_of(*arguments), plan_of))
    assert f"to separate '1:0' and '0:1', 0.004 nats apart: {seeds} seeds a row; not finished of these:" in text


def test_the_difference_is_that_of_finished_runs_unless_given(plan_of: Planner, finish: Any) -> None:
    arguments = (*TINY, ROWS, *KNOWN, "plan.separate=[a,b]")
    separation = shown(plan_of(*arguments), plan_of).separation
    assert separation is not None
    assert separation.obstacle is not None
    assert "plan.difference_nats" in separation.obstacle
    for cell, loss in zip(plan_of(*arguments).plan.cells, (1.0, 1.5), strict=False):
        finish(cell.run, val_loss_nats=loss)
    separation = shown(plan_of(*arguments), plan_of).separation
    assert separation is not None
    assert (separation.obstacle, separation.observed) == (None, True)
    assert separation.difference_nats == pytest.approx(0.5)
    assert separation.hours is None
    assert "in the finished runs" in text_of(plan_of(*arguments), shown(plan_of(*arguments), plan_of))


def test_rows_that_are_one_model_are_never_separated(plan_of: Planner) -> None:
    rows = "+sweep.rows={add:{model.intra.fusion:add},diff:{model.intra.fusion:diff},none:{model.intra.norm:none}}"
    arguments = ("scale=toy", "model=intra", "model.depth=2", "model.ratio=1:0", rows, *KNOWN)
    found = shown(plan_of(*arguments, "plan.separate=[add,diff]", "plan.difference_nats=1"), plan_of)
    assert found.separation is not None
    assert found.separation.obstacle == "never: they are one model by symmetry, and differ by chance alone"
    assert found.pairs == 1
    other = shown(plan_of(*arguments, "plan.separate=[add,none]", "plan.difference_nats=1"), plan_of).separation
    assert other is not None
    assert other.obstacle is None


def test_rows_too_near_each_other_are_not_separated(plan_of: Planner) -> None:
    near = (*TINY, ROWS, *KNOWN, "plan.separate=[a,b]", "plan.difference_nats=1e-7")
    separation = shown(plan_of(*near), plan_of).separation
    assert separation is not None
    assert separation.obstacle is not None
    assert separation.obstacle.startswith("too near")


@pytest.mark.parametrize(
    ("arguments", "metric"),
    [(("stop={metric:accuracy,threshold:0.9,every_tokens:640,examples:8}",), None), ((), "val_accuracy")],
)
def test_where_the_loss_is_not_what_counts_that_is_said(
    plan_of: Planner, arguments: tuple[str, ...], metric: str | None
) -> None:
    planned = plan_of(*TINY, ROWS, *KNOWN, *arguments)
    found = shown(planned, plan_of, metric)
    assert found.not_the_loss is not None
    assert found.noise is None
    assert "the loss is not what counts" in text_of(planned, found)


def test_one_row_has_nothing_to_compare_with(plan_of: Planner) -> None:
    planned = plan_of(*TINY, "sweep.seeds=3", *KNOWN)
    assert evidence(planned.plan, planned.settings, plan_of.store, None) == ()


def test_rows_that_are_not_there_are_named_all_at_once(plan_of: Planner) -> None:
    planned = plan_of("+sweep=table2", "plan.separate=[Lama,Mambo]")
    with pytest.raises(ConfigError) as caught:
        shown(planned, plan_of)
    first, second = caught.value.problems
    assert "Lama: no such row; did you mean Llama?" in first
    assert "Mambo: no such row; did you mean Mamba?" in second


def test_rows_of_a_grid_are_named_with_their_values(plan_of: Planner) -> None:
    planned = plan_of(*TINY, "optim.lr=1e-3,2e-3", "budget.tokens=640,1280", *KNOWN)
    found = evidence(planned.plan, planned.settings, plan_of.store, None)
    assert [group.pairs for group in found] == [1, 1]  # runs of one length are compared
    assert {row.label for row in rows_of(planned.plan)} >= {"lr=0.001/tokens=640", "lr=0.002/tokens=1280"}


def test_rows_are_compared_at_one_point_of_the_grid_with_the_noise_there(plan_of: Planner, finish: Any) -> None:
    arguments = (*TINY, ROWS, "budget.tokens=640,1280", "sweep.seeds=2")
    spread = {640: 0.02, 1280: 0.08}
    for row in rows_of(plan_of(*arguments).plan):
        for cell, sign in zip(row.cells, (-1, 1), strict=True):
            finish(cell.run, val_loss_nats=2 + sign * spread[cell.spec.train_tokens] / 2)
    planned = plan_of(*arguments)
    found = evidence(planned.plan, planned.settings, plan_of.store, None)
    assert [group.pairs for group in found] == [3, 3]
    noise = [group.noise for group in found]
    assert [n.sd_nats for n in noise if n] == [pytest.approx(x / math.sqrt(2)) for x in spread.values()]
    assert [n.dof for n in noise if n] == [3, 3]
    text = as_text(planned.plan, planned.settings, found, title="")
    assert text.count("of 'a/tokens=") == 2


def test_noise_is_that_of_each_cells_own_scale(plan_of: Planner) -> None:
    planned = plan_of("+sweep=table4", "sweep.only=[1:0,0:1]", "scale=350m,1b")
    found = evidence(planned.plan, planned.settings, plan_of.store, None)
    assert [group.noise.sd_nats for group in found if group.noise] == [0.0018, 0.0026]
    text = as_text(planned.plan, planned.settings, found, title="")
    assert "as given, wherever it was measured; these runs: 60B tokens," in text


def test_own_models_on_other_seeds_do_not_count_twice(plan_of: Planner, finish: Any) -> None:
    for row in rows_of(plan_of(*TINY, ROWS, "sweep.seeds=[7,8]").plan):
        for cell, loss in zip(row.cells, (1.0, 1.02), strict=True):
            finish(cell.run, val_loss_nats=loss)
    found = shown(plan_of(*TINY, ROWS, "sweep.seeds=[1]"), plan_of)
    assert found.noise is not None
    assert found.noise.dof == 3
    others = Noise(sd_nats=found.noise.sd_nats, dof=1, source="")
    assert found.detectable[0].two_rows_nats == detectable_nats(others, 1, alpha=0.05, power=0.8)
