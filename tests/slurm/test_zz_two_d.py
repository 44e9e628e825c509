import pytest
from tests.slurm.test_worker_on_slurm import *  # noqa
def test_two_ranks(run):
    run.start("exec.nodes=2")
    run.slurm.run("scontrol", "requeue", run.job_id)
    error = run.error(1)
    print(error)
    run.wait_for_steps(2, 1)
    run.tell("")
    run.sweep.wait(120)
    print(run.sweep.explain()[-3000:])
    run.wait_for_states("REQUEUED","COMPLETED")
