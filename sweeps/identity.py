"""What a run is called: its id from what it is, its name from what sets it apart from its siblings."""

from collections.abc import Mapping, Sequence

from hybrid.decode import canonical_json, digest
from hybrid.spec import RunSpec


def run_id(run: RunSpec) -> str:
    """12 hex digits of the SHA-256 of the run's canonical JSON."""
    return digest(canonical_json(run))


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key's shortest ending that no other key shares: optim.lr -> lr."""
    shorts: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        for length in range(1, len(parts) + 1):
            ending = ".".join(parts[-length:])
            if all(other == key or not f".{other}".endswith(f".{ending}") for other in keys):
                break
        shorts[key] = ending
    return shorts


def cell_name(row: str, axes: Mapping[str, object], seed: int | None, shorts: Mapping[str, str]) -> str:
    """Row, axis values and seed, those that there are, such as `1:12/lr=0.001/s2`."""
    parts = [row] if row else []
    parts += [f"{shorts[key]}={show_value(value)}" for key, value in axes.items()]
    if seed is not None:
        parts.append(f"s{seed}")
    return "/".join(parts) or "run"


def show_value(value: object) -> str:
    """A setting's value as a person would write it."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(show_value, value)) + "]"
    if isinstance(value, float) and abs(value) >= _LARGE and float(f"{value:g}") == value:
        return f"{value:g}".replace("e+", "e")
    return "null" if value is None else str(value)


_LARGE = 1e6
