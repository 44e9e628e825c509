import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hybrid.config import Resolved, read_config
from hybrid.cost import layout_of
from hybrid.decode import canonical_json, decode
from hybrid.spec import ConfigError, RunSpec
from sweeps.cells import Expansion, expand
from sweeps.compose import CONFIG_DIR, Composer, as_override
from sweeps.identity import run_id
from sweeps.status import flatten

# The whole study has the cells of its sweeps and none of its own.
SHIPPED = sorted(path.stem for path in (CONFIG_DIR / "sweep").glob("*.yaml") if path.stem != "paper")
SCALES = {"table2": ["1b", "350m"], "table4": ["1b", "350m", "toy"], "placement": ["1b", "toy"]}
FINGERPRINT = "0123456789abcdef"


def reads(config: Mapping[str, Any], composer: Composer, arguments: Sequence[str]) -> Resolved:
    def reference(name: str) -> Mapping[str, Any]:
        structural = [a for a in arguments if not a.startswith("model.") and not a.startswith("model=")]
        return composer.compose_by_hydra([*structural, f"model={name}"])

    return read_config(config, stdlib_fingerprint=lambda: FINGERPRINT, reference=reference)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", SHIPPED)
def test_every_shipped_cell_is_the_run_that_plain_hydra_composes(expand_request, sweep: str) -> None:
    """The fast path is not another language: each cell's arguments, composed by Hydra alone, give an equal RunSpec."""
    for scale in SCALES.get(sweep, [None]):
        arguments = [f"+sweep={sweep}"] + ([f"scale={scale}"] if scale else [])
        expansion = expand_request(*arguments)
        # Seeds differ by two integers, budgets by one number: one of them suffices here.
        runs = list({(r.cell.row, r.cell.axes.get("scale")): r for r in reversed(expansion.runs)}.values())
        assert len(runs) >= 3
        with Composer() as composer:
            for run in runs:
                plain = reads(composer.compose_by_hydra(run.arguments), composer, run.arguments)
                assert plain.run == run.resolved.run, run.cell.name
                assert canonical_json(plain.run) == canonical_json(run.resolved.run)


def test_models_and_sweeps_merged_here_are_what_hydra_composes() -> None:
    """Every model with every scale, and with a sweep that sets model dimensions itself."""
    models = sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml"))
    scales = ["toy", "1b"]
    with Composer() as composer:
        cases = [(f"model={model}", f"scale={scale}") for model in models for scale in scales]
        cases += [("+sweep=demo", f"model={model}") for model in models[::4]] + [("+sweep=isoflop", "scale=3b")]
        for overrides in cases:
            merged = composer.compose(overrides)
            assert merged == composer.compose_by_hydra(overrides), overrides


def test_the_whole_study_is_the_cells_of_its_sweeps(expand_request) -> None:
    study = expand_request("+sweep=paper")
    runs = {run.cell.name: run.cell.run_id for run in study.runs}
    assert len(runs) == len(study.runs) == 284
    for part in ("table4", "table4 scale=350m", "isoflop"):
        name, *overrides = part.split()
        for cell in expand_request(f"+sweep={name}", *overrides).request.cells:
            assert runs[f"{part}/{cell.name}"] == cell.run_id


def test_cells_are_rows_times_grid_times_seeds_under_different_names(expand_request) -> None:
    expansion = expand_request("+sweep=demo", "sweep.seeds=3", "optim.lr=1e-3,2e-3")
    names = [cell.name for cell in expansion.request.cells]
    assert len(names) == len(set(names)) == 5 * 2 * 3
    assert names[0] == "attention 1st/lr=0.001/s1"
    assert len({cell.run_id for cell in expansion.request.cells}) == 30


def test_rows_at_one_seed_share_their_seeds_so_that_they_can_be_paired(expand_request) -> None:
    for run in expand_request("+sweep=demo", "sweep.seeds=[7]").runs:
        assert (run.resolved.run.init_seed, run.resolved.run.data_seed) == (7, 7)


def test_a_list_of_ratios_on_the_command_line_is_an_unnamed_request(expand_request) -> None:
    expansion = expand_request("model.ratio=1:1,1:12")
    assert [cell.name for cell in expansion.request.cells] == ["ratio=1:1", "ratio=1:12"]
    assert [layout_of(run.resolved.run.model).count("A") for run in expansion.runs] == [7, 1]


@pytest.mark.parametrize("spelling", ["1:12", "72", "'1:12'", '"1:12"'])
def test_one_to_twelve_is_the_same_run_however_it_is_written(expand_request, spelling: str) -> None:
    ids = {run.cell.run_id for run in expand_request(f"model.ratio={spelling}").runs}
    assert ids == {run.cell.run_id for run in expand_request("model.ratio=1:12").runs}


@pytest.fixture
def expand_file(tmp_path: Path) -> Callable[[str], Expansion]:
    """What a sweep file of one's own asks for."""

    def run(text: str) -> Expansion:
        shutil.rmtree(tmp_path / "conf", ignore_errors=True)
        shutil.copytree(CONFIG_DIR, tmp_path / "conf")
        (tmp_path / "conf/sweep/own.yaml").write_text(f"# @package _global_\n{text}")
        with Composer(tmp_path / "conf") as composer:
            return expand(["+sweep=own"], composer, stdlib_fingerprint=lambda: "0" * 16)

    return run


def test_bare_ratios_in_the_rows_and_lists_of_a_sweep_file_are_read(expand_file) -> None:
    rows = "rows: {plain: {model.mamba.d_conv: 4}, bare: {model.mamba.d_conv: 3}}"
    runs = expand_file(f"sweep: {{name: own, {rows}, grid: {{model.ratio: [1:12, 1:0, 0:1, 1:1]}}}}").runs[:4]
    layouts = [layout_of(run.resolved.run.model) for run in runs]
    assert [(layout.count("A"), layout.count("M")) for layout in layouts] == [(1, 12), (16, 0), (0, 12), (7, 7)]
    assert [run.cell.name for run in runs] == [f"plain/ratio={r}" for r in ("1:12", "1:0", "0:1", "1:1")]
    (row,) = expand_file("sweep: {name: own, rows: {x: {model.ratio: 1:12}}}").runs
    assert layout_of(row.resolved.run.model) == "MMMMMMAMMMMMM"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: {name: own, rows: {x: {}}, grid: {model.ratio: [1:12, '1:12']}}", "repeated"),
        ("sweep: {name: own, rows: {1:12: {model.ratio: 1:12}}}", "YAML reads a bare 1:12 as 72"),
        ("sweep: {name: own, rows: {x: {5: 3}}}", "expected the name of a setting"),
        ("sweep: {name: own, rows: {x: {mode: plan}}}", "not a setting of a cell"),
        ("sweep: {name: own, rows: {x: {store.root: y}}}", "not a setting of a cell"),
        ("sweep: {name: own, rows: {x: hello}}", "expected settings"),
        ("sweep: {name: own, rows: {}}", "rows is empty"),
        ("sweep: {name: own, rows: {x: {}}, at: {scale=toy: {x: null}}}", "no cells are left"),
        ("sweep: {name: own, rows: {x: {}}, at: {scael=toy: {x: null}}}", "no setting scael"),
        ("sweep: {name: own, rows: {x: {}}, at: {scale=toy: {y: null}}}", "no such row"),
        ("sweep: {name: own, rows: {x: {}}, at: {'scale=toy, sede=1': {x: null}}}", "no setting sede"),
        ("sweep: {name: own, rows: {x: {}}, of: [table4]}", "sweep.rows beside sweep.of"),
        ("sweep: {name: own, of: [table44]}", "table44: .*did you mean table4"),
        ("sweep: {name: own, of: [demo, demo]}", "demo is there twice"),
        ("sweep: {name: own, seeds: 200000, rows: {x: {}}}", "from 1 to 100000"),
        ("sweep: {name: own, seeds: 90000, rows: {x: {}, y: {}}}", "180,000 cells: expected at most 100,000"),
        ("sweep: {name: own, rows: {x: {}}, tune: {budget.tokens: [1M, 2M]}}", "expected a setting at equal cost"),
        ("sweep: {name: ../evil, rows: {x: {}}}", "expected letters"),
        ("sweep: {name: own, rows: {x: {}}, report: hello}", "sweep.report = 'hello': expected settings"),
        ("sweep: {name: own, rows: {x: {}}, report: {caption: 5}}", "sweep.report.caption = 5: expected a text or a"),
        ("sweep: {rows: {x: {}}}", "no sweep.name"),
        ("", "no sweep.name"),
        ("sweep: [", "own.yaml"),
        ("sweep: {name: own}\n\tx: 1", "own.yaml"),
    ],
)
def test_a_sweep_file_that_cannot_be_meant_is_one_clear_error(expand_file, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_file(text)


def test_conditions_with_commas_hold_together_and_a_star_is_every_row(expand_file) -> None:
    at = "{'scale=toy, budget.tokens=2e6': {'*': {optim.lr: 0.5}}, 'scale=toy, budget.tokens=3M': {y: null}}"
    grid = "{budget.tokens: ['2e6', 3M]}"
    runs = expand_file(f"sweep: {{name: own, rows: {{x: {{}}, y: {{}}}}, grid: {grid}, at: {at}}}").runs
    found = {run.cell.name: run.resolved.run.optim.lr for run in runs}
    assert found == {"x/tokens=2e6": 0.5, "x/tokens=3M": 0.003, "y/tokens=2e6": 0.5}


def test_what_one_row_is_at_a_scale_does_not_move_what_the_others_are_matched_to(expand_file) -> None:
    rows = "{a: {model: mamba, budget.match: llama}, b: {model: mamba, budget.match: llama}}"

    def targets(at: str) -> list[int]:
        runs = expand_file(f"sweep: {{name: own, rows: {rows}, at: {at}}}").runs
        return [run.resolved.budget.target_flops for run in runs]

    plain = targets("{}")
    own = targets("{scale=toy: {b: {model.ffn.d_ffn: 250}}}")
    everywhere = targets("{scale=toy: {'*': {model.ffn.d_ffn: 250}}}")
    assert own == plain
    assert everywhere[0] == everywhere[1] < plain[0]


def test_conditions_see_what_holds_in_tuning_runs_alone(expand_file) -> None:
    at = "{budget.tokens=1M: {x: {optim.weight_decay: 0.5}}}"
    tune = "{optim.lr: [1e-3, 2e-3], at: {budget.tokens: 1M}}"
    runs = expand_file(f"sweep: {{name: own, rows: {{x: {{}}}}, at: {at}, tune: {tune}}}").runs
    decays = {run.is_tuning: run.resolved.run.optim.weight_decay for run in runs}
    assert decays == {True: 0.5, False: 0.1}


def test_each_cell_has_the_plan_settings_of_its_own_scale(expand_request) -> None:
    runs = expand_request("+sweep=isoflop").runs
    sds = {run.cell.axes["scale"]: run.plan["noise"]["sd_nats"] for run in runs}
    assert sds == {"100m": None, "350m": 0.0018, "1b": 0.0026, "3b": None}


def test_a_group_may_be_chosen_at_one_scale_only(expand_file) -> None:
    (run,) = expand_file("sweep: {name: own, rows: {x: {model: llama}}, at: {scale=toy: {x: {model: mamba}}}}").runs
    assert set(layout_of(run.resolved.run.model)) == {"M"}


def test_a_glob_chooses_every_choice_of_a_group(expand_request) -> None:
    assert [cell.name for cell in expand_request("model=glob(in*)").request.cells] == [
        "model=inter",
        "model=intra",
    ]


def test_the_same_model_in_two_tables_is_one_run(expand_request) -> None:
    table4 = {cell.row: cell.run_id for cell in expand_request("+sweep=table4").request.cells}
    placement = {cell.row: cell.run_id for cell in expand_request("+sweep=placement").request.cells}
    assert table4["1:5"] == placement["1:5 middle"]
    assert table4["1:12"] == placement["1:12 at 7"]


def test_printed_positions_hold_at_their_own_scale_only(expand_request) -> None:
    def positions(scale: str, row: str) -> list[int]:
        runs = expand_request("+sweep=placement", f"scale={scale}").runs
        layout = next(layout_of(run.resolved.run.model) for run in runs if run.cell.row == row)
        return [i for i, letter in enumerate(layout, 1) if letter == "A"]

    assert positions("1b", "1:5 end") == [4, 11]
    assert positions("350m", "1:3 front") == [1, 6, 9]
    assert positions("toy", "1:5 end")[-1] == 13
    assert "1:12 at 12" not in {cell.row for cell in expand_request("+sweep=placement", "scale=350m").request.cells}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.ratioo=1:1"], "model.ratioo = '1:1': unknown setting.*did you mean ratio"),
        (["model=intr"], "intr"),
        (["+sweep=dmeo"], "dmeo"),
        (["+sweep=demo", "model=llama"], "the rows of sweep demo set model themselves"),
        (["+sweep=demo", "sweep.seeds=0"], "sweep.seeds = 0"),
        (["+sweep=demo", "sweep.seeds=[1,1]"], "different seeds"),
        (["+sweep=demo", "sweep.only=[atention 3rd]"], "did you mean attention 3rd"),
        (["+sweep=demo", "sweep.rows=null"], "rows is empty"),
        (["+sweep=demo", "init_seed=3"], "sweep.seeds"),
        (["model.ratio=1:1,1:1"], "repeated"),
        (["model.ratio=["], "model.ratio="),
        (["mode=plan,run"], "expected one value"),
        (
            ["+sweep=demo", "sweep.only=no attention,attention only"],
            r"write sweep\.only=\[no attention,attention only\]",
        ),
        (["sweep.seeds=11,12"], r"write sweep\.seeds=\[11,12\]"),
        (["+sweep=demo", "++init_seed=77"], "sweep.seeds"),
        (["+sweep=demo", "++model.ratio=2:1"], "the rows of sweep demo set model.ratio"),
        (["+sweep=demo", "+sweep.report.titel=x"], "did you mean title"),
        (["optim.lr=interval(0,1)"], "give the values"),
        (["+sweep=placement", "scale=100m"], "outside the blocks 1 to 6"),
        (["budget=null"], "expected one of the choices of budget .valid: tokens"),
        (["model=3"], "expected one of the choices of model"),
        (["plan=3"], "plan = 3: expected settings: format"),
        (["plan=null"], "plan = None: expected settings"),
        (["model.intra=5"], "model.intra = 5: expected settings"),
        (["+sweep=demo", "+sweep=table2"], "expected one sweep"),
        (["+sweep=paper", "scale=1b"], "sweep.of sets this itself for table4 scale=350m"),
    ],
)
def test_a_request_that_cannot_be_meant_is_one_clear_error(expand_request, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_request(*arguments)


def test_bad_cells_are_reported_all_at_once_each_problem_once(expand_request) -> None:
    with pytest.raises(ConfigError) as caught:
        expand_request("model.depth=0,3", "optim.lr=-1,1e-3", "sweep.seeds=2")
    problems = caught.value.problems
    assert len(problems) == 2
    assert any("model.depth" in p and "depth=0" in p for p in problems)
    assert any("optim.lr" in p and p.endswith("s2]") for p in problems)


def test_surroundings_do_not_change_what_a_request_is(expand_request) -> None:
    plain = expand_request("+sweep=demo").request
    other = expand_request(
        "+sweep=demo", "mode=plan", "exec.threads=2", "store.root=/elsewhere", "plan.format=json"
    ).request
    assert dataclasses.replace(plain, created_at="") == dataclasses.replace(other, created_at="")


@pytest.mark.parametrize(
    "value", [None, True, 1, 1.5e-7, "text", "1:12", "a b", "it's", "null", "", [1, "x y"], {"a": 1}, "a,b", "\\"]
)
def test_a_setting_written_as_an_override_is_read_back_the_same(value: object) -> None:
    with Composer() as composer:
        assert composer.parse([as_override("key", value)])[0].values == (value,)


def test_a_configuration_that_refers_to_itself_is_composed_by_hydra(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\nb: ${a}\nc: {d: 2}\n")
    with Composer(tmp_path) as composer:
        assert composer.merge([], [("a", 5)]) == {"a": 5, "b": 5, "c": {"d": 2}}
        assert composer.merge([], [("c", {"d": 3})])["c"] == {"d": 3}


def test_a_reference_typed_on_the_command_line_is_resolved(expand_request) -> None:
    (run,) = expand_request("model.d_model=${model.mamba.d_ssm}").runs
    assert run.resolved.run.model.d_model == 128


def test_minus_zero_is_zero(expand_request) -> None:
    a, b = (expand_request(f"optim.weight_decay={zero}").runs[0].cell.run_id for zero in ("-0.0", "0.0"))
    assert a == b


def test_merged_values_do_not_leak_into_the_next_cell(config) -> None:
    before = json.dumps(config)
    with Composer() as composer:
        composer.merge([], [("model.attention.n_heads", 99), ("data", {"val_percent": 9})])
        assert json.dumps(composer.compose([])) == before


# Ids are for ever: a change here means that every store in the world loses its runs. Never update golden_ids.json;
# find out what moved an id, and declare the new field with `added(birth_value)` or raise the kind's revision.
GOLDEN = json.loads((Path(__file__).parent / "golden_ids.json").read_text())


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_ids_never_move(name: str) -> None:
    text = GOLDEN[name]["canonical_json"]
    run = decode(RunSpec, json.loads(text))
    assert canonical_json(run) == text
    assert run_id(run) == GOLDEN[name]["run_id"]


# What the shipped sweeps mean. A change here makes everybody's finished runs of that sweep new ones: where that is
# meant, say so in CHANGELOG and renew the file; where it is not, something between conf/ and the RunSpec has moved.
GOLDEN_CELLS = json.loads((Path(__file__).parent / "golden_cells.json").read_text())


@pytest.mark.parametrize("command", GOLDEN_CELLS)
def test_shipped_cells_keep_their_runs(expand_request, command: str) -> None:
    found = {cell.name: cell.run_id for cell in expand_request(*command.split()).request.cells}
    assert {name: found.get(name) for name in GOLDEN_CELLS[command]} == GOLDEN_CELLS[command]


def test_every_field_of_a_run_is_part_of_its_id(resolve) -> None:
    """Each leaf of the canonical JSON, changed, gives another id."""
    run = resolve("model.depth=2", "stop={metric:accuracy,threshold:0.9,every_tokens:20480,examples:512}").run
    plain = json.loads(canonical_json(run))
    seen = {run_id(run)}
    changed = 0
    for path, value in list(flatten(plain)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        copy = json.loads(canonical_json(run))
        node, (*parents, last) = copy, re.findall(r"[A-Za-z_0-9]+", path)
        for parent in parents:
            node = node[int(parent.split("-")[0]) - 1] if isinstance(node, list) else node[parent]
        node[last] = value + 1
        seen.add(run_id(decode(RunSpec, copy)))
        changed += 1
    assert changed > 30
    assert len(seen) == changed + 1
