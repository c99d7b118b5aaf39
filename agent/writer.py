"""Making small files in a process of its own, beside the one that fetches and checks them.

To make a file, to write it and to give it its metadata takes more of the kernel than all that is
done with its content before, and the interpreter lets nobody else do that meanwhile. So a restore
that makes many of them starts a writer (`writer_main.py`, side.py), which is given the target's
open directory and works in it as `writing.py` does everywhere. Only files whose names are free go
there: what takes the place of something is made here.
"""

from collections.abc import Sequence

import msgspec
from msgspec import structs

from agent.side import SideProcess
from repository.entries import Entry


class Setup(msgspec.Struct, frozen=True, array_like=True):
    """What a writer must know before the first batch."""

    path: bytes
    """The target, for messages."""


class Order(msgspec.Struct, frozen=True, array_like=True):
    """A batch to be made from a slot, in which contents lie one after the other."""

    slot: int
    files: list[tuple[bytes, Entry]]
    """The key and entry of each, without what tells where its content is stored."""


class Made(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one file of a batch."""

    identity: tuple[int, int] | None = None
    """Device and inode of a file that has several names."""
    warnings: list[str] = []
    error: str = ""
    """Why there is none, or empty."""
    hint: str = ""
    is_full: bool = False
    """Whether the error is that the target takes no more."""


def start_writer(root: int, setup: Setup) -> SideProcess:
    """A writer that comes up meanwhile. `root`: the target's open directory. SideGoneError."""
    return SideProcess("agent.writer_main", root, setup)


def write_by(writer: SideProcess, files: Sequence[tuple[bytes, Entry, memoryview]]) -> list[Made]:
    """Make files of these keys, entries and contents, which fit a slot. Raises SideGoneError."""
    with writer.slot() as slot:
        position = 0
        for _, _, data in files:
            end = position + len(data)
            slot.room[position:end] = data
            position = end
        told = [(key, structs.replace(entry, content=None)) for key, entry, _ in files]
        return writer.ask(Order(slot.number, told), list[Made], len(files))
