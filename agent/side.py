"""A process beside the agent, for work that takes more of Python than of the machine.

Python runs one thread at a time. So what is many small system calls, to read small files or to
make them, goes to a process of its own once there is much of it: it inherits one open directory and
shared memory for the contents of a few batches, and is asked for one batch after the other over a
socket. One that ends early costs nothing but speed: its work is done in the agent as before.
"""

import contextlib
import gc
import mmap
import os
import queue
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, NoReturn, Protocol, TypeVar

import msgspec

from repository.errors import TidemarkError

# A batch's contents lie in one slot. Some are being filled or emptied while one is worked on.
SLOTS: Final = 3
SLOT_BYTES: Final = 5 * 512 * 1024
# What one batch brings lives until it is done, and none of it refers to itself: to look through it
# for what nobody can reach is a twentieth of a backup, and finds nothing.
GC_OBJECTS: Final = 100_000
_LENGTH: Final = struct.Struct(">I")
_STOP_SECONDS: Final = 5.0
_T = TypeVar("_T")


class SideGoneError(TidemarkError):
    """The process ended before its time. Nothing is lost: do its work here."""


class Greeting(msgspec.Struct, frozen=True, array_like=True):
    """What it says once it is ready."""


class Slot(NamedTuple):
    """A part of the shared memory, lent for one batch."""

    number: int
    room: memoryview


class Order(Protocol):
    """What it is asked for: a batch, whose contents lie in a slot or are to be put there."""

    @property
    def slot(self) -> int:
        """The slot's number."""
        ...


_Order = TypeVar("_Order", bound=Order)


class SideProcess:
    """It, from its start to its end. Used from many threads; batches wait their turn."""

    def __init__(self, module: str, root: int, setup: object) -> None:
        """Start it, without waiting until it is ready. `root`: the directory it works in.

        `module` calls `serve`. Raises SideGoneError where the system does not allow it.
        """
        self._sending = threading.Lock()
        self._receiving = threading.Condition()
        self._sent = self._received = 0
        self._ready = False
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(SLOTS):
            self._free.put(slot)
        with contextlib.ExitStack() as on_failure:
            try:
                memory = os.memfd_create("tidemark-side", os.MFD_CLOEXEC)
                on_failure.callback(os.close, memory)
                os.ftruncate(memory, SLOTS * SLOT_BYTES)
                self._memory = memoryview(mmap.mmap(memory, SLOTS * SLOT_BYTES))
                self._socket, theirs = socket.socketpair()
                on_failure.callback(self._socket.close)
                with theirs:
                    handed = (theirs.fileno(), root, memory)
                    self._process = subprocess.Popen(  # noqa: S603 - our own module
                        [sys.executable, "-P", "-m", module, *map(str, handed)],
                        pass_fds=handed,
                        stdin=subprocess.DEVNULL,
                    )
                _send(self._socket, setup)
            except OSError as error:
                raise SideGoneError(f"no {module} could be started: {error}") from error
            on_failure.pop_all()
            os.close(memory)

    def close(self) -> None:
        """End it. Nobody may be waiting for an answer any more."""
        self._socket.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:  # it waits for a disk; its end need not
            self._process.kill()

    @property
    def process_id(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def backlog(self) -> int:
        """Batches that it was sent and has not answered."""
        return self._sent - self._received

    def is_ready(self, wait_seconds: float = 0) -> bool:
        """Whether it has come up; until then its work is better done here."""
        if self._ready:
            return True
        with self._sending:
            # Another thread may have met it meanwhile, or given it up.
            if not self._ready and self._socket.fileno() >= 0:
                readable, _, _ = select.select([self._socket], [], [], wait_seconds)
                # An end that came instead of the greeting shows with the first batch.
                if readable:
                    with contextlib.suppress(OSError):
                        _receive(self._socket, Greeting)
                    self._ready = True
        return self._ready

    @contextlib.contextmanager
    def slot(self) -> Iterator[Slot]:
        """Lend a slot of the shared memory, as soon as one is free."""
        number = self._free.get()
        try:
            yield Slot(number, self._memory[number * SLOT_BYTES : (number + 1) * SLOT_BYTES])
        finally:
            self._free.put(number)

    def ask(self, order: Order, kind: type[list[_T]], count: int) -> list[_T]:
        """Its answers to a batch, one for each of so many. Raises SideGoneError.

        The next batch is sent while this one is worked on, so that it need not wait for us.
        """
        with self._sending:
            number = self._sent
            self._sent += 1
            with contextlib.suppress(OSError):  # whoever does not listen does not answer
                _send(self._socket, order)
        answers = self._take_turn(number, lambda: _receive(self._socket, kind))
        if answers is None or len(answers) != count:
            code = self._process.poll()
            raise SideGoneError(f"the process beside the agent ended with code {code}")
        return answers

    def _take_turn(self, number: int, receive: Callable[[], _T | None]) -> _T | None:
        """Receive once all answers before this one were: they come in the order of the batches."""
        with self._receiving:
            self._receiving.wait_for(lambda: self._received == number)
            try:
                return receive()
            except OSError:
                return None
            finally:
                self._received += 1
                self._receiving.notify_all()


class SideOnDemand:
    """Such processes, once there is enough for them to do. Used from many threads."""

    def __init__(
        self,
        start: Callable[[], SideProcess],
        log: Callable[[str, str], None],
        loss: str,
        *,
        worth_at: int,
        begins_at: int | None = None,
        count: int = 1,
    ) -> None:
        """`worth_at`: how much is done here before one is worth its start, if there are two cores.

        `begins_at` is the same whatever the machine. `loss`: what it is to be without one, for the
        log. `count`: how many there are to be.
        """
        if begins_at is None and len(os.sched_getaffinity(0)) > 1:  # else nothing is to be won
            begins_at = worth_at
        self._start = start
        self._log = log
        self._loss = loss
        self._count = count
        self._lock = threading.Lock()
        self._until = begins_at
        self.processes: list[SideProcess] = []
        """They, once they were worth their start."""

    def close(self) -> None:
        """End them, if there are any."""
        with self._lock:
            self._until = None
            processes, self.processes = self.processes, []
        for process in processes:
            process.close()

    def expect(self, wanted: int) -> None:
        """Take note of so much to do; starts them once that is worth it."""
        with self._lock:
            if self._until is None:
                return
            self._until -= wanted
            if self._until <= 0:
                self._until = None
                self._start_all()

    def at_hand(self, wait_seconds: float = 0) -> SideProcess | None:
        """The least busy of those that have come up, if any has.

        With a wait, what has not come up after so long is done without from now on.
        """
        with self._lock:
            processes = list(self.processes)
        ready = []
        for process in processes:
            if process.is_ready(wait_seconds):
                ready.append(process)
            elif wait_seconds:
                self.do_without(process, SideGoneError("a process beside the agent does not start"))
        return min(ready, key=lambda process: process.backlog, default=None)

    def _start_all(self) -> None:
        try:
            for _ in range(self._count):
                self.processes.append(self._start())
        except SideGoneError as error:
            self._warn(error)

    def do_without(self, process: SideProcess, error: SideGoneError) -> None:
        """Go on without one, since it has gone; says so once."""
        with self._lock:
            is_news = process in self.processes
            if is_news:
                self.processes.remove(process)
        if is_news:
            self._warn(error)
            process.close()

    def _warn(self, error: SideGoneError) -> None:
        self._log("warning", f"{error.message}; {self._loss}")


def serve(
    setup_kind: type[_T],
    order_kind: type[_Order],
    begin: Callable[[_T, int], Callable[[_Order, memoryview], Sequence[object]]],
) -> NoReturn:
    """Be such a process, until the agent has heard enough or has ended.

    `begin` is called with the setup and the open directory, and gives what answers one batch.
    """
    _answer(setup_kind, order_kind, begin)
    # The agent waits for this end, and to take apart what was loaded takes half as long as a start.
    os._exit(0)


def _answer(
    setup_kind: type[_T],
    order_kind: type[_Order],
    begin: Callable[[_T, int], Callable[[_Order, memoryview], Sequence[object]]],
) -> None:
    theirs, root, shared = map(int, sys.argv[1:])
    # A Ctrl-C at a terminal reaches the whole group; the agent says when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.set_threshold(GC_OBJECTS)
    memory = mmap.mmap(shared, SLOTS * SLOT_BYTES)
    with socket.socket(fileno=theirs) as agent, contextlib.suppress(ConnectionError):
        setup = _receive(agent, setup_kind)
        if setup is None:
            return
        answer = begin(setup, root)
        _send(agent, Greeting())
        while (order := _receive(agent, order_kind)) is not None:
            start = order.slot * SLOT_BYTES
            with memoryview(memory)[start : start + SLOT_BYTES] as room:
                _send(agent, answer(order, room))


def _send(to: socket.socket, message: object) -> None:
    """Send a message, however long. Raises OSError."""
    encoded = msgspec.msgpack.encode(message)
    to.sendall(_LENGTH.pack(len(encoded)) + encoded)


def _receive(source: socket.socket, kind: type[_T]) -> _T | None:
    """Wait for a message; None where the other side has ended. Raises OSError."""
    head = _receive_bytes(source, _LENGTH.size)
    body = _receive_bytes(source, *_LENGTH.unpack(head)) if head else None
    return None if body is None else msgspec.msgpack.decode(body, type=kind)


def _receive_bytes(source: socket.socket, length: int) -> bytearray | None:
    received = bytearray(length)
    rest = memoryview(received)
    while rest:
        count = source.recv_into(rest)
        if not count:
            return None
        rest = rest[count:]
    return received
