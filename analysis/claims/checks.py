"""What the numbers of a claim show beside its verdict: the same general checks for every claim.

against: printed numbers that point the other way, or nowhere. replicates: both sides are one model by symmetry. recipe,
context, budget: the same two models the other way round where the batch, the length or the tokens are others. other
metric: the same rows the other way round in another measure of quality. other ratio: a row of the same kind, at another
block ratio and the same budget, that is better. printed twice: one run with two numbers. implementation: throughputs
apart by far more than what the models move and compute. quoted: a quoted size that some of its comparisons do not
reach. remark: of the predicate's own.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, final

from analysis import decide
from analysis.claims.judge import Found, Judged, Used
from analysis.claims.parts import ACCURACY, DCLM, FRACTION, LENGTHS, PG19, THROUGHPUT, Compare, Metric, Quoted, Row
from analysis.claims.source import PrintedSource, Source, Value
from analysis.claims.unequal import IMPLEMENTATION_FACTOR, Timed, Twins, allowed_tokens_per_s, unequal_twins
from analysis.decide import Difference
from hybrid.spec import ModelSpec, RunSpec

Kind = Literal[
    "against",
    "replicates",
    "recipe",
    "context",
    "budget",
    "other metric",
    "other ratio",
    "printed twice",
    "implementation",
    "quoted",
    "remark",
]
QUALITY: Final = (DCLM, PG19, ACCURACY)
_SHOWN: Final = 3
_TIE: Final = 1e-9


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """A sentence, with the numbers that it is made of."""

    kind: Kind
    text: str
    numbers: tuple[Mapping[str, object], ...] = ()


@final
@dataclass(frozen=True, order=True)
class Setting:
    """What rows must share to compare models alone: `budget` says what their tokens are matched by."""

    scale: str
    seq_len: int
    batch_tokens: int
    budget: str

    def __str__(self) -> str:
        return (
            f"{self.budget.replace('_', ' ')}, {self.batch_tokens / 2**20:g}Mi-token batches, {self.seq_len // 1024}K"
        )


@final
@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two rows compared in a metric: the difference, signed so that above zero is as claimed."""

    better: Row
    worse: Row
    values: tuple[float, float]
    metric: Metric
    claimed: float

    def __str__(self) -> str:
        a, b = self.values
        digits = self.metric.digits
        return f"{self.better.label} {a:.{digits}f} against {self.worse.label} {b:.{digits}f}"

    def numbers(self) -> dict[str, object]:
        return {
            "metric": self.metric.name,
            "rows": [str(self.better), str(self.worse)],
            "values": list(self.values),
            "claimed": round(self.claimed, 6),
        }


@final
class Checks:
    """The checks against one source; what they need of all its rows is worked out once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._allowances: dict[tuple[Row, int], float] = {}

    def findings(self, judged: Judged) -> tuple[Finding, ...]:
        found = [result for result in judged.found if result.estimate is not None]
        checks: tuple[Callable[[Sequence[Found]], Iterable[Finding]], ...] = (
            self._against,
            self._replicates,
            self._elsewhere,
            self._other_metrics,
            self._other_ratios,
            self._printed_twice,
            self._implementation,
            self._quoted,
        )
        return (
            *(finding for check in checks for finding in check(found)),
            *(
                Finding(kind="remark", text=result.text, numbers=(dict(result.numbers),) if result.numbers else ())
                for result in judged.found
                if result.kind == "remark"
            ),
        )

    # --- signs ------------------------------------------------------------------------------------

    def _against(self, found: Sequence[Found]) -> Iterable[Finding]:
        plain = [r for r in found if r.kind in ("comparison", "estimate") and not r.one_model]
        groups: dict[int, list[Found]] = defaultdict(list)
        for result in plain:
            groups[id(result) if result.group is None else result.group].append(result)
        # Of alternatives, of which none is as claimed, the nearest to it.
        contrary = [
            max(group, key=lambda result: result.claimed or 0.0)
            for group in groups.values()
            if not any(result.as_claimed and not _on_the_worse_side(result) for result in group)
        ]
        if not contrary:
            return
        contrary.sort(key=lambda result: result.claimed or 0.0)
        where = "printed numbers" if isinstance(self._source, PrintedSource) else "records"
        yield Finding(
            kind="against",
            text=f"{len(contrary)} of {len(groups)} comparisons come out otherwise in the {where}: "
            f"{_listed([_short(result) for result in contrary])}",
            numbers=tuple(_of(result) for result in contrary),
        )

    def _replicates(self, found: Sequence[Found]) -> Iterable[Finding]:
        same = [result for result in found if result.one_model]
        if same:
            yield Finding(
                kind="replicates",
                text=f"{len(same)} of {len(found)} comparisons are between two spellings of one model, and so between "
                f"replicates: {_listed([_short(result) for result in same])}",
                numbers=tuple(_of(result) for result in same),
            )

    # --- the same models elsewhere ------------------------------------------------------------------

    @cached_property
    def _by_setting(self) -> dict[Setting, dict[ModelSpec, list[Row]]]:
        index: dict[Setting, dict[ModelSpec, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in self._source.rows:
            if row.table in ("6", "13"):  # no losses
                continue
            run = self._source.run(row)
            if run is None:
                continue
            for setting in self._settings_of(row, run):
                index[setting][self._source.rows.model(row)].append(row)
        return index

    def _settings_of(self, row: Row, run: RunSpec) -> list[Setting]:
        entry = self._source.rows.entry(row)
        setting = Setting(entry.scale, run.seq_len, run.batch_tokens, entry.budget)
        # Llama's FLOPs are what the others are matched to.
        both = row.table in ("2", "9", "10") and entry.printed["models"] == "Llama"
        return [setting, replace(setting, budget="equal_flops")] if both else [setting]

    def _shared_setting(self, a: Row, b: Row) -> Setting | None:
        runs = self._source.run(a), self._source.run(b)
        if runs[0] is None or runs[1] is None:
            return None
        shared = set(self._settings_of(a, runs[0])) & set(self._settings_of(b, runs[1]))
        return min(shared) if shared else None

    def _elsewhere(self, found: Sequence[Found]) -> Iterable[Finding]:
        flips: dict[Kind, dict[tuple[Row, Row], tuple[_Pair, _Pair, Setting, float | None]]] = defaultdict(dict)
        for result in found:
            pair = self._pair(result)
            if pair is None or pair.metric not in QUALITY:
                continue
            setting = self._shared_setting(pair.better, pair.worse)
            if setting is None:
                continue
            models = [self._source.rows.model(row) for row in (pair.better, pair.worse)]
            for other, rows in self._by_setting.items():
                if other == setting or other.scale != setting.scale or not all(model in rows for model in models):
                    continue
                there = self._compared(rows[models[0]][0], rows[models[1]][0], pair.metric)
                if there is None or there.claimed * pair.claimed >= 0:
                    continue
                kind: Kind = (
                    "recipe"
                    if other.batch_tokens != setting.batch_tokens
                    else "context"
                    if other.seq_len != setting.seq_len
                    else "budget"
                )
                key = (pair.better, there.better) if kind != "recipe" else (pair.better, pair.worse)
                known = flips[kind].get(key)
                # Of several budgets of the other recipe, the one whose tokens are nearest.
                if known is None or self._token_gap(pair, there) < self._token_gap(pair, known[1]):
                    flips[kind][key] = (pair, there, other, self._shift_p(result, pair, there))
        words: dict[Kind, str] = {
            "recipe": "turn round with the training recipe",
            "context": "turn round at another context length",
            "budget": "turn round when the tokens are matched otherwise",
        }
        for kind, text in words.items():
            turned = list(flips[kind].values())
            if turned:
                yield Finding(
                    kind=kind,
                    text=f"{len(turned)} of {len(found)} comparisons {text}: "
                    + _listed(
                        [
                            f"{here} in {here.metric.label}, but {there} in Table {there.better.table} ({setting}"
                            + (f"; p of the change {p:.2g})" if p is not None else ")")
                            for here, there, setting, p in turned
                        ]
                    ),
                    numbers=tuple(
                        {
                            "here": here.numbers(),
                            "there": there.numbers(),
                            "setting": str(setting),
                            "p of the change": p,
                        }
                        for here, there, setting, p in turned
                    ),
                )

    def _token_gap(self, pair: _Pair, there: _Pair) -> float:
        gap = 0.0
        for a, b in ((pair.better, there.better), (pair.worse, there.worse)):
            runs = self._source.run(a), self._source.run(b)
            if runs[0] is not None and runs[1] is not None:
                gap += abs(math.log(runs[0].train_tokens / runs[1].train_tokens))
        return gap

    def _shift_p(self, result: Found, here: _Pair, there: _Pair) -> float | None:
        """Two-sided, of no change in the difference; the other runs taken to be as noisy as these."""
        if result.std_error is None or result.metric is not here.metric:
            return None
        shift = Difference(
            estimate=here.claimed - there.claimed,
            std_error=result.std_error * math.sqrt(2),
            df=result.df,
            n_a=1,
            n_b=1,
            unit=result.unit,
        )
        return decide.decide(shift, margin=here.metric.margin).p

    # --- other measures and rows ---------------------------------------------------------------------

    def _other_metrics(self, found: Sequence[Found]) -> Iterable[Finding]:
        compared = [r for r in found if r.kind == "comparison" and r.metric is DCLM and isinstance(r.leaf, Compare)]
        compared = [r for r in compared if isinstance(r.leaf, Compare) and r.leaf.wants == "better"]
        for metric in (PG19, ACCURACY):
            turned: list[str] = []
            numbers: list[Mapping[str, object]] = []
            for result in compared:
                leaf = result.leaf
                if not isinstance(leaf, Compare) or result.claimed is None:
                    continue
                values = {row: self._source.value(row, metric) for row in leaf.weights()}
                known: dict[Row, Value] = {row: value for row, value in values.items() if value is not None}
                if len(known) < len(values):
                    continue
                sign = -1.0 if metric.better == "less" else 1.0
                claimed = sign * math.fsum(weight * known[row].mean for row, weight in leaf.weights().items())
                if claimed * result.claimed < -_TIE:
                    text = (
                        f"{leaf.text.replace(DCLM.label, metric.label)}: {abs(claimed):.{metric.digits}f} {metric.unit}"
                    )
                    pair = self._pair(replace(result, metric=metric)) if len(known) == 2 else None
                    turned.append(str(pair) if pair is not None else f"{text} the other way")
                    numbers.append({"metric": metric.name, "text": leaf.text, "claimed": round(claimed, 6)})
            if turned:
                yield Finding(
                    kind="other metric",
                    text=f"in {metric.label}, {len(turned)} of {len(compared)} comparisons of losses are the other way "
                    f"round: {_listed(turned)}",
                    numbers=tuple(numbers),
                )

    def _other_ratios(self, found: Sequence[Found]) -> Iterable[Finding]:
        """Where a row is better than one of a kind, is there one of that kind at another ratio that is as good?"""
        stronger: dict[tuple[Row, Metric], _Pair] = {}
        total = 0
        for result in found:
            pair = self._pair(result)
            if pair is None or pair.metric not in QUALITY or pair.claimed <= 0:
                continue
            setting = self._shared_setting(pair.better, pair.worse)
            kind = self._kind_of(pair.worse)
            if setting is None or kind is None or kind == self._kind_of(pair.better):
                continue
            total += 1
            for rows in self._by_setting[setting].values():
                other = self._compared(pair.better, rows[0], pair.metric)
                if self._kind_of(rows[0]) != kind or other is None or other.claimed >= 0:
                    continue
                key = (pair.better, pair.metric)
                if key not in stronger or other.claimed < stronger[key].claimed:
                    stronger[key] = other
        if stronger:
            yield Finding(
                kind="other ratio",
                text="the same kind of model at another block ratio and the same budget is better: "
                + _listed([f"{pair} in {pair.metric.label} (Table {pair.worse.table})" for pair in stronger.values()]),
                numbers=tuple(pair.numbers() for pair in stronger.values()),
            )

    def _kind_of(self, row: Row) -> str | None:
        """What the table calls the kind of model, in tables of several ratios of one kind."""
        name = self._source.rows.entry(row).printed.get("models")
        return str(name) if row.table in ("2", "9", "10") and name is not None else None

    @cached_property
    def _by_run(self) -> dict[RunSpec, list[Row]]:
        index: dict[RunSpec, list[Row]] = defaultdict(list)
        for row in self._source.rows:
            if row.table != "6":
                run = self._source.run(row)
                if run is not None:
                    index[run].append(row)
        return index

    def _printed_twice(self, found: Sequence[Found]) -> Iterable[Finding]:
        if not isinstance(self._source, PrintedSource):
            return
        twice: dict[tuple[Row, Metric], str] = {}
        numbers: list[Mapping[str, object]] = []
        for result in found:
            for used in result.used:
                run = self._source.run(used.row)
                if run is None or result.metric is None or result.metric not in QUALITY:
                    continue
                for other in self._by_run[run]:
                    value = self._source.value(other, result.metric)
                    key = (used.row, result.metric)
                    if value is None or abs(value.mean - used.value) <= _TIE or key in twice:
                        continue
                    digits = result.metric.digits
                    twice[key] = (
                        f"{used.row} {used.value:.{digits}f}, but {other} {value.mean:.{digits}f} "
                        f"in {result.metric.label}"
                    )
                    numbers.append({"rows": [str(used.row), str(other)], "values": [used.value, value.mean]})
        if twice:
            yield Finding(
                kind="printed twice",
                text=f"one run, two numbers: {_listed(list(twice.values()))}",
                numbers=tuple(numbers),
            )

    # --- throughput -------------------------------------------------------------------------------

    def _implementation(self, found: Sequence[Found]) -> Iterable[Finding]:
        """Measured tokens a second as a share of what moving weights and cache, and computing, would allow."""
        rows = list(
            dict.fromkeys(u.row for r in found if r.metric is not None and r.metric.logarithmic for u in r.used)
        )
        recorded = {
            (row, length): value.mean
            for row in rows
            for length in LENGTHS
            if (value := self._source.value(row, FRACTION[length])) is not None and value.mean > 0
        }
        shares = recorded or {
            (row, length): value.mean / self._allowed(row, length)
            for row in rows
            for length in LENGTHS
            if (value := self._source.value(row, THROUGHPUT[length])) is not None
        }
        if not shares:
            return
        (low, at_low), (high, at_high) = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        if shares[high, at_high] > IMPLEMENTATION_FACTOR * shares[low, at_low]:
            yield Finding(
                kind="implementation",
                text=f"the throughputs are those of implementations: of what weights, cache and operations would allow "
                f"on {'the device measured' if recorded else 'an H200'}, {low.label} at {at_low // 1024}K reaches "
                f"{shares[low, at_low]:.2%} and {high.label} at {at_high // 1024}K {shares[high, at_high]:.1%}",
                numbers=tuple(
                    {"row": str(row), "length": length, "share of the roofline": round(share, 5)}
                    for (row, length), share in shares.items()
                ),
            )
        if not recorded:
            yield from self._unequal_twins()

    def _unequal_twins(self) -> Iterable[Finding]:
        """Of all rows with throughput, the two of like caches that should be as fast as each other and are least so."""
        twins = self._twins
        if twins is None:
            return
        yield Finding(
            kind="implementation",
            text=str(twins),
            numbers=tuple(
                {
                    "row": side.row.name,
                    "length": twins.length,
                    "tokens/s": side.tokens_per_s,
                    "allowed tokens/s": round(side.allowed_tokens_per_s),
                    "cache MiB": side.cache_mib,
                }
                for side in (twins.slow, twins.fast)
            ),
        )

    @cached_property
    def _twins(self) -> Twins | None:
        return unequal_twins(timed_rows(self._source))

    def _allowed(self, row: Row, length: int) -> float:
        if (row, length) not in self._allowances:
            self._allowances[row, length] = allowed_tokens_per_s(self._source.rows.run(row).model, length)
        return self._allowances[row, length]

    # --- quoted sizes -------------------------------------------------------------------------------

    def _quoted(self, found: Sequence[Found]) -> Iterable[Finding]:
        quoted = [result for result in found if result.kind == "quoted" and isinstance(result.leaf, Quoted)]
        short = [result for result in quoted if not result.as_claimed]
        if not short:
            return
        listed = [f"{abs(r.estimate or 0.0):.{r.metric.digits if r.metric else 3}f} {_sides(r)}" for r in short]
        values = sorted({_quoted_value(result) for result in short})
        yield Finding(
            kind="quoted",
            text=f"the quoted {' and '.join(values)} is reached in {len(quoted) - len(short)} of {len(quoted)} "
            f"comparisons; not in {_listed(listed)}",
            numbers=tuple(_of(result) for result in short),
        )

    # --- pairs --------------------------------------------------------------------------------------

    def _pair(self, found: Found) -> _Pair | None:
        """The two rows of a plain comparison."""
        leaf = found.leaf
        if not isinstance(leaf, Compare) or leaf.wants != "better" or len(leaf.weights()) != 2 or found.metric is None:
            return None
        return self._compared(leaf.plus[0], leaf.minus[0], found.metric)

    def _compared(self, better: Row, worse: Row, metric: Metric) -> _Pair | None:
        a, b = self._source.value(better, metric), self._source.value(worse, metric)
        if a is None or b is None:
            return None
        sign = -1.0 if metric.better == "less" else 1.0
        return _Pair(
            better=better, worse=worse, values=(a.mean, b.mean), metric=metric, claimed=sign * (a.mean - b.mean)
        )


def timed_rows(source: Source) -> tuple[Timed, ...]:
    """The rows of Table 13 that have a throughput by this source."""
    found = []
    for row in source.rows.of("13"):
        speeds = {n: value.mean for n in LENGTHS if (value := source.value(row, THROUGHPUT[n])) is not None}
        if speeds:
            found.append(Timed(name=str(row), label=row.label, model=source.rows.run(row).model, tokens_per_s=speeds))
    return tuple(found)


def _on_the_worse_side(found: Found) -> bool:
    """Of what is said to be no worse: whether it is, within the margin or not."""
    leaf = found.leaf
    return isinstance(leaf, Compare) and leaf.wants == "not worse" and (found.claimed or 0.0) < -_TIE


def _of(found: Found) -> dict[str, object]:
    return {
        "text": found.text,
        "estimate": None if found.estimate is None else round(found.estimate, 6),
        "rows": [_used(used) for used in found.used],
    }


def _used(used: Used) -> dict[str, object]:
    return {"row": str(used.row), "value": used.value, "weight": round(used.weight, 6)}


def _short(found: Found) -> str:
    """The rows and their numbers, if they are two, else the text with the estimate."""
    if len(found.used) == 2 and found.metric is not None:
        digits = found.metric.digits
        return " against ".join(f"{used.row.label} {used.value:.{digits}f}" for used in found.used)
    return f"{found.text}: {found.estimate:+.3f} {found.unit}"


def _sides(found: Found) -> str:
    return " - ".join(used.row.label for used in found.used)


def _quoted_value(found: Found) -> str:
    leaf = found.leaf
    if not isinstance(leaf, Quoted):
        return ""
    return f"{leaf.value:.{leaf.digits}f} {leaf.compare.metric.unit}"


def _listed(texts: Sequence[str]) -> str:
    rest = len(texts) - _SHOWN
    return "; ".join(texts[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
