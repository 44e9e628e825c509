"""Preflight: its steps are the training's, its arithmetic is right, and whatever fails, the rest is measured."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybrid.config import Resolved
from hybrid.data import open_data
from hybrid.data.recall import RecallData
from hybrid.evals.nll import evaluate_nll
from hybrid.memory import train_memory
from hybrid.spec import ConfigError, StopSpec
from hybrid.train import loop
from hybrid.train.checkpoint import CheckpointStore
from hybrid.train.loop import train
from hybrid.train.preflight import (
    MAX_MICROBATCHES,
    STEPS,
    RandomTokens,
    StepTime,
    measured_sequences,
    timed_steps,
    tokens_per_s,
)
from sweeps import preflight as preflight_module
from sweeps.cells import CellRun
from sweeps.identity import run_id
from sweeps.preflight import MARGIN, START_S, VALIDATION_TOKENS, n_validations, preflight, time_limit_s
from sweeps.speed import (
    Measured,
    available_memory_bytes,
    measurement,
    plan_device,
    processor,
    publish_measurement,
    speed_of,
)
from sweeps.store import Cell, Store
from sweeps.text import size_text
from sweeps.worker.measuring import preflight_one

from .conftest import REPO, TINY, wait_for

Resolve = Callable[..., Resolved]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def cell(name: str, resolved: Resolved) -> CellRun:
    made = Cell(name=name, row=name, axes={}, seed=None, run_id=run_id(resolved.run))
    return CellRun(cell=made, resolved=resolved, arguments=())


def known(store: Store, resolved: Resolved) -> Measured | None:
    return measurement(store, resolved.run, resolved.execution, (processor(),))


def lines(table: str) -> list[str]:
    """The rows of a printed table."""
    return table.partition("\n\n")[0].splitlines()[2:]


# --- a step -------------------------------------------------------------------------------------


class Silent:
    """An observer that asks for nothing."""

    def start(self, *_: Any) -> None: ...

    def metrics(self, line: Mapping[str, Any]) -> None: ...

    def stop_requested(self) -> str | None: ...

    def tick(self, *_: Any) -> None: ...

    def sync(self) -> None: ...


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("exec.microbatch=16",),
        ("exec.microbatch=24",),
        ("model.ffn={kind: swiglu, d_ffn: 32}", "model.moe.every=1", "exec.microbatch=8"),
        ("optim.lr=0.1",),
    ],
)
def test_a_preflight_step_is_a_training_step_to_the_bit(
    tmp_path: Path, tiny: Resolve, overrides: tuple[str, ...]
) -> None:
    resolved = tiny("batch_tokens=512", f"budget.tokens={STEPS * 512}", "optim.grad_clip=0.01", *overrides)
    run, execution = resolved.run, resolved.execution
    assert run.train_steps == STEPS
    data = open_data(run.data, run.seq_len, tmp_path)
    checkpoints = CheckpointStore(tmp_path / "checkpoints", run_id=run_id(run), attempt=1)
    trained = train(run, execution, data=data, checkpoints=checkpoints, observer=Silent()).model
    timed = timed_steps(run, execution, data=data)
    assert [step.sequences for step in timed.steps] == [run.batch_size] * STEPS
    ours, theirs = timed.model.state_dict(), trained.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_random_tokens_are_of_the_vocabulary_and_each_predicts_the_next() -> None:
    data = RandomTokens(vocab_size=7, seq_len=50)
    batch = data.train_batch(0, 20, 1)
    assert batch.inputs_BL.shape == batch.targets_BL.shape == (20, 50)
    assert set(batch.inputs_BL.flatten()) == set(batch.targets_BL.flatten()) == set(range(7))
    assert (batch.inputs_BL[:, 1:] == batch.targets_BL[:, :-1]).all()
    assert not (data.train_batch(1, 20, 1).inputs_BL == batch.inputs_BL).all()
    assert [len(part.inputs_BL) for part in data.validation_batches(8, 20)] == [8, 8, 4]


def test_runs_on_a_corpus_that_is_not_here_can_be_measured(resolve: Resolve, tiny: Resolve) -> None:
    """On tokens of its vocabulary, of which nothing but the size is needed."""
    hub = resolve("scale=toy", "data=dclm").run.data
    resolved = tiny("model.vocab_size=2000", "exec.microbatch=1")
    run = replace(resolved.run, data=replace(hub, vocab_size=2000))
    said: list[str] = []
    measured = preflight_one(run, resolved.execution, said.append)
    assert measured.tokens_per_s > 0
    assert measured.device_name == processor()
    assert measured.predicted_memory_bytes == train_memory(run, resolved.execution).total_bytes
    assert [line.partition(":")[0] for line in said] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]


# --- from a part of a batch to a whole one ------------------------------------------------------


@given(
    microbatch_s=st.floats(1e-4, 100),
    update_s=st.floats(0, 100),
    microbatches=st.integers(1, 4096),
    through=st.integers(1, MAX_MICROBATCHES),
    size=st.integers(1, 64),
)
def test_a_whole_steps_time_is_its_microbatches_and_one_update(
    microbatch_s: float, update_s: float, microbatches: int, through: int, size: int
) -> None:
    through = min(through, microbatches)
    part = StepTime(sequences=through * size, forward_backward_s=through * microbatch_s, update_s=update_s)
    assert part.whole_s(microbatches * size) == pytest.approx(microbatches * microbatch_s + update_s)


def test_a_step_that_went_through_the_whole_batch_is_taken_as_it_was() -> None:
    assert StepTime(sequences=10, forward_backward_s=3.0, update_s=0.5).whole_s(10) == 3.5


def test_the_speed_is_the_median_of_the_steps_after_the_first(tiny: Resolve) -> None:
    run = tiny().run
    steps = [StepTime(sequences=2, forward_backward_s=s, update_s=1.0) for s in (1000.0, 2.0, 4.0)]
    # Of 4 sequences in a batch 2 were gone through: 2 * 2 + 1 and 2 * 4 + 1 seconds.
    assert (run.batch_size, run.batch_tokens) == (4, 64)
    assert tokens_per_s(run, steps) == pytest.approx(64 / 7)


@pytest.mark.parametrize(
    ("batch_size", "microbatch", "through"),
    [
        (4, None, 4),
        (400, None, 400),
        (400, 1, 4),
        (400, 3, 12),
        (400, 400, 400),
        (3, 1, 3),
        (10, 4, 10),
        (400, 999, 400),
    ],
)
def test_of_a_batch_a_few_microbatches_are_gone_through(
    tiny: Resolve, batch_size: int, microbatch: int | None, through: int
) -> None:
    resolved = tiny()
    run = replace(resolved.run, batch_tokens=batch_size * resolved.run.seq_len)
    assert measured_sequences(run, replace(resolved.execution, microbatch=microbatch)) == through


def test_the_time_limit_is_the_start_and_a_quarter_more_than_steps_and_validation_in_whole_minutes() -> None:
    assert (MARGIN, START_S) == (1.25, 300)

    def limit(train_tokens: int, validations: float = 1, validation_s: float | None = 0.0) -> int:
        return time_limit_s(train_tokens, 1000.0, validations=validations, validation_s=validation_s)

    assert limit(3600 * 1000) == 300 + 4500
    assert limit(3600 * 1000 + 1) == 300 + 4560
    assert limit(1) == 360
    assert limit(3600 * 1000, 3, 48.0) == 300 + 4500 + 180
    # A validation that nobody timed is as slow as training: 65.536 s each.
    assert limit(3600 * 1000, 2, None) == 300 + 4500 + 180
    assert VALIDATION_TOKENS == loop.VALIDATION_TOKENS


def test_all_validations_of_a_run_are_counted(tiny: Resolve) -> None:
    def count(*overrides: str) -> float:
        resolved = tiny(*overrides)
        return n_validations(resolved.run, resolved.execution)

    assert tiny().run.stop is None
    assert count() == 1
    assert count("exec.eval_every_tokens=1000") == 1 + 6
    stop = StopSpec(metric="accuracy", threshold=0.9, every_tokens=640, examples=2048)
    # Ten rounds of half as many sequences as at the end, where it reads 65536 / 16.
    assert n_validations(replace(tiny().run, stop=stop), tiny().execution) == 1 + 10 / 2


def test_drawing_random_tokens_takes_no_time_but_making_examples_does(
    tiny: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that goes on only while batches are made, or the model validates."""
    clock = [0.0]
    monkeypatch.setattr("hybrid.train.preflight.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow(made: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            clock[0] += seconds
            return made(*arguments, **named)

        return wrapped

    for kind in (RandomTokens, RecallData):
        monkeypatch.setattr(kind, "train_batch", slow(kind.train_batch, 5.0))
    monkeypatch.setattr("hybrid.train.preflight.evaluate_nll", slow(evaluate_nll, 2.0))
    resolved = tiny("exec.microbatch=1024")
    on_examples = timed_steps(resolved.run, resolved.execution)
    on_tokens = timed_steps(
        resolved.run, resolved.execution, data=RandomTokens(vocab_size=resolved.run.model.vocab_size, seq_len=16)
    )
    assert [step.forward_backward_s for step in on_tokens.steps] == [0.0] * STEPS
    assert [step.forward_backward_s for step in on_examples.steps] == [5.0] * STEPS
    # 65536 / 16 sequences, in batches of 1024.
    assert on_examples.validation_s == 4 * 2.0


# --- a request ----------------------------------------------------------------------------------


def test_every_distinct_shape_is_measured_once(store: Store, tiny: Resolve, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        cell("hybrid/s1", tiny()),
        cell("hybrid/s2", tiny("init_seed=2")),
        cell("hybrid, longer", tiny("budget.tokens=64M")),
        cell("wide", tiny("model.d_model=32")),
    ]
    assert preflight(runs, store) == 0
    table = lines(capsys.readouterr().out)
    assert [re.split(r"  +", line)[:2] for line in table] == [
        ["hybrid/s1 (+1)", "6.4K"],
        ["hybrid, longer", "64M"],
        ["wide", "6.4K"],
    ]
    hybrid, wide = known(store, runs[0].resolved), known(store, runs[3].resolved)
    assert hybrid is not None
    assert wide is not None
    assert hybrid.device_name == processor()
    assert hybrid.predicted_memory_bytes == train_memory(runs[0].resolved.run, runs[0].resolved.execution).total_bytes
    assert len(list((store.root / "speeds").iterdir())) == 2

    resolved = runs[2].resolved
    found = speed_of(store, resolved.run, resolved.execution, plan_device(None, resolved.execution), 0.4)
    assert (found.source, found.tokens_per_s) == ("preflight", hybrid.tokens_per_s)
    # The printed hours are those tokens at that speed.
    assert f"  {64e6 / hybrid.tokens_per_s / 3600:.3g}  " in table[1]

    assert preflight(runs, store) == 0
    again = capsys.readouterr()
    assert lines(again.out) == table
    assert again.err.count("known already: three steps on") == 2
    assert len(list((store.root / "speeds").iterdir())) == 2


def test_what_a_run_has_measured_is_not_measured_again(
    store: Store, tiny: Resolve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_module, "_measure", None)
    resolved = tiny()
    publish_measurement(
        store,
        resolved.run,
        resolved.execution,
        Measured(
            device_name=processor(),
            tokens_per_s=1000.0,
            peak_memory_bytes=None,
            predicted_memory_bytes=2**30,
            source="runs",
            run_id="3f2a91bc0d1e",
        ),
    )
    assert preflight([cell("a run", resolved)], store) == 0
    printed = capsys.readouterr()
    assert f"measured by run 3f2a91bc0d1e on {processor()}" in lines(printed.out)[0]
    assert "known already" in printed.err


OUTSIDE = '''
"""A mixer that fails when it is built, in the way that its settings say."""

import os
import signal

from hybrid.outside import OutsideMixer


class Failing(OutsideMixer):
    name = "failing"
    version = 1
    defaults = {"how": "raises"}

    def params(self, settings, d_model):
        return 0

    def forward_flops(self, settings, d_model, seq_len):
        return 0

    def state_bytes(self, settings, d_model, seq_len, element_bytes):
        return 0

    def build(self, settings, d_model):
        if settings["how"] == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("CUDA out of memory.\\nTried to allocate 20.00 GiB")
'''


def test_one_failing_shape_does_not_stop_the_others(
    tmp_path: Path, store: Store, tiny: Resolve, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "failing.py").write_text(OUTSIDE)

    def failing(how: str) -> Resolved:
        return tiny(
            f"exec.mixers=[{tmp_path / 'failing.py'}]",
            "model.mixers=[outside,mamba]",
            f"model.outside={{name: failing, version: 1, settings: {{how: {how}}}}}",
        )

    runs = [cell("dies/s1", failing("dies")), cell("raises/s1", failing("raises")), cell("works/s1", tiny())]
    assert preflight(runs, store) == 1
    printed = capsys.readouterr()
    assert "dies/s1: killed by signal 9: most likely it ran out of memory\n" in printed.err
    assert "raises/s1: RuntimeError: CUDA out of memory. Tried to allocate 20.00 GiB\n" in printed.err
    assert "not measured, of 3 shapes: dies/s1, raises/s1\n" in printed.err
    table = lines(printed.out)
    assert [line.split()[0] for line in table] == ["dies/s1", "raises/s1", "works/s1"]
    assert "(preflight)" not in table[0] + table[1]
    assert "(preflight)" in table[2]
    assert known(store, runs[2].resolved) is not None
    assert known(store, runs[0].resolved) is None


def test_on_the_cpu_a_shape_that_cannot_fit_is_not_started(
    store: Store, tiny: Resolve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = tiny(), tiny("model.d_model=64", "model.depth=8")
    sizes = [train_memory(r.run, r.execution).total_bytes for r in (small, large)]
    limit = sum(sizes) // 2
    assert sizes[0] < limit < sizes[1]
    monkeypatch.setattr(preflight_module, "available_memory_bytes", lambda: limit)
    assert preflight([cell("large", large), cell("small", small)], store) == 1
    printed = capsys.readouterr()
    assert f"large: not started: predicted to need {size_text(sizes[1])} of memory" in printed.err
    assert f"has {size_text(limit)} available" in printed.err
    assert lines(printed.out)[0].endswith("not started")
    assert known(store, large) is None
    assert known(store, small) is not None


def test_a_preflight_with_other_kernels_or_another_pytorch_measures_again(
    store: Store, tiny: Resolve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = tiny()
    old = Measured(
        device_name=processor(),
        tokens_per_s=1.0,
        peak_memory_bytes=None,
        predicted_memory_bytes=1,
        source="runs",
        run_id="3f2a91bc0d1e",
        kernels="torch",
        torch="1.0",
    )
    publish_measurement(store, resolved.run, resolved.execution, old)
    assert preflight([cell("a", resolved)], store) == 0
    found = known(store, resolved)
    assert found is not None
    assert (found.source, found.torch) == ("preflight", version("torch"))
    assert found.validation_s is not None
    # Now it is known, unless it is asked for again.
    monkeypatch.setattr(preflight_module, "_in_a_process", lambda *_: replace(old, tokens_per_s=7.0))
    assert preflight([cell("a", resolved)], store) == 0
    assert "known already" in capsys.readouterr().err
    assert preflight([cell("a", resolved)], store, again=True) == 0
    assert "7 tokens/s" in capsys.readouterr().err


def test_as_json_it_is_the_tables_numbers_and_nothing_else_on_stdout(
    store: Store, tiny: Resolve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = tiny(), tiny("model.d_model=64", "model.depth=8")
    small_bytes = train_memory(small.run, small.execution).total_bytes
    monkeypatch.setattr(preflight_module, "available_memory_bytes", lambda: small_bytes + 1)
    assert preflight([cell("small", small), cell("large", large)], store, as_json=True) == 1
    first, second = json.loads(capsys.readouterr().out)
    found = known(store, small)
    assert found is not None
    assert first["cells"] == ["small"]
    assert first["tokens_per_s"] == found.tokens_per_s
    assert first["predicted_memory_bytes"] == small_bytes
    assert first["measured_memory_bytes"] == found.peak_memory_bytes
    assert first["training_s"] == 6400 / found.tokens_per_s
    assert first["time_limit_s"] % 60 == 0
    assert first["problem"] is None
    assert second["tokens_per_s"] is second["time_limit_s"] is None
    assert second["problem"].startswith("not started")


def test_available_memory_is_at_most_the_machines() -> None:
    available = available_memory_bytes()
    assert available is not None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available <= total


def test_available_memory_is_at_most_what_the_control_group_has_left(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert available_memory_bytes(tmp_path) is None
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert available_memory_bytes(tmp_path) == 5000 * 1024
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", "900000\n")
    assert available_memory_bytes(tmp_path) == 5000 * 1024
    write("sys/fs/cgroup/memory.max", "1000000\n")
    assert available_memory_bytes(tmp_path) == 100_000
    write("sys/fs/cgroup/memory.stat", "active_file 7\ninactive_file 300000\n")
    assert available_memory_bytes(tmp_path) == 400_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_the_gpu_that_is_asked_for_there_is_one_error(store: Store, tiny: Resolve) -> None:
    runs = [cell("here", tiny()), *(cell(f"seed {n}", tiny("exec.device=cuda", f"seq_len={16 * n}")) for n in (1, 2))]
    with pytest.raises(ConfigError, match=r"^exec.device = cuda: expected a device of this machine: cpu$"):
        preflight(runs, store)
    assert not (store.root / "speeds").exists()


REQUEST = """
import sys
from pathlib import Path

from hybrid.config import read_config
from sweeps.cells import CellRun
from sweeps.compose import Composer
from sweeps.preflight import preflight
from sweeps.store import Cell, Store

SLOW = ["model.d_model=512", "seq_len=1024", "batch_tokens=1048576", "exec.microbatch=16"]

if __name__ == "__main__":
    runs = []
    with Composer() as composer:
        for name, more in (("quick", []), ("slow", SLOW)):
            resolved = read_config(composer.compose([*sys.argv[2:], *more]), stdlib_fingerprint=lambda: "0" * 16)
            runs.append(CellRun(cell=Cell(name=name, row=name, axes={}, seed=None, run_id=name), resolved=resolved,
                                arguments=()))
    sys.exit(preflight([*runs, *runs], Store(Path(sys.argv[1]))))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_was_measured(tmp_path: Path, how: signal.Signals) -> None:
    script, store = tmp_path / "request.py", Store(tmp_path / "store")
    script.write_text(REQUEST)
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, str(script), str(store.root), *TINY, "budget.tokens=64M"],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        while not said or not said[-1].startswith("[2/2] slow: three steps"):
            said.append(process.stderr.readline())
            assert said[-1], said
        os.killpg(process.pid, how)  # as a terminal does, to the whole group
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert f"signal {how.name}: what was measured is kept" in error
    table = lines(out)
    assert "(preflight)" in table[0]
    assert table[1].endswith("not measured")
    (kept,) = (store.root / "speeds").rglob("*.json")
    assert json.loads(kept.read_text())["tokens_per_s"] > 0
    wait_for(lambda: not alive_in_group(process.pid))


def alive_in_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# --- memory -------------------------------------------------------------------------------------

MEASURE = """
import sys

from hybrid.config import read_config
from sweeps.compose import Composer
from sweeps.worker.measuring import preflight_one

with Composer() as composer:
    resolved = read_config(composer.compose(sys.argv[1:]), stdlib_fingerprint=lambda: "0" * 16)
measured = preflight_one(resolved.run, resolved.execution, lambda _line: None)
print(measured.peak_memory_bytes / measured.predicted_memory_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [("model=inter",), ("model=llama", "exec.microbatch=4"), ("model=inter", "exec.activation_checkpointing=true")],
)
def test_a_process_grows_by_what_was_predicted_where_its_allocator_keeps_nothing(overrides: tuple[str, ...]) -> None:
    """glibc gives blocks of 64 KB and more back at once if told so; what it keeps otherwise is not the training's."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "scale=toy", *overrides],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.95 < float(done.stdout) < 1.10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_names_and_the_memory_are_torchs(tiny: Resolve) -> None:
    resolved = tiny("exec.device=cuda", "model.d_model=256", "batch_tokens=4096")
    measured = preflight_one(resolved.run, resolved.execution, lambda _line: None)
    assert measured.device_name == torch.cuda.get_device_name()
    assert measured.peak_memory_bytes == torch.cuda.max_memory_allocated()
    assert measured.tokens_per_s > 0
