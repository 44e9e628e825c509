"""Checkpoints that survive a kill at any moment, and the final weights.

A checkpoint is a header of 512 bytes, one line of JSON padded with spaces, and a payload, what `torch.save` wrote. The
header names the run, the step and the payload's length, and holds a SHA-256 over the payload and over itself: in every
version of the format, so that a newer file can be told from a damaged one.

A file appears under its name only when it is whole and on the disk: it is written under another name beside it, synced,
renamed, and the directory synced. Older ones go only after that. Points are linked instead of renamed, so that none
replaces another.

A trunk's checkpoints are of two sorts: those on the way, as a run's, and points, which its branches start from and
which are kept.
"""

import contextlib
import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast, final

import safetensors.torch
import torch
from torch import Tensor, nn

from hybrid.checkpoint_files import point_file, point_step, step_and_attempt, step_file
from hybrid.durable import make_dir, sync_dir
from hybrid.spec import ConfigError

_LOGGER: Final = logging.getLogger(__name__)
_FORMAT: Final = "hybrid-ablations checkpoint"
_VERSION: Final = 1
_HEADER_BYTES: Final = 512
_BLOCK_BYTES: Final = 1 << 20
_KEPT: Final = 2
_DEAD_AFTER_S: Final = 3600.0
_LAST: Final = 1 << 62  # a point goes before any attempt's checkpoint of the same step


@final
@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What was saved after `step` updates, by which attempt at the run or trunk `owner`, in the file `path`."""

    owner: str
    step: int
    attempt: int
    state: dict[str, Any]
    path: Path


@final
class CheckpointStore:
    """The checkpoints of one run or trunk, in a directory that its attempts share; this object speaks for one attempt.

    Of those on the way, the last two that this attempt saved or loaded are kept, whatever else lies there: a damaged
    file with a higher step can push no good one out. Points are all kept.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run_id: str,
        attempt: int,
        log: Callable[[str], None] = _LOGGER.warning,
    ) -> None:
        """`run_id` may be a trunk's; `log` is told, a line each, of checkpoints that had to be passed over."""
        self._directory = directory
        self._run_id = run_id
        self._attempt = attempt
        self._log = log
        self._good: list[Path] = []
        self._damaged: list[Path] = []

    def save(self, state: Mapping[str, Any], step: int) -> Path:
        """Write a checkpoint durably, then remove those older than the one before it.

        `state`: what `torch.load` reads with weights_only: tensors, numbers, texts, and lists and dicts of them.
        Raises OSError if it cannot be written; all that was there before then still is.
        """
        return self._save(state, step, step_file(step, self._attempt))

    def save_point(self, state: Mapping[str, Any], step: int) -> Path:
        """Like `save`, of a checkpoint that branches start from, which is kept.

        One that is there and whole stays as it is, whoever made it: a branch may have started from it already.
        """
        path = self._directory / point_file(step)
        if path.exists() and path not in self._damaged and self._load(path, None) is not None:
            return path
        return self._save(state, step, path.name, first=path not in self._damaged)

    def _save(self, state: Mapping[str, Any], step: int, name: str, *, first: bool = False) -> Path:
        """`first`: what another attempt has put there in the meantime stays."""
        make_dir(self._directory)
        path = self._directory / name
        with _appearing(path, self._temporary(path), os.link if first else os.replace) as file:
            header = {"format": _FORMAT, "version": _VERSION, "run_id": self._run_id}
            header |= {"step": step, "attempt": self._attempt}
            _write(file, header, state)
        self._good = [kept for kept in self._good if kept != path] + [path]
        self._prune(newest=path)
        return path

    def load_latest(self, device: torch.device | None = None, *, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, its tensors on `device` (the CPU unless given); None if there is none.

        `at_most`: of those after at most so many updates. Damaged ones are logged and passed over; they are removed
        after the next save. Raises ConfigError for a whole checkpoint of another run or of a newer format, OSError if
        the disk cannot be read.
        """
        for (step, _), path in sorted([*self._checkpoints(), *self._points()], reverse=True):
            if at_most is None or step <= at_most:
                loaded = self._load(path, device)
                if loaded is not None:
                    return loaded
        return None

    def load_point(self, step: int, device: torch.device | None = None) -> Checkpoint | None:
        """The point at `step`; None if it is not there, or damaged, which is logged. Raises as `load_latest`."""
        return self._load(self._directory / point_file(step), device)

    def _load(self, path: Path, device: torch.device | None) -> Checkpoint | None:
        try:
            header, state = _read(path, device or torch.device("cpu"))
        except FileNotFoundError:
            return None  # another attempt removed it between the listing and now
        except _Damaged as damage:
            self._log(f"{path}: damaged and passed over: {damage}")
            self._damaged.append(path)
            return None
        if header["run_id"] != self._run_id:
            raise ConfigError(
                f"{path} = a checkpoint of run {header['run_id']}: expected one of run {self._run_id}; "
                "move it away, or give each run a checkpoint directory of its own"
            )
        self._good = [path]
        return Checkpoint(
            owner=header["run_id"], step=header["step"], attempt=header["attempt"], state=state, path=path
        )

    def clear(self, at_most: int | None = None) -> None:
        """Remove all checkpoints on the way, or those after at most so many updates; final weights and points stay."""
        for (step, _), path in self._checkpoints():
            if at_most is None or step <= at_most:
                path.unlink(missing_ok=True)
        for path in self._directory.glob(f".*-a{self._attempt:03d}.tmp"):
            path.unlink(missing_ok=True)
        self._good, self._damaged = [], []

    def _checkpoints(self) -> list[tuple[tuple[int, int], Path]]:
        """((step, attempt), path) of every file with the name of a checkpoint on the way, in no order."""
        found = ((step_and_attempt(path.name), path) for path in self._files())
        return [(key, path) for key, path in found if key is not None]

    def _points(self) -> list[tuple[tuple[int, int], Path]]:
        found = ((point_step(path.name), path) for path in self._files())
        return [((step, _LAST), path) for step, path in found if step is not None]

    def _files(self) -> list[Path]:
        return list(self._directory.iterdir()) if self._directory.is_dir() else []

    def _temporary(self, path: Path) -> Path:
        return path.with_name(f".{path.stem.partition('-')[0]}-a{self._attempt:03d}.tmp")

    def _prune(self, newest: Path) -> None:
        """Remove what `newest`, now durable, makes superfluous. What cannot be removed is no reason to end a run."""
        kept = self._good[-_KEPT:]
        oldest_kept = min(_key(path) for path in kept)
        superfluous = [path for key, path in self._checkpoints() if key < oldest_kept]
        superfluous += [path for path in self._damaged if path not in kept]
        superfluous += self._dead_temporaries(newest)
        for path in superfluous:
            with contextlib.suppress(OSError):
                path.unlink()
        self._good, self._damaged = kept, []

    def _dead_temporaries(self, newest: Path) -> Iterator[Path]:
        """What killed writers left: this attempt's, as it writes one at a time, and what nobody has touched for long.

        Ages are taken against the file just written, on the file system's clock alone: clocks of hosts differ.
        """
        with contextlib.suppress(OSError):
            now_s = newest.stat().st_mtime
            for path in self._directory.glob(".*.tmp"):
                own = path.name.endswith(f"-a{self._attempt:03d}.tmp")
                if own or now_s - path.stat().st_mtime > _DEAD_AFTER_S:
                    yield path


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """The checkpoint that another rank has found whole in this file. Raises OSError where it is not so here."""
    try:
        header, state = _read(path, device)
    except _Damaged as damage:
        raise OSError(f"{path}: {damage}, as read here: expected the file that the first rank has read") from None
    return Checkpoint(owner=header["run_id"], step=header["step"], attempt=header["attempt"], state=state, path=path)


def save_final_weights(path: Path, model: nn.Module) -> str:
    """Export what a trained model consists of as safetensors: whole under its name, or not there. Gives its SHA-256.

    Raises OSError.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in _trained(model).items()}
    content = safetensors.torch.save(tensors)
    make_dir(path.parent)
    temporary = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}.tmp")
    with _appearing(path, temporary, os.replace) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def load_final_weights(path: Path, model: nn.Module) -> None:
    """Read `save_final_weights`' file into the model. Raises ConfigError if it does not fit, OSError."""
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{path} = {error}: expected whole safetensors; train the run again to have them") from None
    into = _trained(model)
    wanted = {name: tensor.shape for name, tensor in into.items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if wanted != found:
        names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ConfigError(f"{path} = weights of another model: expected the same {', '.join(names)}")
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(tensors[name])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and buffers that belong to the model's state, such as experts' biases: each tensor once."""
    state = model.state_dict(keep_vars=True).keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in state}
    return {**dict(model.named_parameters()), **buffers}


# --- the format ---------------------------------------------------------------------------------


class _Damaged(Exception):
    """The file is not what was written."""


@final
class _HashingSink:
    """A file for `torch.save` that hashes what goes by.

    The first OSError is kept, and what follows ignored: raised inside torch's writer it would come out as a
    RuntimeError that no longer says that the disk is full.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.length = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
            self.sha256.update(data)
            self.length += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing: the file is flushed once, at its end."""


def _write(file: BinaryIO, header: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    file.write(b"\0" * _HEADER_BYTES)
    sink = _HashingSink(file)
    torch.save(state, cast(BinaryIO, sink))
    if sink.error is not None:
        raise sink.error
    header = {**header, "payload_bytes": sink.length}
    sink.sha256.update(_header_text(header))
    file.seek(0)
    file.write(_header_text({**header, "sha256": sink.sha256.hexdigest()}).ljust(_HEADER_BYTES - 1) + b"\n")


def _read(path: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and state. Raises _Damaged, OSError, or ConfigError if the file is whole but of a newer format."""
    with open(path, "rb") as file:
        first = file.read(_HEADER_BYTES)
        try:
            header = json.loads(first)
            given = header.pop("sha256")
            length = header["payload_bytes"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _Damaged("its header cannot be read") from None
        size = os.fstat(file.fileno()).st_size
        if length != size - _HEADER_BYTES:
            raise _Damaged(f"it has {size} bytes and should have {_HEADER_BYTES} and {length}")
        sha256 = hashlib.sha256()
        while block := file.read(_BLOCK_BYTES):
            sha256.update(block)
        sha256.update(_header_text(header))
        if sha256.hexdigest() != given:
            raise _Damaged("its checksum does not fit")
        if header.get("format") != _FORMAT or header.get("version") != _VERSION:
            raise ConfigError(
                f"{path} = format {header.get('version')}: expected format {_VERSION}, which is what this version "
                "reads; use the version that wrote it"
            )
        file.seek(_HEADER_BYTES)
        return header, torch.load(file, map_location=device, weights_only=True)


def _header_text(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True).encode()


def _key(path: Path) -> tuple[int, int]:
    """Step and attempt, by which checkpoints are in order."""
    point = point_step(path.name)
    key = step_and_attempt(path.name) if point is None else (point, _LAST)
    assert key is not None
    return key


@contextlib.contextmanager
def _appearing(path: Path, temporary: Path, move: Callable[[Path, Path], None]) -> Iterator[BinaryIO]:
    """A file that has `path`'s name at the end, if nothing was raised, and is then on the disk.

    `move`: os.replace, or os.link, with which a file that is there by then stays instead.
    Opened as any file is, so that its permissions follow the umask and its group the directory.
    """
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if move is os.link:
        with contextlib.suppress(OSError):
            temporary.unlink()
    sync_dir(path.parent)
