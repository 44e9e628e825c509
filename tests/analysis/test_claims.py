"""The claims by the paper's printed numbers, and by numbers made up to make them true or false."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from analysis import stats
from analysis.__main__ import main
from analysis.claims import show
from analysis.claims.calibrate import Simulator, adjusted_holds, calibrate
from analysis.claims.calibrate import show as show_calibration
from analysis.claims.checks import Checks, Finding
from analysis.claims.cost import evaluate
from analysis.claims.judge import Judged, Settings, judge, one_model_on_both_sides
from analysis.claims.parts import (
    ACCURACY,
    DCLM,
    LENGTHS,
    METRICS,
    PG19,
    THROUGHPUT,
    All,
    Any_,
    Compare,
    Metric,
    Part,
    Row,
    better,
    leaves,
)
from analysis.claims.registry import read_claims
from analysis.claims.source import PaperRows, PrintedSource
from analysis.claims.verdicts import Verdicts, chosen, judge_claims
from analysis.reference.compare import Sweeps
from analysis.reference.printed import read_printed
from hybrid.cost import run_cost
from hybrid.spec import ConfigError
from sweeps.compose import Composer

SETTINGS = Settings()
Numbers = Mapping[tuple[Row, Metric], float]


@pytest.fixture(scope="module")
def rows() -> Iterator[PaperRows]:
    with Composer() as composer:
        yield PaperRows(read_printed(), Sweeps(composer))


@pytest.fixture(scope="module")
def paper(rows: PaperRows) -> PrintedSource:
    return PrintedSource(rows)


@pytest.fixture(scope="module")
def parts(paper: PrintedSource) -> dict[str, Part]:
    return {claim.id: claim.predicate(paper) for claim in read_claims()}


@pytest.fixture(scope="module")
def verdicts(paper: PrintedSource) -> Verdicts:
    return judge_claims(paper, SETTINGS)


@pytest.fixture(scope="module")
def objects(verdicts: Verdicts) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in json.loads(show.as_json(verdicts))}


# --- the paper ------------------------------------------------------------------------------------


def test_every_claim_has_a_verdict_a_reason_and_numbers(objects: dict[str, dict[str, Any]]) -> None:
    assert list(objects) == [f"C{i:02}" for i in range(1, 40)]
    for item in objects.values():
        assert item["verdict"] in ("holds", "fails", "equivalent", "undecided", "untestable")
        assert item["reason"].endswith(".")
        assert item["numbers"]
        assert item["needs"] or item["verdict"] != "untestable"


def test_the_noise_floor_is_that_of_printed_replicates(paper: PrintedSource) -> None:
    at_1b, at_350m = paper.noise("1B", DCLM), paper.noise("350M", DCLM)
    assert at_1b is not None
    assert at_350m is not None
    assert (round(at_1b.sd, 4), at_1b.df) == (0.0026, 7)
    assert (round(at_350m.sd, 4), at_350m.df) == (0.0018, 7)
    accuracy = paper.noise("1B", ACCURACY)
    assert accuracy is not None
    assert 0.3 < accuracy.sd < 0.6
    # Two single runs: gaps of less than about 0.009 nats tell nothing.
    assert stats.t_quantile(7) * at_1b.sd * math.sqrt(2) == pytest.approx(0.0086, abs=1e-4)


def test_numbers_of_a_verdict_are_those_that_are_printed(objects: dict[str, dict[str, Any]], rows: PaperRows) -> None:
    by_name = {metric.name: metric for metric in METRICS}
    seen = 0
    for item in objects.values():
        for number in item["numbers"]:
            for used in number["rows"]:
                printed = rows.number(Row(used["table"], used["row"]), by_name[number["metric"]])
                assert used["value"] == printed
                seen += 1
    assert seen > 500


def test_an_estimate_is_the_sum_of_its_weighted_numbers(objects: dict[str, dict[str, Any]]) -> None:
    for item in objects.values():
        for number in item["numbers"]:
            if number["kind"] == "comparison" and number["unit"] in ("nats", "points"):
                total = math.fsum(used["weight"] * used["value"] for used in number["rows"])
                assert number["estimate"] == pytest.approx(total, abs=2e-5)


def test_no_comparison_within_the_noise_of_two_runs_is_decided(objects: dict[str, dict[str, Any]]) -> None:
    undecided = 0
    for item in objects.values():
        for number in item["numbers"]:
            if number["kind"] == "comparison" and number["interval"] and not number["one_model"]:
                low, high = number["interval"]
                if low < 0 < high and " no worse " not in number["part"]:
                    assert number["verdict"] in ("undecided", "equivalent")
                    undecided += 1
    assert undecided > 50


def test_a_claim_with_a_wrong_quoted_size_fails_by_arithmetic(objects: dict[str, dict[str, Any]]) -> None:
    assert objects["C07"]["verdict"] == "fails"
    assert "21.7%" in objects["C07"]["reason"]
    assert objects["C08"]["verdict"] == "holds"
    assert objects["C18"]["verdict"] == "fails"
    assert "2.20 points (56.9 against 54.7)" in objects["C18"]["reason"]


def test_what_only_a_figure_shows_is_untestable_and_says_what_would_show_it(
    objects: dict[str, dict[str, Any]],
) -> None:
    untestable = {name: item["needs"] for name, item in objects.items() if item["verdict"] == "untestable"}
    assert set(untestable) == {"C12", "C16", "C17"}
    assert all("+sweep=table2" in needs for needs in untestable.values())


def test_a_gap_that_would_hold_alone_need_not_hold_among_all(objects: dict[str, dict[str, Any]]) -> None:
    item = objects["C23"]
    assert (item["verdict_alone"], item["verdict"]) == ("holds", "undecided")
    assert item["p_holds"] <= 0.025 < item["p_holds_adjusted"]
    assert item["seeds_needed"] > 1


def test_the_printed_formula_is_read_as_it_stands() -> None:
    assert evaluate("a*(b + 2*c) + 2", {"a": 3, "b": 4, "c": 5}) == 44
    with pytest.raises(ValueError, match="expected sums and products"):
        evaluate("a**2", {"a": 3})


# --- findings -------------------------------------------------------------------------------------


def findings(verdicts: Verdicts, kind: str) -> dict[str, list[Finding]]:
    found = {
        verdict.claim.id: [finding for finding in verdict.findings if finding.kind == kind]
        for verdict in verdicts.claims
    }
    return {name: of_kind for name, of_kind in found.items() if of_kind}


def test_replicates_are_found(verdicts: Verdicts) -> None:
    found = findings(verdicts, "replicates")
    assert set(found) == {"C28"}
    assert "group diff joint 2.721 against group add joint 2.721" in found["C28"][0].text
    assert "concat" not in found["C28"][0].text  # with a joint output on both sides it is another model


def test_orders_that_turn_round_with_the_recipe_are_found(verdicts: Verdicts) -> None:
    found = findings(verdicts, "recipe")
    assert {"C05", "C06", "C23"} == set(found)
    for of_claim in found.values():
        assert "2.714" in of_claim[0].text
        assert "2.712" in of_claim[0].text


def test_unequal_implementations_are_found(verdicts: Verdicts) -> None:
    found = findings(verdicts, "implementation")
    assert {"C03", "C13", "C14", "C15"} == set(found)
    assert any("18 MiB" in finding.text and "Mamba, with 13 MiB" in finding.text for finding in found["C14"])


def test_printed_numbers_that_point_the_other_way_are_found(verdicts: Verdicts) -> None:
    found = findings(verdicts, "against")
    assert {"C06", "C20", "C26", "C30", "C32", "C39"} == set(found)
    assert found["C26"][0].text.startswith("6 of 8")
    assert "350M 2:1 2.875 against 350M 1:1 2.846" in found["C30"][0].text


def test_another_measure_that_disagrees_is_found(verdicts: Verdicts) -> None:
    found = findings(verdicts, "other metric")["C22"]
    assert "350M 1:1 49.3 against 350M 1:3 50.2" in found[0].text


def test_one_run_with_two_numbers_is_found(verdicts: Verdicts) -> None:
    assert "Hymba 52.4, but Table 18: Hymba 53.7" in findings(verdicts, "printed twice")["C29"][0].text


def test_checks_find_nothing_where_the_numbers_agree(rows: PaperRows, parts: dict[str, Part]) -> None:
    """The same checks on numbers that say of every model the same in every table."""
    quality = {"1:0": 0.05, "0:1": 0.06, "1:1": 0.0, "1:3": 0.01, "1:5": 0.02, "1:12": 0.03}
    models = {ratio: rows.model(Row("4", f"1B {ratio}")) for ratio in quality}
    models |= {f"350M {ratio}": rows.model(Row("4", f"350M {ratio}")) for ratio in quality}
    numbers: dict[tuple[Row, Metric], float] = {}
    for row in rows:
        if row.table in ("6", "13"):
            continue
        for name, model in models.items():
            if rows.model(row) == model:
                loss = quality[name.rpartition(" ")[2]]
                numbers |= {(row, DCLM): 2.7 + loss, (row, PG19): 2.8 + loss, (row, ACCURACY): 55 - 100 * loss}
    source = PrintedSource(rows, numbers)
    for name in ("C22", "C23", "C24"):
        assert Checks(source).findings(judge({name: parts[name]}, source, SETTINGS)[name]) == ()


def test_printed_one_way_is_not_found_if_implementations_are_equal(rows: PaperRows, paper: PrintedSource) -> None:
    """Throughputs as what is moved and computed would allow, all by the same share."""
    checks = Checks(paper)
    numbers = {
        (row, THROUGHPUT[length]): 0.3 * checks._allowed(row, length) for row in rows.of("13") for length in LENGTHS
    }
    source = PrintedSource(rows, numbers)
    part = next(claim for claim in read_claims() if claim.id == "C14").predicate(source)
    judged = judge({"C14": part}, source, SETTINGS)["C14"]
    assert [f.kind for f in Checks(source).findings(judged) if f.kind == "implementation"] == []


# --- a verdict can come out either way ---------------------------------------------------------------


@dataclass
class Wanted:
    """Numbers that put every comparison of a claim on one side, by linear programming."""

    source: PrintedSource
    names: list[tuple[Row, Metric]]
    tied: dict[tuple[Row, Metric], tuple[Row, Metric]]

    def solve(self, comparisons: Sequence[Compare], side: int) -> Numbers:
        from scipy.optimize import linprog

        index = {name: i for i, name in enumerate(dict.fromkeys(self.tied.get(name, name) for name in self.names))}
        constraints, bounds = [], []
        for leaf in comparisons:
            coefficients = [0.0] * len(index)
            sign = -1.0 if leaf.metric.better == "less" else 1.0
            for row, weight in leaf.weights().items():
                name = (row, leaf.metric)
                coefficients[index[self.tied.get(name, name)]] += sign * weight
            if leaf.wants == "same" and side > 0:
                constraints += [coefficients, [-c for c in coefficients]]
                bounds += [0.0, 0.0]
                continue
            constraints.append([-side * c for c in coefficients])
            bounds.append(-{"nats": 0.2, "points": 10.0, "tokens/s": 1.0}[leaf.metric.unit])
        ranges = [(1.0, 90.0) if metric is ACCURACY else (1.0, 8.0) for _, metric in index]
        solved = linprog([0.0] * len(index), A_ub=constraints, b_ub=bounds, bounds=ranges)
        assert solved.success, "no numbers make all of these comparisons so"
        values = {name: float(solved.x[i]) for name, i in index.items()}
        return {
            name: math.exp(values[self.tied.get(name, name)])
            if name[1].logarithmic
            else values[self.tied.get(name, name)]
            for name in self.names
        }


def _comparisons(part: Part, *, every: bool) -> list[Compare]:
    """Of a conjunction all, of alternatives the last, or every one."""
    match part:
        case All():
            return [leaf for inner in part.parts for leaf in _comparisons(inner, every=every)]
        case Any_():
            inner = [p for p in part.parts if any(isinstance(leaf, Compare) for leaf in leaves(p))]
            chosen_parts = inner if every else inner[-1:]
            return [leaf for p in chosen_parts for leaf in _comparisons(p, every=every)]
        case Compare():
            return [part]
        case _:
            return []


def made_up(paper: PrintedSource, part: Part, side: int) -> PrintedSource:
    """The paper with numbers that make the claim plainly true or false, and little noise."""
    comparisons = _comparisons(part, every=side < 0)
    if side < 0 and any(leaf.wants == "same" for leaf in comparisons):
        comparisons = comparisons[:1]
    names = list(dict.fromkeys((row, leaf.metric) for leaf in comparisons for row in leaf.rows))
    tied = {
        (row, metric): (rows[0], metric)
        for classes in paper.replicas.values()
        for rows in classes
        for row in rows[1:]
        for metric in (DCLM, PG19, ACCURACY)
    }
    numbers = dict(Wanted(source=paper, names=names, tied=tied).solve(comparisons, side))
    for classes in paper.replicas.values():
        for rows in classes:
            for metric in (DCLM, PG19, ACCURACY):
                known = [numbers[row, metric] for row in rows if (row, metric) in numbers]
                centre = known[0] if known else 3.0
                for i, row in enumerate(rows):
                    numbers[row, metric] = centre + 1e-4 * (-1) ** i
    return PrintedSource(paper.rows, numbers)


BY_NOISE = (
    *("C01", "C02", "C03", "C04", "C05", "C06", "C13", "C14", "C15", "C18", "C22", "C23", "C24", "C25", "C26", "C27"),
    *("C28", "C29", "C30", "C31", "C32", "C39"),
)


def test_all_claims_that_noise_decides_are_tried_both_ways(objects: dict[str, dict[str, Any]]) -> None:
    with_intervals = {
        name
        for name, item in objects.items()
        if any(number["kind"] == "comparison" and number["estimate"] is not None for number in item["numbers"])
    }
    assert with_intervals == set(BY_NOISE)


@pytest.mark.parametrize("name", BY_NOISE)
def test_a_claim_fails_where_the_numbers_say_so(name: str, paper: PrintedSource, parts: dict[str, Part]) -> None:
    part = parts[name]
    different = _without_replicates(part, paper)
    source = made_up(paper, different, -1)
    assert judge({name: different}, source, SETTINGS)[name].verdict == "fails"


@pytest.mark.parametrize("name", BY_NOISE)
def test_a_claim_holds_where_the_numbers_say_so(name: str, paper: PrintedSource, parts: dict[str, Part]) -> None:
    different = _without_replicates(parts[name], paper)
    source = made_up(paper, different, 1)
    judged = judge({name: different}, source, SETTINGS)[name]
    assert judged.verdict == "holds", [found.text for found in judged.found if found.verdict != "holds"]


def _without_replicates(part: Part, paper: PrintedSource) -> Part:
    """Without comparisons of a model with itself, which chance alone decides: they can come out neither way."""
    if not isinstance(part, All):
        return part
    kept = [p for p in part.parts if not (isinstance(p, Compare) and one_model_on_both_sides(p, paper))]
    return All(tuple(kept))


def test_a_comparison_of_one_model_with_itself_never_holds_nor_fails(paper: PrintedSource) -> None:
    a, b = Row("5", "group diff joint"), Row("5", "group add joint")
    for shift in (-0.5, 0.0, 0.5):
        source = PrintedSource(paper.rows, {(a, DCLM): 2.721 + shift})
        judged = judge({"x": better(a, b, DCLM)}, source, SETTINGS)["x"]
        assert judged.verdict == "equivalent"


@pytest.mark.parametrize(("swapped", "verdict"), [(False, "holds"), (True, "fails")])
def test_the_scaling_claim_comes_out_both_ways(swapped: bool, verdict: str, rows: PaperRows) -> None:
    """Losses on parabolas whose lowest points are where the claim would have them, or with Llama and Mamba swapped."""
    tokens_a_parameter = {"Llama": 20.0, "Inter-H": 14.0, "Intra-H": 15.0, "Mamba": 11.0}
    drift = {"Llama": 0.0, "Inter-H": 0.05, "Intra-H": 0.05, "Mamba": 0.10}
    if swapped:
        for table in (tokens_a_parameter, drift):
            table["Llama"], table["Mamba"] = table["Mamba"], table["Llama"]
    numbers = {}
    for row in rows.of("14/15"):
        entry, run = rows.entry(row), rows.run(row)
        model, flops = entry.printed["model"], float(entry.printed["flops"])
        ratio = math.log(run.train_tokens / run_cost(run).paper_non_embedding_params)
        best = math.log(tokens_a_parameter[model]) - drift[model] * math.log(flops / 1e20)
        numbers[row, DCLM] = 3.0 + 0.02 * (ratio - best) ** 2
    source = PrintedSource(rows, numbers)
    claim = next(claim for claim in read_claims() if claim.id == "C20")
    judged = judge({"C20": claim.predicate(source)}, source, SETTINGS)["C20"]
    assert judged.verdict == verdict, [(found.text, found.estimate, found.verdict) for found in judged.found]


def test_a_quoted_size_that_is_not_reached_turns_a_claim_over(rows: PaperRows, parts: dict[str, Part]) -> None:
    printed = {name: rows.number(Row("2", name), ACCURACY) for name in ("Intra-H equal FLOPs", "Llama")}
    assert printed == {"Intra-H equal FLOPs": 54.9, "Llama": 52.0}
    source = PrintedSource(rows, {(Row("2", "Intra-H equal FLOPs"), ACCURACY): 54.8})
    assert judge({"C01": parts["C01"]}, source, SETTINGS)["C01"].verdict == "fails"


def test_a_wider_margin_makes_near_rows_equivalent(rows: PaperRows) -> None:
    a, b = Row("4", "1B 1:5"), Row("4", "1B 1:3")

    def verdict(margin: float) -> str:
        settings = Settings(margin=margin)
        return judge({"x": better(a, b, DCLM)}, PrintedSource(rows), settings)["x"].verdict

    assert verdict(0.005) == "undecided"
    assert verdict(0.02) == "equivalent"


# --- calibration --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulator(paper: PrintedSource) -> Simulator:
    return Simulator(paper, SETTINGS)


def test_a_simulated_paper_is_judged_as_the_judge_would(simulator: Simulator, paper: PrintedSource) -> None:
    """The vectorised rule on the printed numbers themselves gives the p values of the verdicts."""
    import numpy as np

    numbers = np.array(simulator._truth)[:, None]
    holds, fails = simulator.evidence(numbers)
    parts = {claim.id: claim.predicate(paper) for claim in read_claims()}
    judged = judge(parts, paper, SETTINGS)
    compared = 0
    for i, name in enumerate(simulator.claims):
        if not _printed_alike(judged[name], paper):
            continue  # a run that is printed with two numbers has one here
        expected = judged[name].evidence
        if expected.fails == 0.0:
            continue  # a quoted size that is not reached refutes by arithmetic
        compared += 1
        assert holds[i, 0] == pytest.approx(expected.holds, abs=1e-9), name
        assert fails[i, 0] == pytest.approx(expected.fails, abs=1e-9), name
    assert compared > 12


def _printed_alike(judged: Judged, paper: PrintedSource) -> bool:
    return not any(finding.kind == "printed twice" for finding in Checks(paper).findings(judged))


def test_any_false_holds_is_rarer_than_five_in_a_hundred(simulator: Simulator) -> None:
    import numpy as np

    rng = np.random.default_rng(7)
    n, error = 1500, 0.025
    holds, fails = simulator.evidence(simulator.draw(rng, n, as_printed=False))
    assert (adjusted_holds(holds, simulator.family) <= error).any(axis=0).mean() <= error
    # Bonferroni within a claim: no claim that could be true is refuted more often than stated. 3.5 standard deviations.
    assert (fails <= error).mean(axis=1).max() <= error + 3.5 * math.sqrt(error * (1 - error) / n)
    wrong = 0
    for _ in range(10):
        single = simulator.one_comparison(rng, n // 10)
        wrong += int((adjusted_holds(single, simulator.family) <= error).any(axis=0).sum())
    assert 0 < wrong / n <= error + 3.5 * math.sqrt(error * (1 - error) / n)


def test_a_rule_without_correction_would_err_far_more_often(simulator: Simulator) -> None:
    """The calibration can tell a bad rule from a good one."""
    import numpy as np

    single = simulator.one_comparison(np.random.default_rng(8), 500)
    assert (single <= 0.025).any(axis=0).mean() > 0.15


def test_a_difference_of_three_hundredths_is_found_and_of_half_a_hundredth_is_not(simulator: Simulator) -> None:
    import numpy as np

    rng = np.random.default_rng(9)
    assert simulator.power(rng, 2000, 0.030, 1).rate > 0.9
    assert simulator.power(rng, 2000, 0.005, 1).rate < 0.1
    assert simulator.power(rng, 2000, 0.015, 3).rate > simulator.power(rng, 2000, 0.015, 1).rate


def test_a_calibration_says_what_errs_and_what_is_found(paper: PrintedSource) -> None:
    found = calibrate(paper, SETTINGS, 100)
    assert found.simulations == 100
    assert found.false_holds.rate <= 0.05
    text = show_calibration(found, "text")
    assert "23 claims judged together" in text
    assert json.loads(show_calibration(found, "json"))["false_holds"] == found.false_holds.rate


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_prints_json_that_is_a_list_of_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--json", "--claim", "C08", "--claim", "c30"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(item["id"], item["verdict"]) for item in printed] == [("C08", "holds"), ("C30", "fails")]


def test_text_and_markdown_say_the_same_verdicts(verdicts: Verdicts) -> None:
    text, markdown = show.as_text(verdicts, bold=str), show.as_markdown(verdicts)
    for verdict in verdicts.claims:
        assert f"{verdict.claim.id}  {verdict.verdict.upper()}" in text
        line = next(line for line in markdown.splitlines() if line.startswith(f"| {verdict.claim.id} "))
        assert f"**{verdict.verdict}**" in line
        assert line.replace("\\|", "").count("|") == 6


def test_bad_input_names_every_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--claim", "C99", "--margin", "wide", "--level", "2", "scale=toy"]) == 2
    said = capsys.readouterr().err
    for word in ("--claim C99", "--margin = wide", "--level = 2", "scale=toy: expected --source store"):
        assert word in said


def test_claims_are_chosen_by_their_ids() -> None:
    assert chosen(["c22", "C01"]) == ("C01", "C22")
    with pytest.raises(ConfigError, match="did you mean"):
        chosen(["C222"])


def test_printed_averages_are_recomputed(objects: dict[str, dict[str, Any]], rows: PaperRows) -> None:
    row = rows.entry(Row("20", "350M 2:1")).printed
    mean = sum(Decimal(row[name]) for name in ("ld", "hs", "pq", "arc", "ob")) / 5
    assert mean == Decimal("49.82")
    assert row["avg"] == Decimal("50.4")
    assert any("49.82" in finding["text"] for finding in objects["C36"]["findings"])
