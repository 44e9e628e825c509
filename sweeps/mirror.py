"""A request's metrics as TensorBoard event files: `python -m sweeps mirror NAME --to DIR`. Nothing is read back.

    DIR/<row>/<axis values>/<s1>/events.out.tfevents....<run_id>

What was written before is read off the event files themselves, so that neither a second call nor one that goes on after
being killed writes a point twice. Of steps that a resumed attempt makes again, the first values stay.
"""

import contextlib
import fcntl
import importlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from hybrid.spec import ConfigError
from sweeps.progress import say
from sweeps.status import choose_requests, flatten
from sweeps.store import Cell, Request, Store, StoreError, is_final
from sweeps.text import count
from sweeps.tune import choose, settle

_CONFIG: Final = "config/text_summary"
_NOT_IN_NAMES = re.compile(r"[^\w.=,+:-]")
_OVER: Final = ("failed", "damaged")


@dataclass(frozen=True, kw_only=True)
class _TensorBoard:
    """Its modules, loaded when asked for."""

    writer: Any
    loader: Any
    event: Any
    summary: Any
    tensor: Any
    shape: Any
    types: Any


def _tensorboard() -> _TensorBoard:
    """Raises ConfigError where it is not installed."""
    try:
        load = importlib.import_module
        return _TensorBoard(
            writer=load("tensorboard.summary.writer.event_file_writer"),
            loader=load("tensorboard.backend.event_processing.event_file_loader"),
            event=load("tensorboard.compat.proto.event_pb2"),
            summary=load("tensorboard.compat.proto.summary_pb2"),
            tensor=load("tensorboard.compat.proto.tensor_pb2"),
            shape=load("tensorboard.compat.proto.tensor_shape_pb2"),
            types=load("tensorboard.compat.proto.types_pb2"),
        )
    except ImportError as error:
        raise ConfigError(
            f"mirror: {error}: expected TensorBoard, which is an extra: pip install -e '.[tensorboard]'"
        ) from None


def mirror(store: Store, name: str, to: Path, *, follow: bool, every_s: float) -> int:
    """Mirror the newest request of that name; gives the exit code.

    Raises ConfigError where there is none, TensorBoard is missing, or somebody else mirrors into the directory.
    """
    if not every_s > 0:
        raise ConfigError(f"--every {every_s:g}: expected a number of seconds above 0")
    request = choose_requests(store, name)[-1]
    board = _tensorboard()
    to.mkdir(parents=True, exist_ok=True)
    with _alone(to), contextlib.ExitStack() as stack:
        mirrors: dict[str, _RunMirror] = {}
        told = -1
        while True:
            over = True
            for directory, cell in _directories(store, request):
                if cell.run_id is None:
                    over = False
                    continue
                if cell.run_id not in mirrors:
                    mirrors[cell.run_id] = stack.enter_context(_RunMirror(store, cell, to / directory, board))
                over &= mirrors[cell.run_id].look()
            points = sum(mirror.points for mirror in mirrors.values())
            if points != told:
                say(f"{to}: {points:,} points of {count(len(mirrors), 'run')} are new")
                told = points
            if over or not follow:
                return 0
            time.sleep(every_s)


@contextlib.contextmanager
def _alone(to: Path) -> Iterator[None]:
    """Two that write into the same directory would write every point twice. Raises ConfigError."""
    with open(to / ".mirror.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--to {to}: another mirror writes there just now: expected another directory") from None
        except OSError:
            say(f"warning: {to}: cannot be locked here; two mirrors at once would write every point twice")
        yield


def _directories(store: Store, request: Request) -> Iterator[tuple[Path, Cell]]:
    """Each cell with the directory of its run, none twice."""
    used: dict[Path, str | None] = {}
    tuning = [("tuning", cell) for tuning in request.tuning for cell in tuning.cells]
    for kind, cell in [*(("", cell) for cell in settle(request, choose(request, store)).cells), *tuning]:
        parts = [_NOT_IN_NAMES.sub("_", part) for part in cell.name.split("/")]
        directory = Path(kind, *(part if part.strip(".") else "_" for part in parts))
        if used.setdefault(directory, cell.run_id) != cell.run_id:
            directory = directory.with_name(f"{directory.name}-{cell.run_id}")
        yield directory, cell


class _RunMirror:
    """The event files of one run; a context manager that closes them."""

    def __init__(self, store: Store, cell: Cell, directory: Path, board: _TensorBoard) -> None:
        assert cell.run_id is not None
        self._store, self._run_id, self._board = store, cell.run_id, board
        others = [path for path in directory.glob("events.out.tfevents.*") if not path.name.endswith(cell.run_id)]
        # Another request of the same name, or another choice of the tuning.
        self._directory = directory.with_name(f"{directory.name}-{cell.run_id}") if others else directory
        self._last_step = self._written()
        self._writer: Any = None
        self._seen: object = None
        self.points = 0

    def __enter__(self) -> "_RunMirror":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def look(self) -> bool:
        """Write what is new; gives whether no more is to come."""
        status = self._store.status(self._run_id)
        number = self._store.last_attempt(self._run_id)
        seen = (status, number, _size(self._store.attempt_dir(self._run_id, number) / "metrics.jsonl"))
        if seen != self._seen:
            self._seen = seen
            self._write()
        return is_final(status) or status in _OVER

    def _write(self) -> None:
        lines = self._store.metrics(self._run_id)
        began = self._began()
        if lines and _CONFIG not in self._last_step:
            self._add(self._config(), step=0, wall_time=began)
            self._last_step[_CONFIG] = 0
        for line in lines:
            step = int(line["step"])
            new = {
                tag: float(value)
                for tag, value in line.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and tag != "step"
                if step > self._last_step.get(tag, -1)
            }
            if not new:
                continue
            values = [self._board.summary.Summary.Value(tag=tag, simple_value=value) for tag, value in new.items()]
            self._add(values, step=step, wall_time=began + float(line.get("wall_s") or 0.0))
            self._last_step.update(dict.fromkeys(new, step))
            self.points += len(new)
        if self._writer is not None:
            self._writer.flush()

    def _add(self, values: list[Any], *, step: int, wall_time: float) -> None:
        if self._writer is None:
            self._writer = self._board.writer.EventFileWriter(str(self._directory), filename_suffix=f".{self._run_id}")
        summary = self._board.summary.Summary(value=values)
        self._writer.add_event(self._board.event.Event(wall_time=wall_time, step=step, summary=summary))

    def _config(self) -> list[Any]:
        """What the run is, as a table in TensorBoard's text tab."""
        try:
            spec: Mapping[str, Any] = self._store.spec(self._run_id) or {}
        except StoreError:
            spec = {}
        rows = [f"| {key} | {value} |" for key, value in flatten({"run": self._run_id, **spec})]
        text = "\n".join(["| setting | value |", "| --- | --- |", *rows])
        board = self._board
        shape = board.shape.TensorShapeProto(dim=[board.shape.TensorShapeProto.Dim(size=1)])
        tensor = board.tensor.TensorProto(dtype=board.types.DT_STRING, tensor_shape=shape, string_val=[text.encode()])
        plugin = board.summary.SummaryMetadata.PluginData(plugin_name="text")
        metadata = board.summary.SummaryMetadata(plugin_data=plugin)
        return [board.summary.Summary.Value(tag=_CONFIG, metadata=metadata, tensor=tensor)]

    def _began(self) -> float:
        """When the run's first attempt began, by the clock of its host, in seconds since 1970."""
        for number in range(1, self._store.last_attempt(self._run_id) + 1):
            job = self._store.job(self._run_id, number)
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return datetime.fromisoformat((job or {})["started_at"]).timestamp()
        return 0.0

    def _written(self) -> dict[str, int]:
        """The last step that is in the event files, by tag. Half an event that a killed writer left is passed over."""
        last: dict[str, int] = {}
        for path in sorted(self._directory.glob(f"events.out.tfevents.*.{self._run_id}")):
            for event in self._board.loader.LegacyEventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    last[value.tag] = max(last.get(value.tag, -1), int(event.step))
        return last


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None
