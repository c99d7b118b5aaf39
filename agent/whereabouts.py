"""Where a volume's last manifest has an inode, asked for the same few inodes at every backup.

Files that may be written to without an event are known by number alone, and most of them lie in no
volume, or always at the same key. To look through a manifest of a million entries takes a second;
so what was found is kept for as long as nothing says otherwise, and a few bits for each inode tell
which ones are not worth looking for. Whoever gives an inode a name in the manifest, or takes it,
says so; what stays is true of every later manifest, whether the backup is committed or not. A sweep
comes past all of them anyhow, and takes note as it goes.

Where events do not tell of inodes, files with several names are asked for at every backup, too: one
may have been changed through a name that the manifest never had.
"""

from array import array
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from agent.last import LastManifest
from repository.entries import EntryType
from repository.walking import Leaf

# Numbers of a filesystem's inodes lie close together, so that the rest of a division spreads them.
# With so many bits for each, one in 32 of others is looked for in vain, once.
_BITS_PER_INODE: Final = 32
_BITS_MIN: Final = 1 << 16
# With more files of several names, some 20 MiB, everything is looked at instead.
_LINKED_MAX: Final = 100_000
_DIRECTORY: Final = EntryType.DIRECTORY.value


class _Inodes:
    """All inodes that a manifest may have, and which of them have several names, if wanted.

    A sweep passes a million here: so whole leaves are taken at a time.
    """

    def __init__(self, *, linked: bool) -> None:
        self.all = array("Q")
        self.linked: set[int] = set()
        self._wants_linked = linked

    def add(self, inode: int, links: int) -> None:
        self.all.append(inode)
        if links > 1 and self._wants_linked:
            self.linked.add(inode)

    def of_leaves(self, leaves: Iterable[Leaf]) -> Iterator[Leaf]:
        """Take in leaves, and pass them on."""
        for leaf in leaves:
            self.all.extend([stat.inode for _, stat in leaf.stats])
            if self._wants_linked:
                self.linked.update(
                    stat.inode
                    for _, stat in leaf.stats
                    if stat.links > 1 and stat.type != _DIRECTORY
                )
            yield leaf


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
        self._anew: _Inodes | None = None
        """What a sweep has come past, until it ends."""

    @property
    def is_everywhere(self) -> bool:
        """Whether too many are asked for to look for each."""
        return len(self._linked) > _LINKED_MAX

    def keys_of(self, inodes: Collection[int], last: LastManifest) -> Iterator[bytes]:
        """Yield all keys that the manifest has of these inodes. May raise LostStateError."""
        if not inodes and not self._wants_linked:
            return
        if not self._bits:
            passed = _Inodes(linked=self._wants_linked)
            for _ in passed.of_leaves(last.leaves()):
                pass
            self._learn(passed)
        wanted = self._linked.union(inodes) if not self.is_everywhere else inodes
        here = [inode for inode in wanted if self._may_have(inode)]
        found: dict[int, list[bytes]] = {inode: [] for inode in here if inode not in self._keys}
        for key, stat in last.of_inodes(found):
            found[stat.inode].append(key)
        self._keys |= found
        for inode in here:
            yield from self._keys[inode]

    def begin_anew(self, leaves: Iterable[Leaf]) -> Iterator[Leaf]:
        """Pass on the leaves of the last manifest, all of which a sweep comes past.

        They and whatever is told of until `end_anew` are what the next one may have.
        """
        self._anew = _Inodes(linked=self._wants_linked)
        return self._anew.of_leaves(leaves)

    def end_anew(self) -> None:
        """Take note that the sweep has come past everything."""
        if self._anew is not None:
            self._learn(self._anew)
            self._anew = None

    def told(self, inode: int, links: int) -> None:
        """Take note that the manifest gives an inode a name, or takes one, or has other links."""
        if self._anew is not None:
            self._anew.add(inode, links)
        if self._bits:
            self._keys.pop(inode, None)
            self._add(inode)
            if links > 1 and self._wants_linked:
                self._linked.add(inode)

    def _learn(self, inodes: _Inodes) -> None:
        """Take these for all that the manifest may have."""
        self._keys.clear()
        bits = bytearray(max(_BITS_MIN, len(inodes.all) * _BITS_PER_INODE) // 8)
        size = 8 * len(bits)
        for inode in inodes.all:  # as `_add` does it, without a call for each
            bit = inode % size
            bits[bit >> 3] |= 1 << (bit & 7)
        self._bits, self._linked = bits, inodes.linked

    def _add(self, inode: int) -> None:
        bit = inode % (8 * len(self._bits))
        self._bits[bit >> 3] |= 1 << (bit & 7)

    def _may_have(self, inode: int) -> bool:
        bit = inode % (8 * len(self._bits))
        return bool(self._bits[bit >> 3] & 1 << (bit & 7))
