"""What may have changed in one volume since a moment. Pure."""

import msgspec


class Dirty(msgspec.Struct):
    """Where a backup has to look. Too much costs time; too little would lose data."""

    names: set[bytes] = msgspec.field(default_factory=set)
    """Keys that something happened to: made, removed, renamed, written, or their attributes set."""
    subtrees: set[bytes] = msgspec.field(default_factory=set)
    """Keys of directories that came there as they are: nothing beneath them is known."""
    inodes: set[int] = msgspec.field(default_factory=set)
    """Inode numbers of what changed under a name that is not its own any more; all of its names
    count."""

    def size(self) -> int:
        """How many places there are."""
        return len(self.names) + len(self.subtrees) + len(self.inodes)

    def merge(self, other: "Dirty") -> None:
        """Add what another one holds."""
        self.names |= other.names
        self.subtrees |= other.subtrees
        self.inodes |= other.inodes
