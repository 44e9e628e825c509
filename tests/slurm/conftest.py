"""A real Slurm cluster for the tests marked `slurm`; `make test-slurm` runs these.

The tests of all processes of pytest share it. `@pytest.mark.slurm(alone=True)` is for a test that breaks nodes or needs
all of them: no other runs meanwhile, and afterwards the cluster is healed. HYBRID_SLURM_DIR says where the cluster is:
one that already runs is used as it is, and left running.
"""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import CannotInstallError, Cluster, ClusterError, Settings, install, missing_packages

REQUIRED = "REQUIRE_SLURM"
"""1: that there is no Slurm is a failure."""

MAY_INSTALL = "HYBRID_SLURM_INSTALL"
"""1: what is missing is installed."""

SETTINGS = Settings(max_array_size=25)
"""Arrays so short that a sweep of some size needs several."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that must be alone come last: between others, each would wait for all that run, and all for it."""
    items.sort(key=_is_alone)


def _is_alone(item: pytest.Item) -> bool:
    return any(mark.kwargs.get("alone", False) for mark in item.iter_markers("slurm"))


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Cluster]:
    required = os.environ.get(REQUIRED) == "1"
    settings = Settings.read({}, SETTINGS)
    cluster = Cluster()
    try:
        missing = missing_packages(accounting=settings.accounting)
        if missing and not required and os.environ.get(MAY_INSTALL) != "1":
            raise CannotInstallError(f"no Slurm ({' '.join(missing)} missing): `make test-slurm` installs it")
        install(missing)
    except CannotInstallError as error:
        if required:
            raise
        pytest.skip(str(error))
    with cluster.use(settings):
        yield cluster


@pytest.fixture
def slurm(
    slurm_cluster: Cluster, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """The cluster, which all of Slurm's commands mean in this test. One starts in `tmp_path`.

    Jobs whose script, working directory or output is below `tmp_path` are this test's: they do not outlive it.
    """
    assert request.node.get_closest_marker("slurm"), "a test with a Slurm cluster is marked `slurm`"
    alone = _is_alone(request.node)
    with slurm_cluster.turn(alone=alone):
        environment = slurm_cluster.environment()
        for name in os.environ.keys() - environment.keys():
            monkeypatch.delenv(name)
        monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        monkeypatch.chdir(tmp_path)
        yield slurm_cluster
        if alone:
            slurm_cluster.heal()
        else:
            slurm_cluster.cancel(slurm_cluster.jobs_of(tmp_path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with the queue, the nodes and the last lines of the logs."""
    report = yield
    cluster = item.funcargs.get("slurm") if isinstance(item, pytest.Function) else None
    if report.failed and isinstance(cluster, Cluster):
        try:
            report.sections.append(("the cluster", cluster.explain()))
        except (ClusterError, OSError) as error:
            report.sections.append(("the cluster", repr(error)))
    return report
