"""A mixer from a user's own file: chosen by name and version, counted, trained, and refused where it cannot be."""

import json
from pathlib import Path

import pytest
import torch

from hybrid import outside
from hybrid.cost import block_params, block_state_bytes, full_block_forward_flops, run_cost
from hybrid.decode import canonical_json, decode, encode
from hybrid.mixers import build_mixer, state_bytes
from hybrid.model import LanguageModel
from hybrid.spec import ConfigError, OutsideSetting, OutsideSpec, RunSpec
from hybrid.train.loop import build_model

EXAMPLE = Path(__file__).parent.parent / "outside" / "moving_average.py"
CHOSEN = (
    "model.mixers=[outside,attention]",
    "model.ratio=1:1",
    "model.depth=2",
    "model.outside={name:moving_average,version:1,settings:{d_inner:8}}",
    f"exec.mixers=[{EXAMPLE}]",
)


def test_an_outside_mixer_is_chosen_like_any_other_and_its_file_stays_out_of_the_identity(resolve) -> None:
    run = resolve(*CHOSEN).run
    mixers = [block.mixer for block in run.model.blocks]
    assert [mixer.kind for mixer in mixers] == ["attention", "outside"]
    text = canonical_json(run)
    assert '"name":"moving_average"' in text
    assert "moving_average.py" not in text
    assert decode(RunSpec, encode(run)) == run


def test_whole_floats_integers_and_truth_are_different_settings_and_read_back_as_they_were() -> None:
    values = (1, 1.0, True, "1")
    settings = [OutsideSetting(name="x", value=json.dumps(value)) for value in values]
    specs = [OutsideSpec(name="a", version=1, settings=(setting,)) for setting in settings]
    assert len({canonical_json(spec) for spec in specs}) == len(set(specs)) == 4
    for spec, value in zip(specs, values, strict=True):
        again = decode(OutsideSpec, encode(spec))
        assert again == spec
        assert repr(outside.settings_of(again)) == repr({"x": value})


def test_settings_left_out_are_the_defaults_and_give_the_same_run(resolve) -> None:
    spelt = [c for c in CHOSEN if not c.startswith("model.outside=")]
    by_default = resolve(*spelt, "model.outside={name:moving_average,version:1,settings:{}}").run
    spelt_out = resolve(*spelt, "model.outside={name:moving_average,version:1,settings:{d_inner:64}}").run
    assert by_default == spelt_out


def test_the_model_with_it_steps_as_it_runs_forward_and_has_the_parameters_it_declares(resolve) -> None:
    run = resolve(*CHOSEN).run
    model = LanguageModel(run.model)
    model.init_weights(1)
    assert sum(p.numel() for p in model.parameters()) == run_cost(run).total_params
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        state = model.init_state(2, 6)
        first, state = model.step(tokens[:, :4], state)
        rest, _ = model.step(tokens[:, 4:], state)
        torch.testing.assert_close(torch.cat((first, rest), 1), model(tokens), rtol=0, atol=1e-5)


def test_its_costs_are_what_its_file_says(resolve) -> None:
    run = resolve(*CHOSEN).run
    block = next(block for block in run.model.blocks if isinstance(block.mixer, OutsideSpec))
    assert isinstance(block.mixer, OutsideSpec)
    d_model = run.model.d_model
    module = build_mixer(block.mixer, d_model, norm_eps=1e-5, ssd_chunk=64)
    norms_and_ffn = 2 * d_model + 3 * d_model * 256
    assert block_params(block, d_model) == sum(p.numel() for p in module.parameters()) + norms_and_ffn
    state = module.init_state(1, 10, torch.device("cpu"), torch.bfloat16)
    assert block_state_bytes(block, d_model, 10, 2) == state_bytes(state)
    assert full_block_forward_flops(block, d_model, 10) == 10 * (6 * d_model * 8 + 6 * d_model * 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.outside={name:moving_averag,version:1,settings:{}}", "did you mean moving_average version 1"),
        ("model.outside={name:moving_average,version:2,settings:{}}", "no file of exec.mixers defines it"),
        ("model.outside={name:moving_average,version:1,settings:{d_innr:1}}", "unknown setting; did you mean d_inner"),
        (
            "model.outside={name:moving_average,version:1,settings:{d_inner:wide}}",
            "expected a value like its default, 64",
        ),
        ("model.outside={name:moving_average,version:1,settings:{d_inner:0}}", "expected at least 1"),
        ("model.outside=null", "expected {name, version, settings}"),
        ("exec.mixers=[/nowhere/mine.py]", "no such file"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(resolve, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(*(chosen for chosen in CHOSEN if chosen.split("=")[0] != change.split("=")[0]), change)


def test_a_file_that_fails_or_defines_nothing_is_named(tmp_path: Path) -> None:
    broken, empty = tmp_path / "broken.py", tmp_path / "empty.py"
    broken.write_text("1 / 0\n")
    empty.write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"broken\.py: ZeroDivisionError"):
        outside.load([str(broken)])
    with pytest.raises(ConfigError, match=r"empty\.py: defines no mixer"):
        outside.load([str(empty)])


def test_two_files_may_not_define_the_same_mixer(tmp_path: Path) -> None:
    outside.load([str(EXAMPLE)])
    copy = tmp_path / "copy.py"
    copy.write_text(EXAMPLE.read_text())
    with pytest.raises(ConfigError, match="is also defined by"):
        outside.load([str(copy)])


def variant(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """The example under a name of its own, with some of its text replaced."""
    path = tmp_path / "mine.py"
    text = EXAMPLE.read_text().replace('name = "moving_average"', f'name = "{tmp_path.name}"')
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def chosen(tmp_path: Path) -> tuple[str, ...]:
    return (
        *CHOSEN[:3],
        f'model.outside={{name:"{tmp_path.name}",version:1,settings:{{d_inner:8}}}}',
        f'exec.mixers=["{tmp_path / "mine.py"}"]',
    )


def test_a_file_that_changes_under_a_process_is_refused_and_its_hash_is_that_of_what_was_read(
    tmp_path: Path, resolve
) -> None:
    mine = variant(tmp_path)
    run = resolve(*chosen(tmp_path)).run
    before = outside.source_hashes(run.model)
    assert list(before) == [f"{tmp_path.name} version 1"]
    mine.write_text(mine.read_text() + "# edited\n")
    with pytest.raises(ConfigError, match="changed since this process read it"):
        outside.load([str(mine)])
    assert outside.source_hashes(run.model) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return 3 * d_model * d_inner + d_inner", "return 7"), r"params\(\) says 7, its module has"),
        (("init.matrix(self.in_proj.weight)", "pass"), "leaves blocks.1.mixer.in_proj.weight unset"),
        (("return self.step(x_BLD, state)[0]", "return self.step(x_BLD, state)[0][:, :1]"), "expected the same shape"),
    ],
    ids=["params", "init_weights", "shape"],
)
def test_a_module_that_is_not_what_its_file_says_is_not_trained(
    tmp_path: Path, resolve, change: tuple[str, str], message: str
) -> None:
    variant(tmp_path, change)
    resolved = resolve(*chosen(tmp_path))
    with pytest.raises(ConfigError, match=message):
        build_model(resolved.run, resolved.execution)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return 3 * d_model * d_inner + d_inner", "return 0.5"), "params = 0.5: expected a whole number"),
        (("return 3 * d_model * d_inner + d_inner", "return boo"), "params: NameError"),
        (("version = 1", 'version = "1"'), "version = '1': expected a whole number"),
        (('{"d_inner": 64}', '{"d_inner": [64]}'), "expected a number, a text, true or false"),
    ],
    ids=["half", "error", "version", "default"],
)
def test_a_file_with_a_mistake_is_refused_with_its_name(
    tmp_path: Path, resolve, change: tuple[str, str], message: str
) -> None:
    variant(tmp_path, change)
    with pytest.raises(ConfigError, match=message):
        run_cost(resolve(*chosen(tmp_path)).run)


def test_a_file_that_ends_the_program_does_not(tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(ConfigError, match=r"exits\.py: SystemExit: 3"):
        outside.load([str(tmp_path / "exits.py")])
