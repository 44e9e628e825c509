"""`mode=generate`: text of a finished run on stdout, and what is said where there can be none."""

import errno
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sweeps
from hybrid.config import Resolved
from hybrid.spec import ConfigError
from sweeps.exits import guarded
from sweeps.store import RECORD_SCHEMA, Store, StoreError
from sweeps.worker.generation import GenerateConfig, generate_one

from .conftest import REPO, TINY

TEXT = (*(setting for setting in TINY if "data" not in setting), "data=stdlib", "data.fingerprint=0123456789abcdef")
SETTINGS = GenerateConfig(prompt="def f(x):", tokens=30, temperature=0.8, top_k=None, top_p=None, seed=1)


@pytest.fixture
def text(resolve: Callable[..., Resolved]) -> Callable[..., Resolved]:
    """A tiny run on text, with whatever else is asked."""
    return lambda *overrides: resolve(*TEXT, *overrides)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def finish(store: Store, resolved: Resolved) -> str:
    """Record the run as done, with the weights that it began with: nothing here depends on their being good."""
    from hybrid.train.checkpoint import save_final_weights
    from hybrid.train.loop import build_model

    run_id = store.publish_spec(resolved.run)
    attempt = store.claim(run_id, 0)
    assert attempt is not None
    save_final_weights(store.weights_path(run_id, attempt.number), build_model(resolved.run, resolved.execution))
    record = {"schema": RECORD_SCHEMA, "run_id": run_id, "status": "done", "attempt": attempt.number}
    assert store.publish_record(run_id, {**record, "metrics": {"steps": 100}, "spec": {}, "provenance": {}})
    return run_id


def generated(store: Store, resolved: Resolved, settings: GenerateConfig = SETTINGS) -> str:
    pieces: list[str] = []
    generate_one(store, resolved.run, resolved.execution, settings, pieces.append)
    return "".join(pieces)


def changed(**changes: Any) -> GenerateConfig:
    return replace(SETTINGS, **changes)


def test_the_text_begins_with_the_prompt_and_is_a_function_of_the_seed(store: Store, text) -> None:
    finish(store, text())
    made = generated(store, text())
    assert made.startswith("def f(x):")
    assert len(made) > len("def f(x):")
    assert generated(store, text()) == made
    assert generated(store, text(), changed(seed=2)) != made


def test_text_comes_in_pieces_as_it_is_made(store: Store, text) -> None:
    finish(store, text())
    pieces: list[str] = []
    generate_one(store, text().run, text().execution, SETTINGS, pieces.append)
    assert pieces[0] == "def f(x):"
    assert len(pieces) > 20


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([104, 105], "hi"),
        ([0xC3, 0xA9, 33], "é!"),
        ([0xC3, 33], "\ufffd!"),
        ([33, 0xE2, 0x82], "!\ufffd"),
        ([104, 257], "h"),
        ([256], ""),
    ],
)
def test_bytes_are_decoded_and_a_documents_end_is_not_shown(
    store: Store, text, monkeypatch: pytest.MonkeyPatch, tokens: list[int], expected: str
) -> None:
    import torch

    import hybrid.generate

    def fixed(*_: Any, stop_tokens: tuple[int, ...], **__: Any) -> Any:
        assert stop_tokens == (256, 257)
        return iter([torch.tensor([token]) for token in tokens])

    finish(store, text())
    monkeypatch.setattr(hybrid.generate, "stream", fixed)
    assert generated(store, text()) == "def f(x):" + expected


def test_the_prompt_begins_a_document_and_may_be_any_bytes(store: Store, text, monkeypatch: pytest.MonkeyPatch) -> None:
    import hybrid.generate

    seen = []

    def listening(_: Any, prompt_BL: Any, *__: Any, **___: Any) -> Any:
        seen.extend(prompt_BL.tolist())
        return iter(())

    finish(store, text())
    monkeypatch.setattr(hybrid.generate, "stream", listening)
    assert generated(store, text(), changed(prompt="")) == ""
    assert generated(store, text(), changed(prompt="é" + os.fsdecode(b"\xff"))) == "é\ufffd"
    assert seen == [[256], [256, 0xC3, 0xA9, 0xFF]]


@pytest.mark.parametrize(("dtype", "element_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_a_run_is_decoded_in_its_own_precision_from_states_of_it(
    store: Store, text, monkeypatch: pytest.MonkeyPatch, dtype: str, element_bytes: int
) -> None:
    from hybrid.cost import model_state_bytes
    from hybrid.mixers.base import state_bytes
    from hybrid.model import LanguageModel

    resolved = text(f"dtype={dtype}")
    finish(store, resolved)
    seen, steps = set(), LanguageModel.step

    def watched(*arguments: Any, **options: Any) -> Any:
        logits_BLV, state = steps(*arguments, **options)
        seen.add((str(logits_BLV.dtype), state_bytes(state)))
        return logits_BLV, state

    monkeypatch.setattr(LanguageModel, "step", watched)
    assert generated(store, resolved).startswith("def f(x):")
    positions = len("#def f(x):") + SETTINGS.tokens - 1
    assert seen == {(f"torch.{dtype}", model_state_bytes(resolved.run.model, positions, element_bytes))}


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 3.0}])
def test_a_vocabulary_larger_than_the_datas_gives_text(store: Store, text, settings: dict[str, Any]) -> None:
    wide = text("model.vocab_size=20000")
    finish(store, wide)
    assert len(generated(store, wide, changed(**settings))) > len("def f(x):")


def test_a_run_that_is_not_done_is_an_error_that_says_how_to_train_it(store: Store, text) -> None:
    with pytest.raises(StoreError, match=r"new: expected a finished run to generate from; train it first \(mode=run\)"):
        generated(store, text())


def test_weights_that_are_gone_are_named(store: Store, text) -> None:
    run_id = finish(store, text())
    store.weights_path(run_id, 1).unlink()
    with pytest.raises(StoreError, match="final weights are gone"):
        generated(store, text())


def test_symbols_are_no_text(store: Store, tiny) -> None:
    with pytest.raises(ConfigError, match=r"data.kind = recall: expected a run on text, .* data=stdlib"):
        generated(store, tiny())


def test_what_means_nothing_is_refused_all_at_once() -> None:
    changed(temperature=0.0, top_p=1.0, top_k=1).check()
    with pytest.raises(ConfigError) as caught:
        changed(tokens=0, temperature=-0.5, top_k=0, top_p=1.5, seed=-1).check()
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "generate.tokens = 0",
        "generate.temperature = -0.5",
        "generate.top_k = 0",
        "generate.top_p = 1.5",
        "generate.seed = -1",
    ]
    with pytest.raises(ConfigError, match=r"generate.top_p = 0.0: expected above 0 and at most 1"):
        changed(top_p=0.0).check()


def test_generating_writes_nothing_into_the_store(store: Store, text) -> None:
    finish(store, text())
    before = sorted(store.root.rglob("*"))
    generated(store, text())
    assert sorted(store.root.rglob("*")) == before


# --- the command --------------------------------------------------------------------------------


def test_the_command_prints_the_text_and_nothing_else(store: Store, text, run_py) -> None:
    finish(store, text())
    process = run_py(*TEXT, "mode=generate", 'generate.prompt="def f(x):"', "generate.tokens=20")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out == generated(store, text(), changed(tokens=20)) + "\n"
    assert err == ""


def test_of_several_runs_each_is_named_on_stderr(store: Store, text, run_py) -> None:
    ids = [finish(store, text(f"init_seed={seed}")) for seed in (1, 2)]
    process = run_py("-m", *TEXT, "init_seed=1,2,3", "mode=generate", "generate.prompt=x", "generate.tokens=5")
    out, err = process.communicate()
    assert process.returncode == 1
    short = changed(prompt="x", tokens=5)
    assert out == "".join(generated(store, text(f"init_seed={seed}"), short) + "\n" for seed in (1, 2))
    assert all(f"init_seed={seed} {run_id}" in err for seed, run_id in zip((1, 2), ids, strict=True))
    assert "expected a finished run to generate from" in err
    assert not list((store.root / "requests").rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*TEXT, "mode=generate"), "expected a finished run to generate from; train it first (mode=run)"),
        ((*TINY, "mode=generate"), "data.kind = recall: expected a run on text"),
        (("mode=generate", "generate.tokens=0"), "generate.tokens = 0: expected at least 1"),
        (("mode=generate", "generate.tokens=many"), "generate.tokens = 'many': expected a whole number"),
        (("generate.temprature=1",), "temprature"),
    ],
)
def test_a_mistake_is_one_message_on_stderr(run_py, arguments: tuple[str, ...], message: str) -> None:
    process = run_py(*arguments)
    out, err = process.communicate()
    assert process.returncode in (1, 2)
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_a_reader_that_has_seen_enough_is_no_error(store: Store, text, run_py) -> None:
    finish(store, text())
    process = run_py(*TEXT, "mode=generate", "generate.tokens=20")
    process.stdout.close()
    assert process.wait() == 0
    assert process.stderr.read() == ""


def test_text_reaches_its_reader_as_it_is_made_and_ctrl_c_ends_it_quietly(store: Store, text, run_py) -> None:
    finish(store, text())
    process = run_py(*TEXT, "mode=generate", "generate.prompt=xyz", "generate.temperature=0", "generate.tokens=200000")
    assert process.stdout.read(10).startswith("xyz")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, err) == (130, "")
    assert out.endswith("\n")


def test_a_reader_that_leaves_ends_the_text(store: Store, text, run_py) -> None:
    finish(store, text())
    process = run_py(*TEXT, "mode=generate", "generate.temperature=0", "generate.tokens=200000")
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.wait() == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job"), (*TINY, "mode=plan")])
def test_output_that_nobody_reads_is_no_error(run_py, arguments: tuple[str, ...]) -> None:
    process = run_py(*arguments)
    process.stdout.close()
    assert process.wait() == 0
    assert process.stderr.read() == ""


def test_a_mistake_keeps_its_exit_code_where_nobody_reads_of_it(run_py) -> None:
    process = run_py("generate.temprature=1")
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 2


def test_a_failure_keeps_its_exit_code_where_nobody_reads_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    def fails() -> int:
        print("a result")
        return 1

    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert guarded(fails) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device on this system")
def test_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, str(REPO / "run.py"), *TINY, "mode=plan", f"store.root={tmp_path / 'store'}"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the disk is full")
    assert done.stderr.count("\n") == 1


def test_a_pipe_of_our_own_that_breaks_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks() -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    assert guarded(breaks) == 1
    assert "Broken pipe" in capsys.readouterr().err


def test_a_terminal_is_shown_control_characters_and_does_not_obey_them(store: Store, text, tmp_path: Path) -> None:
    """On a terminal of the test's own, and at a prompt that would change its title."""
    finish(store, text())
    ours, theirs = pty.openpty()
    arguments = (*TEXT, "mode=generate", 'generate.prompt="\x1b]0;gone\x07\tfine"', "generate.tokens=1")
    command = [sys.executable, str(REPO / "run.py"), *arguments, f"store.root={store.root}"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    shown = os.read(ours, 1000).decode()
    os.close(theirs)
    os.close(ours)
    assert shown.startswith("\ufffd]0;gone\ufffd\tfine")


def test_only_the_worker_reaches_generation() -> None:
    root = Path(sweeps.__file__).parent.parent
    users = [path for package in ("sweeps", "analysis", "hydra_plugins") for path in (root / package).rglob("*.py")]
    reaching = [path.name for path in [*users, root / "run.py"] if "hybrid.generate" in path.read_text()]
    assert reaching == ["generation.py"]
