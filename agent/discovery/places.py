"""What lies at the paths that an engine names: looked at, never opened."""

import enum
import os
import stat
from collections.abc import Iterable

import msgspec


class Kind(enum.Enum):
    """What a path leads to."""

    DIRECTORY = "directory"
    FILE = "file"
    SOCKET = "socket"
    PIPE = "pipe"
    DEVICE = "device"
    ABSENT = "absent"
    UNREADABLE = "unreadable"


class Place(msgspec.Struct, frozen=True):
    """A path as the agent sees it."""

    kind: Kind
    real: bytes
    """The path without links, as far as it exists."""


_KINDS = {
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFREG: Kind.FILE,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFIFO: Kind.PIPE,
    stat.S_IFCHR: Kind.DEVICE,
    stat.S_IFBLK: Kind.DEVICE,
}


def look_at(paths: Iterable[str]) -> dict[str, Place]:
    """Look at each path. Blocks, for as long as a dead network filesystem does."""
    return {path: _place(path) for path in paths}


def _place(path: str) -> Place:
    try:
        exact = os.fsencode(path)
        real = os.path.realpath(exact)
    except (OSError, ValueError):  # a byte that no path has
        return Place(Kind.UNREADABLE, path.encode("utf-8", "replace"))
    try:
        kind = _KINDS[stat.S_IFMT(os.lstat(real).st_mode)]
    except (FileNotFoundError, NotADirectoryError):
        kind = Kind.ABSENT
    except (OSError, KeyError):  # a link that leads to itself, too
        kind = Kind.UNREADABLE
    return Place(kind, real)
