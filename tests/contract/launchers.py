"""What holds of every launcher: tests/contract/test_launchers.py and tests/slurm/test_launcher.py try it on each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sweeps.cells import CellRun, expand
from sweeps.compose import Composer
from sweeps.launch import Asked, End, Launcher
from sweeps.store import Store

SMALL = (
    "model=mamba",
    "data=recall",
    "data.n_symbols=16",
    "data.n_pairs=2",
    "model.depth=2",
    "model.d_model=16",
    "model.mamba.d_ssm=32",
    "model.mamba.head_dim=8",
    "model.mamba.d_state=4",
    "model.ffn=null",
    "seq_len=16",
    "batch_tokens=64",
    "budget.tokens=1280",
    "exec.heartbeat_s=0.2",
    "exec.lease_s=2",
)


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A launcher of a kind, and a store in which it has done nothing yet."""

    new: Callable[[], Launcher]
    store: Store

    def launch(self, cells: Sequence[CellRun]) -> list[End]:
        """What a command does: check, then launch, and wait for the ends."""
        self.store.prepare()
        launcher = self.new()
        launcher.check(cells)
        return launcher.launch(cells, self.store, Asked(sweep="contract", wait=True))


def cells(*overrides: str) -> list[CellRun]:
    """The cells that a command line asks for."""
    with Composer() as composer:
        return list(expand([*SMALL, *overrides], composer, stdlib_fingerprint=lambda: "0" * 16).runs)


def every_cell_has_one_end_and_every_run_a_record(at: Launched) -> None:
    asked = cells("sweep.seeds=3")
    ends = at.launch(asked)
    assert sorted(end.cell.cell.name for end in ends) == sorted(cell.cell.name for cell in asked)
    assert {end.status for end in ends} == {"done"}
    for cell in asked:
        record = at.store.record(cell.run_id)
        assert record is not None
        assert record["metrics"]["steps"] == 20


def nothing_asked_for_is_nothing_done(at: Launched) -> None:
    assert at.launch([]) == []


def what_is_finished_is_not_trained_again(at: Launched) -> None:
    asked = cells("sweep.seeds=2")
    at.launch(asked[:1])
    ends = at.launch(asked)
    assert {end.status for end in ends} == {"done"}
    assert [at.store.last_attempt(cell.run_id) for cell in asked] == [1, 1]


def one_that_cannot_be_trained_fails_alone_with_a_reason(at: Launched) -> None:
    """Its attempts cannot be made, as a file stands where their directory would."""
    asked = cells("sweep.seeds=3")
    broken = asked[1]
    at.store.prepare()
    at.store.publish_spec(broken.resolved.run)
    (at.store.run_dir(broken.run_id) / "attempts").write_text("")
    ends = {end.cell.run_id: end for end in at.launch(asked)}
    assert [ends[cell.run_id].status for cell in asked] == ["done", "failed", "done"]
    assert ends[broken.run_id].message


def what_failed_is_tried_again_when_asked_for_again(at: Launched) -> None:
    asked = cells()
    at.store.prepare()
    at.store.publish_spec(asked[0].resolved.run)
    broken = at.store.run_dir(asked[0].run_id) / "attempts"
    broken.write_text("")
    at.launch(asked)
    broken.unlink()
    assert [end.status for end in at.launch(asked)] == ["done"]


def branches_start_from_the_trunk_that_they_share(at: Launched) -> None:
    asked = cells("schedule.warmup_tokens=256", "schedule.cooldown_tokens=256", "budget.tokens=1280,2560")
    ends = at.launch(asked)
    assert {end.status for end in ends} == {"done"}
    starts = [at.store.branched_from(cell.run_id) for cell in asked]
    assert all(start is not None and start.trunk is not None for start in starts)


CONTRACT: tuple[Callable[[Launched], None], ...] = (
    every_cell_has_one_end_and_every_run_a_record,
    nothing_asked_for_is_nothing_done,
    what_is_finished_is_not_trained_again,
    one_that_cannot_be_trained_fails_alone_with_a_reason,
    what_failed_is_tried_again_when_asked_for_again,
    branches_start_from_the_trunk_that_they_share,
)
