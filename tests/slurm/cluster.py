#!/usr/bin/env python3
"""A real Slurm cluster of virtual nodes on one Debian machine, and the faults that real clusters have.

    python tests/slurm/cluster.py up              install what is missing (apt-get), start all daemons, wait for nodes
    eval "$(python tests/slurm/cluster.py env)"   sbatch, squeue, sacct and the rest now mean this cluster
    python tests/slurm/cluster.py crash-node 2    as if the machine lost its power; revive-node 2 brings it back
    python tests/slurm/cluster.py down            end all jobs and daemons; records and logs stay (--wipe: nothing does)

munged, a MariaDB that listens on a socket only, slurmdbd, slurmctld, and one slurmd a node, all as the calling user. No
systemd, no cgroups: CPUs and memory are booked, not enforced; a GPU is a name, but CUDA_VISIBLE_DEVICES is set. The
nodes share this machine's host name: a job tells them apart by SLURMD_NODENAME. Jobs in partition `main` are requeued
for jobs in partition `high`, after their own --signal and a grace time. Accounts are enforced: `lab` exists, with the
qos `normal` and `urgent`. Several clusters may run at once, each in a directory of its own: --dir or HYBRID_SLURM_DIR.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import math
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

PACKAGES: Final = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
"""Program, and the Debian 12 package that has it."""

ACCOUNTING_PACKAGES: Final = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
}
SYSTEM_PATHS: Final = "/usr/local/sbin:/usr/sbin:/sbin"

DAEMONS: Final = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
"""In the order in which they are started."""

PROGRAMS: Final = frozenset((*DAEMONS, "slurmscriptd", "slurmstepd", "setsid"))
"""Who is ours among those that have one of the logs open: a pager is not."""

CLIENT_VARIABLES: Final = ("SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_")
"""Beginnings of variables that change what Slurm's commands do, or that a job has."""

READY_STATES: Final = frozenset({"idle", "mixed", "allocated", "completing"})

LONGEST_DIRECTORY: Final = 60
"""A socket's path ends at 107 bytes, and a step's is DIR/spool/n1/n1_67043328.4294967291."""

PORTS: Final = range(16800, 32000)
"""Below those that the kernel gives to clients."""

JOB_IDS_PER_SECOND: Final = 4
JOB_IDS: Final = 60_000_000
"""Slurm itself goes round at 67,043,328."""

START_S: Final = 90.0
POLL_S: Final = 0.1


class ClusterError(Exception):
    """The cluster does not do what was asked."""


class CannotInstallError(ClusterError):
    """This machine has no Slurm, and none can be installed."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a cluster is made of. HYBRID_SLURM_ and the name in capitals is the variable that sets one."""

    nodes: int = 3
    cpus: int = 4
    """Of each node, as are GPUs and memory."""
    gpus: int = 4
    memory_mb: int = 8192
    port: int = 0
    """The first of 2 + nodes ports that follow each other; 0: any that are free."""
    max_array_size: int = 1001
    """Slurm's own default; an array's largest index is one less."""
    accounting: bool = True
    """Without, there is no database: it starts sooner, sacct fails, and any account will do."""
    slurmd_timeout_s: int = 10
    """A node that is silent for so long is down."""
    kill_wait_s: int = 5
    """From SIGTERM to SIGKILL."""
    grace_s: int = 10
    """From the signal that announces a preemption to its SIGTERM."""
    requeue_delay_s: int = 5
    """A requeued job begins no sooner (Slurm: cred_expire, 120 unless told)."""

    @classmethod
    def read(cls, given: Mapping[str, Any], base: "Settings") -> "Settings":
        """`base`, but for what the environment sets, and then for what is given and not None.

        Raises: ClusterError: all that is wrong.
        """
        changes: dict[str, Any] = {}
        problems = []
        for field in dataclasses.fields(cls):
            where = f"HYBRID_SLURM_{field.name.upper()}"
            text = os.environ.get(where) or None
            if given.get(field.name) is not None:
                where, text = field.name, str(given[field.name])
            if text is None:
                continue
            least = 0 if field.name in ("gpus", "port", "kill_wait_s", "grace_s", "requeue_delay_s") else 1
            if field.type is bool and text in ("0", "1"):
                changes[field.name] = text == "1"
            elif field.type is int and text.isdecimal() and int(text) >= least:
                changes[field.name] = int(text)
            else:
                expected = "0 or 1" if field.type is bool else f"a whole number of at least {least}"
                problems.append(f"{where} = {text}: expected {expected}")
        if problems:
            raise ClusterError("\n".join(problems))
        return dataclasses.replace(base, **changes)


@dataclass(frozen=True, kw_only=True)
class Process:
    pid: int
    program: str
    daemon: str
    """Whose log it has open: a job's slurmstepd has its node's, `slurmd-n2`."""

    @property
    def node(self) -> str:
        return self.daemon.removeprefix("slurmd-")


def default_directory() -> Path:
    return Path(os.environ.get("HYBRID_SLURM_DIR") or f"/tmp/hybrid-slurm-{user_name()}")


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float, explain: Callable[[], str] = str) -> None:
    """Poll until it is so.

    Raises: ClusterError: it is not after `timeout_s`; with what `explain` says then.
    """
    end = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > end:
            raise ClusterError(f"gave up waiting for {what} after {timeout_s:.0f} s\n{explain()}".rstrip())
        time.sleep(POLL_S)


class Cluster:
    """The cluster whose state is all in one directory, whether it runs or not."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = Path(os.path.realpath(directory or default_directory()))
        self.config = self.directory / "etc" / "slurm.conf"
        self._port = self.directory / "port"
        self._temporary = self.directory / "temporary"
        self._locked = False

    # ---------------------------------------------------------------- what there is

    @property
    def settings(self) -> Settings:
        """As of the last `up`. Raises: ClusterError: there was none."""
        stored = self._stored()
        if stored is None:
            raise ClusterError(f"{self.directory}: no cluster was ever started here")
        return stored

    @property
    def port(self) -> int:
        """slurmctld's; slurmdbd's and the nodes' follow."""
        return int(self._port.read_text())

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"n{i + 1}" for i in range(self.settings.nodes))

    def node(self, name: str | int) -> str:
        """2, "2" and "n2" are the same node. Raises: ClusterError."""
        found = f"n{name}" if str(name).isdecimal() else str(name)
        if found not in self.nodes:
            raise ClusterError(f"node = {name}: expected one of {', '.join(self.nodes)}")
        return found

    def processes(self) -> list[Process]:
        """Every daemon, and every slurmstepd: who has one of the logs open. What jobs run is in `job_pids`.

        Pid files would not do: they go stale, and a slurmstepd has none.
        """
        logs, found = f"{self.directory}/log/", []
        for pid in pids():
            # Whoever it is may end, or be somebody else's.
            with contextlib.suppress(OSError):
                links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
                daemons = {Path(link.removesuffix(" (deleted)")).stem for link in links if link.startswith(logs)}
                program = Path(f"/proc/{pid}/comm").read_text().strip()
                if daemons and program in PROGRAMS:
                    found.append(Process(pid=pid, program=program, daemon=daemons.pop()))
        return found

    def job_pids(self, node: str | None = None) -> list[int]:
        """What jobs run on this node, or on any."""
        steps = {p.pid for p in self.processes() if p.program == "slurmstepd" and p.node == (node or p.node)}
        wanted = {f"SLURM_CONF={self.config}".encode()} | ({f"SLURMD_NODENAME={node}".encode()} if node else set())
        found: set[int] = set()
        parents: dict[int, int] = {}
        for pid in pids():
            with contextlib.suppress(OSError):
                parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                in_a_job = any(variable.startswith(b"SLURMD_NODENAME=") for variable in variables)
                if in_a_job and wanted.issubset(variables):
                    found.add(pid)
        # Children that cleared their environment.
        while more := {pid for pid, parent in parents.items() if parent in found | steps} - found - steps:
            found |= more
        return sorted(found - steps)

    def running(self) -> bool:
        """Whether there is a controller to talk to."""
        return self._alive("slurmctld")

    def environment(self) -> dict[str, str]:
        """This process's environment, made to mean this cluster and nothing else of Slurm's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(CLIENT_VARIABLES)}
        return kept | {"SLURM_CONF": str(self.config)}

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        """What a command of Slurm's prints. Raises: ClusterError: it failed; with what it said."""
        done = self._ask(*command, timeout_s=timeout_s)
        if done.returncode:
            raise ClusterError(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stderr}".rstrip())
        return done.stdout

    def node_states(self) -> dict[str, str]:
        """As sinfo has them; a `*` at the end: does not answer."""
        rows = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return {name: state for name, _, state in (row.partition(" ") for row in rows)}

    def all_answer(self) -> bool:
        """Whether every node has a daemon that the controller has heard of, and is fit to run jobs."""
        return self._answering() == set(self.nodes)

    def _answering(self) -> set[str]:
        """For some time the controller does not notice that a node is gone, nor that it has a new daemon."""
        started = {p.node: started_at(p.pid) for p in self.processes() if p.program == "slurmd"}
        states = self._ask("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout
        ready = {line.split()[0] for line in states.splitlines() if line.split()[-1] in READY_STATES}
        found = set()
        for line in self._ask("scontrol", "--oneliner", "show", "node").stdout.splitlines():
            told = dict(word.partition("=")[::2] for word in line.split())
            node, known = told.get("NodeName", ""), told.get("SlurmdStartTime", "None")
            if node not in ready & started.keys() or known == "None":
                continue
            # Local time, without the fraction of the second.
            if datetime.fromisoformat(known).timestamp() > started[node] - 1.1:
                found.add(node)
        return found

    def submit(self, *arguments: str) -> int:
        """sbatch: the job's id. Raises: ClusterError: it was refused."""
        return int(self.run("sbatch", "--parsable", *arguments).partition(";")[0])

    def job(self, job_id: int | str) -> dict[str, str]:
        """`scontrol show job`, for as long as the controller remembers it; of an array, one of its tasks."""
        line = self.run("scontrol", "--oneliner", "show", "job", str(job_id)).partition("\n")[0]
        return {name: value for name, equals, value in (word.partition("=") for word in line.split()) if equals}

    def history(self, job_id: int | str, *fields: str) -> list[tuple[str, ...]]:
        """What sacct says of a job: `history(7, "State", "ExitCode")`; one row for each time that it was started."""
        options = ("--noheader", "--parsable2", "--duplicates", "--allocations", f"--format={','.join(fields)}")
        return [tuple(row.split("|")) for row in self.run("sacct", *options, "-j", str(job_id)).splitlines()]

    def jobs_of(self, directory: Path) -> list[str]:
        """Ids of the queued and running jobs whose script, working directory or output is in that directory."""
        queued = self._queue()
        if not queued:
            return []
        told = self.run("scontrol", "--oneliner", "show", "job").splitlines()
        ids = {line.partition(" ")[0].removeprefix("JobId=") for line in told if f"={directory}" in line}
        return sorted(queued & ids)

    # ---------------------------------------------------------------- up and down

    def up(self, settings: Settings | None = None) -> None:
        """Start whatever does not run, and wait until every node answers.

        Without settings: those of the last `up`. If nothing ran, a failure leaves nothing running.
        Raises: ClusterError; CannotInstallError.
        """
        with self._lock():
            stored = self._stored()
            settings = settings or stored or Settings()
            # A daemon that was lost comes back to what it left.
            fresh = stored is None or not self.processes()
            if fresh:
                install(missing_packages(accounting=settings.accounting))
                self._write_files(settings, self._choose_port(settings))
            elif stored is not None and settings != stored:
                changes = different(settings, stored)
                raise ClusterError(f"{self.directory}: runs with other settings ({changes}): down first")
            try:
                self._start_all()
                daemons = ("slurmctld", *(f"slurmd-{node}" for node in self.nodes))
                self._wait("every node to answer", self.all_answer, *daemons)
            except BaseException:
                if fresh:
                    self._end_all()
                raise
            if fresh:
                self.keep()

    def down(self, *, wipe: bool = False) -> None:
        """End every job and every daemon, and make sure of it. `wipe` removes the directory."""
        if not self.directory.exists():
            return
        with self._lock():
            # What does not answer in time is killed below.
            with contextlib.suppress(ClusterError, subprocess.TimeoutExpired):
                if self.running():
                    self.cancel_all()
            self._end_all()
            self.keep()
            if wipe:
                shutil.rmtree(self.directory)

    @contextlib.contextmanager
    def use(self, settings: Settings) -> Iterator[None]:
        """Up meanwhile, for any number of programs: if it was not, the last of them to leave takes it down.

        `settings` are for a cluster that has to be started: one that runs is used as it is. Raises: as `up`.
        """
        self._make_directory()
        with (self.directory / "users").open("a") as users:
            with self._lock():
                fcntl.flock(users, fcntl.LOCK_SH)
                runs = bool(self.processes())
                temporary = not runs or self._temporary.exists()
                self.up(None if runs else settings)
                if temporary:
                    self._temporary.touch()
            try:
                yield
            finally:
                with self._lock(), contextlib.suppress(BlockingIOError):
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._temporary.exists():
                        self.down()

    def keep(self) -> None:
        """No user takes it down any more."""
        self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """A time to use it: with others who do not need to be alone, or alone."""
        with (self.directory / "gate").open("a") as gate, (self.directory / "turns").open("a") as turns:
            # Who waits to be alone keeps the gate: otherwise others who come and go could keep it waiting for ever.
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(turns, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            fcntl.flock(gate, fcntl.LOCK_UN)
            yield

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel these jobs and wait until they have left their nodes."""
        ids = set(job_ids)
        if ids:
            self._ask("scancel", *sorted(ids))
            names = f"jobs {' '.join(sorted(ids))} to end"
            wait_until(lambda: ids.isdisjoint(self._queue()), names, 30 + self.settings.kill_wait_s, self.explain)

    def cancel_all(self) -> None:
        self.cancel(self._queue())

    def heal(self) -> None:
        """No jobs, and every node answers, whatever was done before."""
        with self._lock():
            self._start_all()
            self._wait("slurmctld", lambda: self._ask("scontrol", "ping").returncode == 0, "slurmctld")
            self.cancel_all()
            # Copies of jobs that nobody knows any more.
            self._kill(self.job_pids)
            for name, state in self.node_states().items():
                if state.rstrip("*") in ("down", "drained", "draining"):
                    self._ask("scontrol", "update", f"NodeName={name}", "State=RESUME")
            self._wait("every node to answer", self.all_answer)

    # ---------------------------------------------------------------- faults

    def crash_node(self, name: str | int) -> None:
        """Kill the node's daemon and all that its jobs run, before any of them can tell anybody."""
        node = self.node(name)
        # A slurmstepd that outlived its job's processes would report how they ended.
        self._kill(lambda: [p.pid for p in self.processes() if p.daemon == f"slurmd-{node}"])
        self._kill(lambda: self.job_pids(node))

    def lose_daemon(self, name: str | int) -> None:
        """Kill a node's slurmd, or slurmdbd; ask slurmctld to end. The jobs live on; `up` brings the daemon back."""
        if name == "slurmctld":
            # Killed, it forgets the jobs of the last seconds, and what becomes of these is nothing to rely on.
            self._end("slurmctld")
            return
        daemon = "slurmdbd" if name == "slurmdbd" else f"slurmd-{self.node(name)}"
        self._kill(lambda: [p.pid for p in self.processes() if p.daemon == daemon and p.program != "slurmstepd"])

    def revive_node(self, name: str | int) -> None:
        """Start the node's daemon again and wait until the node answers."""
        node = self.node(name)
        with self._lock():
            self._start_node(node)
            self._wait(f"{node} to answer", lambda: node in self._answering(), f"slurmd-{node}")

    # ---------------------------------------------------------------- inside

    def explain(self) -> str:
        """The queue, the nodes, and the last lines of every log: what one wants to see when something went wrong."""
        parts = []
        if self.running():
            parts += [self._ask("squeue", "-o", "%i %j %P %T %r %N").stdout, self._ask("sinfo", "-N").stdout]
        # What a daemon says before it has read where its log is goes to its output alone, and later to both.
        logs = sorted((self.directory / "log").glob("*"), key=lambda path: path.stat().st_mtime)
        for log in {path.stem: path for path in logs}.values():
            lines = log.read_text(errors="replace").splitlines()[-6:]
            parts += [f"==> {log} <==", *lines] if lines else []
        return "\n".join(part.rstrip() for part in parts)

    def _fail(self, message: str) -> NoReturn:
        raise ClusterError(f"{message}\n{self.explain()}")

    def _ask(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [find(command[0]), *command[1:]],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def _queue(self) -> set[str]:
        """Ids of all jobs that have not ended, each task of an array for itself once it was started."""
        return set(self.run("squeue", "-h", "-o", "%A").split())

    def _alive(self, daemon: str) -> bool:
        return any(p.daemon == daemon and p.program != "slurmstepd" for p in self.processes())

    def _wait(self, what: str, ready: Callable[[], bool], *daemons: str) -> None:
        """As `wait_until`, but fail as soon as one of these daemons is dead."""

        def ready_or_dead() -> bool:
            if ready():
                return True
            if dead := [name for name in daemons if not self._alive(name)]:
                self._fail(f"{' and '.join(dead)} ended while waiting for {what}")
            return False

        wait_until(ready_or_dead, what, START_S, self.explain)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One program at a time starts and stops daemons."""
        if self._locked:
            yield
            return
        path = self.directory / "lock"
        while True:
            self._make_directory()
            with path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                # Whoever had it may have wiped the directory.
                if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
                self._locked = True
                try:
                    yield
                finally:
                    self._locked = False
                return

    def _make_directory(self) -> None:
        text = str(self.directory)
        if len(text) > LONGEST_DIRECTORY or set(text) & set(" \t#=,\"'[]%"):
            raise ClusterError(f"directory = {text}: expected at most {LONGEST_DIRECTORY} plain characters (sockets)")
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        # The name can be guessed: somebody else may have been there first, and the key to every job is inside.
        state = self.directory.stat()
        if state.st_uid != os.geteuid() or state.st_mode & 0o022:
            raise ClusterError(f"directory = {text}: expected to own it, and nobody else to be able to write there")

    def _stored(self) -> Settings | None:
        path = self.directory / "settings.json"
        return Settings(**json.loads(path.read_text())) if path.exists() else None

    def _choose_port(self, settings: Settings) -> int:
        if settings.port == 0:
            return free_ports(self.directory, self.port if self._port.exists() else 0, settings.nodes)
        if not ports_are_free(settings.port, settings.nodes):
            raise ClusterError(f"port = {settings.port}: one of the {2 + settings.nodes} ports from there is in use")
        return settings.port

    def _write_files(self, settings: Settings, port: int) -> None:
        here = self.directory
        nodes = [f"n{i + 1}" for i in range(settings.nodes)]
        for name in ("etc", "run", "log", "controller", "gpus", *(f"spool/{node}" for node in nodes)):
            (here / name).mkdir(parents=True, exist_ok=True)
        for name in ("secret", "database"):
            (here / name).mkdir(mode=0o700, exist_ok=True)
        key = here / "secret" / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(128))
        for i in range(settings.gpus):
            # slurmd insists on devices.
            gpu = here / "gpus" / f"gpu{i}"
            if not gpu.is_symlink():
                gpu.symlink_to("/dev/null")

        add_host_names(nodes)
        (here / "etc" / "gres.conf").write_text(gres_conf(here, settings))
        # slurmdbd insists that nobody else can read it.
        accounting = here / "etc" / "slurmdbd.conf"
        accounting.touch(mode=0o600)
        accounting.write_text(slurmdbd_conf(here, port))
        self._port.write_text(f"{port}\n")
        (here / "settings.json").write_text(json.dumps(dataclasses.asdict(settings), indent=1) + "\n")
        self._write_config()

    def _write_config(self) -> None:
        self.config.write_text(slurm_conf(self.directory, self.settings, self.port))

    def _start(self, daemon: str, *command: str, **variables: str) -> None:
        """In the foreground of a session of its own, so that all it says is kept; its parent is nobody here."""
        if self._alive(daemon):
            return
        with (self.directory / "log" / f"{daemon}.out").open("ab") as output:
            subprocess.run(
                ["setsid", "--fork", find(command[0]), *command[1:]],
                env=self.environment() | variables,
                cwd=self.directory / "log",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
            )

    def _start_all(self) -> None:
        """Every daemon that does not run; slurmctld and the nodes need not answer yet."""
        here, munge = self.directory, self.directory / "run" / "munge.sock"
        # --force: who can write in our directory was checked; who may pass those above it does not matter.
        options = f"--foreground --force --key-file={here}/secret/munge.key --seed-file={here}/secret/munged.seed"
        self._start("munged", "munged", *options.split(), f"--socket={munge}", f"--pid-file={here}/run/munged.pid")
        self._wait("munged", lambda: accepts(munge), "munged")
        if self.settings.accounting:
            self._start_accounting()
        if not self.running():
            # It may have forgotten the last job ids that it gave out.
            self._write_config()
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.config))
        for node in self.nodes:
            self._start_node(node)

    def _start_node(self, node: str) -> None:
        self._start(f"slurmd-{node}", "slurmd", "-D", "-f", str(self.config), "-N", node)

    def _start_accounting(self) -> None:
        here = self.directory / "database"
        basic = f"--no-defaults --datadir={here}/data --user={user_name()}".split()
        if not self._alive("mariadbd"):
            if not (here / "made").exists():
                # Somebody who made it may have been interrupted.
                shutil.rmtree(here / "data", ignore_errors=True)
                self._make_database(*basic)
                (here / "made").touch()
            # Nothing here need outlive a power cut. slurmdbd asks for the long timeout.
            fast = "--innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0 --innodb-log-file-size=16M"
            options = f"--skip-networking --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 {fast}"
            pid_file = f"--pid-file={self.directory}/run/mariadbd.pid"
            self._start("mariadbd", "mariadbd", *basic, *options.split(), f"--socket={here}/socket", pid_file)
            self._wait("mariadbd", lambda: accepts(here / "socket"), "mariadbd")
        # Nothing else tells the client library in slurmdbd where the socket is.
        self._start("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=f"{here}/socket")
        self._wait("slurmdbd", lambda: accepts((own_address()[0], self.port + 1)), "slurmdbd")
        if not (here / "accounts").exists():
            self._make_accounts()
            (here / "accounts").touch()

    def _make_database(self, *options: str) -> None:
        # No password: the socket's directory is closed to others.
        more = ("--skip-test-db", "--auth-root-authentication-method=normal")
        done = self._ask("mariadb-install-db", *options, *more, timeout_s=300)
        if done.returncode:
            self._fail(f"mariadb-install-db: exit status {done.returncode}\n{done.stdout}{done.stderr}")

    def _make_accounts(self) -> None:
        """The cluster, and who may use it how: sbatch refuses other accounts and qos, as at most sites."""
        for added in (
            ("cluster", "local"),
            ("qos", "urgent"),
            ("account", "lab", "qos=normal,urgent"),
            ("user", user_name(), "account=lab", "defaultaccount=lab"),
        ):
            done = self._ask("sacctmgr", "--immediate", "--quiet", "add", *added, timeout_s=120)
            said = done.stdout + done.stderr
            # Somebody who was interrupted may have added some.
            if done.returncode and "already exist" not in said and "Nothing new added" not in said:
                self._fail(f"sacctmgr add {' '.join(added)}: exit status {done.returncode}\n{said}")

    def _end_all(self) -> None:
        """The daemons that others need last; then what is left of daemons and jobs."""
        for program in reversed(DAEMONS):
            self._end(program)
        self._kill(lambda: [*(p.pid for p in self.processes()), *self.job_pids()])

    def _end(self, program: str) -> None:
        """SIGTERM to all of them, and time to end; then SIGKILL."""
        doomed = {p.pid for p in self.processes() if p.program == program}
        for pid in doomed:
            send(pid, signal.SIGTERM)
        end = time.monotonic() + 20
        while not doomed.isdisjoint(p.pid for p in self.processes()) and time.monotonic() < end:
            time.sleep(POLL_S)
        self._kill(lambda: [p.pid for p in self.processes() if p.pid in doomed])

    def _kill(self, doomed: Callable[[], list[int]]) -> None:
        """SIGKILL until there are none: one may start another meanwhile."""

        def none_left() -> bool:
            left = doomed()
            for pid in left:
                send(pid, signal.SIGKILL)
            return not left

        wait_until(none_left, "killed processes to end", 20, lambda: str(doomed()))


# -------------------------------------------------------------------- packages and the machine


def missing_packages(*, accounting: bool) -> list[str]:
    wanted = PACKAGES | (ACCOUNTING_PACKAGES if accounting else {})
    return sorted({package for program, package in wanted.items() if not which(program)})


def install(packages: Sequence[str]) -> None:
    """Raises: CannotInstallError."""
    if not packages:
        return
    what = f"Slurm cannot be installed ({' '.join(packages)} missing)"
    if not which("apt-get"):
        raise CannotInstallError(f"{what}: it takes apt-get, on Debian 12")
    as_root = as_root_prefix()
    if as_root is None:
        raise CannotInstallError(f"{what}: it takes root, or sudo without a password")
    print(f"installing {' '.join(packages)}", file=sys.stderr, flush=True)
    apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        done = subprocess.run([*apt, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
            raise CannotInstallError(f"{what}: apt-get {command[0]}: exit status {done.returncode}\n{last}")


def as_root_prefix() -> list[str] | None:
    """What makes a command root's; None: nothing does."""
    if os.geteuid() == 0:
        return []
    sudo = which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n"]
    return None


def which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATHS}")


def find(program: str) -> str:
    found = which(program)
    if found is None:
        raise ClusterError(f"{program}: not on the PATH; `up` installs it")
    return found


def own_address() -> tuple[str, bool]:
    """Where the daemons are, and whether they may listen there only, rather than on every interface.

    They can only do that at the address of this machine's name, and a job's tasks call srun back at the address that it
    came from. These differ where the name leads to 127.0.1.1, as Debian has it: srun comes from 127.0.0.1.
    """
    address = socket.gethostbyname(socket.gethostname())
    return ("127.0.0.1", False) if address.startswith("127.") and address != "127.0.0.1" else (address, True)


def add_host_names(nodes: Sequence[str]) -> None:
    """Give names that lead nowhere a line in /etc/hosts: torch.distributed and the like look the first node's up.

    Raises: ClusterError: this machine's own name leads nowhere, so that no daemon would start.
    """
    own = socket.gethostname()
    unknown = [name for name in (own, *nodes) if not resolves(name)]
    if not unknown:
        return
    line = f"127.0.0.1 {' '.join(unknown)} # added by tests/slurm/cluster.py\n"
    as_root = as_root_prefix()
    if as_root is not None:
        command = [*as_root, "tee", "--append", "/etc/hosts"]
        subprocess.run(command, input=line, stdout=subprocess.DEVNULL, text=True, check=True)
    elif own in unknown:
        raise ClusterError(f"{own}: this machine's own name leads nowhere; add to /etc/hosts: {line}")
    else:
        print(f"names of nodes lead nowhere; add to /etc/hosts: {line}", end="", file=sys.stderr)


def resolves(name: str) -> bool:
    try:
        socket.gethostbyname(name)
    except OSError:
        return False
    return True


def free_ports(directory: Path, before: int, n_nodes: int) -> int:
    """Those that this directory had before, or else some that another directory is unlikely to try first."""
    step = 2 + n_nodes
    n_blocks = len(PORTS) // step
    first = zlib.crc32(str(directory).encode()) % n_blocks
    candidates = (PORTS[(first + i) % n_blocks * step] for i in range(n_blocks))
    for port in (before, *candidates):
        if port and ports_are_free(port, n_nodes):
            return port
    raise ClusterError(f"no {step} free ports that follow each other between {PORTS.start} and {PORTS.stop}")


def ports_are_free(port: int, n_nodes: int) -> bool:
    for number in range(port, port + 2 + n_nodes):
        with socket.socket() as probe:
            # As the daemons do: connections that linger are no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", number))
            except OSError:
                return False
    return True


def accepts(address: Path | tuple[str, int]) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(address) if isinstance(address, Path) else address)
        except OSError:
            return False
    return True


def user_name() -> str:
    """Not from USER or LOGNAME, which sudo and containers leave behind."""
    return pwd.getpwuid(os.geteuid()).pw_name


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def started_at(pid: int) -> float:
    """Seconds since the epoch. Infinity: it has ended."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return math.inf
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK")


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def different(wanted: Settings, running: Settings) -> str:
    """The settings that differ, as text."""
    pairs = zip(dataclasses.asdict(wanted).items(), dataclasses.asdict(running).values(), strict=True)
    return ", ".join(f"{name} {now}, not {then}" for (name, then), now in pairs if then != now)


# -------------------------------------------------------------------- configuration files


def first_job_id(now_s: float) -> int:
    """An id above all that were given out here before `now_s`, even if the directory was wiped since.

    Results on disk are found by job id, and an old one's must not be taken for a new one's. Holds while there are fewer
    than four jobs a second on average, and for half a year, when the numbers start over.
    """
    return int(now_s * JOB_IDS_PER_SECOND) % JOB_IDS + 1


def slurm_conf(here: Path, settings: Settings, port: int) -> str:
    user, host = user_name(), socket.gethostname().partition(".")[0]
    every = f"n[1-{settings.nodes}]"
    address, only_there = own_address()
    lines = [
        "ClusterName=local",
        f"FirstJobId={first_job_id(time.time())}",
        f"MaxArraySize={settings.max_array_size}",
        # -- who and where
        f"SlurmctldHost={host}({address})",
        f"SlurmctldPort={port}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={here}/run/munge.sock,cred_expire={settings.requeue_delay_s}",
        *(["CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"] if only_there else []),
        f"StateSaveLocation={here}/controller",
        f"SlurmctldPidFile={here}/run/slurmctld.pid",
        f"SlurmctldLogFile={here}/log/slurmctld.log",
        f"SlurmdSpoolDir={here}/spool/%n",
        f"SlurmdPidFile={here}/run/slurmd-%n.pid",
        f"SlurmdLogFile={here}/log/slurmd-%n.log",
        "MailProg=/bin/true",
        # The first job id changes whenever slurmctld starts, and slurmd need not know.
        "DebugFlags=NO_CONF_HASH",
        # -- nodes that are not what this machine is, and no cgroups
        "SlurmdParameters=config_overrides",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=5",
        # -- scheduling: at once, for tests wait for it
        "SchedulerType=sched/backfill",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU_Memory",
        "DefMemPerCPU=512",
        "PriorityType=priority/basic",
        "EnforcePartLimits=ALL",
        # -- preemption: without the parameter a job gets SIGTERM, and not the signal that it asked for
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "JobRequeue=1",
        "SlurmctldParameters=preempt_send_user_signal",
        # -- patience: a busy machine may be slow to answer or to start a job, and that is no fault
        f"SlurmdTimeout={settings.slurmd_timeout_s}",
        f"KillWait={settings.kill_wait_s}",
        "ReturnToService=2",
        "InactiveLimit=0",
        "BatchStartTimeout=60",
    ]
    if settings.accounting:
        lines += [
            "AccountingStorageType=accounting_storage/slurmdbd",
            f"AccountingStorageHost={address}",
            f"AccountingStoragePort={port + 1}",
            f"AccountingStoragePass={here}/run/munge.sock",
            "AccountingStorageEnforce=associations,limits,qos",
        ]
    gres = ""
    if settings.gpus:
        gres = f" Gres=gpu:{settings.gpus}"
        lines += ["GresTypes=gpu", *(["AccountingStorageTRES=gres/gpu"] if settings.accounting else [])]
    for i in range(settings.nodes):
        name = f"n{i + 1}"
        where = f"NodeName={name} NodeHostname={name} NodeAddr={address} Port={port + 2 + i}"
        lines.append(f"{where} CPUs={settings.cpus} RealMemory={settings.memory_mb}{gres}")
    lines += [
        f"PartitionName=main Nodes={every} Default=YES MaxTime=1-0 PriorityTier=1 GraceTime={settings.grace_s}",
        f"PartitionName=high Nodes={every} MaxTime=1-0 PriorityTier=10 PreemptMode=OFF",
    ]
    return "\n".join(lines) + "\n"


def gres_conf(here: Path, settings: Settings) -> str:
    return f"AutoDetect=off\nName=gpu File={here}/gpus/gpu[0-{settings.gpus - 1}]\n" if settings.gpus else ""


def slurmdbd_conf(here: Path, port: int) -> str:
    address, only_there = own_address()
    lines = [
        f"DbdHost={socket.gethostname().partition('.')[0]}",
        f"DbdAddr={address}",
        f"DbdPort={port + 1}",
        f"SlurmUser={user_name()}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={here}/run/munge.sock",
        *(["CommunicationParameters=NoInAddrAny"] if only_there else []),
        f"PidFile={here}/run/slurmdbd.pid",
        f"LogFile={here}/log/slurmdbd.log",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        "StorageUser=root",
        "StorageLoc=slurm",
    ]
    return "\n".join(lines) + "\n"


# -------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    summary, _, more = (__doc__ or "").partition("\n\n")
    as_it_is = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(description=summary, epilog=more, formatter_class=as_it_is)
    top.add_argument("--dir", type=Path, help=f"where all its state is (HYBRID_SLURM_DIR; now {default_directory()})")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start what does not run; without options: as it last was")
    for name, value in dataclasses.asdict(Settings()).items():
        help_text = f"HYBRID_SLURM_{name.upper()}; {value:d} unless told"
        up.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=help_text)
    down = commands.add_parser("down", help="end all jobs and daemons")
    down.add_argument("--wipe", action="store_true", help="remove the directory, too")
    commands.add_parser("status", help="daemons and nodes; exit status 0 only if every node answers")
    commands.add_parser("env", help="lines for the shell to eval")
    commands.add_parser("heal", help="cancel all jobs, bring back all nodes")
    for name, text in (
        ("crash-node", "kill its daemon and all that its jobs run"),
        ("lose-daemon", "kill its daemon alone; or slurmctld, or slurmdbd, which `up` brings back"),
        ("revive-node", "start its daemon and wait until it answers"),
    ):
        commands.add_parser(name, help=text).add_argument("node", metavar="NODE")
    return top


def status(cluster: Cluster) -> int:
    for process in cluster.processes():
        print(f"{process.daemon:12} {process.program:12} pid {process.pid}")
    if not cluster.running():
        print(f"{cluster.directory}: not running")
        return 1
    print(cluster.run("sinfo", "-N", "-o", "%8N %9P %12T %5c %8m %G"), end="")
    return 0 if cluster.all_answer() else 1


def shell_lines(cluster: Cluster) -> str:
    lost = sorted(os.environ.keys() - cluster.environment().keys())
    return "".join(f"unset {name}\n" for name in lost) + f"export SLURM_CONF={shlex.quote(str(cluster.config))}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        cluster = Cluster(given.dir)
        match given.command:
            case "up":
                last = cluster.settings if (cluster.directory / "settings.json").exists() else Settings()
                cluster.up(Settings.read(vars(given), last))
                cluster.keep()
                print(f"{cluster.directory}: {len(cluster.nodes)} nodes answer", file=sys.stderr)
            case "down":
                cluster.down(wipe=given.wipe)
            case "status":
                return status(cluster)
            case "env":
                print(shell_lines(cluster), end="")
            case "heal":
                cluster.heal()
            case "crash-node":
                cluster.crash_node(given.node)
            case "lose-daemon":
                cluster.lose_daemon(given.node)
            case "revive-node":
                cluster.revive_node(given.node)
    except ClusterError as error:
        print(f"cluster.py: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE if isinstance(error, CannotInstallError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
