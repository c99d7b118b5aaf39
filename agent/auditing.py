"""An audit: a sweep beside the events, and whether these told of all that it found.

What changes while the sweep goes on is told behind it, so a name that nothing told so far is no
miss before what came since was looked at, behind another barrier. A system call changes a file
first and raises its event when it returns, and a file that is open for writing or mapped raises
none: so there are several looks, each with a scan for suspects, and pauses between them.
"""

import os
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from heapq import merge
from operator import attrgetter
from typing import Final

from agent.beneath import Tree
from agent.last import LastManifest
from agent.sweep import Batch, Found, Removed, entry_type
from agent.tracking.audit import KEPT_MAX, Candidate, Judgement
from agent.tracking.dirty import Dirty
from agent.tracking.tracker import Since, Taken
from repository.entries import SEPARATOR, Entry, EntryType

# Only where something is not explained. The last is longer than a system call takes on a disk that
# is busy; one that takes longer than this is given up on, and would be a false alarm.
_PAUSES_SECONDS: Final = (0.0, 0.05, 0.2, 1.0)


class Audit:
    """Of one sweep. Used by one thread."""

    def __init__(
        self,
        taken: Taken,
        tree: Tree,
        since: Callable[[], Since],
        *,
        let_go: Callable[[], AbstractContextManager[None]],
        wait: Callable[[float], object],
    ) -> None:
        """`since` tells what was told since it was called last; `let_go` is of the turn."""
        assert taken.way.dirty is not None
        self._tree = tree
        self._device = tree.stat_root().st_dev
        self._since = since
        self._let_go = let_go
        self._wait = wait
        self._suspects = taken.suspects.on(self._device)
        self.places = taken.way.dirty.size()
        """How many had been told."""
        self._judged = Judgement(_with_suspects(taken.way.dirty, self._suspects))
        self._lost = ""
        self._has_ended = False

    @property
    def void(self) -> str:
        """Why nothing can be said; empty where all was judged."""
        return self._lost or ("" if self._has_ended else "it did not come to its end")

    @property
    def candidates(self) -> int:
        """How many names the sweep found."""
        return self._judged.candidates

    @property
    def missed(self) -> int:
        """How many of them nothing told of."""
        return self._judged.missed_total

    @property
    def missed_keys(self) -> list[bytes]:
        """The first of them; of what came or went as a whole, the top."""
        return [candidate.key for candidate in self._judged.missed]

    def beside(
        self,
        walk: Generator[Batch, None, None],
        last: LastManifest,
        is_canceled: Callable[[], bool],
    ) -> Generator[Batch, None, None]:
        """Pass on what the sweep finds, and judge it. May raise LostStateError."""
        try:
            for batch in walk:
                if not self._lost:
                    self._note(batch, last)
                yield batch
            self._judged.settle()
            if not is_canceled() and self._look(last, at_end=True):
                self._judged.close()
                self._has_ended = True
        finally:
            walk.close()

    def _note(self, batch: Batch, last: LastManifest) -> None:
        for candidate in candidates_of(batch):
            self._judged.note(candidate)
            if self._judged.is_full:
                if not self._look(last, at_end=False):
                    return
                self._judged.sentence()

    def _look(self, last: LastManifest, *, at_end: bool) -> bool:
        """Learn what was told since, until everything is explained or more looks are of no use.

        False where that cannot be known.
        """
        # Where so much was missed already, a few more or less are not worth the wait.
        pauses = _PAUSES_SECONDS if self.missed < KEPT_MAX else _PAUSES_SECONDS[:1]
        for pause in pauses:
            if self._lost or not self._judged.unexplained(waiting=at_end):
                break
            with self._let_go():
                self._wait(pause)
                since = self._since()
            if since.lost is not None:
                self._lost = since.lost
                break
            suspects = since.suspects.on(self._device)
            self._judged.tell(_with_suspects(since.dirty, suspects))
            moved = self._moved(last)
            if moved:
                self._judged.tell(Dirty(subtrees=moved))
        return not self._lost

    def _moved(self, last: LastManifest) -> set[bytes]:
        """Told directories above what is not explained that are not there any more.

        What is beneath was told by another name, or not at all where it has left the volume; the
        next backup finds it gone from here.
        """
        told = {
            above
            for key in self._judged.unexplained(waiting=True)
            for above in _above(key)
            if self._judged.is_told(above)
        }
        return {each for each in told if not self._is_still_there(each, last)}

    def _is_still_there(self, key: bytes, last: LastManifest) -> bool:
        entry = last.entry(key)
        try:
            with self._tree.held(key) as held:
                found = os.fstat(held)
        except OSError:
            return False
        return entry is not None and _is_same_thing(found, entry)


def _with_suspects(dirty: Dirty, suspects: frozenset[int]) -> Dirty:
    """What a rescan looks at: suspects count as told."""
    return Dirty(dirty.names, dirty.subtrees, dirty.inodes | suspects)


def candidates_of(batch: Batch) -> Iterator[Candidate]:
    """Return what a batch of a sweep has found, in order of keys."""
    parts: list[Sequence[Found | Removed]] = [batch.found, batch.removed]
    for item in merge(*parts, key=attrgetter("key")):
        old = item.old
        linked = {old.inode} if old is not None and _has_names(old.links, old.type) else set()
        if isinstance(item, Removed) or old is None:
            found = item.stat if isinstance(item, Found) else None
            dated, replaced = False, True
        else:
            found = item.stat
            replaced = not _is_same_thing(found, old)
            dated = not replaced and _is_dated(found, old)
        if found is not None and _has_names(found.st_nlink, entry_type(found.st_mode)):
            linked.add(found.st_ino)
        inode = None if old is None else old.inode
        yield Candidate(item.key, inode, replaced, dated, tuple(linked))


def _has_names(links: int, kind: EntryType) -> bool:
    return links > 1 and kind is not EntryType.DIRECTORY


def _is_same_thing(found: os.stat_result, old: Entry) -> bool:
    return found.st_ino == old.inode and entry_type(found.st_mode) is old.type


def _is_dated(found: os.stat_result, old: Entry) -> bool:
    """Whether a directory differs in nothing but what names in it change."""
    return (
        old.type is EntryType.DIRECTORY
        and stat.S_IMODE(found.st_mode) == old.mode
        and (found.st_uid, found.st_gid) == (old.uid, old.gid)
    )


def _above(key: bytes) -> Iterator[bytes]:
    """Keys of the directories above one, but for the root."""
    while SEPARATOR in key:
        key = key.rpartition(SEPARATOR)[0]
        yield key
