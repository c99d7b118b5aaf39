"""The rescan: a volume looked at only where something may have changed since the last manifest.

It is the sweep's walk with other names to visit. A directory that the manifest has, with the same
inode, is not listed: of it the walk visits the names that are dirty, or lead to one. Any other
directory, and one that came as it is, is swept against what the manifest has at its key. What is on
the way is compared, too: to look is cheap, and a directory changes with what is in it.

Of the manifest the walk has at hand what lies at and beneath the name it has come to. That goes by
itself if the name is gone, and stays if the name leads to a directory that is not listed.
"""

import itertools
import stat
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Final

from msgspec import structs
from typing_extensions import override

from agent.beneath import Tree
from agent.last import LastManifest, Stats
from agent.sweep import Batch, Found, Level, Walk, is_unchanged
from agent.tracking.dirty import Dirty
from repository.entries import ROOT_KEY, SEPARATOR, Entry, EntryStat, EntryType, is_plain

# Bare numbers, as in EntryStat.
_DIRECTORY: Final = EntryType.DIRECTORY.value
# Names of inodes that have several: with more of them, about 20 MiB, all is looked at instead.
_NAMES_MAX: Final = 100_000
# So many batches are held, some MiB, lest all be looked at twice where that tells nothing new.
_HELD_MAX: Final = 16
# Files that have gone and may be found elsewhere, about 20 MiB; further ones are read again.
_GONE_MAX: Final = 100_000


def rescan(  # noqa: PLR0913 - as a sweep, with what it needs to know of the last one
    tree: Tree,
    dirty: Dirty,
    last: LastManifest,
    totals: tuple[int, int],
    *,
    excludes: frozenset[tuple[int, int]] = frozenset(),
    is_canceled: Callable[[], bool] = lambda: False,
    scratch: str | None = None,
) -> Generator[Batch, None, None]:
    """Yield what differs from the last manifest in the places of a dirty set, as a sweep does.

    `totals`: files and bytes that the last manifest has. What of it was not looked at counts as
    unchanged. The rest is as for `sweep`; besides, LostStateError.
    """
    places = _Places(dirty.names, dirty.subtrees)
    first = _PartialWalk(tree, places, last, excludes, scratch)
    survey, held = _Survey(), list[Batch]()
    for batch in first.batches(is_canceled):
        survey.add(batch)
        if len(held) < _HELD_MAX:
            held.append(batch)
        yield Batch()  # so that whoever waits sees that it goes on
    rest = _Rest(*totals)
    rest.take(survey.files, survey.bytes)
    found: Iterable[Batch] = held
    others = first.linked | survey.linked | dirty.inodes
    if others:
        places = _with_names_of(others, dirty, last, rest)
    if others or len(held) == _HELD_MAX:
        found = _PartialWalk(tree, places, last, excludes, scratch).batches(is_canceled)
    yield rest.batch()
    given, rest = rest, _Rest(*totals)
    for batch in found:
        rest.take(*_looked_at(batch))
        batch.found = [_recognised(each, survey.gone, last) for each in batch.found]
        yield batch
    # What was looked at by several names' sake was guessed; and the volume goes on changing.
    yield _Rest(rest.files - given.files, rest.bytes - given.bytes).batch()


class _Places:
    """The keys that are looked at, in order. Those that no file can have are left out."""

    def __init__(self, names: Iterable[bytes], subtrees: Iterable[bytes]) -> None:
        self.subtrees = frozenset(filter(is_plain, subtrees))
        self._keys = sorted(self.subtrees.union(filter(is_plain, names)))

    def names_in(self, key: bytes) -> Iterator[bytes]:
        """The names in a directory that are looked at, or lead to one that is; sorted."""
        prefix = key + SEPARATOR if key else b""
        keys = self._keys
        index = bisect_left(keys, prefix or b"\x01")
        while index < len(keys) and keys[index].startswith(prefix):
            name = keys[index][len(prefix) :].partition(SEPARATOR)[0]
            yield name
            index = bisect_left(keys, prefix + name + b"\x01", index)


class _PartialWalk(Walk):
    """A walk that looks at some places only."""

    def __init__(
        self,
        tree: Tree,
        places: _Places,
        last: LastManifest,
        excludes: frozenset[tuple[int, int]],
        scratch: str | None,
    ) -> None:
        super().__init__(tree, (), excludes, scratch)
        self._places = places
        self._last = last
        self.linked: set[int] = set()
        """Inodes that had several names, of what the manifest has where the walk has been."""

    @override
    def _reach(self, key: bytes) -> None:
        self._old = itertools.chain.from_iterable(self._within(key))
        self._advance()

    def _within(self, key: bytes) -> Iterator[Stats]:
        for leaf, stats in self._last.within(key):
            self._leaf = leaf
            self.linked.update(
                old.inode for _, old in stats if old.links > 1 and old.type != _DIRECTORY
            )
            yield stats

    @override
    def _names(self, level: Level, upper: Level | None) -> Iterator[bytes]:
        whole = (upper is not None and not upper.is_partial) or level.key in self._places.subtrees
        if whole or not self._is_known(level):
            return super()._names(level, upper)
        level.is_partial = True
        self._old = iter(())  # what is beneath stays, but for what is looked at
        return self._places.names_in(level.key)

    def _is_known(self, level: Level) -> bool:
        """Whether a directory is the one that the manifest has at its key."""
        old = self._old_stat
        if old is None or self._old_key != level.key:
            return False
        return old.type == _DIRECTORY and old.inode == level.identity[1]


class _Survey:
    """What a first look tells: what must be looked at besides, and what may only have moved."""

    def __init__(self) -> None:
        self.files = 0
        """Of the manifest, of anything but directories, that were looked at."""
        self.bytes = 0
        self.linked: set[int] = set()
        """Inodes that have several names by now."""
        self.gone: dict[int, bytes] = {}
        """Inodes of files that are not where the manifest has them, and where that is."""

    def add(self, batch: Batch) -> None:
        """Take note of what was found."""
        files, size = _looked_at(batch)
        self.files += files
        self.bytes += size
        for found in batch.found:
            if found.stat.st_nlink > 1 and not stat.S_ISDIR(found.stat.st_mode):
                self.linked.add(found.stat.st_ino)
            if found.old is not None and found.old.inode != found.stat.st_ino:
                self._add_gone(found.key, found.old)
        for removed in batch.removed:
            self._add_gone(removed.key, removed.old)

    def _add_gone(self, key: bytes, old: Entry) -> None:
        if old.type is EntryType.FILE and len(self.gone) < _GONE_MAX:
            self.gone[old.inode] = key


class _Rest:
    """Files and bytes of the manifest that are not looked at."""

    def __init__(self, files: int, size_bytes: int) -> None:
        self.files = files
        self.bytes = size_bytes

    def take(self, files: int, size_bytes: int) -> None:
        """So much is looked at after all."""
        self.files -= files
        self.bytes -= size_bytes

    def batch(self) -> Batch:
        """What is not looked at is unchanged."""
        batch = Batch()
        batch.unchanged_files, batch.unchanged_bytes = self.files, self.bytes
        return batch


def _with_names_of(inodes: set[int], dirty: Dirty, last: LastManifest, rest: _Rest) -> _Places:
    """The places of a dirty set and all names of these inodes: each has an entry of its own."""
    names = set(dirty.names)
    for key, old in last.of_inodes(inodes):
        if key in names:
            continue
        names.add(key)
        if len(names) > len(dirty.names) + _NAMES_MAX:
            rest.take(rest.files, rest.bytes)
            return _Places((), (ROOT_KEY,))
        if old.type != _DIRECTORY:
            rest.take(1, _size(old))
    return _Places(names, dirty.subtrees)


def _looked_at(batch: Batch) -> tuple[int, int]:
    """Files and bytes that the manifest has where a batch comes from."""
    files = batch.unchanged_files + batch.kept_files
    size = batch.unchanged_bytes + batch.kept_bytes
    for old in (item.old for items in (batch.found, batch.removed) for item in items):
        if old is not None and old.type is not EntryType.DIRECTORY:
            files += 1
            size += _size(old)
    return files, size


def _size(old: Entry | EntryStat) -> int:
    return old.size if old.type == EntryType.FILE else 0


def _recognised(found: Found, gone: dict[int, bytes], last: LastManifest) -> Found:
    """A file that is new at its key, with what the manifest has of it where it was before.

    A rename changes the time of what is renamed, but of nothing beneath it.
    """
    key = gone.get(found.stat.st_ino)
    if key is None or not stat.S_ISREG(found.stat.st_mode):
        return found
    if found.old is not None and found.old.inode == found.stat.st_ino:
        return found
    moved = last.entry(key)
    if moved is None or not is_unchanged(found.stat, moved):
        return found
    return structs.replace(found, moved=moved)
