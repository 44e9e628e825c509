"""What can be known of the cluster without starting one: its settings, what it refuses, what it needs."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm import cluster as module
from tests.slurm.cluster import CannotInstallError, Cluster, ClusterError, Settings, first_job_id, free_ports, install

SETTINGS = [field.name for field in dataclasses.fields(Settings)]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(f"HYBRID_SLURM_{name.upper()}", raising=False)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_given_beats_the_environment_which_beats_the_last_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "0" if name == "accounting" else "7"
    last = Settings(nodes=2)
    monkeypatch.setenv(f"HYBRID_SLURM_{name.upper()}", text)
    assert dataclasses.asdict(Settings.read({}, last)) == dataclasses.asdict(last) | {name: int(text)}
    assert dataclasses.asdict(Settings.read({name: "1"}, last)) == dataclasses.asdict(last) | {name: 1}
    assert Settings.read(dict.fromkeys(SETTINGS), last) == Settings.read({}, last)


def test_all_wrong_settings_are_reported_at_once_each_by_the_name_it_was_given_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HYBRID_SLURM_CPUS", "many")
    with pytest.raises(ClusterError) as caught:
        Settings.read({"nodes": 0, "accounting": "yes"}, Settings())
    assert str(caught.value).splitlines() == [
        "nodes = 0: expected a whole number of at least 1",
        "HYBRID_SLURM_CPUS = many: expected a whole number of at least 1",
        "accounting = yes: expected 0 or 1",
    ]


@pytest.mark.parametrize("name", ["with space", "x" * 60, "quo'te", "100%"])
def test_a_directory_that_cannot_hold_sockets_or_be_written_in_slurm_conf_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="expected at most 60 plain characters"):
        Cluster(Path("/tmp") / name).up()
    assert not (Path("/tmp") / name).exists()


def test_a_directory_that_others_can_write_in_is_refused() -> None:
    # Under /tmp, for pytest's own are too long.
    directory = Path("/tmp") / f"hybrid-{os.getpid()}"
    directory.mkdir()
    try:
        directory.chmod(0o777)
        with pytest.raises(ClusterError, match="nobody else to be able to write there"):
            Cluster(directory).up()
        assert not list(directory.iterdir())
    finally:
        directory.rmdir()


def test_job_ids_begin_above_those_of_any_cluster_before_and_within_what_slurm_allows() -> None:
    year_s = 365 * 24 * 3600
    starts = [first_job_id(1.8e9 + s) for s in (0, 1, 60, 3600, 90 * 24 * 3600)]
    assert starts == sorted(set(starts))
    assert all(1 <= first_job_id(1.8e9 + i * year_s / 1000) < 67_043_328 for i in range(2000))


def test_ports_that_somebody_listens_on_are_not_chosen_and_those_of_the_last_time_are_where_they_are_free() -> None:
    here = Path("/tmp/hybrid-some")
    port = free_ports(here, 0, 3)
    assert free_ports(here, 0, 3) == port
    assert free_ports(here, port + 1, 3) == port + 1
    with socket.create_server(("", port + 4)):
        other = free_ports(here, port, 3)
    assert abs(other - port) >= 5


def test_without_apt_get_or_root_one_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    install([])
    monkeypatch.setattr(module, "which", lambda _: None)
    assert module.missing_packages(accounting=False) == ["munge", "slurm-client", "slurmctld", "slurmd"]
    with pytest.raises(CannotInstallError, match=r"\(munge slurmd missing\): it takes apt-get"):
        install(["munge", "slurmd"])
    monkeypatch.setattr(module, "which", lambda program: "/usr/bin/apt-get" if program == "apt-get" else None)
    monkeypatch.setattr(module, "as_root_prefix", lambda: None)
    with pytest.raises(CannotInstallError, match="it takes root, or sudo without a password"):
        install(["munge"])


def test_what_was_never_up_says_so_and_can_be_taken_down(tmp_path: Path) -> None:
    command = [sys.executable, module.__file__, "--dir", str(tmp_path / "no")]
    done = subprocess.run([*command, "crash-node", "1"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        f"cluster.py: {tmp_path.resolve() / 'no'}: no cluster was ever started here\n",
    )
    assert subprocess.run([*command, "down"]).returncode == 0
