"""Reading small files in a process of its own, beside the one that stores them.

To open, check, read and close a small file takes more of Python than all that is done with its
content afterwards. So a backup that meets many of them starts a reader (`reader_main.py`, side.py),
which is given the volume's open root, and nothing else of the volume.
"""

import contextlib
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec

from agent.attributes import Had
from agent.errors import SourceError
from agent.reading import Content, Stat, VanishedError
from agent.side import SideProcess
from repository.entries import Attributes
from repository.ids import ChunkId


class Setup(msgspec.Struct, frozen=True, array_like=True):
    """What a reader must know before the first batch."""

    id_key: bytes
    """The key of the ids of data chunks."""
    size_bytes_max: int
    """Larger files are not read, but handed back."""
    scanned_ns: int | None
    """When suspects were looked for."""


class Wanted(NamedTuple):
    """A file to be read."""

    key: bytes
    paged: bool
    """Whether it is cut into the blocks of a paged file."""
    suspect: bool = False
    """Whether somebody may write to it without an event."""


class Order(msgspec.Struct, frozen=True, array_like=True):
    """A batch to be read into a slot."""

    slot: int
    files: list[Wanted]


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
    refused: list[bytes] = []
    generation: int = 0
    chunk_ids: list[ChunkId] = []
    message: str = ""
    hint: str = ""


class SmallFile(msgspec.Struct, frozen=True, gc=False):
    """A file as the reader found it, and the ids of its chunks."""

    content: Content
    chunk_ids: list[ChunkId]


# What becomes of each file: its content, or why it could not be read, or NOT_SMALL or NO_ROOM.
Read = SmallFile | SourceError | Outcome


def start_reader(root: int, setup: Setup) -> SideProcess:
    """A reader that comes up meanwhile. `root`: the volume's open directory. SideGoneError."""
    return SideProcess("agent.reader_main", root, setup)


@contextlib.contextmanager
def read_by(reader: SideProcess, files: Sequence[Wanted]) -> Iterator[list[Read]]:
    """Read a batch, once the reader is ready.

    Within the context the contents are views of shared memory. Raises SideGoneError.
    """
    with reader.slot() as slot:
        order = Order(slot.number, list(files))
        yield _taken_apart(reader.ask(order, list[Result], len(files)), slot.room)


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
                Had(result.attributes, result.refused),
                result.generation,
            )
            found.append(SmallFile(content, result.chunk_ids))
        elif result.outcome is Outcome.VANISHED:
            found.append(VanishedError(result.message, hint=result.hint))
        elif result.outcome is Outcome.FAILED:
            found.append(SourceError(result.message, hint=result.hint))
        else:
            found.append(result.outcome)
    return found
