"""Reading files again whose stat says that they did not change, a share of them each day.

A disk that returns other bytes than were written, or a change that left no sign of it, is found by
nothing else. Which files' day it is, is chosen by leaf of the manifest: the nodes above the leaves
tell where these begin, so that a thirtieth of a volume is found without looking at all of it.
"""

import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from heapq import merge
from operator import attrgetter
from typing import Final, NamedTuple

from agent.beneath import Tree
from agent.last import LastManifest
from agent.state import Rehashed
from agent.sweep import Batch, Found, is_unchanged
from repository.entries import Entry, EntryType

# Each file comes up once in so many days, as long as all of a day's share can be read in one.
DAYS: Final = 30
# At one backup; the rest is left to the next. Some seconds of reading, and no long-held memory.
_FILES_MAX: Final = 10_000
_BYTES_MAX: Final = 1024 * 1024 * 1024
_FOUND_PER_BATCH: Final = 512
_DAY_NS: Final = 24 * 3600 * 1_000_000_000
_PERSON: Final = b"tidemark rehash"
# Bare numbers, as in EntryStat.
_FILE: Final = EntryType.FILE.value


class Share(NamedTuple):
    """The files of one day."""

    day: int
    """Since 1970, in UTC."""
    begin: bytes
    """The first key that was not looked at yet."""


def next_share(done: Rehashed | None, now_ns: int) -> Share | None:
    """Return what a backup has to read again now, if it is time for that. Pure.

    What was not finished goes on. A volume begins on the day after its first backup, which has
    read everything; days that were missed are made up for, as far as they do not come again.
    """
    today = now_ns // _DAY_NS
    if done is None or done.day > today:
        return None
    if done.next_key is not None:
        return Share(done.day, done.next_key)
    return None if done.day == today else Share(max(done.day + 1, today - DAYS + 1), b"")


def begun(done: Rehashed | None, now_ns: int) -> Rehashed | None:
    """Return what to keep where there is no share: the day that counting begins with. Pure."""
    today = now_ns // _DAY_NS
    return Rehashed(today, None) if done is None or done.day > today else None


def is_chosen(first: bytes, day: int, secret: bytes) -> bool:
    """Tell whether it is the day of the leaf that begins with that key. Pure."""
    digest = hashlib.blake2b(first, digest_size=8, key=secret, person=_PERSON).digest()
    return int.from_bytes(digest, "big") % DAYS == day % DAYS


class Rehash:
    """One share. Used by one thread."""

    def __init__(self, share: Share, tree: Tree, secret: bytes, suspects: frozenset[int]) -> None:
        """`suspects`: inodes that may be written to at any moment; they are left out."""
        self._share = share
        self._tree = tree
        self._secret = secret
        self._suspects = suspects
        self.next_key: bytes | None = share.begin
        """The first key that is left to the next backup; None once there is none."""

    @property
    def done(self) -> Rehashed:
        """What to keep once what was read again is committed."""
        return Rehashed(self._share.day, self.next_key)

    def among(
        self,
        walk: Generator[Batch, None, None],
        last: LastManifest,
        is_canceled: Callable[[], bool],
    ) -> Generator[Batch, None, None]:
        """Add the files to what a walk finds, in their places. May raise LostStateError."""
        picks = self._picks(last)
        pick = next(picks, None)
        try:
            for batch in walk:
                if pick is None:
                    yield batch
                    continue
                own = {item.key for items in (batch.found, batch.removed) for item in items}
                end = max(own, default=b"")
                extra: list[Found] = []
                while pick is not None and pick[0] <= end:
                    if pick[0] not in own:
                        self._add(extra, *pick)
                    pick = next(picks, None)
                if extra:
                    batch.found = list(merge(batch.found, extra, key=attrgetter("key")))
                    _take_unchanged(batch, extra)
                yield batch
            while pick is not None and not is_canceled():
                batch = Batch()
                while pick is not None and len(batch.found) < _FOUND_PER_BATCH:
                    self._add(batch.found, *pick)
                    pick = next(picks, None)
                _take_unchanged(batch, batch.found)
                yield batch
        finally:
            walk.close()

    def _picks(self, last: LastManifest) -> Iterator[tuple[bytes, Entry]]:
        """Files whose day it is, in order of keys."""
        files = size_bytes = 0
        begin, day, secret = self._share.begin, self._share.day, self._secret
        for leaf in last.some_leaves(begin, lambda first: is_chosen(first, day, secret)):
            for key, old in leaf.stats:
                if key < begin or old.type != _FILE or not 0 < old.size <= _BYTES_MAX:
                    continue
                if old.flags or not old.ctime_ns or old.inode in self._suspects:
                    continue
                if files == _FILES_MAX or size_bytes + old.size > _BYTES_MAX:
                    self.next_key = key
                    return
                files += 1
                size_bytes += old.size
                yield key, leaf.entry(key)
        self.next_key = None

    def _add(self, found: list[Found], key: bytes, old: Entry) -> None:
        """Add a file, if it is what the manifest says. Whatever else it is, events tell."""
        try:
            with self._tree.held(key) as held:
                now = os.fstat(held)
        except OSError:
            return
        if is_unchanged(now, old):
            found.append(Found(key, now, old, reread=True))


def _take_unchanged(batch: Batch, found: list[Found]) -> None:
    """Whoever reads them counts them; the walk has counted them as unchanged."""
    batch.unchanged_files -= len(found)
    batch.unchanged_bytes -= sum(each.stat.st_size for each in found)
