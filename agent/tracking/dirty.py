"""What may have changed in one volume since a moment. Pure."""

from typing import Final

import msgspec

# More cost more to look at one by one than a sweep of a million files does, and some 50 MB.
CAP: Final = 250_000


class Dirty(msgspec.Struct):
    """Where a backup has to look. Too much costs time; too little would lose data."""

    names: set[bytes] = msgspec.field(default_factory=set)
    """Keys that something happened to: made, removed, renamed, written, or their attributes set.

    A directory in which a name was made, removed or renamed counts as well: its times changed.
    """
    subtrees: set[bytes] = msgspec.field(default_factory=set)
    """Keys of directories that came there as they are: nothing beneath them is known."""
    inodes: set[int] = msgspec.field(default_factory=set)
    """Inode numbers of what changed and may have other names than those that were told.

    Whatever name the manifest has for one of them counts. It may be in another volume: then no
    name of this one has that number.
    """

    def size(self) -> int:
        """How many places there are."""
        return len(self.names) + len(self.subtrees) + len(self.inodes)

    def merge(self, other: "Dirty") -> None:
        """Add what another one holds."""
        self.names |= other.names
        self.subtrees |= other.subtrees
        self.inodes |= other.inodes
