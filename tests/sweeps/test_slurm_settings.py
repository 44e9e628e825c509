"""The launcher's settings: what is read of them, and what is said of what cannot be meant."""

from typing import Any

import pytest
import yaml

from sweeps.launch.slurm_settings import minutes_of, read_slurm_settings


@pytest.fixture
def defaults(repo: Any) -> dict[str, Any]:
    found = yaml.safe_load((repo / "conf" / "hydra" / "launcher" / "slurm.yaml").read_text())
    del found["_target_"]
    return found


@pytest.mark.parametrize(
    ("given", "minutes"),
    [
        (90, 90),
        (1.5, 2),
        ("90", 90),
        ("1:30", 2),
        ("2:30:00", 150),
        ("0:00:30", 1),
        ("1-0", 1440),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("1-12:30:30", 2191),
        (0, None),
        (-5, None),
        ("0", None),
        ("soon", None),
        (True, None),
        ("1:2:3:4", None),
    ],
)
def test_times_are_read_as_slurm_reads_them_in_whole_minutes(given: object, minutes: int | None) -> None:
    assert minutes_of(given) == minutes


def test_the_defaults_leave_everything_to_the_cluster(defaults: dict[str, Any]) -> None:
    settings, _ = read_slurm_settings(defaults)
    assert settings.partition is settings.time_min is settings.mem is settings.cpus_per_task is None
    assert settings.runs_per_gpu == 1
    assert settings.sbatch == settings.priority == {}


def test_memory_and_options_are_written_as_sbatch_takes_them(defaults: dict[str, Any]) -> None:
    given = {"mem": "64 GB", "sbatch": {"--nice": 100, "spread_job": None}, "priority": {"Llama": 2}}
    settings, problems = read_slurm_settings(defaults | given)
    assert problems == []
    assert settings.mem == "64G"
    assert settings.sbatch == {"nice": "100", "spread-job": None}
    assert settings.priority == {"Llama": 2.0}


def test_all_that_is_wrong_is_said_at_once(defaults: dict[str, Any]) -> None:
    wrong = {
        "partition": "",
        "account": 7,
        "qos": "high",
        "partitoin": "gpu",
        "time": "tomorrow",
        "mem": "much",
        "throttle": 0,
        "runs_per_gpu": 0,
        "sbatch": {"array": "1-3", "no way": 1},
        "priority": {"Llama": "high"},
    }
    settings, problems = read_slurm_settings(defaults | wrong)
    said = "\n".join(problems)
    for words in ("partition = ''", "time = 'tomorrow'", "mem = 'much'", "throttle = 0", "runs_per_gpu = 0"):
        assert f"hydra.launcher.{words}" in said
    assert "sbatch.array = '1-3': expected an option that the launcher does not set itself; use array_size" in said
    assert "sbatch.no way" in said
    assert "priority.Llama" in said
    assert "account = 7: expected" in said
    assert "partitoin = 'gpu': unknown" in said
    assert "did you mean partition" in said
    assert len(problems) == 10
    assert settings.qos == "high", "what is right can still be looked at"
