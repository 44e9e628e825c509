"""The `plan` settings: on what device a request is counted, what it may cost, and what it is asked to show."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, TypeVar

from hybrid.config import parse_count_or_zero
from hybrid.decode import decode
from hybrid.spec import ConfigError
from sweeps.identity import show_value
from sweeps.power import Noise

T = TypeVar("T")

Device = Literal["a100", "h100", "h200", "cpu"]


@dataclass(frozen=True, kw_only=True)
class _PlanConfig:
    """As users write them; numbers are read by `read_plan_settings`, so that all that is wrong is said at once."""

    format: Literal["text", "json"]
    max_runs: Any
    max_gpu_hours: Any
    max_disk: Any
    gpu_memory: Any
    yes: bool
    device: Device | None
    mfu: Any
    price: Any
    alpha: Any
    power: Any
    separate: Any
    difference_nats: Any
    noise: Any


@dataclass(frozen=True, kw_only=True)
class _NoiseConfig:
    sd_nats: float | None
    dof: int | None
    source: str | None


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The `plan` settings, read. Limits that are None do not bind; `max_gpu_hours` are hours of whatever device the
    runs are counted on; `noise` None is to be had from the store, and a cell's own scale may say another one."""

    format: Literal["text", "json"]
    yes: bool
    max_runs: int | None
    max_gpu_hours: float | None
    max_disk_bytes: int | None
    gpu_memory_bytes: int | None
    device: Device | None
    mfu: float
    price: float | None
    alpha: float
    power: float
    separate: tuple[str, str] | None
    difference_nats: float | None
    noise: Noise | None


def read_plan_settings(config: Mapping[str, Any]) -> PlanSettings:
    """Read the `plan` section of a configuration. Raises ConfigError with everything that is wrong in it."""
    reader = _Reader(config)
    typed = reader.keep(lambda: decode(_PlanConfig, dict(config), "plan"))
    max_runs = reader.optional("max_runs", lambda value: parse_count_or_zero(value, "plan.max_runs"))
    hours = reader.number("max_gpu_hours", lambda x: x >= 0, "a number of hours of 0 or more, or null")
    disk = reader.optional("max_disk", lambda value: parse_size(value, "plan.max_disk"))
    memory = reader.optional("gpu_memory", lambda value: parse_size(value, "plan.gpu_memory"))
    mfu = reader.number("mfu", lambda x: 0 < x <= 1, "a fraction above 0 and up to 1", optional=False)
    price = reader.number("price", lambda x: x >= 0, "money for an hour of a device, 0 or more, or null")
    alpha = reader.number("alpha", lambda x: 0 < x < 1, "a probability above 0 and below 1", optional=False)
    power = reader.number("power", lambda x: 0 < x < 1, "a probability above 0 and below 1", optional=False)
    difference = reader.number("difference_nats", lambda x: x > 0, "a difference in nats above 0, or null")
    separate = reader.optional("separate", _two_rows)
    noise = reader.optional("noise", read_noise)
    if alpha is not None and power is not None and power <= alpha:
        reader.problems.append(f"plan.power = {power}: expected more than plan.alpha = {alpha}")
    if difference is not None and config.get("separate") is None:
        reader.problems.append(f"plan.difference_nats = {difference}: expected two rows in plan.separate, or null")
    if reader.problems or typed is None or mfu is None or alpha is None or power is None:
        raise ConfigError(reader.problems)
    return PlanSettings(
        format=typed.format,
        yes=typed.yes,
        max_runs=max_runs,
        max_gpu_hours=hours,
        max_disk_bytes=disk,
        gpu_memory_bytes=memory,
        device=typed.device,
        mfu=mfu,
        price=price,
        alpha=alpha,
        power=power,
        separate=separate,
        difference_nats=difference,
        noise=noise,
    )


class _Reader:
    """Reads settings one by one and keeps what is wrong with each; what could not be read is None."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.problems: list[str] = []

    def keep(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except ConfigError as error:
            self.problems += error.problems
            return None

    def optional(self, key: str, read: Callable[[Any], T | None]) -> T | None:
        value = self._config.get(key)
        return None if value is None else self.keep(lambda: read(value))

    def number(self, key: str, valid: Callable[[float], bool], expected: str, *, optional: bool = True) -> float | None:
        value = self._config.get(key)
        if value is None and (optional or key not in self._config):  # one that is missing is said by decode
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and valid(value):
            return float(value)
        self.problems.append(f"plan.{key} = {value!r}: expected {expected}")
        return None


def _two_rows(value: object) -> tuple[str, str]:
    names = [show_value(name) for name in value] if isinstance(value, list | tuple) else []
    if len(names) != 2 or names[0] == names[1]:
        raise ConfigError(f"plan.separate = {value!r}: expected the names of two rows, such as [Llama,Mamba]")
    return names[0], names[1]


def read_noise(value: object) -> Noise | None:
    """What was measured elsewhere; None where the standard deviation is null, whatever else a scale may say of it."""
    given = decode(_NoiseConfig, value, "plan.noise")
    if given.sd_nats is None:
        return None
    problems = []
    if given.sd_nats <= 0:
        problems.append(f"plan.noise.sd_nats = {given.sd_nats}: expected a number above 0, or null")
    if given.dof is None or given.dof < 1:
        problems.append(f"plan.noise.dof = {given.dof}: expected the degrees of freedom of sd_nats, at least 1")
    if problems or given.dof is None:
        raise ConfigError(problems)
    return Noise(sd_nats=given.sd_nats, dof=given.dof, source=given.source or "plan.noise")


_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
# A bare B is left out: in the other settings 80B is eighty billion.
_SIZE = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)\s*(?:([kmgtp])(i?)b?)?", re.IGNORECASE)


def parse_size(value: object, where: str) -> int:
    """Whole bytes of 80GB, 2 TB, 80GiB, 80e9: K, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of 1024.

    Raises ConfigError for anything else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 1:
        return int(value)
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found:
        unit = (1024 if found[3] else 1000) ** _POWERS.get((found[2] or "").lower(), 0)
        size = int(Decimal(found[1].replace("_", "")) * unit)
        if size >= 1:
            return size
    raise ConfigError(f"{where} = {value!r}: expected a size in bytes, such as 80GB, 80GiB, 2TB or 80e9, or null")
