"""From the command to the last sbatch of 300 new cells, beside hydra-submitit-launcher over the same configs.

    eval "$(python tests/slurm/cluster.py env)"      or any cluster whose arrays may have 300 elements
    python benchmarks/submission.py [--rounds 2] [--cells 300]

Wall seconds from the start of the command until its last sbatch has answered, on one cluster, in turn. An sbatch in
front of the real one on the PATH writes down when it returns. Ours plans, prints the plan, copies the code, publishes
the specs, submits and returns; the peer composes every cell, pickles it, submits and waits, and is ended when its
sbatch has answered. Its cells are those of benchmarks/noop.py. Jobs are held, and cancelled afterwards.
"""

import argparse
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PEER = "hydra-submitit-launcher==1.2.0"
SHIM = """#!/bin/bash
out=$({real} --hold "$@"); code=$?
echo "$out"
case "$*" in *--test-only*) ;; *) echo "$(date +%s.%N) $out" >> {log} ;; esac
exit $code
"""


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds (default 2)")
    parser.add_argument("--cells", type=int, default=300, help="new cells (default 300)")
    options = parser.parse_args()
    real = shutil.which("sbatch")
    if real is None:
        sys.exit('no sbatch on the PATH: eval "$(python tests/slurm/cluster.py env)" first')
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        plugin = scratch / "peer"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(plugin), PEER]
        subprocess.run(install, check=True)
        for number in range(options.rounds):
            store = scratch / f"store{number}"
            ours.append(until_sbatch(our_command(options.cells, store), real, scratch / f"ours{number}", {}))
            path = {"PYTHONPATH": str(plugin)}
            out = scratch / f"out{number}"
            theirs.append(until_sbatch(peer_command(options.cells, out), real, scratch / f"peer{number}", path))
            print(f"round {number + 1}: ours {ours[-1]:.2f} s, peer {theirs[-1]:.1f} s", file=sys.stderr)
    mine, peer = statistics.median(ours), statistics.median(theirs)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; medians of {options.rounds}"
    )
    print(f"{options.cells} new cells until the last sbatch has answered: {mine:.2f} s")
    print(f"{PEER}: {peer:.1f} s; ratio {peer / mine:.0f}")


def our_command(cells: int, store: Path) -> list[str]:
    seeds = ",".join(map(str, range(1, cells + 1)))
    return [
        *(sys.executable, "run.py", "-m", "hydra/launcher=slurm"),
        *(f"store.root={store}", f"init_seed={seeds}"),
    ]


def peer_command(cells: int, out: Path) -> list[str]:
    seeds = ",".join(map(str, range(1, cells + 1)))
    return [
        *(sys.executable, "benchmarks/noop.py", "-m", "hydra/launcher=submitit_slurm", "hydra/sweeper=basic"),
        *(f"hydra.sweep.dir={out}", "hydra.sweep.subdir=${hydra.job.num}", f"init_seed={seeds}"),
    ]


def until_sbatch(command: list[str], real: str, scratch: Path, variables: dict[str, str]) -> float:
    """Wall seconds from the start of the command until its last sbatch has answered."""
    scratch.mkdir()
    log = scratch / "answers"
    shim = scratch / "bin" / "sbatch"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(real=real, log=log))
    shim.chmod(0o755)
    environment = {**os.environ, **variables, "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    began = time.time()
    process = subprocess.Popen(
        command,
        cwd=REPO,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not log.exists() and process.poll() is None:
        time.sleep(0.05)
    try:
        process.wait(timeout=3)  # ours returns, the peer waits for its jobs
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    answers = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    ids = [answer[-1] for answer in answers if answer[-1].isdecimal()]
    if not ids:
        sys.exit(f"nothing was submitted by {' '.join(command)[:200]} (exit code {process.returncode})")
    subprocess.run(["scancel", *ids], check=True)
    return max(float(answer[0]) for answer in answers) - began


if __name__ == "__main__":
    main()
