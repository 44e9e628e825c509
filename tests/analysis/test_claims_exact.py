"""Claims without noise come out true or false with the specs and the printed numbers that they are about."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

import pytest

from analysis.claims.judge import Settings, judge
from analysis.claims.registry import read_claims
from analysis.claims.source import PaperRows, PrintedSource
from analysis.reference.compare import Place, Sweeps
from analysis.reference.printed import Printed, read_printed
from hybrid.spec import AdamWSpec, BlockSpec, IntraSpec, Mamba2Spec, RunSpec, TrapezoidSpec
from sweeps.compose import Composer

Change = Callable[[RunSpec], RunSpec]


@pytest.fixture(scope="module")
def sweeps() -> Iterator[Sweeps]:
    with Composer() as composer:
        yield Sweeps(composer)


class Altered:
    """Sweeps whose runs are changed."""

    def __init__(self, sweeps: Sweeps, change: Change) -> None:
        self._sweeps = sweeps
        self._change = change

    def run(self, place: Place) -> RunSpec:
        return self._change(self._sweeps.run(place))


def verdict(name: str, sweeps: Sweeps, printed: Printed, change: Change | None = None) -> str:
    used = sweeps if change is None else cast(Sweeps, Altered(sweeps, change))
    source = PrintedSource(PaperRows(printed, used))
    claim = next(claim for claim in read_claims() if claim.id == name)
    return judge({name: claim.predicate(source)}, source, Settings())[name].verdict


def each_block(change: Callable[[BlockSpec], BlockSpec]) -> Change:
    return lambda run: replace(run, model=replace(run.model, blocks=tuple(change(block) for block in run.model.blocks)))


def narrow_mamba(block: BlockSpec) -> BlockSpec:
    mixer = block.mixer
    return replace(block, mixer=replace(mixer, d_ssm=mixer.d_ssm // 2)) if isinstance(mixer, Mamba2Spec) else block


def half_widths(block: BlockSpec) -> BlockSpec:
    mixer = block.mixer
    if not isinstance(mixer, IntraSpec):
        return block
    attention = replace(mixer.attention, head_dim=64)
    return replace(block, mixer=replace(mixer, attention=attention, mamba=replace(mixer.mamba, d_ssm=2048)))


def shallow(run: RunSpec) -> RunSpec:
    return replace(run, model=replace(run.model, blocks=run.model.blocks[:-3]))


def no_warmup(run: RunSpec) -> RunSpec:
    assert isinstance(run.schedule, TrapezoidSpec)
    return replace(run, schedule=replace(run.schedule, warmup_tokens=0))


def faster(run: RunSpec) -> RunSpec:
    assert isinstance(run.optim, AdamWSpec)
    return replace(run, optim=replace(run.optim, lr=2 * run.optim.lr))


@pytest.mark.parametrize(
    ("name", "before", "change", "after"),
    [
        ("C07", "fails", lambda run: replace(run, seq_len=7168), "holds"),
        ("C08", "holds", lambda run: replace(run, seq_len=16384), "fails"),
        ("C09", "holds", each_block(narrow_mamba), "fails"),
        ("C10", "holds", each_block(narrow_mamba), "fails"),
        ("C11", "holds", shallow, "fails"),
        ("C19", "holds", shallow, "fails"),
        ("C34", "holds", lambda run: replace(run, seq_len=4096), "fails"),
        ("C35", "holds", no_warmup, "fails"),
        ("C35", "holds", faster, "fails"),
        ("C35", "holds", lambda run: replace(run, batch_tokens=run.batch_tokens // 2), "fails"),
        ("C37", "holds", lambda run: replace(run, train_tokens=run.train_tokens * 11 // 10), "fails"),
        ("C38", "fails", each_block(half_widths), "holds"),
    ],
)
def test_other_specs_turn_a_cost_or_setting_over(
    name: str, before: str, change: Change, after: str, sweeps: Sweeps
) -> None:
    printed = read_printed()
    assert verdict(name, sweeps, printed) == before
    assert verdict(name, sweeps, printed, change) == after


def reprinted(table: str, change: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]) -> Printed:
    """The paper with rows of a table changed, or left out."""
    printed = read_printed()
    rows = tuple(row for row in map(change, printed.tables[table].rows) if row is not None)
    return replace(printed, tables={**printed.tables, table: replace(printed.tables[table], rows=rows)})


@pytest.mark.parametrize(
    ("name", "table", "change"),
    [
        ("C19", "3", lambda row: {**row, "total": Decimal(str(row["total"])) + 1}),
        ("C21", "14/15", lambda row: None if row["size"] == "3B" else row),
        ("C33", "14/15", lambda row: {**row, "size": "7B"} if row["size"] == "3B" else row),
        ("C33", "2", lambda row: {**row, "tok": 50} if row["budget"] == "equal_data" else row),
        ("C36", "2", lambda row: {**row, "avg": Decimal(str(row["avg"])) + 1}),
        ("C37", "2", lambda row: {**row, "tok": row["tok"] + 2} if row["models"] == "Mamba" else row),
    ],
)
def test_other_printed_numbers_turn_a_claim_over(
    name: str, table: str, change: Callable[[Mapping[str, Any]], Mapping[str, Any] | None], sweeps: Sweeps
) -> None:
    assert verdict(name, sweeps, read_printed()) == "holds"
    assert verdict(name, sweeps, reprinted(table, change)) == "fails"
