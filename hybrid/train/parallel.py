"""Several processes that train one run together: each takes its part of every batch, the first speaks for all.

Two things connect them. Tensors are added up by torch.distributed, gloo on the CPU and nccl on CUDA. And every rank
has a socket to the first, open for as long as it lives, for what is decided by one and known to all, and for failures:
a rank whose socket closes without a word is gone, and all others end.

All ranks call the same methods in the same order; `Ranks.alone()` does nothing in them.
"""

import contextlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from hybrid.memory import BUCKET_BYTES
from hybrid.spec import ExecSpec
from hybrid.train.place import Place, RankLostError

R = TypeVar("R")

JOIN_S: Final = 300.0
"""How long ranks wait for the last of them to start: a hundred processes that load torch from one disk take long."""

COLLECTIVE_S: Final = 1800.0
"""How long a rank waits for the others in a step: longer than the first takes to write a checkpoint. A rank that died
is noticed at once; this is for a network that falls silent."""

STUCK_S: Final = 20.0
"""A process that still waits for a rank so long after that one failed, as nccl does, is ended from within."""

_LEAVE_S: Final = 10.0
_REASON_S: Final = 3.0
_TRY_S: Final = 2.0
_ANSWER_S: Final = 3 * _TRY_S
_POLL_S: Final = 0.1


@contextlib.contextmanager
def joined(place: Place, device: str, *, backend: str | None = None) -> Iterator["Ranks"]:
    """The ranks of a run, which end together: where the body of one raises, all others' soon raise RankLostError.

    `device` is this rank's (`Place.execution`). `backend`: None is what is right for it. Raises ConfigError,
    RankLostError where they do not come together.
    """
    control = _Hub(place) if place.rank == 0 else _Member(place)
    clean = False
    try:
        try:
            _begin_group(place, control.store(), device, backend)
        except RuntimeError as error:
            control.raise_if_lost(_REASON_S)
            raise RankLostError(f"the ranks did not come together: {error}") from error
        yield Ranks(place, control, device)
        clean = True
    except BaseException as error:
        if not isinstance(error, RankLostError) and not control.parted:
            control.fail({"message": f"{type(error).__name__}: {error}"})
        raise
    finally:
        # What waits for this rank in a collective ends with its connections. nccl's would be waited for here instead,
        # and end with the process.
        if dist.is_initialized() and (clean or control.parted or dist.get_backend() == "gloo"):
            dist.destroy_process_group()
        control.leave()


def _begin_group(place: Place, store: TCPStore, device: str, backend: str | None) -> None:
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend or ("cpu:gloo,cuda:nccl" if cuda else "gloo"),
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=COLLECTIVE_S),
        device_id=torch.device(device) if cuda and backend is None else None,
    )


@final
class Ranks:
    """The processes that train one run, seen from one of them."""

    def __init__(
        self, place: Place | None = None, control: "_Hub | _Member | None" = None, device: str | None = None
    ) -> None:
        self.rank, self.world_size = (0, 1) if place is None else (place.rank, place.world_size)
        self._control, self._device = control, device

    @classmethod
    def alone(cls) -> "Ranks":
        """The one rank of a run that has no others."""
        return cls()

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all: it writes what is written."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of so many sequences are this rank's; some ranks have one more than others."""
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def execution(self, execution: ExecSpec) -> ExecSpec:
        """How this rank carries out its part: on its own device."""
        return execution if self._device is None else replace(execution, device=self._device)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add up every tensor over all ranks, in place, to the same bits on each."""
        if self._control is not None:
            for bucket in _buckets(tensors):
                self._collective(partial(_all_reduce, bucket))

    def of_first(self, numbers: Sequence[float]) -> list[float]:
        """The first rank's numbers."""
        if self._control is None:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.float64)
        self._collective(lambda: dist.broadcast(told, 0))
        return told.tolist()

    def agree(self, reason: str | None, due: bool) -> tuple[str | None, bool]:
        """A reason that some rank has, None where none has; and whether the first says that it is `due`."""
        if self._control is None:
            return reason, due
        votes = torch.tensor([0 if reason is None else self.world_size - self.rank, due and self.is_first])
        self._collective(lambda: dist.all_reduce(votes, dist.ReduceOp.MAX))
        speaker, due_at_first = votes.tolist()
        if speaker:
            said = [reason]
            source = self.world_size - speaker
            self._collective(lambda: dist.broadcast_object_list(said, source, device=torch.device("cpu")))
            reason = said[0]
        return reason, bool(due_at_first)

    def told(self, fact: Any = None) -> Any:
        """The first rank's `fact`, plain data; the others wait for it as long as the first lives."""
        match self._control:
            case None:
                return fact
            case _Hub():
                self._control.tell({"fact": fact})
                return fact
            case _Member():
                return self._control.told()

    def fail(self, failure: Mapping[str, Any]) -> None:
        """Say of what this rank ends: all others will, with this as their reason."""
        if self._control is not None:
            self._control.fail(failure)

    @property
    def have_parted(self) -> bool:
        """Whether all ranks know how this ends."""
        return self._control is not None and self._control.parted

    def part_ways(self) -> None:
        """All ranks know how this ends: what this one raises now is no failure to the others."""
        if self._control is not None:
            self._control.parted = True

    def when_stuck(self, do: Callable[[RankLostError], object]) -> None:
        """What is done before this process is ended from within, as it waits for a rank that failed."""
        if self._control is not None:
            self._control.when_stuck = do

    def _collective(self, work: Callable[[], R]) -> R:
        assert self._control is not None
        self._control.raise_if_lost(0.0)
        try:
            return work()
        except RuntimeError as error:
            self._control.raise_if_lost(_REASON_S)
            raise RankLostError(f"the ranks lost touch with each other: {error}") from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype that are sent together: small ones would each cost a message's time."""
    bucket: list[Tensor] = []
    for tensor in sorted(tensors, key=lambda tensor: str(tensor.dtype)):  # stable, so the same on all ranks
        if bucket and (tensor.dtype != bucket[0].dtype or sum(map(_bytes, bucket)) + _bytes(tensor) > BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _all_reduce(bucket: Sequence[Tensor]) -> None:
    if len(bucket) == 1 and bucket[0].is_contiguous():
        dist.all_reduce(bucket[0])
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
    dist.all_reduce(flat)
    for tensor, summed in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(summed.view(tensor.shape))


# --- the sockets --------------------------------------------------------------------------------


class _Control:
    """What a rank knows of the others' ends, and what comes of it."""

    def __init__(self) -> None:
        self.when_stuck: Callable[[RankLostError], object] = lambda _error: None
        self.parted = False
        self._lost: RankLostError | None = None
        self._is_lost = threading.Event()
        self._leaving = threading.Event()

    def raise_if_lost(self, wait_s: float) -> None:
        """Raises RankLostError if another rank has failed, or is heard to within so many seconds."""
        if self._is_lost.wait(wait_s):
            assert self._lost is not None
            raise self._lost

    def _lose(self, rank: int, failure: Mapping[str, Any] | None) -> None:
        """Keep the first failure, and see to it that this process does not outlive it by much."""
        if self._is_lost.is_set() or self._leaving.is_set():
            return
        said = "is gone without a word" if failure is None else f"failed: {failure['message']}"
        self._lost = RankLostError(f"rank {rank} {said}", rank=rank, failure=failure)
        self._is_lost.set()
        threading.Thread(target=self._end_if_stuck, daemon=True, name="ranks-end").start()

    def _end_if_stuck(self) -> None:
        if not self._leaving.wait(STUCK_S):
            assert self._lost is not None
            try:
                self.when_stuck(self._lost)
            finally:
                os._exit(1)


@final
class _Hub(_Control):
    """The first rank's end of all the others' sockets."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self._store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)
        self._members: dict[int, socket.socket] = {}
        self._ended: dict[int, threading.Event] = {rank: threading.Event() for rank in range(1, place.world_size)}
        self._sending = threading.Lock()
        server = _listen(place)
        deadline = time.monotonic() + JOIN_S
        try:
            while len(self._members) < place.world_size - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                self._welcome(*server.accept())
        except TimeoutError:
            missing = ", ".join(str(rank) for rank in self._ended if rank not in self._members)
            raise RankLostError(f"ranks {missing} did not come within {JOIN_S:.0f} s") from None
        finally:
            server.close()
        for rank in self._members:
            threading.Thread(target=self._listen_to, args=(rank,), daemon=True, name=f"rank-{rank}").start()

    def store(self) -> TCPStore:
        return self._store

    def tell(self, message: Mapping[str, Any], *, but: int = 0) -> None:
        """To all ranks, or all but one; those that cannot be reached are gone, and found to be so elsewhere."""
        with self._sending:
            for rank, member in self._members.items():
                if rank != but:
                    with contextlib.suppress(OSError):
                        _send(member, message)

    def fail(self, failure: Mapping[str, Any]) -> None:
        self.tell({"failed": dict(failure), "rank": 0})

    def leave(self) -> None:
        """Wait a little for the others, who may still have to hear what was told, and go."""
        self._leaving.set()
        deadline = time.monotonic() + _LEAVE_S
        for ended in self._ended.values():
            ended.wait(max(0.0, deadline - time.monotonic()))
        for member in self._members.values():
            _close(member)

    def _welcome(self, member: socket.socket, _address: object) -> None:
        """Take in who knows this job's name; whoever else knocks is sent away."""
        member.settimeout(_TRY_S)
        try:
            said = json.loads(_line(member))
            rank = said["rank"]
            if (said["job"], said["world_size"]) != (self._place.job, self._place.world_size):
                raise ValueError
            if rank not in self._ended or rank in self._members:
                raise ValueError
            _send(member, {"store": self._store.port})
            _line(member)  # it may have lost its patience meanwhile, and knock again
            member.settimeout(None)
        except (OSError, ValueError, KeyError, TypeError):
            _close(member)
            return
        self._members[rank] = member

    def _listen_to(self, rank: int) -> None:
        for message in _messages(self._members[rank]):
            if "left" in message:
                break
            self._lose(message["rank"], message["failed"])
            self.tell(message, but=rank)
        else:
            if not self._is_lost.is_set():
                self._lose(rank, None)
                self.tell({"failed": None, "rank": rank}, but=rank)
        self._ended[rank].set()


@final
class _Member(_Control):
    """Another rank's end of its socket to the first."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._rank = place.rank
        self._facts: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._hub, host, port = _knock(place)
        self._sending = threading.Lock()
        self._store = TCPStore(host, port, is_master=False, wait_for_workers=False)
        threading.Thread(target=self._listen, daemon=True, name="rank-0").start()

    def store(self) -> TCPStore:
        return self._store

    def told(self) -> Any:
        while True:
            with contextlib.suppress(queue.Empty):  # with a limit, so that signals are handled
                return self._facts.get(timeout=_POLL_S)
            self.raise_if_lost(0.0)

    def fail(self, failure: Mapping[str, Any]) -> None:
        self._say({"failed": dict(failure), "rank": self._rank})

    def leave(self) -> None:
        self._leaving.set()
        self._say({"left": self._rank})
        _close(self._hub)

    def _say(self, message: Mapping[str, Any]) -> None:
        with self._sending, contextlib.suppress(OSError):
            _send(self._hub, message)

    def _listen(self) -> None:
        for message in _messages(self._hub):
            if "fact" in message:
                self._facts.put(message["fact"])
            else:
                self._lose(message["rank"], message["failed"])
        self._lose(0, None)


def _listen(place: Place) -> socket.socket:
    """Raises RankLostError where all ports are taken."""
    for port in place.ports():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), backlog=place.world_size)
    raise RankLostError(f"ports {', '.join(map(str, place.ports()))}: all are taken on {socket.gethostname()}")


def _knock(place: Place) -> tuple[socket.socket, str, int]:
    """The socket to the first rank, its address, and the port of its store. Raises RankLostError."""
    deadline = time.monotonic() + JOIN_S
    hello = {"job": place.job, "rank": place.rank, "world_size": place.world_size}
    while time.monotonic() < deadline:
        for host in place.hosts:
            for port in place.ports():
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    hub = socket.create_connection((host, port), timeout=_TRY_S)
                    try:
                        _send(hub, hello)
                        hub.settimeout(_ANSWER_S)  # it may be listening to a stranger
                        store_port = int(json.loads(_line(hub))["store"])
                        _send(hub, {})
                        hub.settimeout(None)
                        return hub, host, store_port
                    except BaseException:
                        hub.close()
                        raise
        time.sleep(_POLL_S)
    raise RankLostError(f"the first rank was not found at {', '.join(place.hosts)} within {JOIN_S:.0f} s", rank=0)


def _send(to: socket.socket, message: Mapping[str, Any]) -> None:
    to.sendall(json.dumps(message).encode() + b"\n")


def _line(of: socket.socket) -> bytes:
    """A first line, not longer than what is said here is. Raises ConnectionError where there is none."""
    line = b""
    while not line.endswith(b"\n"):
        piece = of.recv(1)
        if not piece or len(line) > 1000:
            raise ConnectionError
        line += piece
    return line


def _messages(of: socket.socket) -> Iterator[dict[str, Any]]:
    """What comes, until the other end is closed."""
    with contextlib.suppress(OSError, ValueError), of.makefile("r", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
