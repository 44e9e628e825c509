"""Several ranks train one run: real processes, gloo, and the sockets between them; one rank is the reference.

In float64, where the order of sums changes the sixteenth digit; training makes little of that grow, and what is
compared is compared to 1e-9. Float32 noise would hide a sequence counted twice in a batch of many.
"""

import contextlib
import os
import pickle
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybrid.config import Resolved
from hybrid.data import NOT_SCORED, Batch, DataSource
from hybrid.data.recall import RecallData
from hybrid.data.shards import Shards
from hybrid.data.stdlib import StdlibData
from hybrid.memory import BUCKET_BYTES, train_memory
from hybrid.spec import (
    AdamWSpec,
    AttentionSpec,
    BlockSpec,
    ConfigError,
    ExecSpec,
    Mamba2Spec,
    ModelSpec,
    MoeSpec,
    RecallSpec,
    RopeSpec,
    RunSpec,
    StdlibSpec,
    StopSpec,
    SwigluSpec,
    TrapezoidSpec,
)
from hybrid.train import loop, parallel
from hybrid.train.checkpoint import CheckpointStore
from hybrid.train.loop import Interrupted, Origin, train, train_trunk
from hybrid.train.parallel import Ranks, _Hub, _Member, joined
from hybrid.train.place import Place, RankLostError, first_host
from sweeps.launch.processes import fork_server, unblock_signals

STEPS, BATCH_SIZE, SEQ_LEN = 8, 5, 16
BATCH_TOKENS = BATCH_SIZE * SEQ_LEN
NOISE = 1e-9
RECALL = RecallSpec(n_symbols=32, n_pairs=3, power=0.1)
TEXT = StdlibSpec(fingerprint="0" * 16, val_percent=5.0)
ATTENTION = AttentionSpec(n_heads=2, n_kv_heads=1, head_dim=8, rope=RopeSpec(theta=10_000.0, scaling=None))
MAMBA = Mamba2Spec(
    d_ssm=32,
    head_dim=8,
    d_state=4,
    n_groups=1,
    d_conv=4,
    a_init_min=1.0,
    a_init_max=16.0,
    dt_init_min=0.001,
    dt_init_max=0.1,
)
MOE = MoeSpec(d_ffn=12, n_experts=4, top_k=2, n_shared=1, bias_step=0.01)
SWIGLU = SwigluSpec(d_ffn=24)
HYBRID = (BlockSpec(mixer=MAMBA, ffn=SWIGLU), BlockSpec(mixer=ATTENTION, ffn=SWIGLU))
EXPERTS = (BlockSpec(mixer=MAMBA, ffn=MOE), BlockSpec(mixer=ATTENTION, ffn=replace(MOE, top_k=1)))
EXECUTION = ExecSpec(
    device="cpu",
    microbatch=None,
    threads=1,
    ssd_chunk=8,
    checkpoint_every_s=1e9,
    log_every_steps=1,
    eval_every_tokens=4 * BATCH_TOKENS,
    heartbeat_s=5.0,
    lease_s=60.0,
    activation_checkpointing=False,
    kernels="torch",
    mixers=(),
    trunks=True,
    nodes=1,
    gpus_per_node=1,
)
TIMES = ("wall_s", "tokens_per_s")


def run_of(blocks: tuple[BlockSpec, ...] = HYBRID, data: RecallSpec | StdlibSpec = RECALL) -> RunSpec:
    return RunSpec(
        model=ModelSpec(
            d_model=16,
            vocab_size=data.vocab_size,
            tie_embeddings=True,
            norm_eps=1e-5,
            init_std=0.02,
            blocks=blocks,
        ),
        data=data,
        # Clipped at every step, so that a norm of a part of the gradients would be seen.
        optim=AdamWSpec(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip=0.1),
        schedule=TrapezoidSpec(warmup_tokens=2 * BATCH_TOKENS, cooldown_tokens=2 * BATCH_TOKENS),
        stop=None,
        train_tokens=STEPS * BATCH_TOKENS,
        batch_tokens=BATCH_TOKENS,
        seq_len=SEQ_LEN,
        dtype="float32",
        init_seed=1,
        data_seed=1,
    )


class Uneven(DataSource):
    """Of the first two sequences nothing is scored, of the third one position: a rank may have nothing to learn."""

    def __init__(self, data: DataSource) -> None:
        self._data = data

    def train_batch(self, step: int, batch_size: int, data_seed: int) -> Batch:
        batch = self._data.train_batch(step, batch_size, data_seed)
        targets_BL = batch.targets_BL.copy()
        targets_BL[:2] = NOT_SCORED
        targets_BL[2, :-1] = NOT_SCORED
        return Batch(inputs_BL=batch.inputs_BL, targets_BL=targets_BL)

    def validation_batches(self, batch_size: int, max_examples: int) -> Iterator[Batch]:
        return self._data.validation_batches(batch_size, max_examples)


def data_of(spec: RunSpec, uneven: bool) -> DataSource:
    if isinstance(spec.data, RecallSpec):
        data: DataSource = RecallData(spec.data, spec.seq_len)
    else:
        random = np.random.default_rng(0)
        tokens = (np.arange(6000) ** 2 % 7 + 97 + (random.random(6000) < 0.1)).astype(np.uint16)
        data = StdlibData(
            Shards(directory=Path("nowhere"), training=tokens[:5000], validation=tokens[5000:]), spec.seq_len
        )
    return Uneven(data) if uneven else data


class Recorder:
    """Keeps what it is told; asks to stop after some step."""

    def __init__(self, stop_at: int | None) -> None:
        self.lines: list[dict[str, Any]] = []
        self.start_step, self.step, self.syncs = -1, 0, 0
        self._stop_at = stop_at

    def start(self, total_steps: int, origin: Origin | None) -> None:
        self.start_step = 0 if origin is None else origin.step

    def metrics(self, line: dict[str, Any]) -> None:
        self.lines.append({name: value for name, value in line.items() if name not in TIMES})

    def sync(self) -> None:
        self.syncs += 1

    def tick(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        self.step = step

    def stop_requested(self) -> str | None:
        return f"step {self.step}" if self.step == self._stop_at else None


@dataclass(frozen=True, kw_only=True)
class Task:
    """What ranks are to train; `stop_at` is by rank."""

    spec: RunSpec
    directory: Path
    execution: ExecSpec = EXECUTION
    uneven: bool = False
    stop_at: Mapping[int, int] | None = None
    attempt: int = 1
    validation_tokens: int = loop.VALIDATION_TOKENS
    points: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of it on one rank."""

    status: str
    reason: str | None
    start_step: int
    stopped_at: int | None
    syncs: int
    lines: list[dict[str, Any]]
    metrics: dict[str, Any]
    weights: dict[str, torch.Tensor]
    points: list[int]


def trained(task: Task, ranks: Ranks) -> Result:
    """Train in float64, in which parameters are made and all is computed."""
    torch.set_default_dtype(torch.float64)
    validation_tokens = loop.VALIDATION_TOKENS
    loop.VALIDATION_TOKENS = task.validation_tokens  # type: ignore[misc]
    try:
        recorder = Recorder((task.stop_at or {}).get(ranks.rank))
        # Only the first may write: the others would have to make this directory first.
        directory = task.directory if ranks.is_first else Path("/proc/nowhere")
        common: dict[str, Any] = {
            "data": data_of(task.spec, task.uneven),
            "checkpoints": CheckpointStore(directory, run_id="0123456789ab", attempt=task.attempt),
            "observer": recorder,
            "ranks": ranks,
        }
        status, reason, metrics, stopped_at, weights, saved = "stopped", None, {}, None, {}, []
        try:
            if task.points:
                end = train_trunk(
                    task.spec,
                    task.execution,
                    **common,
                    points=task.points,
                    saved=lambda step, _wall_s: saved.append(step),
                )
                status, reason = end.status, end.reason
            else:
                outcome = train(task.spec, task.execution, **common)
                status, metrics = outcome.status, outcome.metrics
                weights = {name: tensor.clone() for name, tensor in outcome.model.state_dict().items()}
        except Interrupted as interrupted:
            reason, stopped_at = interrupted.reason, interrupted.step
        return Result(
            status=status,
            reason=reason,
            start_step=recorder.start_step,
            stopped_at=stopped_at,
            syncs=recorder.syncs,
            lines=recorder.lines,
            metrics={name: value for name, value in metrics.items() if name not in TIMES},
            weights=weights,
            points=saved,
        )
    finally:
        torch.set_default_dtype(torch.float32)
        loop.VALIDATION_TOKENS = validation_tokens  # type: ignore[misc]


def slurm_environment(rank: int, n: int, job: str) -> dict[str, str]:
    """What srun sets for the tasks of a job on this host."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(n),
        "SLURM_LOCALID": str(rank),
        "SLURM_JOB_ID": job,
        "SLURM_STEP_NODELIST": "no-such-host[1-2]",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    }


def _rank_process(work: Callable[..., Any], arguments: tuple[Any, ...], rank: int, n: int, job: str, out: str) -> None:
    unblock_signals()
    place = Place.of_slurm(slurm_environment(rank, n, job))
    assert place is not None
    with joined(place, "cpu") as ranks:
        result = work(*arguments, ranks)
    Path(out).write_bytes(pickle.dumps(result))


class Launched:
    """Processes of ranks, started; those that live at the end of a test are killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[Any] = []

    def start(self, n: int, work: Callable[..., Any], *arguments: Any, job: str | None = None) -> list[Any]:
        context, job = fork_server(), job or uuid.uuid4().hex
        self._directory.mkdir(parents=True, exist_ok=True)
        started = [
            context.Process(target=_rank_process, args=(work, arguments, rank, n, job, str(self.out(job, rank))))
            for rank in range(n)
        ]
        for process in started:
            process.start()
        self._processes += started
        return started

    def results(self, n: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `work(*arguments, ranks)` gives on each of n ranks."""
        job = uuid.uuid4().hex
        for process in self.start(n, work, *arguments, job=job):
            process.join(120)
            assert process.exitcode == 0
        return [pickle.loads(self.out(job, rank).read_bytes()) for rank in range(n)]

    def out(self, job: str, rank: int) -> Path:
        return self._directory / f"{job}-{rank}"

    def kill(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    made = Launched(tmp_path / "launched")
    yield made
    made.kill()


def assert_same(one: Result, other: Result) -> None:
    """Losses, norms and loads of every step, validations, and weights."""
    assert one.status == other.status
    assert len(one.lines) == len(other.lines)
    for ours, theirs in zip([*one.lines, one.metrics], [*other.lines, other.metrics], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            near = isinstance(value, float) and name != "lr"
            assert value == (pytest.approx(theirs[name], rel=NOISE) if near else theirs[name]), name
    assert one.weights.keys() == other.weights.keys()
    for name, tensor in one.weights.items():
        torch.testing.assert_close(tensor, other.weights[name], rtol=NOISE, atol=NOISE, msg=name)


STOP = StopSpec(metric="accuracy", threshold=0.02, every_tokens=2 * BATCH_TOKENS, examples=50)
CASES: dict[str, Callable[[Path], Task]] = {
    "hybrid on recall": lambda to: Task(spec=run_of(), directory=to),
    "hybrid on text": lambda to: Task(spec=run_of(data=TEXT), directory=to),
    "parts that are not scored": lambda to: Task(spec=run_of(data=TEXT), directory=to, uneven=True),
    "microbatches that are not scored": lambda to: Task(
        spec=run_of(data=TEXT),
        directory=to,
        uneven=True,
        execution=replace(EXECUTION, microbatch=1),
        validation_tokens=30 * SEQ_LEN,
    ),
    "experts": lambda to: Task(spec=run_of(EXPERTS, TEXT), directory=to, uneven=True),
    "experts in microbatches": lambda to: Task(
        spec=run_of(EXPERTS),
        directory=to,
        execution=replace(EXECUTION, microbatch=1),
        validation_tokens=31 * SEQ_LEN,
    ),
    "activation checkpointing": lambda to: Task(
        spec=run_of(EXPERTS), directory=to, execution=replace(EXECUTION, activation_checkpointing=True)
    ),
    "a stop rule": lambda to: Task(spec=replace(run_of(), stop=STOP), directory=to),
    "divergence": lambda to: Task(spec=replace(run_of(), optim=replace(run_of().optim, lr=1e200)), directory=to),
}


@pytest.mark.parametrize("n", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_ranks_train_as_one_rank_does(case: str, n: int, launched: Launched, tmp_path: Path) -> None:
    alone = trained(CASES[case](tmp_path / "alone"), Ranks.alone())
    first, *others = launched.results(n, trained, CASES[case](tmp_path / "ranks"))
    assert_same(first, alone)
    assert first.start_step == 0
    for other in others:
        assert other.lines == [], "the first alone reports"
        assert other.metrics == first.metrics, "to the bit: decisions are made from these"
        assert all(torch.equal(tensor, first.weights[name]) for name, tensor in other.weights.items())
    if case == "a stop rule":
        assert first.metrics["solved"]
        assert first.metrics["steps"] < STEPS
    if case == "divergence":
        assert first.status == "diverged"


@pytest.mark.parametrize("n", [1, 3])
def test_what_two_ranks_saved_any_number_goes_on_from(n: int, launched: Launched, tmp_path: Path) -> None:
    alone = trained(Task(spec=run_of(EXPERTS), directory=tmp_path / "alone"), Ranks.alone())
    # Asked on the second alone, all stop at that step, and the first saves.
    task = Task(spec=run_of(EXPERTS), directory=tmp_path / "ranks", stop_at={1: 3})
    before = launched.results(2, trained, task)
    assert [(result.status, result.reason, result.stopped_at) for result in before] == [("stopped", "step 3", 3)] * 2
    assert [path.name for path in (tmp_path / "ranks").iterdir()] == ["step00000003-a001.ckpt"]
    assert [result.syncs for result in before] == [1, 0]
    again = replace(task, stop_at=None, attempt=2)
    after = [trained(again, Ranks.alone())] if n == 1 else launched.results(n, trained, again)
    assert [result.start_step for result in after] == [3] * n
    assert_same(replace(after[0], lines=before[0].lines + after[0].lines), alone)


def test_a_run_of_one_rank_goes_on_with_two_from_the_checkpoint_that_the_first_has_chosen(
    launched: Launched, tmp_path: Path
) -> None:
    task = Task(spec=run_of(), directory=tmp_path / "run", stop_at={0: 5})
    trained(task, Ranks.alone())
    trained(replace(task, stop_at={0: 6}, attempt=2), Ranks.alone())
    newest = max((tmp_path / "run").glob("*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-10])
    after = launched.results(2, trained, replace(task, stop_at=None, attempt=3))
    assert [result.start_step for result in after] == [5, 5]
    alone = trained(Task(spec=run_of(), directory=tmp_path / "alone"), Ranks.alone())
    assert_same(replace(after[0], lines=alone.lines[: -len(after[0].lines)] + after[0].lines), alone)


def test_ranks_make_the_points_of_a_trunk_once(launched: Launched, tmp_path: Path) -> None:
    task = Task(spec=run_of(), directory=tmp_path / "ranks", points=(3, 5))
    ends = launched.results(2, trained, task)
    assert [(end.status, end.points) for end in ends] == [("done", [3, 5]), ("done", [])]
    trained(replace(task, directory=tmp_path / "alone"), Ranks.alone())
    states = [
        CheckpointStore(tmp_path / name, run_id="0123456789ab", attempt=9).load_point(5) for name in ("alone", "ranks")
    ]
    assert states[0] is not None
    assert states[1] is not None
    for name, tensor in states[0].state["model"].items():
        torch.testing.assert_close(states[1].state["model"][name], tensor, rtol=NOISE, atol=NOISE)


def test_more_ranks_than_sequences_are_refused(tmp_path: Path, resolve: Callable[..., Resolved]) -> None:
    place = Place(rank=0, world_size=BATCH_SIZE + 1, local_rank=0, hosts=(), job="")
    with pytest.raises(ConfigError, match="at most one for each of the 5 sequences"):
        trained(Task(spec=run_of(), directory=tmp_path), Ranks(place))
    with pytest.raises(ConfigError, match=r"exec.nodes, exec.gpus_per_node = 3, 2.*each of the 4 sequences"):
        resolve("seq_len=32", "batch_tokens=128", "exec.nodes=3", "exec.gpus_per_node=2")


# --- ends ---------------------------------------------------------------------------------------


def _ends(how: str, at: Path, ranks: Ranks) -> str:
    """The second rank ends in some way in the middle of it all; the others tell what they saw of that."""
    ranks.sum_([torch.ones(3)])
    if ranks.rank == 1:
        match how:
            case "raises":
                ranks.fail({"class": "oom", "message": "no memory", "traceback": "line 1"})
                raise MemoryError
            case "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "leaves":
                return "left"
    try:
        while True:
            ranks.sum_([torch.ones(3)])
            time.sleep(0.01)
    except RankLostError as lost:
        (at / f"rank{ranks.rank}").write_text(f"{lost.rank} {lost.failure and lost.failure['class']} {lost}")
        raise


@pytest.mark.parametrize("how", ["raises", "is killed"])
def test_a_rank_that_ends_ends_all_within_seconds(how: str, launched: Launched, tmp_path: Path) -> None:
    processes = launched.start(3, _ends, how, tmp_path)
    for process in processes:
        process.join(60)
    assert all(process.exitcode not in (0, None) for process in processes)
    wanted = "1 oom rank 1 failed: no memory" if how == "raises" else "1 None rank 1 is gone without a word"
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 2)] == [wanted] * 2


def _first_is_killed(at: Path, ranks: Ranks) -> None:
    ranks.sum_([torch.ones(1)])
    if ranks.is_first:
        ranks.told({"attempt": 3})
        os.kill(os.getpid(), signal.SIGKILL)
    (at / f"told{ranks.rank}").write_text(str(ranks.told()["attempt"]))
    ranks.told()


def test_those_that_wait_for_word_from_the_first_end_when_it_is_gone(launched: Launched, tmp_path: Path) -> None:
    processes = launched.start(3, _first_is_killed, tmp_path)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 1, 1]
    assert [(tmp_path / f"told{rank}").read_text() for rank in (1, 2)] == ["3", "3"]


def _is_stuck(at: Path, ranks: Ranks) -> None:
    parallel.STUCK_S = 0.3  # type: ignore[misc]
    if ranks.rank == 1:
        raise RuntimeError("out of luck")
    ranks.when_stuck(lambda lost: (at / "said").write_text(str(lost)))
    time.sleep(60)  # as in a kernel that waits for the others, and hears nothing


def test_a_rank_that_hears_nothing_is_ended_from_within_after_saying_why(launched: Launched, tmp_path: Path) -> None:
    processes = launched.start(2, _is_stuck, tmp_path)
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [1, 1]
    assert (tmp_path / "said").read_text() == "rank 1 failed: RuntimeError: out of luck"


# --- meeting ------------------------------------------------------------------------------------


def _sum(ranks: Ranks) -> list[float]:
    """Buckets of several dtypes and sizes, and a tensor that is not contiguous."""
    parallel.BUCKET_BYTES = 100  # type: ignore[attr-defined]
    tensors = [
        torch.full((3,), 1.0 + ranks.rank),
        torch.full((2, 2), 10, dtype=torch.int64),
        torch.full((40,), 0.5, dtype=torch.float64),
        torch.arange(6.0).view(2, 3).T,
        torch.tensor(float(ranks.rank)),
    ]
    ranks.sum_(tensors)
    return [float(tensor.double().sum()) for tensor in tensors]


def test_sums_are_of_every_tensor_whatever_its_size_dtype_and_strides(launched: Launched) -> None:
    assert launched.results(3, _sum) == [[18.0, 120.0, 60.0, 45.0, 3.0]] * 3


@pytest.mark.slow
def test_two_jobs_whose_first_port_is_a_stranger_s_meet_their_own(launched: Launched) -> None:
    job = uuid.uuid4().hex
    place = Place.of_slurm(slurm_environment(0, 2, job))
    assert place is not None
    with contextlib.ExitStack() as stack:
        for port in place.ports()[:2]:  # one that says nothing, and one that says what it should not
            stranger = stack.enter_context(socket.create_server(("", port)))
            if port == place.ports()[1]:
                threading.Thread(target=_answer, args=(stranger,), daemon=True).start()
        processes = launched.start(2, _sum, job=job)
        other = launched.results(2, _sum)
        for process in processes:
            process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert other[0] == other[1]


def _answer(stranger: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            visitor, _ = stranger.accept()
            visitor.recv(100)
            visitor.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            visitor.close()


def test_whoever_does_not_know_the_job_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "JOIN_S", 1.0)
    place = Place(rank=0, world_size=2, local_rank=0, hosts=("127.0.0.1",), job=uuid.uuid4().hex)
    problems: list[BaseException] = []

    def hub() -> None:
        try:
            _Hub(place)
        except RankLostError as error:
            problems.append(error)

    waiting = threading.Thread(target=hub)
    waiting.start()
    with pytest.raises(RankLostError, match=r"the first rank was not found at 127.0.0.1"):
        _Member(replace(place, rank=1, world_size=3))
    waiting.join(10)
    assert [str(problem) for problem in problems] == ["ranks 1 did not come within 1 s"]


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-3,5],m2", "n1"),
        ("gpu[003-120]", "gpu003"),
        ("rack[2-3]node[07,09].site", "rack2node07.site"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_node_list(node_list: str, first: str) -> None:
    assert first_host(node_list) == first


def test_a_step_of_one_task_has_no_ranks() -> None:
    environment = slurm_environment(0, 1, "7")
    assert Place.of_slurm(environment) is None
    assert Place.of_slurm({}) is None


def test_ports_differ_between_jobs_steps_and_lives_and_agree_between_ranks() -> None:
    def ports(more: Mapping[str, str], rank: int = 0) -> list[int]:
        place = Place.of_slurm(slurm_environment(rank, 2, "1234") | dict(more))
        assert place is not None
        return place.ports()

    assert ports({}) == ports({}, rank=1)
    different: list[dict[str, str]] = [
        {},
        {"SLURM_JOB_ID": "1235"},
        {"SLURM_STEP_ID": "1"},
        {"SLURM_RESTART_COUNT": "1"},
    ]
    assert len({tuple(ports(more)) for more in different}) == len(different)


def test_as_many_tasks_as_ranks_are_expected() -> None:
    place = Place.of_slurm(slurm_environment(0, 4, "1"))
    assert place is not None
    place.check(replace(EXECUTION, nodes=2, gpus_per_node=2))
    with pytest.raises(ConfigError, match=r"exec.nodes, exec.gpus_per_node = 2, 1: .*tasks in this step, 4"):
        place.check(replace(EXECUTION, nodes=2))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_parts_are_all_sequences_once_and_differ_by_one_at_most(n: int) -> None:
    places = [Place(rank=rank, world_size=n, local_rank=0, hosts=(), job="") for rank in range(n)]
    parts = [list(range(11))[Ranks(place).part(11)] for place in places]
    assert [place for part in parts for place in part] == list(range(11))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_memory_of_a_rank_is_that_of_its_part_of_the_batch() -> None:
    spec = replace(run_of(data=TEXT), batch_tokens=8 * SEQ_LEN, train_tokens=64 * SEQ_LEN)
    four = replace(EXECUTION, nodes=2, gpus_per_node=2, microbatch=2)
    one, each = train_memory(spec, EXECUTION), train_memory(spec, four)
    assert each.logits_bytes < one.logits_bytes
    assert each.weights_bytes == one.weights_bytes
    part = replace(spec, batch_tokens=2 * SEQ_LEN)
    alone = train_memory(part, replace(EXECUTION, microbatch=2))
    assert each.activation_bytes == alone.activation_bytes
    assert each.logits_bytes == alone.logits_bytes
    # Gradients once, and as much again while they are sent, as they are less than a bucket.
    assert 4 * each.gradient_bytes >= 2 * each.optimizer_bytes * 2
    assert each.optimizer_bytes < BUCKET_BYTES
