"""Names that are one inode in the snapshot, collected as they go by: one file in the end. Pure.

Each name of an inode has an entry of its own, and those may differ: names are read one after the
other, and what is cut as a database under one name need not be under another; a change in between
shows in those read later; a name that cannot be read keeps what it had. All of them are restored as
the newest.
"""

from collections.abc import Iterator
from typing import NamedTuple

from agent.replacing import Standing
from repository.entries import Entry, Flag

# A last change so young that its time proves nothing yet is written as 0, and is the newest.
_YOUNGEST = 1 << 63


class Name(NamedTuple):
    """A name of an inode, and what stands at it."""

    key: bytes
    standing: Standing | None


class Inode:
    """What several names stand for."""

    __slots__ = ("entry", "is_torn", "names")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        """The newest of its names' entries."""
        self.names: list[Name] = []
        """In order of keys."""
        self.is_torn = False
        """Whether its names are not all the same in the snapshot."""

    def add(self, name: Name, entry: Entry) -> None:
        """Take note of another name."""
        self.names.append(name)
        self.is_torn = self.is_torn or _visible(entry) != _visible(self.entry)
        if _newness(entry) > _newness(self.entry):
            self.entry = entry


class Inodes:
    """The inodes that have several names, in the order of their first ones."""

    def __init__(self) -> None:
        self._inodes: list[Inode] = []
        self._by_number: dict[int, list[Inode]] = {}

    def add(self, key: bytes, entry: Entry, standing: Standing | None) -> None:
        """Take note of a name, in order of keys."""
        same_number = self._by_number.setdefault(entry.inode, [])
        inode = next((each for each in same_number if is_one_inode(each.entry, entry)), None)
        if inode is None:
            inode = Inode(entry)
            same_number.append(inode)
            self._inodes.append(inode)
        inode.add(Name(key, standing), entry)

    def __iter__(self) -> Iterator[Inode]:
        """Each once."""
        return iter(self._inodes)


def has_several_names(entry: Entry) -> bool:
    """Whether an entry that is no directory's may be one of several of its inode."""
    return entry.links > 1 and entry.inode != 0


def is_one_inode(one: Entry, other: Entry) -> bool:
    """Whether two names with one inode number were names of one thing, and not of two in turn."""
    if one.type is not other.type:
        return False
    if one.generation and other.generation:
        return one.generation == other.generation
    # Where the filesystem gives no generations, only what is the same is surely one.
    if (one.mtime_ns, one.size, one.target, one.device) != (
        other.mtime_ns,
        other.size,
        other.target,
        other.device,
    ):
        return False
    if one.ctime_ns and other.ctime_ns:
        return one.ctime_ns == other.ctime_ns
    return _content(one) == _content(other)


def _content(entry: Entry) -> list[tuple[bytes, int, int]]:
    """What a content is, wherever it lies: the same chunk may have been stored twice."""
    content = entry.content
    if content is None:
        return []
    if content.list is not None:
        return [(content.list.id, 0, 0)]
    return [(extent.id, extent.skip, extent.length) for extent in content.extents]


def _newness(entry: Entry) -> tuple[bool, bool, int]:
    return (
        not entry.flags & Flag.STALE,
        not entry.flags & Flag.FUZZY,
        entry.ctime_ns or _YOUNGEST,
    )


def _visible(entry: Entry) -> tuple[object, ...]:
    """What is restored, but for the content, which may be cut in two ways and be the same."""
    return (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, entry.xattrs)
