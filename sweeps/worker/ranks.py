"""Several ranks of one run: the first leads, and the others do their part in whatever it finds to be done."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hybrid import outside
from hybrid.spec import ExecSpec, RunSpec
from hybrid.train.place import Place, RankLostError
from sweeps.stopping import StopFlag, Stopped
from sweeps.store import Attempt, Store
from sweeps.worker.attempts import Log, compare_sources, describe_failure
from sweeps.worker.claims import Busy

if TYPE_CHECKING:
    from hybrid.data import DataSource
    from hybrid.train.loop import Origin
    from hybrid.train.parallel import Ranks


@contextlib.contextmanager
def ranks_here(execution: ExecSpec) -> "Iterator[Ranks | None]":
    """The ranks that this task of a Slurm step is one of, for `run_one` and `run_trunk`; None in a step of one task.

    Raises ConfigError where they are not as many as `execution` has, RankLostError where they do not come together, or
    later another one fails.
    """
    place = Place.of_slurm()
    if place is None:
        yield None
        return
    place.check(execution)
    from hybrid.train.parallel import joined

    with joined(place, place.execution(execution).device) as ranks:
        yield ranks


def lead(ranks: "Ranks | None", work: Callable[[], str]) -> str:
    """Do the first rank's work. The others, who follow, are told how it ends, so that theirs ends alike.

    What leads to `run_one` or `run_trunk` may be led too, as there may be nothing to train.
    """
    if ranks is None:
        return work()
    try:
        status = work()
    except (Busy, Stopped) as ending:
        if not ranks.have_parted:
            facts = {"job": ending.job} if isinstance(ending, Busy) else {"stopped": str(ending), "step": ending.step}
            ranks.told({"end": None, **facts})
            ranks.part_ways()
        raise
    except BaseException as error:
        ranks.fail(describe_failure(error))
        raise
    if not ranks.have_parted:
        ranks.told({"end": status})
        ranks.part_ways()
    return status


def follow(ranks: "Ranks", what: str = "run", work: Callable[[Mapping[str, Any]], object] = lambda _told: None) -> str:
    """Do another rank's part in every attempt that the first makes, of which `work` is told; ends as that one's does.

    A failure is told to the first, which records it. Raises RankLostError where another rank has failed.
    """
    while "end" not in (told := ranks.told()):
        try:
            work(told)
        except BaseException as error:
            if not isinstance(error, RankLostError):
                ranks.fail(describe_failure(error))
            raise
    ranks.part_ways()
    if "job" in told:
        raise Busy(told["job"], what)
    if "stopped" in told:
        raise Stopped(told["stopped"], told["step"])
    return str(told["end"])


def begin_together(
    ranks: "Ranks | None",
    run: RunSpec,
    execution: ExecSpec,
    attempt: Attempt,
    log: Log,
    points: tuple[int, ...] = (),
) -> ExecSpec:
    """Tell the other ranks what is to be trained, now that its data are there; gives how this one does its part."""
    if ranks is None:
        return execution
    log(f"{ranks.world_size} ranks")
    ranks.told({"attempt": attempt.number, "points": points, "mixers": outside.source_hashes(run.model)})
    return ranks.execution(execution)


def follow_data(store: Store, run: RunSpec, execution: ExecSpec, told: Mapping[str, Any]) -> "DataSource":
    from hybrid.data import open_data

    outside.load(execution.mixers)
    compare_sources(run, told["mixers"], "the first rank has read it")
    return open_data(run.data, run.seq_len, store.data_root)


class Follower:
    """What the training loop reports to on a rank that reports nothing."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop_flag = stop

    def start(self, total_steps: int, origin: "Origin | None") -> None:
        """The first rank's to tell."""

    def metrics(self, line: Mapping[str, Any]) -> None:
        """The first rank's to write."""

    def stop_requested(self) -> str | None:
        return self._stop_flag.reason

    def tick(self, step: int, loss: float | None, tokens_per_s: float) -> None:
        """The first rank's to tell."""

    def sync(self) -> None:
        """Nothing was written."""
