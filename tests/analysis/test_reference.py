"""The paper's arithmetic: printed cells beside what our specs cost, and whether the reasons given hold."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from analysis.__main__ import main
from analysis.reference.compare import (
    COLUMNS,
    DERIVED,
    NO_REASON,
    Comparison,
    Place,
    Sweeps,
    agrees,
    chosen_tables,
    compare,
    places,
    value_of,
)
from analysis.reference.findings import NOISE_TABLES, Findings, find
from analysis.reference.printed import Printed, Reason, read_printed, read_reasons
from analysis.reference.show import as_json, as_markdown, as_text
from hybrid.config import read_config
from hybrid.cost import Cost, layout_of, run_cost
from hybrid.spec import ConfigError, DiffMambaSpec, ModelSpec, RunSpec
from sweeps.cells import reference_models
from sweeps.compose import Composer

Cell = tuple[str, str, str]


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    with Composer() as composer:
        yield composer


@pytest.fixture(scope="module")
def sweeps(composer: Composer) -> Sweeps:
    return Sweeps(composer)


@pytest.fixture(scope="module")
def findings(sweeps: Sweeps) -> Findings:
    return find(sweeps)


@pytest.fixture(scope="module")
def cells(findings: Findings) -> dict[Cell, Comparison]:
    return {(cell.table, cell.row, cell.column): cell for compared in findings.compared for cell in compared.cells}


@pytest.fixture(scope="module")
def printed() -> Printed:
    return read_printed()


@pytest.fixture(scope="module")
def runs(printed: Printed, sweeps: Sweeps) -> dict[tuple[str, str], RunSpec]:
    """The run of each printed row, by table and row."""
    return {(number, place.label): sweeps.run(place) for number in DERIVED for place in places(printed.tables[number])}


# --- the rule -----------------------------------------------------------------------------------


@given(
    halves=st.integers(0, 10**5),
    beside=st.sampled_from([0, 0, Fraction(1, 10**9), Fraction(-1, 10**9), Fraction(1, 3 * 10**4)]),
    digits=st.integers(0, 3),
    off=st.integers(-1, 1),
)
def test_a_cell_agrees_if_it_is_the_computed_value_rounded_either_way(
    halves: int, beside: Fraction, digits: int, off: int
) -> None:
    """Computed values at, and just beside, the middle between two printed ones and the printed ones themselves."""
    scaled = Fraction(halves, 2) + beside * 10**digits
    nearest = {math.floor(scaled + Fraction(1, 2)), math.ceil(scaled - Fraction(1, 2))}
    shown = max(nearest) + off
    assert agrees(Decimal(shown).scaleb(-digits), digits, scaled / 10**digits) == (shown in nearest)


@pytest.mark.parametrize(
    ("shown", "digits", "computed", "agreed"),
    [
        ("0.99", 2, "0.985", True),
        ("0.98", 2, "0.985", True),
        ("0.99", 2, "0.98499999999", False),
        ("0.99", 2, "0.99500000001", False),
        ("2.80", 2, "2.8049", True),
        ("13", 0, "13.5", True),
        ("13", 0, "13.51", False),
        ("4.5", 1, "4.4696", True),
        ("0", 0, "0", True),
    ],
)
def test_half_a_unit_of_the_last_digit_is_the_edge(shown: str, digits: int, computed: str, agreed: bool) -> None:
    assert agrees(Decimal(shown), digits, Fraction(computed)) is agreed


# --- the data -----------------------------------------------------------------------------------


def numbers(value: Any) -> Iterator[int | Decimal]:
    match value:
        case dict():
            for inner in value.values():
                yield from numbers(inner)
        case list() | tuple():
            for inner in value:
                yield from numbers(inner)
        case None | str():
            pass
        case _:
            yield value


def test_every_printed_number_is_finite_and_typed_as_it_was_printed(printed: Printed) -> None:
    found = list(numbers([dict(row) for table in printed.tables.values() for row in table.rows]))
    assert len(found) > 2500
    for number in found:
        assert type(number) in (int, Decimal)
        assert Decimal(number).is_finite()


def test_the_rows_of_a_table_have_the_same_columns(printed: Printed) -> None:
    for table in printed.tables.values():
        if table.number == "1":  # formulas
            continue
        columns = {frozenset(row) - {"flags", "v3", "from_v3"} for row in table.rows}
        assert len(columns) == 1, table.number


def test_derived_columns_have_as_many_digits_as_are_compared(printed: Printed) -> None:
    for number, names in DERIVED.items():
        for row in printed.tables[number].rows:
            for name in names:
                value = row.get(name)
                assert value is None or Decimal(value) * 10 ** COLUMNS[name].digits % 1 == 0, (number, name, value)


def test_the_data_say_where_they_come_from(printed: Printed) -> None:
    assert "arXiv 2510.04800" in printed.source
    assert "CC BY 4.0" in printed.source
    assert {table.version for table in printed.tables.values()} == {"v1", "v3"}


def test_every_row_of_every_table_is_a_cell_of_a_sweep(
    printed: Printed, runs: dict[tuple[str, str], RunSpec], findings: Findings
) -> None:
    counts = {number: len(places(printed.tables[number])) for number in DERIVED}
    assert counts == {
        "2": 9, "3": 8, "4": 12, "6": 8, "9": 29, "10": 23, "11": 8, "12": 10, "14/15": 71, "17": 31, "18": 23,
        "19": 23, "20": 12, "21": 9,
    }  # fmt: skip
    assert len(runs) == sum(counts.values())
    for compared in findings.compared:
        assert {cell.row for cell in compared.cells} == {place.label for place in places(compared.table)}


def test_every_printed_number_of_a_derived_column_is_compared(printed: Printed, cells: dict[Cell, Comparison]) -> None:
    expected = {
        (number, place.label, name)
        for number, names in DERIVED.items()
        for place, row in zip(places(printed.tables[number]), printed.tables[number].rows, strict=True)
        for name in names
        if row.get(name) is not None
    }
    assert set(cells) == expected
    assert len(cells) == 1081


def test_tables_without_a_derived_column_are_those_of_formulas_and_measurements(printed: Printed) -> None:
    assert set(printed.tables) - set(DERIVED) == {"1", "5", "3 right", "13"}
    assert printed.not_here == {"16": "its numbers are not in the data"}


def test_where_a_dash_is_printed_there_is_no_such_block(printed: Printed, runs: dict[tuple[str, str], RunSpec]) -> None:
    dashes = 0
    for number, names in DERIVED.items():
        table = printed.tables[number]
        for place, row in zip(places(table), table.rows, strict=True):
            run = runs[number, place.label]
            for name in names:
                if name in row and row[name] is None:
                    dashes += 1
                    assert value_of(name, run, run_cost(run)) == 0, (number, place.label, name)
    assert dashes > 200


def listed(text: Any) -> list[int]:
    """Positions as they are printed: 7; 4,8; 9-12; 1,3,...,15."""
    parts = str(text).split(",")
    if "..." in parts:
        first, second = int(parts[0]), int(parts[1])
        last = int(parts[-1]) if parts[-1] != "..." else None
        return list(range(first, (last or 10**6) + 1, second - first))
    if "-" in parts[0]:
        first, last = map(int, parts[0].split("-"))
        return list(range(first, last + 1))
    return list(map(int, parts))


def test_blocks_stand_where_they_are_printed(printed: Printed, runs: dict[tuple[str, str], RunSpec]) -> None:
    for number, kind, column in (("11", "A", "attn_idx"), ("17", "A", "attn_idx"), ("21", "I", "idx")):
        table = printed.tables[number]
        for place, row in zip(places(table), table.rows, strict=True):
            layout = layout_of(runs[number, place.label].model)
            found = [i for i, letter in enumerate(layout, start=1) if letter == kind]
            assert found == listed(row[column])[: len(found)], (number, place.label)


def test_rows_of_one_model_in_several_tables_are_one_spec(runs: dict[tuple[str, str], RunSpec]) -> None:
    assert runs["2", "Intra-H"] == runs["9", "Intra-H 1:5"] == runs["21", "1:5 scatter"] == runs["3", "Intra-H"]
    assert runs["4", "350M 1:5"] == runs["10", "Inter-H 1:5"] == runs["17", "350M 1:5 middle"]
    assert runs["2", "SWA equal FLOPs"] == runs["9", "SWA 1:5 equal FLOPs"]
    assert runs["6", "350M Mamba"].model == runs["10", "Mamba"].model


# --- what comes out -----------------------------------------------------------------------------

# Cells that contradict the formulas: table, row, column, printed, computed to eight digits. A change here means that a
# formula, a spec or a printed number changed; `python -m analysis reference` lists them as they are now.
GOLDEN = [tuple(cell) for cell in json.loads((Path(__file__).parent / "golden_reference.json").read_text())]


def test_the_cells_that_do_not_agree_are_those_known(cells: dict[Cell, Comparison]) -> None:
    found = [
        (*name, float(cell.printed), float(f"{float(cell.computed):.8g}"))
        for name, cell in cells.items()
        if not cell.agrees
    ]
    assert found == GOLDEN


def test_llamas_unrounded_flops_at_60b_tokens_are_the_budget_of_equal_flops(
    runs: dict[tuple[str, str], RunSpec],
) -> None:
    for table, row in (("2", "Mamba equal FLOPs"), ("9", "SWA 1:15 equal FLOPs"), ("12", "Inter-H 32K")):
        assert float(run_cost(runs[table, row]).paper_train_flops) == pytest.approx(4.4696e20, rel=1e-4)


def bent(field: str, percent: int) -> Callable[[RunSpec], Cost]:
    def cost_of(run: RunSpec) -> Cost:
        cost = run_cost(run)
        return replace(cost, **{field: getattr(cost, field) * (100 + percent) // 100})

    return cost_of


@pytest.mark.parametrize("percent", [-1, 1])
@pytest.mark.parametrize(
    ("field", "column"),
    [
        ("paper_train_flops", "flops"),
        ("paper_non_embedding_params", "n_emb"),
        ("paper_non_embedding_params", "total"),
        ("paper_active_params", "act"),
        ("paper_cache_bytes", "cache"),
    ],
)
def test_a_formula_bent_by_one_percent_agrees_less(
    printed: Printed, sweeps: Sweeps, field: str, column: str, percent: int
) -> None:
    def agreeing(cost_of: Callable[[RunSpec], Cost]) -> int:
        tables = [printed.tables[number] for number in ("2", "3", "4", "9", "21")]
        found = [cell for table in tables for cell in compare(table, sweeps, {}, cost_of)]
        return sum(cell.agrees for cell in found if cell.column == column)

    straight = agreeing(run_cost)
    assert straight > 0
    assert agreeing(bent(field, percent)) < straight


# --- reasons ------------------------------------------------------------------------------------


class Checker:
    """Whether what a reason claims of a cell can be computed, the numbers that it says included."""

    def __init__(
        self, composer: Composer, printed: Printed, runs: dict[tuple[str, str], RunSpec], cells: dict[Cell, Comparison]
    ) -> None:
        self._composer = composer
        self._printed = printed
        self._runs = runs
        self._cells = cells

    def holds(self, cell: Comparison, reason: Reason) -> bool:
        checks: dict[str, Callable[[Comparison, Reason], bool]] = {
            "elsewhere": self._elsewhere,
            "cut": self._cut,
            "tokens": self._tokens,
            "at_least": self._at_least,
            "layers": self._layers,
            "beyond": self._beyond,
            "other": self._other,
            "copy": self._copy,
            "half": self._half,
            "shared_bc": self._shared_bc,
        }
        return checks[reason.check["kind"]](cell, reason)

    def _model(self, table: str, row: str) -> ModelSpec:
        return self._runs[table, row].model

    def _elsewhere(self, cell: Comparison, reason: Reason) -> bool:
        """Another cell of the same model prints something else, in a table that the reason names."""
        other = self._cells[tuple(reason.check["at"])]
        same = self._model(other.table, other.row) == self._model(cell.table, cell.row)
        says = f"{Decimal(other.printed):.{other.digits}f}" in reason.text
        named = other.table == cell.table or re.search(rf"Tables? .*\b{other.table}\b", reason.text) is not None
        return same and says and named and other.column == cell.column and other.printed != cell.printed

    def _cut(self, cell: Comparison, reason: Reason) -> bool:
        return math.floor(cell.computed * 10**cell.digits) == cell.printed * 10**cell.digits

    def _equal_flops(self, at: list[str]) -> tuple[RunSpec, Fraction, Fraction]:
        """A row at equal FLOPs, and the least and the most FLOPs a token that its printed tokens allow."""
        table, row = at
        tokens = Fraction(self._cells[table, row, "tok"].printed) * 10**9
        target = run_cost(self._runs[table, "Llama"]).paper_train_flops
        half = Fraction(10**9, 2)
        return self._runs[table, row], target / (tokens + half), target / (tokens - half)

    def _says_tokens(self, reason: Reason) -> bool:
        table, row = reason.check["at"]
        return f"the {self._cells[table, row, 'tok'].printed}e9 tokens that Table {table} prints" in reason.text

    def _tokens(self, cell: Comparison, reason: Reason) -> bool:
        """Tokens printed at equal FLOPs for a model that costs the same exclude the printed FLOPs, not the computed."""
        run, least, most = self._equal_flops(reason.check["at"])
        mine = self._runs[cell.table, cell.row]
        low, high = (per_token * 60 * 10**9 / 10**20 for per_token in (least, most))
        excluded = not low - Fraction(5, 100) <= cell.printed <= high + Fraction(5, 100)
        costs = {run_cost(each).paper_train_flops_per_sample for each in (run, mine)}
        says = reason.text.endswith(" to ".join(dict.fromkeys(f"{float(flops):.1f}e20" for flops in (low, high))))
        return len(costs) == 1 and excluded and low <= cell.computed <= high and says and self._says_tokens(reason)

    def _at_least(self, cell: Comparison, reason: Reason) -> bool:
        """Tokens printed for the same model at equal FLOPs are too many for what is printed at this budget."""
        run, _, most = self._equal_flops(reason.check["at"])
        mine = self._runs[cell.table, cell.row]
        fewest = Fraction(cell.row.rpartition(" ")[2]) / most
        unit = 10**9 if cell.column == "tok_B" else 1000 * mine.batch_tokens
        says = f"make it {math.floor(fewest / 10**8) / 10}e9 tokens at least" in reason.text
        excluded = fewest / unit > Fraction(cell.printed) + Fraction(1, 2)
        return run.model == mine.model and excluded and says and self._says_tokens(reason)

    def _layers(self, cell: Comparison, reason: Reason) -> bool:
        """Printed caches of two other models leave a range for the layers of this one, and the cell lies outside."""
        ranges: dict[str, tuple[Fraction, Fraction]] = {}
        for table, row in reason.check["of"]:
            layout = layout_of(self._model(table, row))
            total = Fraction(self._cells[table, row, "cache"].printed)
            low, high = total - Fraction(1, 2), total + Fraction(1, 2)
            (kind,) = set(layout) - set(ranges)
            known = [(layout.count(other), ranges[other]) for other in set(layout) & set(ranges)]
            ranges[kind] = (
                (low - sum(n * most for n, (_, most) in known)) / layout.count(kind),
                (high - sum(n * least for n, (least, _) in known)) / layout.count(kind),
            )
        layout = layout_of(self._model(cell.table, cell.row))
        least = sum((ranges[kind][0] for kind in layout), Fraction(0))
        most = sum((ranges[kind][1] for kind in layout), Fraction(0))
        says = f"leave {math.floor(least)} to {math.ceil(most)} MiB", f"leave at most {math.ceil(most * 10) / 10} MiB"
        outside = not least - Fraction(1, 2) <= cell.printed <= most + Fraction(1, 2)
        return outside and least <= cell.computed <= most and any(text in reason.text for text in says)

    def _beyond(self, cell: Comparison, reason: Reason) -> bool:
        """More than as many layers of either kind have."""
        others = [self._cells[tuple(at)] for at in reason.check["of"]]
        depths = {len(self._model(each.table, each.row).blocks) for each in (cell, *others)}
        says = all(f"prints {each.printed}" in reason.text for each in others)
        return depths == {11} and says and "11 blocks" in reason.text and cell.printed > max(o.printed for o in others)

    def _other(self, cell: Comparison, reason: Reason) -> bool:
        """With other settings the cell would agree."""
        mine = self._runs[cell.table, cell.row]
        budget = ["budget.match=llama"] if cell.column == "tok" else []
        if cell.table == "14/15":
            budget = [f"budget.flops={cell.row.rpartition(' ')[2]}", f"batch_tokens={mine.batch_tokens}"]
        run = self._run([*reason.check["overrides"], *budget])
        assert len(run.model.blocks) == len(mine.model.blocks)
        assert run != mine
        cost = run_cost(run)
        said = re.search(r"would print (\d\.\d\d) for N-emb", reason.text)
        says = said is None or said[1] == f"{float(value_of('n_emb', run, cost)):.2f}"
        return says and agrees(cell.printed, cell.digits, value_of(cell.column, run, cost))

    def _run(self, overrides: list[str]) -> RunSpec:
        """A run of these settings, however its parameters match."""
        overrides = [*overrides, "model.max_param_mismatch=1"]
        return read_config(
            self._composer.compose(overrides),
            stdlib_fingerprint=str,
            reference=reference_models(overrides, self._composer),
        ).run

    def _copy(self, cell: Comparison, reason: Reason) -> bool:
        """Tokens and steps of the row are those of another one, whose come out."""
        table, row = reason.check["of"]
        others = [self._cells[table, row, column] for column in ("tok_B", "steps_K")]
        mine = [cell if cell.column == o.column else self._cells[cell.table, cell.row, o.column] for o in others]
        return [o.printed for o in others] == [m.printed for m in mine] and all(o.agrees for o in others)

    def _half(self, cell: Comparison, reason: Reason) -> bool:
        """Another row at twice the FLOPs prints something else than twice this, however both were rounded."""
        table, row = reason.check["of"]
        whole = self._cells[table, row, cell.column].printed
        twice, mine = (run_cost(self._runs[name]) for name in ((table, row), (cell.table, cell.row)))
        doubled = round(twice.paper_train_flops / mine.paper_train_flops, 3) == 2
        says = f"prints {whole}, of which half is {whole / 2:.0f}" in reason.text
        return doubled and says and abs(2 * cell.printed - whole) > Decimal("1.5")

    def _shared_bc(self, cell: Comparison, reason: Reason) -> bool:
        """Without the second half's B and C the parameters are Mamba's, and agree."""
        model, params = self._model(cell.table, cell.row), cell.computed * 10**9
        for block in model.blocks:
            assert isinstance(block.mixer, DiffMambaSpec)
            params -= 2 * model.d_model * block.mixer.mamba.d_state
        mamba = run_cost(self._runs["6", "1B Mamba"]).paper_non_embedding_params
        return params == mamba and agrees(cell.printed, cell.digits, params / 10**9)


def test_every_reason_holds_for_every_cell_that_it_is_given_for(
    composer: Composer, printed: Printed, runs: dict[tuple[str, str], RunSpec], cells: dict[Cell, Comparison]
) -> None:
    checker = Checker(composer, printed, runs, cells)
    wrong = [
        (name, reason.text)
        for reason in read_reasons()
        for name in reason.cells
        if not checker.holds(cells[name], reason)
    ]
    assert wrong == []


def test_a_reason_does_not_hold_for_a_cell_that_comes_out_otherwise(
    composer: Composer, printed: Printed, runs: dict[tuple[str, str], RunSpec], cells: dict[Cell, Comparison]
) -> None:
    checker = Checker(composer, printed, runs, cells)
    held = set()
    for reason in read_reasons():
        table, row, column = reason.cells[0]
        cell = cells[table, row, column]
        unit = Decimal(1).scaleb(-cell.digits)
        right = replace(cell, printed=Decimal(round(cell.computed * 10**cell.digits)) * unit)
        if checker.holds(right, reason):
            held.add(reason.cells[0])
    # Where the other printed cell does not come out either, it contradicts the right one too.
    assert held == {("6", "3B Llama", "n_emb")}


def test_reasons_are_given_once_and_only_where_a_cell_does_not_agree(cells: dict[Cell, Comparison]) -> None:
    named = [name for reason in read_reasons() for name in reason.cells]
    assert len(named) == len(set(named))
    assert {name for name in named if cells[name].agrees} == set()
    for name, cell in cells.items():
        assert (cell.reason is None) == cell.agrees
        assert (cell.reason == NO_REASON) == (not cell.agrees and name not in named)


# --- beside it ----------------------------------------------------------------------------------


def test_the_head_is_80_37_21_and_11_percent_of_what_the_paper_counts_for_llama(findings: Findings) -> None:
    shares = {row.scale: row.head_to_paper for row in findings.conventions if row.model == "Llama"}
    assert {scale: round(share, 2) for scale, share in shares.items()} == {
        "100M": 0.80, "350M": 0.37, "1B": 0.21, "3B": 0.11,
    }  # fmt: skip
    assert len(findings.conventions) == 16


def test_the_heads_flops_are_what_the_full_convention_gains_with_the_vocabulary(
    findings: Findings, runs: dict[tuple[str, str], RunSpec]
) -> None:
    for row in findings.conventions:
        run = runs["14/15", f"{row.model} {row.scale} 2e19"]
        half = replace(run, model=replace(run.model, vocab_size=run.model.vocab_size // 2))
        gained = run_cost(run).full_train_flops_per_sample - run_cost(half).full_train_flops_per_sample
        assert Fraction(2 * gained, run.seq_len) == row.head_train_flops_per_token
        assert row.full_train_flops_per_token > row.head_train_flops_per_token


def test_the_noise_of_the_scales_is_that_of_the_printed_replicates(findings: Findings, repo: Path) -> None:
    assert {noise.table: noise.scale for noise in findings.noise} == NOISE_TABLES
    for noise in findings.noise:
        said = yaml.safe_load((repo / "conf" / "scale" / f"{noise.scale.lower()}.yaml").read_text())["plan"]["noise"]
        assert (round(noise.sd_nats, 4), noise.dof) == (said["sd_nats"], said["dof"])
        assert f"Table {noise.table}" in said["source"]
        assert noise.dof == sum(len(model.names) - 1 for model in noise.models)


# --- the command --------------------------------------------------------------------------------


def test_text_counts_every_table_and_lists_what_does_not_agree(
    findings: Findings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reference"]) == 0
    text = capsys.readouterr().out
    assert text == as_text(findings, everything=False, bold=str)
    assert "\033" not in text
    assert re.search(r"Table 16 +v3 +- +its numbers are not in the data", text)
    assert re.search(r"all +\d+ of 1081", text)
    assert re.search(r"SWA 1:1 +FLOPs, 1e20 +3\.8 +4\.0518561", text)
    assert "3B Mamba  N-emb, 1e9     2.80 " in text
    assert "0.0026 nats, 7 degrees of freedom" in text
    assert "  100M   Llama " in text
    assert not re.search(r"(?m) agrees$", text)


def test_all_lists_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "--table", "2", "--table", "14", "--all"]) == 0
    text = capsys.readouterr().out
    assert len(re.findall(r"(?m) agrees$", text)) == 50 + 276
    assert len(re.findall(r"(?m)^  Intra-H +(?:N-emb|Mamba|intra|tokens|FLOPs|cache)", text)) == 6
    assert "Table 14/15 (v3)" in text
    assert "convention" not in text
    assert "Table 9 " not in text.split("\n\n")[1]


def test_json_holds_every_cell_unrounded(capsys: pytest.CaptureFixture[str], cells: dict[Cell, Comparison]) -> None:
    assert main(["reference", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(cell["table"], cell["row"], cell["column"]) for cell in found] == list(cells)
    for cell in found:
        assert list(cell) == ["table", "row", "column", "printed", "computed", "digits", "agrees", "reason"]
        exact = cells[cell["table"], cell["row"], cell["column"]]
        assert cell["computed"] == float(exact.computed)
        assert cell["agrees"] == exact.agrees
    assert found[0]["computed"] == 0.973078528


def test_markdown_has_a_table_for_each_printed_one_that_does_not_come_out(findings: Findings) -> None:
    text = as_markdown(findings, everything=False)
    wrong = [compared for compared in findings.compared if compared.n_agreeing < len(compared.cells)]
    assert text.count("### Table ") == len(wrong)
    assert "### What the full convention changes" in text
    assert "- Table 16" in text
    assert len(re.findall(r"(?m)^\| .*\| no reason known +\|$", text)) == sum(
        cell.reason == NO_REASON for compared in wrong for cell in compared.cells
    )
    everything = as_markdown(findings, everything=True)
    assert everything.count("### Table ") == len(findings.compared)


def test_a_missing_table_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "--table", "7", "--table", "2"]) == 2
    error = capsys.readouterr().err
    assert "--table 7: expected one of 2, 3, 4, 6, 9" in error
    assert "14/15" in error


def test_the_table_that_is_not_in_the_data_is_said_to_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "--table", "16"]) == 0
    assert "its numbers are not in the data" in capsys.readouterr().out
    assert main(["reference", "--table", "16", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_an_argument_too_many_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["reference", "table9"])
    assert refused.value.code == 2
    assert "unrecognized arguments: table9" in capsys.readouterr().err


def test_a_row_that_no_sweep_has_is_named_with_its_neighbours(printed: Printed, sweeps: Sweeps) -> None:
    with pytest.raises(ConfigError, match=r"\+sweep=table9: has no row 'SWA 1:2'; did you mean SWA 1:"):
        sweeps.run(Place(label="SWA 1:2", sweep="table9", row="SWA 1:2"))
    with pytest.raises(ConfigError, match=r"row 'Llama' has no cell with scale=7b"):
        sweeps.run(Place(label="Llama", sweep="isoflop", row="Llama", axes=(("scale", "7b"),)))
    table = replace(printed.tables["2"], rows=tuple({**row, "models": "Lama"} for row in printed.tables["2"].rows[:2]))
    with pytest.raises(ConfigError) as refused:
        compare(table, sweeps, {})
    (problem,) = refused.value.problems
    assert problem.startswith("table 2, row Lama and 1 more: +sweep=table2: has no row 'Lama'; did you mean Llama?")


def test_a_sweep_that_there_is_not_is_said_once_for_the_rows_that_need_it(printed: Printed) -> None:
    class Nothing(Composer):
        def parse(self, arguments: Any) -> Any:
            raise ConfigError(f"{arguments[0]}: no such choice")

    with pytest.raises(ConfigError, match=r"table 21, row 1:1 cluster and 8 more: \+sweep=.*: no such choice"):
        compare(printed.tables["21"], Sweeps(Nothing()), {})


def test_tables_are_chosen_by_either_number_and_come_in_order(printed: Printed) -> None:
    tables, missing = chosen_tables(printed, ["15", "2", "16"])
    assert [table.number for table in tables] == ["2", "14/15"]
    assert list(missing) == ["16"]
    with pytest.raises(ConfigError, match="no column of it follows from a spec"):
        places(printed.tables["5"])


def test_json_alone_is_what_findings_give(findings: Findings) -> None:
    assert json.loads(as_json(findings))[0]["table"] == "2"


def test_the_comparison_needs_no_torch_and_no_store() -> None:
    code = (
        "import sys\nfrom analysis.__main__ import main\nassert main(['reference', '--table', '2']) == 0\n"
        "print('loaded', [name for name in ('torch', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"
