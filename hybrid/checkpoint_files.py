"""What checkpoint files are called, so that they can be told apart without being read, and where a run's results lie.

step00000120-a001.ckpt    saved on the way, by attempt 1, after 120 updates; superfluous once there are two later ones
point00000120.ckpt        where branches of a trunk start: kept
final-a001.safetensors    the weights that attempt 1 came to
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

RUNS: Final = "runs"
"""Of a store's directories, the one with the runs."""
RUN_RECORD: Final = "record.json"
"""In a run's directory, if and only if the run is done or diverged."""

_STEP: Final = re.compile(r"step(\d{8,})-a(\d{3,})\.ckpt")
_POINT: Final = re.compile(r"point(\d{8,})\.ckpt")
_WEIGHTS: Final = re.compile(r"final-a(\d{3,})\.safetensors")
_HEADER_BYTES: Final = 512
_BLOCK_BYTES: Final = 1 << 20


def step_file(step: int, attempt: int) -> str:
    """The name of an attempt's checkpoint after `step` updates."""
    return f"step{step:08d}-a{attempt:03d}.ckpt"


def point_file(step: int) -> str:
    """The name of the checkpoint from which the branches at `step` start."""
    return f"point{step:08d}.ckpt"


def step_and_attempt(name: str) -> tuple[int, int] | None:
    """Of a checkpoint saved on the way; None for any other file."""
    found = _STEP.fullmatch(name)
    return None if found is None else (int(found[1]), int(found[2]))


def point_step(name: str) -> int | None:
    """Of a checkpoint that branches start from; None for any other file."""
    found = _POINT.fullmatch(name)
    return None if found is None else int(found[1])


def run_place(base: Path, run_id: str) -> Path:
    """A run's own directory below `base`: a store's `runs`, or where its checkpoints are."""
    return base / run_id[:2] / run_id


def weights_file(attempt: int) -> str:
    """The name of the final weights that an attempt wrote."""
    return f"final-a{attempt:03d}.safetensors"


def weights_attempt(name: str) -> int | None:
    """The attempt that wrote final weights of this name; None for any other file."""
    found = _WEIGHTS.fullmatch(name)
    return None if found is None else int(found[1])


def is_whole(path: Path, *, hashed: bool = True) -> bool:
    """Whether a checkpoint is as `hybrid.train.checkpoint` wrote it: by its length, and by its checksum if `hashed`.

    Raises OSError where the disk cannot be read.
    """
    with open(path, "rb") as file:
        try:
            header = json.loads(file.read(_HEADER_BYTES))
            given, length = header.pop("sha256"), int(header["payload_bytes"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if file.seek(0, 2) != _HEADER_BYTES + length:
            return False
        if not hashed:
            return True
        file.seek(_HEADER_BYTES)
        sha256 = hashlib.sha256()
        while block := file.read(_BLOCK_BYTES):
            sha256.update(block)
        sha256.update(json.dumps(header, sort_keys=True).encode())
        return bool(sha256.hexdigest() == given)


def saved_steps(names: Iterable[str]) -> list[int]:
    """The steps of the checkpoints saved on the way, ascending; other files do not count."""
    return sorted({found[0] for found in map(step_and_attempt, names) if found is not None})


def point_steps(names: Iterable[str]) -> list[int]:
    """The steps of the checkpoints that branches start from, ascending; other files do not count."""
    return sorted(step for step in map(point_step, names) if step is not None)
