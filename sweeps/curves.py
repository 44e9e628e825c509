"""`sweeps curves`: training losses of rows at equal tokens against a baseline's, of live and finished runs alike.

Runs of one row that differ only in their seeds are averaged; others, such as those of a grid, are lines of their own.
A difference is taken over the tokens that both lines have reached, never beyond.
"""

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import Any, Final

from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError
from sweeps.identity import cell_name, short_keys
from sweeps.store import Cell, Request, Store, StoreError
from sweeps.text import amount, table
from sweeps.tune import choose, settle

POINTS: Final = 40
"""Of a sparkline, and of what is compared."""

SPIKE_WINDOW: Final = 20
SPIKE_LEAST: Final = 5
SPIKE_SIGMAS: Final = 6.0
SPIKE_NATS: Final = 0.2
SPIKE_RULE: Final = (
    f"A line is a spike where its training loss is above the median of the {SPIKE_WINDOW} lines before it (at least "
    f"{SPIKE_LEAST}) by more than {SPIKE_NATS:g} nats and by more than {SPIKE_SIGMAS:g} times their spread (1.25 times "
    "the mean distance from that median), or is no number. Neighbouring such lines are one spike, named by its first "
    "step."
)

_BARS = "▁▂▃▄▅▆▇█"
_NAMED = 4
_SEEDS = ("init_seed", "data_seed")
"""Settings that make the runs of a grid seeds of one another."""


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A loss far above those before it: the run, the first step, and how far above, in nats (infinity: no number)."""

    run: str
    step: int
    above_nats: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The training loss of one row's runs, seeds averaged.

    `tokens` are equally spaced up to what the slowest seed has reached, and `loss_nats` the losses there, each the mean
    over the lines since the point before; `spread_nats` the standard deviation over seeds, None with fewer than two.
    `against_nats` are the differences from the baseline's loss where all have lines, empty for the baseline.
    """

    name: str
    seeds: int
    tokens: tuple[float, ...]
    loss_nats: tuple[float, ...]
    spread_nats: tuple[float | None, ...]
    grad_norm_median: float | None
    grad_norm_max: float | None
    spikes: tuple[Spike, ...]
    against_tokens: tuple[float, ...] = ()
    against_nats: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run's lines: tokens ascending, losses, gradient norms."""

    name: str
    steps: list[int]
    tokens: list[float]
    losses: list[float]
    grad_norms: list[float]


def curves(store: Store, request: Request, against: str | None = None) -> tuple[list[Curve], str]:
    """The curves of a request, those that have begun, and the baseline's name; `against` is a row or the name of one.

    Raises ConfigError where there is no such row.
    """
    groups: dict[str, list[Cell]] = {}
    settled = settle(request, choose(request, store)).cells
    shorts = short_keys(sorted({key for cell in settled for key in cell.axes}))
    for cell in settled:
        axes = {key: value for key, value in cell.axes.items() if key not in _SEEDS}
        groups.setdefault(cell_name(cell.row, axes, None, shorts), []).append(cell)
    baseline = _baseline(groups, against)
    runs = {name: _runs(store, cells) for name, cells in groups.items()}
    found = [_curve(name, of, runs[baseline]) for name, of in runs.items() if of]
    found.sort(key=lambda curve: curve.name != baseline)
    return [curve if curve.name != baseline else _without_difference(curve) for curve in found], baseline


def _baseline(groups: Mapping[str, Sequence[Cell]], against: str | None) -> str:
    if against is None:
        return next(iter(groups))
    if against in groups:
        return against
    of_row = [name for name, cells in groups.items() if cells[0].row == against]
    if len(of_row) == 1:
        return of_row[0]
    if of_row:
        raise ConfigError(f"--against {against}: several: expected one of {', '.join(of_row)}")
    raise ConfigError(f"--against {against}: no such row{did_you_mean(against, groups)}")


def _runs(store: Store, cells: Sequence[Cell]) -> list[_Run]:
    """Those that have at least one line."""
    found = []
    for cell in cells:
        if cell.run_id is None:
            continue
        try:
            lines = [line for line in store.metrics(cell.run_id) if "train_loss_nats" in line]
        except StoreError:
            continue
        if lines:
            found.append(
                _Run(
                    name=cell.name,
                    steps=[int(line["step"]) for line in lines],
                    tokens=[float(line["tokens"]) for line in lines],
                    losses=[_number(line["train_loss_nats"]) for line in lines],
                    grad_norms=[float(g) for line in lines if (g := line.get("grad_norm")) is not None],
                )
            )
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _curve(name: str, runs: Sequence[_Run], baseline: Sequence[_Run]) -> Curve:
    reached = min(run.tokens[-1] for run in runs)
    points = [reached * (i + 1) / POINTS for i in range(POINTS)]
    by_run = [_at(run, points) for run in runs]
    means = [fmean(losses) for losses in zip(*by_run, strict=True)]
    spreads = [stdev(losses) if len(losses) > 1 else None for losses in zip(*by_run, strict=True)]
    norms = [norm for run in runs for norm in run.grad_norms if math.isfinite(norm)]
    shared = min([reached, *(run.tokens[-1] for run in baseline)]) if baseline else 0.0
    begun = max(run.tokens[0] for run in (*runs, *baseline))
    # Before its first line nobody knows a run's loss; at the last point everybody does.
    shared_points = [p for i in range(POINTS) if (p := shared * (i + 1) / POINTS) >= begun] if shared else []
    ours = [fmean(losses) for losses in zip(*(_at(run, shared_points) for run in runs), strict=True)]
    theirs = [fmean(losses) for losses in zip(*(_at(run, shared_points) for run in baseline), strict=True)]
    return Curve(
        name=name,
        seeds=len(runs),
        tokens=tuple(points),
        loss_nats=tuple(means),
        spread_nats=tuple(spreads),
        grad_norm_median=median(norms) if norms else None,
        grad_norm_max=max(norms, default=None),
        spikes=tuple(spike for run in runs for spike in spikes(run.name, run.steps, run.losses)),
        against_tokens=tuple(shared_points),
        against_nats=tuple(a - b for a, b in zip(ours, theirs, strict=True)) if theirs else (),
    )


def _without_difference(curve: Curve) -> Curve:
    return Curve(**{**vars(curve), "against_tokens": (), "against_nats": ()})


def _at(run: _Run, points: Sequence[float]) -> list[float]:
    """The loss at each point: the mean of the lines since the point before; with none there, on the line between its
    neighbours."""
    spacing = points[1] - points[0] if len(points) > 1 else math.inf
    found, begin = [], bisect.bisect_right(run.tokens, points[0] - spacing) if points else 0
    for point in points:
        end = bisect.bisect_right(run.tokens, point)
        within = [loss for loss in run.losses[begin:end] if math.isfinite(loss)]
        found.append(fmean(within) if within else _between(run, point, end))
        begin = max(begin, end)
    return found


def _between(run: _Run, point: float, end: int) -> float:
    """On the line from line `end` - 1 to line `end`; at the edges the nearest."""
    if end == 0 or end == len(run.tokens):
        return run.losses[min(end, len(run.tokens) - 1)]
    before, after = run.tokens[end - 1], run.tokens[end]
    share = (point - before) / (after - before)
    return run.losses[end - 1] * (1 - share) + run.losses[end] * share


def spikes(name: str, steps: Sequence[int], losses: Sequence[float]) -> list[Spike]:
    """By `SPIKE_RULE`. Losses of spikes are left out of the medians after them."""
    found: list[Spike] = []
    calm: list[float] = []
    within = False
    for step, loss in zip(steps, losses, strict=True):
        above = _above(loss, calm[-SPIKE_WINDOW:])
        if above is None:
            calm.append(loss)
        elif not within:
            found.append(Spike(run=name, step=step, above_nats=above))
        within = above is not None
    return found


def _above(loss: float, before: Sequence[float]) -> float | None:
    """How far a loss is above those before it, where that makes it a spike."""
    if not math.isfinite(loss):
        return math.inf
    if len(before) < SPIKE_LEAST:
        return None
    middle = median(before)
    spread = 1.25 * fmean(abs(other - middle) for other in before)
    above = loss - middle
    return above if above > max(SPIKE_NATS, SPIKE_SIGMAS * spread) else None


# --- as text ------------------------------------------------------------------------------------


def curves_text(found: Sequence[Curve], baseline: str) -> str:
    """One line a row, the baseline's first, and the spikes below."""
    if not found:
        return "no run has a line of metrics yet"
    has_baseline = found[0].name == baseline
    header = ["row", "seeds", "tokens", "loss", "spread", f"- {_short(baseline)}", "at tokens", "gradient", "max"]
    header += ["spikes", "loss over its tokens"]
    rows = []
    for curve in found:
        spread = curve.spread_nats[-1]
        rows.append(
            [
                _short(curve.name),
                str(curve.seeds),
                amount(curve.tokens[-1]),
                f"{curve.loss_nats[-1]:.4f}",
                "-" if spread is None else f"{spread:.4f}",
                f"{curve.against_nats[-1]:+.4f}" if curve.against_nats else "-",
                amount(curve.against_tokens[-1]) if curve.against_tokens else "-",
                "-" if curve.grad_norm_median is None else f"{curve.grad_norm_median:.3g}",
                "-" if curve.grad_norm_max is None else f"{curve.grad_norm_max:.3g}",
                str(len(curve.spikes)),
                sparkline(curve.loss_nats),
            ]
        )
    lines = [table(header, rows)]
    if not has_baseline:
        lines.append(f"{baseline}, the baseline, has no line of metrics yet")
    lines += [text for curve in found if (text := _spikes_text(curve))]
    return "\n".join([lines[0], *(["", *lines[1:]] if len(lines) > 1 else [])])


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:14]}...{name[-15:]}"


def _spikes_text(curve: Curve) -> str:
    by_run: dict[str, list[Spike]] = {}
    for spike in curve.spikes:
        by_run.setdefault(spike.run, []).append(spike)
    parts = []
    for run, of in by_run.items():
        worst = sorted(of, key=lambda spike: -spike.above_nats)[:_NAMED]
        steps = ", ".join(
            f"{s.step} (no number)" if math.isinf(s.above_nats) else f"{s.step} (+{s.above_nats:.2f})"
            for s in sorted(worst, key=lambda spike: spike.step)
        )
        more = f" and {len(of) - _NAMED} smaller" if len(of) > _NAMED else ""
        parts.append(f"{run}: spikes at steps {steps}{more}")
    return "\n".join(parts)


def sparkline(values: Sequence[float]) -> str:
    """Bars from the least to the greatest of the finite values; × for what is no number."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] if math.isfinite(value) else "×" for value in values)


def curves_json(found: Sequence[Curve], baseline: str) -> str:
    """All that the text tells, in full precision; what is no number is null."""
    content = {"against": baseline, "curves": [_plain(asdict(curve)) for curve in found]}
    return json.dumps(content, indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
