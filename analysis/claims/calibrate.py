"""How often the rule errs, and what it finds: the claims judged over simulated papers.

A simulated paper has the rows of the printed one, each run with normal noise of the standard deviation that is found
there; as in the real one, the noise that it is judged by comes from its own replicates. Three kinds of truth:

* nothing differs: every model is as good as every other, so that no comparison is true, and each is as near to being
  true as can be. A "holds" is false; "fails" errs at most.
* one comparison: of each claim all comparisons but one are plainly true, so that the claim stands or falls with that
  one, between models that do not differ. This is where Holm's correction is the least conservative.
* as printed: the printed numbers are the truth, and the paper is run again.

What has no noise is as it is; quoted sizes are taken to be reached, and claims that are no comparisons of rows (fits)
are counted in the correction, but not simulated.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, final

from analysis import stats
from analysis.claims.judge import Settings, judge, one_model_on_both_sides
from analysis.claims.parts import (
    DCLM,
    LENGTHS,
    METRICS,
    THROUGHPUT,
    All,
    Any_,
    Compare,
    Exact,
    Metric,
    Part,
    Quoted,
    Remark,
    Row,
    leaves,
)
from analysis.claims.registry import read_claims
from analysis.claims.source import PrintedSource, Source
from hybrid.spec import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SEED: Final = 2510
DIFFERENCES: Final = (0.005, 0.010, 0.015, 0.020, 0.030, 0.040)
SEEDS: Final = (1, 3, 5)
_BATCHES: Final = 20


@final
@dataclass(frozen=True, kw_only=True)
class Rate:
    """So many of so many, with the Clopper-Pearson interval."""

    count: int
    of: int

    @property
    def rate(self) -> float:
        return self.count / self.of

    def __str__(self) -> str:
        bounds = stats.clopper_pearson(self.count, self.of)
        return f"{self.rate:.2%} ({self.count} of {self.of}; {bounds.low or 0.0:.2%} to {bounds.high or 0.0:.2%})"


@final
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """`fails_per_claim` is the largest of any claim. `power`: by seeds a row and true difference in nats at 1B."""

    level: float
    simulations: int
    family: int
    false_holds: Rate
    false_holds_one_comparison: Rate
    false_fails_per_claim: Mapping[str, Rate]
    power: Mapping[int, Mapping[float, Rate]]
    as_printed: Mapping[str, tuple[Rate, Rate]]


def calibrate(source: Source, settings: Settings, simulations: int) -> Calibration:
    """Raises ConfigError for a store: simulated papers need the printed one."""
    import numpy as np

    if not isinstance(source, PrintedSource):
        raise ConfigError("--calibrate: expected --source paper with it")
    simulator = Simulator(source, settings)
    batch = max(1, simulations // _BATCHES)
    error = (1 - settings.level) / 2
    false_holds = one_comparison = 0
    fails = dict.fromkeys(simulator.claims, 0)
    printed = {name: [0, 0] for name in simulator.claims}
    rng = np.random.default_rng(SEED)
    for _ in range(_BATCHES):
        holds, failing = simulator.evidence(simulator.draw(rng, batch, as_printed=False))
        false_holds += int((adjusted_holds(holds, simulator.family) <= error).any(axis=0).sum())
        for name, p in zip(simulator.claims, failing, strict=True):
            fails[name] += int((p <= error).sum())
        single = simulator.one_comparison(rng, batch)
        one_comparison += int((adjusted_holds(single, simulator.family) <= error).any(axis=0).sum())
        holds, failing = simulator.evidence(simulator.draw(rng, batch, as_printed=True))
        held = adjusted_holds(holds, simulator.family) <= error
        for i, name in enumerate(simulator.claims):
            printed[name][0] += int(held[i].sum())
            printed[name][1] += int((failing[i] <= error).sum())
    n = batch * _BATCHES
    return Calibration(
        level=settings.level,
        simulations=n,
        family=simulator.family,
        false_holds=Rate(count=false_holds, of=n),
        false_holds_one_comparison=Rate(count=one_comparison, of=n),
        false_fails_per_claim={name: Rate(count=count, of=n) for name, count in fails.items()},
        power={seeds: {size: simulator.power(rng, n, size, seeds) for size in DIFFERENCES} for seeds in SEEDS},
        as_printed={name: (Rate(count=a, of=n), Rate(count=b, of=n)) for name, (a, b) in printed.items()},
    )


def adjusted_holds(p: "Floats", family: int) -> "Floats":
    """Holm's step-down method down the first axis; claims that are not here count as p = 1."""
    import numpy as np

    order = np.argsort(p, axis=0)
    steps = family - np.arange(len(p))[:, None]
    running = np.maximum.accumulate(np.minimum(1.0, steps * np.take_along_axis(p, order, axis=0)), axis=0)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, running, axis=0)
    return adjusted


@final
class Simulator:
    """The claims that noise can decide, as contrasts of columns of simulated numbers."""

    def __init__(self, source: PrintedSource, settings: Settings) -> None:
        self._source = source
        self._settings = settings
        parts = {claim.id: claim.predicate(source) for claim in read_claims()}
        judged = judge(parts, source, settings)
        by_chance = [name for name, verdict in judged.items() if any(f.by_chance for f in verdict.found)]
        self.family = len(by_chance)
        self._parts = {name: parts[name] for name in by_chance if any(self._comparisons(parts[name]))}
        self.claims = tuple(self._parts)
        self._one_model = {
            leaf.rows: one_model_on_both_sides(leaf, source)
            for part in self._parts.values()
            for leaf in self._comparisons(part)
        }
        self._columns: dict[tuple[object, Metric], int] = {}
        self._contrasts: dict[tuple[tuple[Row, ...], tuple[Row, ...], Metric], tuple[list[int], Floats]] = {}
        self._column_of: dict[tuple[Row, Metric], int] = {}
        self._truth: list[float] = []
        self._sd: list[float] = []
        needed = {
            (row, leaf.metric) for part in self._parts.values() for leaf in self._comparisons(part) for row in leaf.rows
        }
        replicas = [row for rows in source.replicas.values() for rows_ in rows for row in rows_]
        needed |= {(row, metric) for row in replicas for metric in METRICS if not metric.logarithmic}
        needed |= {(row, THROUGHPUT[length]) for row in source.steady for length in LENGTHS}
        for row, metric in sorted(needed, key=lambda key: (key[0], key[1].name)):
            self._add(row, metric)

    @staticmethod
    def _comparisons(part: Part) -> Iterator[Compare]:
        return (leaf for leaf in leaves(part) if isinstance(leaf, Compare))

    def _add(self, row: Row, metric: Metric) -> None:
        """A column for each run and metric: rows of several tables that are one run have one."""
        key = (self._source.run(row), metric)
        value = self._source.value(row, metric)
        noise = self._source.noise(self._source.rows.entry(row).scale, metric)
        if key in self._columns or value is None or noise is None:
            return
        self._columns[key] = len(self._truth)
        self._truth.append(math.log(value.mean) if metric.logarithmic else value.mean)
        self._sd.append(noise.sd)

    def _column(self, row: Row, metric: Metric) -> int:
        if (row, metric) not in self._column_of:
            self._column_of[row, metric] = self._columns[self._source.run(row), metric]
        return self._column_of[row, metric]

    def draw(self, rng: "np.random.Generator", n: int, *, as_printed: bool) -> "Floats":
        """Numbers of n papers, a column each."""
        import numpy as np

        sd = np.array(self._sd)[:, None]
        centre = np.array(self._truth)[:, None] if as_printed else 0.0
        numbers: Floats = centre + sd * rng.standard_normal((len(sd), n))
        return numbers

    def noise(self, numbers: "Floats", scale: str, metric: Metric) -> tuple["Floats", int]:
        """As `PrintedSource.noise`, of every simulated paper: standard deviations, and their degrees of freedom."""
        import numpy as np

        if metric.logarithmic:
            xs = np.log(np.array(LENGTHS))
            squares, df = np.zeros(numbers.shape[1]), 0
            for row in self._source.steady:
                block = numbers[[self._column(row, THROUGHPUT[length]) for length in LENGTHS]]
                fitted = np.polynomial.polynomial.polyval(
                    xs, np.polynomial.polynomial.polyfit(xs, block, 1), tensor=True
                )
                squares += ((block - fitted.T) ** 2).sum(axis=0)
                df += len(LENGTHS) - 2
            return np.sqrt(squares / df), df
        squares, df = np.zeros(numbers.shape[1]), 0
        for rows in self._source.replicas[scale]:
            block = numbers[[self._column(row, metric) for row in rows]]
            squares += ((block - block.mean(axis=0)) ** 2).sum(axis=0)
            df += len(rows) - 1
        return np.sqrt(squares / df), df

    def evidence(self, numbers: "Floats") -> tuple["Floats", "Floats"]:
        """p of "holds" and of "fails", a row for each claim."""
        import numpy as np

        noises: dict[tuple[str, str], tuple[Floats, int]] = {}
        pairs = [self._combined(part, numbers, noises) for part in self._parts.values()]
        shape = numbers.shape[1]
        holds = np.array([np.broadcast_to(h, shape) for h, _ in pairs])
        fails = np.array([np.broadcast_to(f, shape) for _, f in pairs])
        return holds, fails

    def _combined(self, part: Part, numbers: "Floats", noises: dict[Any, Any]) -> tuple["Floats", "Floats"]:
        import numpy as np

        match part:
            case All() | Any_():
                inner = [p for p in part.parts if not _is_certain(p)]
                found = [self._combined(p, numbers, noises) for p in inner]
                holds = np.array([np.broadcast_to(h, numbers.shape[1]) for h, _ in found])
                fails = np.array([np.broadcast_to(f, numbers.shape[1]) for _, f in found])
                k = len(found)
                if isinstance(part, All):
                    return holds.max(axis=0), np.minimum(1.0, k * fails.min(axis=0))
                return np.minimum(1.0, k * holds.min(axis=0)), fails.max(axis=0)
            case Compare():
                return self._leaf(part, numbers, noises)
            case _:
                raise ValueError(f"{part}: expected comparisons of rows")

    def _leaf(self, leaf: Compare, numbers: "Floats", noises: dict[Any, Any]) -> tuple["Floats", "Floats"]:
        import numpy as np
        from scipy.special import stdtr

        if self._one_model[leaf.rows]:
            return np.ones(1), np.ones(1)
        columns, weights = self._contrast(leaf)
        scale = self._source.rows.entry(leaf.rows[0]).scale
        key = (scale, "throughput" if leaf.metric.logarithmic else leaf.metric.name)
        if key not in noises:
            noises[key] = self.noise(numbers, scale, leaf.metric)
        sd, df = noises[key]
        margin = self._settings.margin_of(leaf.metric)
        sign = -1.0 if leaf.metric.better == "less" else 1.0
        claimed = sign * (weights @ numbers[columns]) - leaf.by
        std_error = sd * float(np.linalg.norm(weights))
        if leaf.wants == "same":
            outside = stdtr(df, np.stack([(claimed - margin) / std_error, (-claimed - margin) / std_error])).max(axis=0)
            return outside, 2 * stdtr(df, -np.abs(claimed) / std_error)
        if leaf.wants == "not worse":
            claimed = claimed + margin
        holds = stdtr(df, -claimed / std_error)
        return holds, 1 - holds

    def _contrast(self, leaf: Compare) -> tuple[list[int], "Floats"]:
        import numpy as np

        key = (leaf.plus, leaf.minus, leaf.metric)
        if key not in self._contrasts:
            weights: dict[int, float] = {}
            for row, weight in leaf.weights().items():
                column = self._column(row, leaf.metric)
                weights[column] = weights.get(column, 0.0) + weight
            self._contrasts[key] = list(weights), np.array(list(weights.values()))
        return self._contrasts[key]

    def one_comparison(self, rng: "np.random.Generator", n: int) -> "Floats":
        """p of "holds" where each claim stands or falls with one comparison, drawn anew, at the edge of being true."""
        import numpy as np

        numbers = self.draw(rng, n, as_printed=False)
        noises: dict[Any, Any] = {}
        found = []
        for part in self._parts.values():
            usable = [leaf for leaf in self._comparisons(part) if not self._one_model[leaf.rows]]
            leaf = usable[int(rng.integers(len(usable)))]
            # Whatever it wants, as a plain comparison: the edge of being true is then at no difference.
            found.append(self._leaf(replace(leaf, wants="better"), numbers, noises)[0])
        return np.array(found)

    def power(self, rng: "np.random.Generator", n: int, difference: float, seeds: int) -> Rate:
        """How often one comparison of validation losses at 1B is found among the family, of which nothing else is true.

        With the noise of the printed replicates, which more seeds do not tell more of.
        """
        import numpy as np
        from scipy.special import stdtr

        noise = self._source.noise("1B", DCLM)
        if noise is None:
            raise ValueError("paper: expected replicates at 1B")
        std_error = noise.sd * math.sqrt(2 / seeds)
        estimate = difference + std_error * rng.standard_normal(n)
        sd = np.sqrt(rng.chisquare(noise.df, n) / noise.df)
        p = stdtr(noise.df, -estimate / (std_error * sd))
        return Rate(count=int((self.family * p <= (1 - self._settings.level) / 2).sum()), of=n)


def _is_certain(part: Part) -> bool:
    """Whether it is without noise: quoted sizes are taken to be reached, so that nothing false is refused for them."""
    return all(isinstance(leaf, Exact | Quoted | Remark) for leaf in leaves(part))


def show(found: Calibration, form: str) -> str:
    if form == "json":
        return json.dumps(_object(found), indent=1) + "\n"
    error = (1 - found.level) / 2
    worst = max(found.false_fails_per_claim.items(), key=lambda item: item[1].rate)
    header = "  ".join(f"{size:>7.3f}" for size in DIFFERENCES)
    lines = [
        f"{found.simulations} simulated papers, {found.family} claims judged together at level {found.level:g}",
        "",
        f'Any false "holds" where nothing differs:             {found.false_holds}',
        f'Any false "holds" where each claim is one comparison: {found.false_holds_one_comparison}',
        f"  allowed: {error:.1%}",
        f'A false "fails" of one claim where nothing differs, at most: {worst[1]} ({worst[0]})',
        f"  allowed: {error:.1%}",
        "",
        "How often a true difference between two rows at 1B is found, if no other claim is true",
        f"  nats          {header}",
        *(
            f"  {seeds} seed{'s' if seeds > 1 else ' '} a row  "
            + "  ".join(f"{rate.rate:>7.1%}" for rate in row.values())
            for seeds, row in found.power.items()
        ),
        "",
        "If the printed numbers were the truth, and the paper were run again",
        *(
            f"  {name}  holds {holds.rate:>6.1%}  fails {fails.rate:>6.1%}"
            for name, (holds, fails) in found.as_printed.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _object(found: Calibration) -> dict[str, Any]:
    return {
        "simulations": found.simulations,
        "claims_judged_together": found.family,
        "level": found.level,
        "false_holds": found.false_holds.rate,
        "false_holds_one_comparison": found.false_holds_one_comparison.rate,
        "false_fails_per_claim": {name: rate.rate for name, rate in found.false_fails_per_claim.items()},
        "power": {
            str(seeds): {f"{size:g}": rate.rate for size, rate in row.items()} for seeds, row in found.power.items()
        },
        "as_printed": {
            name: {"holds": holds.rate, "fails": fails.rate} for name, (holds, fails) in found.as_printed.items()
        },
    }
