"""`sweeps submit --on slurm` on a real cluster: what is submitted, what is not, and what is said where it cannot be."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hybrid.spec import ConfigError
from sweeps.launch import Asked
from sweeps.launch.slurm import SlurmJobs
from sweeps.store import Store
from sweeps.submissions import Submissions
from tests.contract.launchers import cells
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.sweep import REPO, Sweep, ask, assert_whole, record, slurm_states, small_sweep, undisturbed

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


def shimmed(tmp_path: Path, script: str) -> dict[str, str]:
    """The environment with an sbatch first on the PATH that is this script; {real} is the real one."""
    real, shim = shutil.which("sbatch"), tmp_path / "bin" / "sbatch"
    shim.parent.mkdir()
    shim.write_text(f"#!/bin/bash\n{script.format(real=real)}\n")
    shim.chmod(0o755)
    return {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}


def test_a_sweep_is_submitted_at_once_and_comes_out_whole(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    said = sweep.submit()
    assert "with the scheduler: 6 runs" in said
    (submission,) = Submissions(sweep.store).all()
    assert submission.job_id is not None
    assert said.count(submission.job_id) >= 1
    assert [item.seed for _, item in submission.items()] == [1, 1, 1, 2, 2, 2]
    sweep.wait()
    assert_whole(sweep, undisturbed(sweep, tmp_path))
    wait_until(lambda: set(slurm_states(sweep)) == {"COMPLETED"}, "Slurm says so too", 20)


def test_run_py_with_the_slurm_launcher_submits_the_same(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, rows=1, seeds=1)
    words = [
        "run.py",
        "-m",
        *sweep.overrides,
        f"store.root={sweep.store.root}",
        "hydra/launcher=slurm",
        "exec.wait=true",
    ]
    said = ask([sys.executable, *words])
    assert "1 of 1 cells finished" in said
    assert sweep.is_done()
    assert len(sweep.job_ids()) == 1


def test_what_is_queued_running_or_done_is_not_submitted_again_and_new_rows_are(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, rows=1, steps=1000, seeds=1)
    sweep.submit()
    wait_until(lambda: sweep.statuses()["running"] == 1, "it runs", 150, sweep.explain)
    sweep.submit()
    assert len(sweep.job_ids()) == 1
    more = small_sweep(tmp_path, rows=2, steps=1000, seeds=1)
    more.submit()
    assert len(sweep.job_ids()) == 2
    assert {item.row for _, item in Submissions(sweep.store).all()[1].items()} == {"attention 3rd"}
    more.wait()
    assert set(more.attempts().values()) == {1}
    more.submit()
    assert len(sweep.job_ids()) == 2


def test_more_cells_than_an_array_may_have_become_several_arrays(tmp_path: Path) -> None:
    """The cluster of the tests allows 25."""
    sweep = small_sweep(tmp_path, steps=8, seeds=9)
    sweep.submit("hydra.launcher.throttle=12", "hydra.launcher.priority={no attention: 1}")
    sizes = [len(submission.intent.tasks) for submission in Submissions(sweep.store).all()]
    assert sizes == [25, 2]
    first = [item for _, item in Submissions(sweep.store).all()[0].items()][:6]
    assert [(item.row, item.seed) for item in first] == [
        ("no attention", 1),
        ("attention 2nd", 1),
        ("attention 3rd", 1),
        ("no attention", 2),
        ("attention 2nd", 2),
        ("attention 3rd", 2),
    ]
    sweep.wait(240)


def test_the_same_command_is_given_again_where_a_row_with_a_priority_is_finished(tmp_path: Path) -> None:
    priority = "hydra.launcher.priority={no attention: 1}"
    sweep = small_sweep(tmp_path, "sweep.only=[no attention]", steps=8, seeds=1)
    sweep.submit(priority)
    sweep.wait()
    more = small_sweep(tmp_path, steps=8, seeds=1)
    more.submit(priority)
    assert len(more.job_ids()) == 2


def test_small_runs_share_a_task_and_fail_alone(tmp_path: Path) -> None:
    """The run whose directory is a file cannot be claimed."""
    sweep = small_sweep(tmp_path, steps=20, seeds=2)
    sweep.submit(
        "hydra.launcher.runs_per_gpu=6", "hydra.launcher.cpus_per_task=2", "hydra.launcher.sbatch={begin: now+5}"
    )
    broken = sweep.run_ids[3]
    (sweep.store.run_dir(broken) / "attempts").write_text("")
    wait_until(lambda: sweep.statuses()["done"] == 5, "the others are done", 150, sweep.explain)
    assert len(sweep.job_ids()) == 1
    wait_until(lambda: slurm_states(sweep) == ["FAILED"], "Slurm knows that one failed", 30)
    assert len({path.read_text() for path in sweep.store.root.glob("runs/*/*/attempts/*/log.txt")}) == 5


def test_two_submissions_of_the_same_at_once_submit_every_run_once(tmp_path: Path) -> None:
    """An sbatch on the PATH that waits: the second command finds the first in the middle of it."""
    sweep = small_sweep(tmp_path, steps=10, seeds=1)
    environment = shimmed(tmp_path, '[[ "$*" == *--test-only* ]] || sleep 4; exec {real} "$@"')
    with ThreadPoolExecutor(2) as pool:
        codes = pool.map(lambda _: subprocess.run(sweep.command(), cwd=REPO, env=environment, check=False), range(2))
    assert [done.returncode for done in codes] == [0, 0]
    submitted = [item.run_id for one in Submissions(sweep.store).all() if one.job_id for _, item in one.items()]
    assert sorted(submitted) == sorted(sweep.run_ids)
    sweep.wait()
    assert set(sweep.attempts().values()) == {1}


def test_an_answer_that_was_lost_is_found_again_by_the_name_of_the_job(tmp_path: Path) -> None:
    """An sbatch on the PATH that submits, and then kills whoever called it."""
    sweep = small_sweep(tmp_path, rows=1, steps=10, seeds=1)
    environment = shimmed(tmp_path, '{real} "$@" || exit; [[ "$*" == *--test-only* ]] || kill -9 $PPID')
    later = "hydra.launcher.sbatch={begin: now+15}"
    done = subprocess.run(
        sweep.command(later), cwd=REPO, env=environment, capture_output=True, timeout=150, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert Submissions(sweep.store).all()[0].answer is None
    sweep.submit()
    assert len(sweep.job_ids()) == 1
    sweep.wait()
    assert set(sweep.attempts().values()) == {1}


def test_a_command_killed_before_sbatch_leaves_nothing_that_is_waited_for(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, rows=1, steps=10, seeds=1)
    environment = shimmed(tmp_path, 'if [[ "$*" == *--test-only* ]]; then exec {real} "$@"; fi; kill -9 $PPID')
    subprocess.run(sweep.command(), cwd=REPO, env=environment, capture_output=True, timeout=150, check=False)
    sweep.submit()
    assert len(sweep.job_ids()) == 1
    sweep.wait()


def test_a_job_runs_the_code_as_it_was_at_submission(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, rows=1, steps=10, seeds=1)
    sweep.submit("hydra.launcher.sbatch={begin: now+2}")
    (snapshot,) = (sweep.store.root / "snapshots").iterdir()
    script = next(sweep.store.root.glob("submissions/*/script.sh")).read_text()
    assert f"PYTHONPATH={snapshot}" in script
    sweep.wait()
    for run_id in sweep.run_ids:
        provenance = record(sweep.store, run_id)["provenance"]
        assert provenance["snapshot"] == snapshot.name
        assert provenance["git_commit"] == json.loads((snapshot / "snapshot.json").read_text())["git_commit"]


def test_variables_of_a_job_around_it_do_not_leak_into_what_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = small_sweep(tmp_path, rows=1, steps=10, seeds=1)
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_ARRAY_TASK_ID", "SBATCH_PARTITION", "SBATCH_TIMELIMIT"):
        monkeypatch.setenv(name, "77")
    sweep.submit()
    sweep.wait()


def evaluations(sweep: Sweep, run_id: str) -> list[dict[str, Any]]:
    """The records of evaluations that were made of a run."""
    paths = sorted((sweep.store.run_dir(run_id) / "evals").glob("*/record.json"))
    return [json.loads(path.read_text()) for path in paths]


def test_evaluation_is_a_job_of_its_own_that_goes_with_a_training_that_fails(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, rows=2, steps=10, seeds=1)
    sweep.submit("hydra.launcher.evaluate=true", "hydra.launcher.sbatch={begin: now+5}")
    broken, *others = sweep.run_ids
    (sweep.store.run_dir(broken) / "attempts").write_text("")
    wait_until(lambda: all(evaluations(sweep, run_id) for run_id in others), "one is evaluated", 120, sweep.explain)
    training, evaluation = sweep.job_ids()

    def nothing_left() -> bool:
        jobs = subprocess.run(
            ["squeue", "-h", "-j", f"{training},{evaluation}"], capture_output=True, text=True, check=False
        )
        return not jobs.stdout.strip()

    wait_until(nothing_left, "nothing is left pending", 120)
    assert not evaluations(sweep, broken)


def test_what_a_request_wants_of_its_runs_is_measured_in_jobs_after_training_and_later_of_those_that_are_done(
    tmp_path: Path,
) -> None:
    sweep = small_sweep(tmp_path, rows=2, steps=10, seeds=1)
    sweep.submit("evals=[{kind: nll, max_examples: 8}]")
    wait_until(
        lambda: all(evaluations(sweep, run_id) for run_id in sweep.run_ids), "both are evaluated", 150, sweep.explain
    )
    assert [record["eval"]["max_examples"] for run_id in sweep.run_ids for record in evaluations(sweep, run_id)] == [
        8,
        8,
    ]
    said = sweep.submit("evals=[{kind: nll, max_examples: 8}, {kind: nll, max_examples: 4}]")
    assert "with the scheduler: 2 evaluations; there already: 0" in said
    assert len(sweep.job_ids()) == 3
    wait_until(
        lambda: all(len(evaluations(sweep, run_id)) == 2 for run_id in sweep.run_ids), "they are evaluated again", 150
    )
    assert "needs_eval" not in sweep.ask("status", "demo")


def test_evaluations_are_submitted_though_another_s_submission_comes_between(tmp_path: Path) -> None:
    """An sbatch on the PATH that submits, and then publishes what another command would."""
    sweep = small_sweep(tmp_path, rows=1, steps=10, seeds=1)
    root = sweep.store.root / "submissions"
    environment = shimmed(
        tmp_path,
        '{real} "$@" || exit; '
        f'[[ "$*" == *--test-only* || -e {root}/00000002.json ]] && exit; '
        f"""mkdir {root}/00000002 && echo '{{{{"job_id": null, "message": ""}}}}' > {root}/00000002/answer.json; """
        f"cp {root}/00000001.json {root}/00000002.json",
    )
    command = sweep.command("hydra.launcher.evaluate=true")
    subprocess.run(command, cwd=REPO, env=environment, capture_output=True, timeout=150, check=True)
    training, _, evaluation = Submissions(sweep.store).all()
    assert [item.kind for _, item in evaluation.items()] == ["eval"]
    assert evaluation.intent.dependency == f"aftercorr:{training.job_id}"
    assert evaluation.job_id is not None


def test_evaluation_alone_is_submitted_once_the_runs_are_done(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, rows=2, steps=10, seeds=1)
    sweep.submit()
    sweep.wait()
    assert "with the scheduler: 2 evaluations; there already: 0" in sweep.submit("mode=eval")
    sweep.submit("mode=eval")
    assert len(sweep.job_ids()) == 2
    wait_until(lambda: all(evaluations(sweep, run_id) for run_id in sweep.run_ids), "they are evaluated", 150)
    assert "with the scheduler: 0 evaluations; there already: 2" in sweep.submit("mode=eval")


WRONG = {
    "hydra.launcher.throttle=0": "hydra.launcher.throttle = 0: expected",
    "hydra.launcher.time=soon": "hydra.launcher.time = 'soon': expected",
    "hydra.launcher.sbatch={array: 1-4}": "use array_size or throttle",
    "hydra.launcher.partition=gpus": "hydra.launcher.partition = gpus: not of this cluster (valid: ",
    "hydra.launcher.account=labs": "account = labs: not of this cluster; did you mean lab?",
    "hydra.launcher.qos=fast": "hydra.launcher.qos = fast: not of this cluster",
    "hydra.launcher.priority={Llama: 1}": "hydra.launcher.priority.Llama = 1: no such row",
    "hydra.launcher.constraint=quantum": "hydra.launcher.constraint = quantum: ",
    "hydra.launcher.mem=6000GB": "hydra.launcher.mem = 6000G: ",
}
"""Settings that a line each is said of: some by us, some by what the cluster has, some in the scheduler's words."""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([*WRONG], [*WRONG.values()]),
        (
            ["hydra.launcher.time=2", "exec.checkpoint_every_s=600", "hydra.launcher.sbatch={nonsense: 1}"],
            ["at least one checkpoint interval", "12 minutes", "hydra.launcher.sbatch.nonsense = 1: "],
        ),
        (["exec.nodes=8"], ["the scheduler would not take these jobs (nodes: 8"]),
        (["hydra.launcher.partion=main"], ["did you mean partition?"]),
    ],
    ids=["all", "time", "nodes", "name"],
)
def test_all_that_the_cluster_would_not_take_is_said_at_once_and_nothing_is_submitted_or_asked_for(
    slurm: Cluster, tmp_path: Path, settings: list[str], said: list[str]
) -> None:
    sweep = small_sweep(tmp_path, steps=10, seeds=1)
    refused = sweep.submit(*settings, code=2)
    for words in said:
        assert words in refused
    assert "Traceback" not in refused
    assert len(re.findall("hydra.launcher.constraint", refused)) <= 1
    assert not (sweep.store.root / "requests").exists()
    assert Submissions(sweep.store).all() == []
    assert slurm.jobs_of(tmp_path) == []


def test_where_one_of_several_jobs_would_be_refused_none_is_submitted(slurm: Cluster, tmp_path: Path) -> None:
    settings = yaml.safe_load((REPO / "conf" / "hydra" / "launcher" / "slurm.yaml").read_text())
    del settings["_target_"]
    store = Store(tmp_path / "store")
    store.prepare()
    first, second = cells("sweep.seeds=2")
    beyond = replace(second.resolved.execution, nodes=8)
    second = replace(second, resolved=replace(second.resolved, execution=beyond))
    with pytest.raises(ConfigError, match="nodes: 8"):
        SlurmJobs(settings).launch([first, second], store, Asked(sweep="two"))
    assert Submissions(store).all() == []
    assert slurm.jobs_of(tmp_path) == []


def test_without_slurm_on_the_path_there_is_one_clear_message(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    done = subprocess.run(
        sweep.command("hydra.launcher.throttle=0"),
        cwd=REPO,
        env={**os.environ, "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no sbatch on the PATH" in done.stderr
    assert "throttle" in done.stderr


def test_branches_wait_for_their_trunk_and_a_longer_one_for_that_which_is_queued(tmp_path: Path) -> None:
    later = "hydra.launcher.sbatch={begin: now+8}"

    def sweep_to(*tokens: int) -> Sweep:
        lengths = f"budget.tokens={','.join(map(str, tokens))}"
        return small_sweep(tmp_path, "schedule.cooldown_tokens=1024", lengths, rows=1, seeds=1)

    sweep_to(5120, 10240).submit(later)
    sweep = sweep_to(5120, 10240, 15360, 20480)
    sweep.submit()
    submitted = Submissions(sweep.store).all()
    trunk, runs, longer, more = ([item.kind for _, item in one.items()] for one in submitted)
    assert (trunk, runs, longer, more) == (["trunk"], ["run", "run"], ["trunk"], ["run", "run"])
    waits_for = [one.intent.dependency for one in submitted]
    assert waits_for == ["", *(f"afterany:{submitted[i].job_id}_0" for i in (0, 0, 2))]
    sweep.wait(180)
    starts = [sweep.store.branched_from(run_id) for run_id in sweep.run_ids]
    assert all(start is not None for start in starts)


def test_waiting_stops_at_ctrl_c_and_the_runs_go_on(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, rows=1, steps=400, seeds=1)
    process = subprocess.Popen(sweep.command("--wait"), cwd=REPO, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: bool(sweep.store.requests()) and sweep.statuses()["running"] > 0, "it runs", 150)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert "stopped waiting" in said
    time.sleep(1)
    sweep.wait()
