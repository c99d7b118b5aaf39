"""Making small files in processes of their own, beside the one that fetches.

To open a frame, to check what is in it and to make a file of each chunk takes more of the kernel,
of zstd and of the interpreter than all that is done before, and the interpreter lets nobody else do
anything meanwhile. So a restore that makes many files starts writers (`writer_main.py`, side.py),
which are given the target's open directory and the frames as they were fetched, and work as
`writing.py` does everywhere. Only files whose names are free go there: what takes the place of
something is made here.
"""

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from agent.side import SideProcess
from repository.entries import Entry
from repository.frames import FrameIdentity
from repository.ids import RepositoryId
from repository.keys import FrameKey


class Setup(msgspec.Struct, frozen=True, array_like=True):
    """What a writer must know before the first batch."""

    path: bytes
    """The target, for messages."""
    repository: RepositoryId
    id_key: bytes
    """The key of data chunks' ids, to check what comes out of a frame."""


class FrameOrder(msgspec.Struct, frozen=True, array_like=True):
    """What is to be made of a frame."""

    length: int
    """Of the sealed frame, in bytes."""
    key: FrameKey
    identity: FrameIdentity
    files: list[tuple[bytes, Entry]]
    """The key and entry of each; the entry's one extent says where its content is."""


class Order(msgspec.Struct, frozen=True, array_like=True):
    """A batch to be made from a slot, in which sealed frames lie one after the other."""

    slot: int
    frames: list[FrameOrder]


class Outcome(IntEnum):
    """What became of a file."""

    MADE = 0
    FAILED = 1
    FULL = 2
    """The target takes no more."""
    DAMAGED = 3
    """What was stored for it is not what it should be."""


class Made(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one file of a batch."""

    outcome: Outcome = Outcome.MADE
    identity: tuple[int, int] | None = None
    """Device and inode of a file that has several names."""
    warnings: list[str] = []
    message: str = ""
    hint: str = ""


def start_writer(root: int, setup: Setup) -> SideProcess:
    """A writer that comes up meanwhile. `root`: the target's open directory. SideGoneError."""
    return SideProcess("agent.writer_main", root, setup)


def write_by(writer: SideProcess, frames: Sequence[tuple[memoryview, FrameOrder]]) -> list[Made]:
    """Make the files of these sealed frames, which fit a slot together. Raises SideGoneError."""
    with writer.slot() as slot:
        position = 0
        for sealed, frame in frames:
            end = position + frame.length
            slot.room[position:end] = sealed
            position = end
        order = Order(slot.number, [frame for _, frame in frames])
        count = sum(len(frame.files) for _, frame in frames)
        return writer.ask(order, list[Made], count)
