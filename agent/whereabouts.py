"""Where a volume's last manifest has an inode, asked for the same few inodes at every backup.

Files that may be written to without an event are known by number alone, and most of them lie in no
volume, or always at the same key. To look through a manifest of a million entries takes a second;
so what was found is kept for as long as nothing says otherwise, and a few bits for each inode tell
which ones are not worth looking for. Whoever looks at a name says so; what stays is true of every
later manifest, whether the backup is committed or not.

Where events do not tell of inodes, files with several names are asked for at every backup, too: one
may have been changed through a name that the manifest never had.
"""

from collections.abc import Collection, Iterator
from typing import Final

from agent.last import LastManifest
from repository.entries import EntryType

# Numbers of a filesystem's inodes lie close together, so that the rest of a division spreads them.
# With so many bits for each, one in 32 of others is looked for in vain, once.
_BITS_PER_INODE: Final = 32
_BITS_MIN: Final = 1 << 16
# With more files of several names, some 20 MiB, everything is looked at instead.
_LINKED_MAX: Final = 100_000
_DIRECTORY: Final = EntryType.DIRECTORY.value


class Whereabouts:
    """Of one volume. Not for two threads at once."""

    def __init__(self, *, linked: bool = False) -> None:
        """With `linked`, all files that have several names count as asked for."""
        self._bits = bytearray()
        """Which inodes the manifest may have; empty before the first look."""
        self._keys: dict[int, list[bytes]] = {}
        """Where an inode is, of some."""
        self._wants_linked = linked
        self._linked: set[int] = set()
        """Inodes that have had several names."""

    @property
    def is_everywhere(self) -> bool:
        """Whether too many are asked for to look for each."""
        return len(self._linked) > _LINKED_MAX

    def keys_of(self, inodes: Collection[int], last: LastManifest, files: int) -> Iterator[bytes]:
        """Yield all keys that the manifest has of these inodes. May raise LostStateError.

        `files`: how many it has, more or less.
        """
        if not inodes and not self._wants_linked:
            return
        if not self._bits:
            self._learn(last, files)
        wanted = self._linked.union(inodes) if not self.is_everywhere else inodes
        here = [inode for inode in wanted if self._may_have(inode)]
        found: dict[int, list[bytes]] = {inode: [] for inode in here if inode not in self._keys}
        for key, stat in last.of_inodes(found):
            found[stat.inode].append(key)
        self._keys |= found
        for inode in here:
            yield from self._keys[inode]

    def moved(self, inode: int, links: int) -> None:
        """Take note that an inode has come to a name, or gone from one, and how many it has."""
        if self._bits:
            self._keys.pop(inode, None)
            self._add(inode, links)

    def _learn(self, last: LastManifest, files: int) -> None:
        self._bits = bytearray(max(_BITS_MIN, files * _BITS_PER_INODE) // 8)
        for leaf in last.leaves():
            for _, stat in leaf.stats:
                self._add(stat.inode, 1 if stat.type == _DIRECTORY else stat.links)

    def _add(self, inode: int, links: int) -> None:
        if links > 1 and self._wants_linked:
            self._linked.add(inode)
        bit = inode % (8 * len(self._bits))
        self._bits[bit >> 3] |= 1 << (bit & 7)

    def _may_have(self, inode: int) -> bool:
        bit = inode % (8 * len(self._bits))
        return bool(self._bits[bit >> 3] & 1 << (bit & 7))
