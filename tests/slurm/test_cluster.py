"""The cluster itself: that it does what the tests that use it rely on, on a quiet machine and on a busy one."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import READY_STATES, Cluster, ClusterError, Settings, accepts, wait_until

pytestmark = pytest.mark.slurm
PATIENCE_S = 120.0
PROGRAM = Path(__file__).with_name("cluster.py")

TICKS = """#!/bin/bash
trap 'echo USR2 $(date +%s.%N) >> told' USR2
trap 'echo TERM $(date +%s.%N) >> told' TERM
while [ ! -e stop ]; do
    echo ${SLURM_RESTART_COUNT:-0} $SLURMD_NODENAME $$ $(date +%s.%N) >> ticks
    sleep 0.2
done
"""
"""Lives until it is told by a file, whatever signals come; says when it was alive, and which copy it is."""


def script(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def ticks(copy: int | None = None) -> list[tuple[int, str, int, float]]:
    """Copy, node, process, and seconds of every sign of life."""
    if not Path("ticks").exists():
        return []
    # The last line may be half written.
    rows = [line.split() for line in Path("ticks").read_text().splitlines()[:-1]]
    found = [(int(row[0]), row[1], int(row[2]), float(row[3])) for row in rows]
    return [tick for tick in found if copy in (None, tick[0])]


def wait_for_history(slurm: Cluster, job_id: int, fields: tuple[str, ...], *rows: tuple[str, ...]) -> None:
    """The database is told later than the queue, and not of everything at once."""
    wait_until(
        lambda: slurm.history(job_id, *fields) == list(rows),
        f"job {job_id} to be {rows}",
        PATIENCE_S,
        lambda: f"{slurm.history(job_id, *fields, 'ExitCode', 'NodeList')}\n{slurm.explain()}",
    )


def wait_for_states(slurm: Cluster, job_id: int, *states: str) -> None:
    wait_for_history(slurm, job_id, ("State",), *((state,) for state in states))


def told() -> list[tuple[str, float]]:
    """The signals that came, and when."""
    rows = [line.split() for line in Path("told").read_text().splitlines()] if Path("told").exists() else []
    return [(name, float(seconds)) for name, seconds in rows]


def wait_for_copy(copy: int) -> tuple[int, str, int, float]:
    wait_until(lambda: bool(ticks(copy)), f"copy {copy} of the job to run", PATIENCE_S)
    return ticks(copy)[0]


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


# -------------------------------------------------------------------- what any test may rely on


def test_every_node_answers_and_its_name_leads_here(slurm: Cluster) -> None:
    assert set(slurm.node_states()) == set(slurm.nodes)
    assert set(slurm.node_states().values()) <= READY_STATES
    assert {socket.gethostbyname(node) for node in slurm.nodes} <= {"127.0.0.1", slurm_address(slurm)}


def slurm_address(slurm: Cluster) -> str:
    found = re.search(r"NodeAddr=(\S+)", slurm.run("scontrol", "show", "node", slurm.nodes[0]))
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("body", "state", "exit_code"),
    [("true", "COMPLETED", "0:0"), ("exit 3", "FAILED", "3:0"), ("kill -9 $$", "FAILED", "0:9")],
)
def test_sacct_tells_how_a_job_ended(slurm: Cluster, body: str, state: str, exit_code: str) -> None:
    job_id = slurm.submit(script("job", f"#!/bin/bash\n{body}\n"))
    wait_for_history(slurm, job_id, ("State", "ExitCode"), (state, exit_code))


def test_a_throttled_array_runs_all_its_tasks_and_never_more_at_once(slurm: Cluster) -> None:
    says = "echo $SLURM_ARRAY_TASK_ID {} $(date +%s.%N) >> log"
    body = "\n".join(("#!/bin/bash", says.format("+"), "sleep 1", says.format("-"), ""))
    job_id = slurm.submit("--array=0-7%2", script("job", body))
    wait_for_states(slurm, job_id, *["COMPLETED"] * 8)
    events = [line.split() for line in Path("log").read_text().splitlines()]
    assert sorted(task for task, sign, _ in events if sign == "+") == [str(i) for i in range(8)]
    running = [0]
    for _, sign, _ in sorted(events, key=lambda event: float(event[2])):
        running.append(running[-1] + (1 if sign == "+" else -1))
    assert max(running) == 2


def test_an_array_may_be_as_long_as_the_settings_say_and_no_longer(slurm: Cluster) -> None:
    size = slurm.settings.max_array_size
    assert f"MaxArraySize            = {size}" in slurm.run("scontrol", "show", "config")
    job = script("job", "#!/bin/bash\n")
    slurm.submit("--hold", f"--array=0-{size - 1}", job)
    with pytest.raises(ClusterError, match="Invalid job array"):
        slurm.submit("--hold", f"--array=0-{size}", job)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--partition=nowhere", "Invalid partition name"),
        ("--account=nobody", "Invalid account"),
        ("--qos=never", "Invalid qos"),
        ("--time=2-0", "time limit is invalid"),
        ("--nodes=9", "Node count specification invalid"),
        ("--gpus-per-node=9", "Requested node configuration is not available"),
    ],
)
def test_what_the_cluster_does_not_have_is_refused_at_once(slurm: Cluster, option: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        slurm.submit(option, script("job", "#!/bin/bash\n"))


def test_an_account_and_a_qos_that_exist_are_taken(slurm: Cluster) -> None:
    job_id = slurm.submit("--account=lab", "--qos=urgent", script("job", "#!/bin/bash\n"))
    wait_for_history(slurm, job_id, ("State", "Account", "QOS"), ("COMPLETED", "lab", "urgent"))


def test_two_jobs_on_one_node_are_given_different_gpus(slurm: Cluster) -> None:
    body = (
        "#!/bin/bash\necho $CUDA_VISIBLE_DEVICES > gpus.$1\nwhile [ ! -e gpus.a -o ! -e gpus.b ]; do sleep 0.2; done\n"
    )
    job = script("job", body)
    node = slurm.nodes[-1]
    for name in "ab":
        slurm.submit(f"--nodelist={node}", "--gpus-per-node=2", job, name)
    wait_until(lambda: not slurm.jobs_of(Path.cwd()), "both jobs to end", PATIENCE_S, slurm.explain)
    given = [Path(f"gpus.{name}").read_text().strip().split(",") for name in "ab"]
    assert sorted(given[0] + given[1]) == ["0", "1", "2", "3"]


MEET = """
import os, socket, subprocess, sys
first = subprocess.run(
    ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True, text=True, check=True
).stdout.split()[0]
port = 40000 + int(os.environ["SLURM_JOB_ID"]) % 20000
if os.environ["SLURM_PROCID"] == "0":
    with socket.create_server((first, port)) as server:
        print(os.environ["SLURMD_NODENAME"], "met", server.accept()[0].recv(100).decode(), flush=True)
else:
    for attempt in range(300):
        try:
            talk = socket.create_connection((first, port), timeout=30)
            break
        except ConnectionRefusedError:
            import time; time.sleep(0.1)
    talk.sendall(os.environ["SLURMD_NODENAME"].encode())
"""


def test_two_tasks_on_two_nodes_meet_at_the_first_node_s_name(slurm: Cluster) -> None:
    meet = script("meet.py", MEET)
    body = f"#!/bin/bash\nsrun {sys.executable} {meet}\n"
    job_id = slurm.submit("--nodes=2", "--ntasks-per-node=1", "--output=out", script("job", body))
    wait_for_states(slurm, job_id, "COMPLETED")
    assert re.search(r"^n\d met n\d$", Path("out").read_text(), re.MULTILINE)


def test_scontrol_requeue_sends_term_then_kill_and_the_job_starts_over_under_its_id(slurm: Cluster) -> None:
    job_id = slurm.submit(script("job", TICKS))
    _, _, pid, _ = wait_for_copy(0)
    slurm.run("scontrol", "requeue", str(job_id))
    wait_for_copy(1)
    assert not alive(pid)
    Path("stop").touch()
    [(name, seconds)] = told()
    assert name == "TERM"
    assert ticks(0)[-1][3] - seconds > slurm.settings.kill_wait_s - 1.5
    wait_for_states(slurm, job_id, "REQUEUED", "COMPLETED")


@pytest.fixture
def inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell on a login node, or in a job."""
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    monkeypatch.setenv("SLURM_JOB_ID", "1")


@pytest.mark.usefixtures("inherited")
def test_inherited_variables_of_slurm_are_gone(slurm: Cluster) -> None:
    assert {name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))} == {"SLURM_CONF"}
    done = subprocess.run(["sbatch", script("job", "#!/bin/bash\n")], capture_output=True, text=True)
    assert re.fullmatch(r"Submitted batch job \d+\n", done.stdout), done.stderr
    assert slurm.jobs_of(Path.cwd()) in ([], [done.stdout.split()[-1]])


# -------------------------------------------------------------------- faults


@pytest.mark.slurm(alone=True)
def test_a_job_of_the_high_partition_requeues_one_of_main_after_the_signal_it_asked_for(slurm: Cluster) -> None:
    low = slurm.submit("--exclusive", f"--nodes={len(slurm.nodes)}", "--signal=B:USR2@30", script("job", TICKS))
    wait_for_copy(0)
    high = slurm.submit("--partition=high", script("high", "#!/bin/bash\n"))
    wait_for_states(slurm, high, "COMPLETED")
    (first, seconds), *_ = told()
    assert first == "USR2"
    assert ticks(0)[-1][3] - seconds > slurm.settings.grace_s - 1.5
    wait_for_copy(1)
    Path("stop").touch()
    wait_for_states(slurm, low, "PREEMPTED", "COMPLETED")


@pytest.mark.slurm(alone=True)
def test_a_crashed_node_is_noticed_and_its_job_runs_again_elsewhere(slurm: Cluster) -> None:
    # A child that nobody would find by its environment or session.
    body = TICKS.replace("while", "env -i setsid sleep 600 &\necho $! > child\nwhile", 1)
    job_id = slurm.submit(script("job", body))
    _, node, pid, _ = wait_for_copy(0)
    child = int(Path("child").read_text())
    assert {pid, child} <= set(slurm.job_pids(node))

    slurm.crash_node(node)
    assert not alive(pid)
    assert not alive(child)
    assert daemons_of_nodes(slurm) == set(slurm.nodes) - {node}
    assert not slurm.all_answer()

    again = wait_for_copy(1)
    assert again[1] != node
    assert slurm.node_states()[node] == "down*"
    assert not told()
    Path("stop").touch()
    wait_for_states(slurm, job_id, "NODE_FAIL", "COMPLETED")

    slurm.revive_node(node)
    assert slurm.all_answer()


def daemons_of_nodes(slurm: Cluster) -> set[str]:
    return {process.node for process in slurm.processes() if process.program == "slurmd"}


@pytest.mark.slurm(alone=True)
def test_a_node_s_daemon_may_be_gone_for_a_moment_and_the_job_notices_nothing(slurm: Cluster) -> None:
    job_id = slurm.submit(script("job", TICKS))
    _, node, pid, _ = wait_for_copy(0)
    slurm.lose_daemon(node)
    assert daemons_of_nodes(slurm) == set(slurm.nodes) - {node}
    assert not slurm.all_answer()
    assert alive(pid)
    slurm.revive_node(node)
    assert slurm.all_answer()
    Path("stop").touch()
    wait_for_states(slurm, job_id, "COMPLETED")
    assert {tick[2] for tick in ticks()} == {pid}


@pytest.mark.slurm(alone=True)
def test_where_a_daemon_stays_away_the_job_runs_twice_at_once(slurm: Cluster) -> None:
    job_id = slurm.submit(script("job", TICKS))
    _, node, pid, _ = wait_for_copy(0)
    slurm.lose_daemon(node)
    again = wait_for_copy(1)
    assert again[1] != node
    wait_until(lambda: ticks(0)[-1][3] > again[3], "a sign of life of the first copy, after the second began", 10)
    assert alive(pid)
    Path("stop").touch()
    wait_for_states(slurm, job_id, "NODE_FAIL", "COMPLETED")


@pytest.mark.slurm(alone=True)
def test_jobs_outlive_the_controller_which_refuses_new_ones_until_it_is_back(slurm: Cluster) -> None:
    job_id = slurm.submit(script("job", TICKS))
    _, _, pid, _ = wait_for_copy(0)
    slurm.lose_daemon("slurmctld")
    with pytest.raises(ClusterError, match=r"sbatch: error|exit status"):
        slurm.submit("job")
    assert alive(pid)
    Path("stop").touch()
    wait_until(lambda: not alive(pid), "the job to end", PATIENCE_S)
    slurm.up()
    wait_for_states(slurm, job_id, "COMPLETED")


@pytest.mark.slurm(alone=True)
def test_a_healed_cluster_has_no_jobs_and_no_processes_of_jobs_and_every_node_answers(slurm: Cluster) -> None:
    job = script("job", TICKS)
    for node in slurm.nodes:
        slurm.submit(f"--nodelist={node}", job)
    wait_until(
        lambda: {tick[1] for tick in ticks()} == set(slurm.nodes), "jobs on every node", PATIENCE_S, slurm.explain
    )
    slurm.crash_node(1)
    slurm.lose_daemon(2)
    slurm.run("scontrol", "update", "NodeName=n3", "State=DRAIN", "Reason=test")
    assert slurm.job_pids()
    slurm.heal()
    assert slurm.all_answer()
    assert not slurm.job_pids()
    assert not slurm.run("squeue", "-h")


# -------------------------------------------------------------------- bringing one up and taking it down


@pytest.fixture
def own(slurm: Cluster) -> Iterator[Cluster]:
    """One beside the other: down."""
    assert slurm.running()
    directory = Path(tempfile.mkdtemp(prefix="hybrid-slurm-"))
    cluster = Cluster(directory)
    try:
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(directory, ignore_errors=True)


SMALL = Settings(nodes=1, cpus=2, gpus=0, memory_mb=1024, max_array_size=7, accounting=False, kill_wait_s=1)


def leftovers(cluster: Cluster) -> list[str]:
    """Processes with any trace of the directory in command or environment, found in another way than `down` does."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            traces = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if str(cluster.directory).encode() in traces:
                found.append(f"{entry.name} {(entry / 'comm').read_text().strip()}")
    return found


def wait_for_job(cluster: Cluster, job_id: int, state: str) -> None:
    wait_until(lambda: cluster.job(job_id)["JobState"] == state, f"job {job_id}: {state}", PATIENCE_S, cluster.explain)


def test_two_clusters_run_side_by_side_each_with_its_own_jobs_and_settings(slurm: Cluster, own: Cluster) -> None:
    own.up(SMALL)
    assert own.nodes == ("n1",)
    assert slurm.all_answer()
    job_id = own.submit("--output=out", "--wrap=echo $SLURM_CONF")
    wait_for_job(own, job_id, "COMPLETED")
    assert Path("out").read_text().strip() == str(own.config)
    assert str(job_id) not in slurm.run("squeue", "-h", "-t", "all", "-o", "%A").split()
    assert own.run("scontrol", "show", "config").count("MaxArraySize            = 7") == 1


def test_down_ends_jobs_and_daemons_and_job_ids_only_grow_even_after_a_wipe(own: Cluster) -> None:
    own.up(SMALL)
    first = own.submit(script("job", TICKS))
    _, _, pid, _ = wait_for_copy(0)
    assert len(leftovers(own)) > 3
    own.down()
    assert not alive(pid)
    assert not leftovers(own)
    assert not accepts((socket.gethostbyname(socket.gethostname()), own.port))

    own.up()
    assert own.settings == SMALL
    second = own.submit("--wrap=true")
    assert second > first
    own.down(wipe=True)
    assert not own.directory.exists()

    own.up(SMALL)
    assert own.submit("--wrap=true") > second


def test_up_starts_only_what_does_not_run_and_refuses_to_change_what_does(own: Cluster) -> None:
    own.up(SMALL)
    before = {process.daemon: process.pid for process in own.processes() if process.program != "slurmscriptd"}
    own.up(SMALL)
    own.lose_daemon(1)
    own.up()
    after = {process.daemon: process.pid for process in own.processes() if process.program != "slurmscriptd"}
    assert before.keys() == after.keys() == {"munged", "slurmctld", "slurmd-n1"}
    assert {name for name in before if before[name] != after[name]} == {"slurmd-n1"}
    with pytest.raises(ClusterError, match="runs with other settings"):
        own.up(Settings(nodes=2))


def test_what_cannot_start_says_why_with_the_last_lines_of_its_log_and_leaves_nothing(own: Cluster) -> None:
    own.up(SMALL)
    own.down()
    (own.directory / "secret" / "munge.key").write_bytes(b"short")
    with pytest.raises(ClusterError, match=r"munged ended while waiting(.|\n)*Keyfile must be"):
        own.up()
    assert not leftovers(own)


def test_a_port_that_is_taken_is_named_and_any_other_will_do(own: Cluster) -> None:
    with socket.create_server(("", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port = {number - 1}"):
            own.up(Settings(nodes=1, accounting=False, port=number - 1))
    own.up(SMALL)
    before = own.port
    own.down()
    with socket.create_server(("", before)):
        own.up()
        assert own.port != before


def test_the_last_user_takes_down_what_the_first_brought_up(own: Cluster) -> None:
    other = Cluster(own.directory)
    with own.use(SMALL):
        with other.use(Settings(nodes=2)):
            assert other.settings == SMALL
        own.lose_daemon(1)
        own.up()
        assert own.all_answer()
    assert not own.processes()

    with own.use(SMALL):
        own.keep()
    assert own.all_answer()

    with other.use(SMALL):
        pass
    assert own.all_answer()


def test_the_command_line_brings_one_up_lets_commands_reach_it_and_takes_it_down(own: Cluster) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROGRAM), "--dir", str(own.directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert run("status").returncode == 1
    up = run("up", "--nodes=1", "--accounting=0", "--gpus=1")
    assert up.returncode == 0, up.stderr
    assert run("status").returncode == 0
    shell = f'eval "$({sys.executable} {PROGRAM} --dir {own.directory} env)"; sinfo -h -o %N; echo $SBATCH_ACCOUNT'
    environment = {**os.environ, "SLURM_CONF": "/nowhere", "SBATCH_ACCOUNT": "other"}
    done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["n1"]
    assert run("crash-node", "1").returncode == 0
    assert run("status").returncode == 1
    assert run("revive-node", "n1").returncode == 0
    assert run("status").returncode == 0
    wrong = run("lose-daemon", "7")
    assert (wrong.returncode, wrong.stderr) == (1, "cluster.py: node = 7: expected one of n1\n")
    assert run("down", "--wipe").returncode == 0
    assert not leftovers(own)
    assert not own.directory.exists()
