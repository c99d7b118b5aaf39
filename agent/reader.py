"""Reading small files in a process of its own, beside the one that stores them.

Python runs one thread at a time, and to open, check, read and close a small file takes more of it
than all that is done with its content afterwards. So a backup that meets many of them starts a
reader (`reader_main.py`), which is given the volume's open root, and nothing else of the volume,
and puts contents into memory that both share. A reader that ends early costs nothing but speed:
files are then read here, as before it was there.
"""

import contextlib
import mmap
import os
import queue
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final, TypeVar

import msgspec

from agent.errors import SourceError
from agent.reading import Content, Stat, VanishedError
from repository.entries import Attributes
from repository.errors import TidemarkError
from repository.ids import ChunkId

# A batch's contents lie in one slot. Some are being stored while the next one is filled.
SLOTS: Final = 3
SLOT_BYTES: Final = 5 * 512 * 1024
_LENGTH: Final = struct.Struct(">I")
_STOP_SECONDS: Final = 5.0
_T = TypeVar("_T")


class Setup(msgspec.Struct, frozen=True, array_like=True):
    """What a reader must know before the first batch."""

    id_key: bytes
    """The key of the ids of data chunks."""
    size_bytes_max: int
    """Larger files are not read, but handed back."""


class Greeting(msgspec.Struct, frozen=True, array_like=True):
    """What a reader says once it is ready."""


class Order(msgspec.Struct, frozen=True, array_like=True):
    """A batch to be read into a slot."""

    slot: int
    files: list[tuple[bytes, bool]]
    """The key of each, and whether it is cut into the blocks of a paged file."""


class Outcome(IntEnum):
    """What became of one file of a batch."""

    READ = 0
    VANISHED = 1
    FAILED = 2
    NOT_SMALL = 3
    NO_ROOM = 4  # the slot is full: files have grown since they were listed


class Result(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file of a batch. Contents lie in the slot one after the other, in the batch's order."""

    outcome: Outcome
    stat: Stat | None = None
    length: int = 0
    fuzzy: bool = False
    settled: bool = False
    bytes_read: int = 0
    attributes: Attributes | None = None
    chunk_ids: list[ChunkId] = []
    message: str = ""
    hint: str = ""


class ReaderGoneError(TidemarkError):
    """The reader ended before its time. Nothing is lost: read the files here."""


class SmallFile(msgspec.Struct, frozen=True, gc=False):
    """A file as the reader found it, and the ids of its chunks."""

    content: Content
    chunk_ids: list[ChunkId]


# What becomes of each file: its content, or why it could not be read, or NOT_SMALL or NO_ROOM.
Read = SmallFile | SourceError | Outcome


class ReaderProcess:
    """A reader, from its start to its end. Used from many threads; batches wait their turn."""

    def __init__(self, root: int, setup: Setup) -> None:
        """Start it, without waiting until it is ready. `root`: the volume's open directory.

        Raises ReaderGoneError where the system does not allow it.
        """
        self._orders = threading.Lock()
        self._ready = False
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(SLOTS):
            self._free.put(slot)
        with contextlib.ExitStack() as on_failure:
            try:
                memory = os.memfd_create("tidemark-reader", os.MFD_CLOEXEC)
                on_failure.callback(os.close, memory)
                os.ftruncate(memory, SLOTS * SLOT_BYTES)
                self._memory = memoryview(mmap.mmap(memory, SLOTS * SLOT_BYTES))
                self._socket, theirs = socket.socketpair()
                on_failure.callback(self._socket.close)
                with theirs:
                    handed = (theirs.fileno(), root, memory)
                    self._process = subprocess.Popen(  # noqa: S603 - our own module
                        [sys.executable, "-P", "-m", "agent.reader_main", *map(str, handed)],
                        pass_fds=handed,
                        stdin=subprocess.DEVNULL,
                    )
                send(self._socket, setup)
            except OSError as error:
                raise ReaderGoneError(f"no reader could be started: {error}") from error
            on_failure.pop_all()
            os.close(memory)

    def close(self) -> None:
        """End the reader. Nobody may be reading any more."""
        self._socket.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:  # it waits for a disk; its end need not
            self._process.kill()

    @property
    def process_id(self) -> int:
        """The reader's."""
        return self._process.pid

    def is_ready(self, wait_seconds: float = 0) -> bool:
        """Whether it has come up; until then files are better read here."""
        if not self._ready:
            with self._orders:
                readable, _, _ = select.select([self._socket], [], [], wait_seconds)
                # An end that came instead of the greeting shows when a batch is read.
                if readable and not self._ready:
                    receive(self._socket, Greeting)
                    self._ready = True
        return self._ready

    @contextlib.contextmanager
    def read(self, files: Sequence[tuple[bytes, bool]]) -> Iterator[list[Read]]:
        """Read a batch of (key, whether it is cut as a paged file), once the reader is ready.

        Within the context the contents are views of shared memory. Raises ReaderGoneError.
        """
        slot = self._free.get()
        try:
            with self._orders:
                results = self._ask(Order(slot, list(files)))
            room = self._memory[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
            yield _taken_apart(results, room)
        finally:
            self._free.put(slot)

    def _ask(self, order: Order) -> list[Result]:
        try:
            send(self._socket, order)
            results = receive(self._socket, list[Result])
        except OSError as error:
            raise ReaderGoneError(f"the reader does not answer: {error}") from error
        if results is None or len(results) != len(order.files):
            raise ReaderGoneError(f"the reader ended with code {self._process.poll()}")
        return results


def _taken_apart(results: Sequence[Result], room: memoryview) -> list[Read]:
    found: list[Read] = []
    position = 0
    for result in results:
        if result.outcome is Outcome.READ and result.stat is not None:
            data = room[position : position + result.length]
            position += result.length
            content = Content(
                data,
                result.stat,
                result.fuzzy,
                result.settled,
                result.bytes_read,
                result.attributes,
            )
            found.append(SmallFile(content, result.chunk_ids))
        elif result.outcome is Outcome.VANISHED:
            found.append(VanishedError(result.message, hint=result.hint))
        elif result.outcome is Outcome.FAILED:
            found.append(SourceError(result.message, hint=result.hint))
        else:
            found.append(result.outcome)
    return found


def send(to: socket.socket, message: object) -> None:
    """Send a message, however long. Raises OSError."""
    encoded = msgspec.msgpack.encode(message)
    to.sendall(_LENGTH.pack(len(encoded)) + encoded)


def receive(source: socket.socket, kind: type[_T]) -> _T | None:
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
