import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid.config import Resolved
from hybrid.decode import decode
from hybrid.eval_config import EvalSettings, read_evals
from hybrid.eval_spec import (
    EvalSpec,
    ModuleWeightsEvalSpec,
    NeedleEvalSpec,
    NllEvalSpec,
    PositionEvalSpec,
    ThroughputEvalSpec,
    canonical,
    eval_id,
)
from hybrid.spec import ConfigError, RunSpec, StdlibSpec

FINGERPRINT = "0123456789abcdef"


@pytest.fixture
def read(config: dict[str, Any]) -> Callable[..., EvalSettings]:
    """Read `evals` beside the shipped `eval` section, some of whose settings may differ."""

    def read(evals: object, **sections: dict[str, Any]) -> EvalSettings:
        merged = {kind: {**section, **sections.get(kind, {})} for kind, section in config["eval"].items()}
        return read_evals(evals, merged, stdlib_fingerprint=lambda: FINGERPRINT)

    return read


@pytest.fixture
def text(resolve: Callable[..., Resolved]) -> RunSpec:
    return resolve("seq_len=8192", "batch_tokens=8192").run


def test_nothing_asked_for_is_the_loss_and_the_weights_of_gated_blocks(
    read: Callable[..., EvalSettings], resolve: Callable[..., Resolved], text: RunSpec
) -> None:
    assert read(None).of(text) == (NllEvalSpec(),)
    gated = resolve("model=intra", "model.intra.scalar=gate").run
    assert read(None).of(gated) == (NllEvalSpec(), ModuleWeightsEvalSpec())
    assert read(["module_weights"]).of(text) == ()


def test_the_shipped_settings_are_the_papers_at_its_length(read: Callable[..., EvalSettings], text: RunSpec) -> None:
    position, needle = read(["position", "needle"]).of(text)
    assert position == PositionEvalSpec(length=24576, bin=1024, documents=30, texts=())
    assert isinstance(needle, NeedleEvalSpec)
    assert needle.lengths == tuple(range(960, 16321, 1024))
    assert needle.depths_percent == tuple(range(0, 101, 10))
    assert (needle.trials, needle.new_tokens, needle.text) == (100, 20, None)


def test_an_entry_may_have_settings_of_its_own_and_is_measured_once(
    read: Callable[..., EvalSettings], text: RunSpec
) -> None:
    settings = read(["position", {"kind": "position", "bin": 2048}, "position"], position={"documents": 7})
    assert settings.of(text) == tuple(
        PositionEvalSpec(length=24576, bin=width, documents=7, texts=()) for width in (1024, 2048)
    )


def test_ids_are_frozen() -> None:
    """They are in stores: a change of one loses what was measured."""
    needle = NeedleEvalSpec(lengths=(960,), depths_percent=(0, 50), trials=100, new_tokens=20, seed=1, text=None)
    found = [
        eval_id(spec)
        for spec in (
            NllEvalSpec(),
            NllEvalSpec(name="pg19", data=StdlibSpec(fingerprint=FINGERPRINT, val_percent=4.0)),
            PositionEvalSpec(length=24576, bin=1024, documents=30, texts=()),
            needle,
            ModuleWeightsEvalSpec(),
        )
    ]
    assert found == FROZEN


FROZEN = ["78d158c05107", "e9c09479ee69", "25e074e3cfb4", "6e8858f88029", "33ba53631db1"]


@pytest.mark.parametrize(
    "spec",
    [
        NllEvalSpec(max_examples=3, name="pg19", data=StdlibSpec(fingerprint=FINGERPRINT, val_percent=4.0)),
        PositionEvalSpec(length=8, bin=4, documents=2, texts=("a" * 16, "b" * 16)),
        NeedleEvalSpec(lengths=(960,), depths_percent=(0,), trials=1, new_tokens=2, seed=3, text="c" * 16),
    ],
)
def test_a_spec_is_read_back_from_what_it_is_written_down_as(spec: EvalSpec) -> None:
    assert decode(EvalSpec, canonical(spec)) == spec  # type: ignore[arg-type]


def test_other_corpora_are_measured_under_their_names(read: Callable[..., EvalSettings], text: RunSpec) -> None:
    section = {"sets": {"other": {"kind": "stdlib", "fingerprint": None, "val_percent": 9}}}
    own, other = read(["nll"], nll=section).of(text)
    assert own == NllEvalSpec()
    assert other == NllEvalSpec(name="other", data=StdlibSpec(fingerprint=FINGERPRINT, val_percent=9.0))


def test_what_is_no_text_is_refused(
    read: Callable[..., EvalSettings], resolve: Callable[..., Resolved], text: RunSpec
) -> None:
    recall = resolve("data=recall", "seq_len=32").run
    other = {"kind": "recall", "n_symbols": 16, "n_pairs": 2, "power": 1.0}
    with pytest.raises(ConfigError, match=r"eval.nll.sets.other = recall: expected text, for a run on text; this one"):
        read(["nll"], nll={"sets": {"other": other}}).of(text)
    with pytest.raises(ConfigError) as caught:
        read(["position", {"kind": "needle", "lengths": [200]}]).of(recall)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["evals = position", "evals = needle"]


def test_texts_are_known_by_their_content(
    read: Callable[..., EvalSettings], text: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one.txt", "same.txt"):
        Path(name).write_text("a book")
    one, same = (
        read(["needle", "position"], needle={"text": name}, position={"texts": [name]}).of(text)
        for name in ("one.txt", str(tmp_path / "same.txt"))
    )
    assert one == same
    assert isinstance(one[0], NeedleEvalSpec)
    assert isinstance(one[1], PositionEvalSpec)
    assert one[1].texts == (one[0].text,)


def test_all_that_is_wrong_is_said_at_once(read: Callable[..., EvalSettings], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ConfigError) as caught:
        read(
            ["posiiton", {"kind": "needle", "trails": 3}, "position", "needle", "nll"],
            position={"documents": 0, "texts": [str(tmp_path / "nowhere.txt"), str(tmp_path / "empty.txt")]},
            needle={"depths": [0, 200], "lengths": [1, 1]},
            nll={"max_examples": 0, "sets": {"PG 19": {}}},
        )
    text = "\n".join(caught.value.problems)
    for part in (
        "evals = 'posiiton': unknown kind of evaluation; did you mean position?",
        "eval.needle.trails = 3: unknown setting; did you mean trials?",
        "eval.position.documents = 0: expected at least 1",
        "nowhere.txt: No such file or directory: expected a file of text",
        "empty.txt: is empty",
        "eval.needle.lengths[0] = 1: expected at least 2",
        "eval.needle.lengths = [1, 1]: expected different numbers",
        "eval.needle.depths = [0, 200]: expected percent",
        "eval.nll.max_examples = 0: expected at least 1",
        "eval.nll.sets.PG 19: expected a name of small letters",
    ):
        assert part in text, text


@pytest.mark.parametrize("evals", [[], {}])
def test_asking_for_nothing_is_not_asking(read: Callable[..., EvalSettings], evals: object) -> None:
    with pytest.raises(ConfigError, match="evals = "):
        read(evals)


def test_bins_fill_the_length(read: Callable[..., EvalSettings], text: RunSpec) -> None:
    with pytest.raises(
        ConfigError, match=r"length = 1000: expected a multiple of eval.position.bin = 300 .nearest: 900"
    ):
        read(["position"], position={"length": 1000, "bin": 300}).of(text)


def test_a_run_too_short_for_a_needle_is_told_so(
    read: Callable[..., EvalSettings], resolve: Callable[..., Resolved]
) -> None:
    with pytest.raises(ConfigError, match="128 tokens that a needle takes"):
        read(["needle"]).of(resolve("seq_len=64", "batch_tokens=64").run)


def test_throughput_is_the_papers_at_its_length_and_on_the_device_of_the_execution(
    config: dict[str, Any], read: Callable[..., EvalSettings], text: RunSpec, resolve: Callable[..., Resolved]
) -> None:
    (spec,) = read(["throughput"]).of(text)
    assert isinstance(spec, ThroughputEvalSpec)
    assert (spec.device, spec.batch, spec.prompt) == ("cpu", 4, 512)
    assert spec.lengths == (2048, 4096, 8192, 16384, 32768)
    asked = read_evals(["throughput"], config["eval"], stdlib_fingerprint=lambda: FINGERPRINT, device="cuda:1")
    (on_a_gpu,) = asked.of(text)
    assert isinstance(on_a_gpu, ThroughputEvalSpec)
    assert on_a_gpu.device == "cuda"
    assert eval_id(on_a_gpu) != eval_id(spec)
    (named,) = read(["throughput"], throughput={"device": "h100"}).of(text)
    assert named == ThroughputEvalSpec(**{**canonical_fields(spec), "device": "h100"})
    (short,) = read(["throughput"]).of(resolve("seq_len=256").run)
    assert isinstance(short, ThroughputEvalSpec)
    assert (short.lengths, short.prompt) == ((64, 128, 256, 512, 1024), 16)
    assert decode(EvalSpec, canonical(spec), "evals") == spec  # type: ignore[arg-type]


def canonical_fields(spec: ThroughputEvalSpec) -> dict[str, Any]:
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": 2048}, "eval.throughput.prompt = 2048: expected fewer tokens than the least total length, 2048"),
        ({"lengths": [64, 1]}, r"eval.throughput.lengths\[1\] = 1: expected at least 2"),
        ({"lengths": [64, 64]}, "different numbers"),
        ({"batch": 0}, "eval.throughput.batch = 0: expected at least 1"),
        ({"repeats": 0}, "eval.throughput.repeats = 0"),
        ({"device": "My Node"}, "eval.throughput.device = 'My Node': expected cpu, cuda, a100"),
    ],
)
def test_a_throughput_that_cannot_be_measured_is_refused(
    read: Callable[..., EvalSettings], text: RunSpec, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read(["throughput"], throughput=given).of(text)
