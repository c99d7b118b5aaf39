"""Whether what a sweep found was told by events, too. Pure.

It asks what a rescan would have looked at: names that were told; all beneath a subtree that was
told, and beneath a told name that is something else by now; and every name that the manifest has of
an inode that was told, or of one with several names that has a told one. Anything else that changed
was missed.

A sweep may find a million names, so only those are kept that nothing told so far explains, and of
what came or went as a whole only the top.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from agent.tracking.dirty import Dirty
from repository.entries import SEPARATOR

# Enough to see what was missed; all are counted.
KEPT_MAX: Final = 1000
# A rescan that has to look at more names of inodes with several looks at everything. Of them more
# wait for another name than of others: some 30 MiB. Further ones get the benefit of the doubt.
_LINKED_MAX: Final = 100_000


class Candidate(msgspec.Struct, frozen=True):
    """A name that a sweep found new, changed or removed."""

    key: bytes
    inode: int | None = None
    """What the manifest has there; None where it has nothing."""
    is_replaced: bool = False
    """Whether it is another thing than the manifest's, or one of both is none: then whoever looks
    at the name looks at all beneath it."""
    is_dated: bool = False
    """Whether it is the same directory, and only names in it changed it."""
    linked: tuple[int, ...] = ()
    """Inodes with several names that it has or had."""


def covered(key: bytes, inode: int | None, dirty: Dirty) -> bool:
    """Tell whether a dirty set has a name, for which the manifest has that inode."""
    if key in dirty.names or inode in dirty.inodes:
        return True
    return bool(dirty.subtrees) and any(each in dirty.subtrees for each in _upwards(key))


def misses(candidates: Iterable[Candidate], before: Dirty, after: Dirty) -> list[Candidate]:
    """Return those of the candidates, in order of keys, that neither set explains."""
    judged = Judgement(before)
    for candidate in candidates:
        judged.note(candidate)
    judged.tell(after)
    judged.close()
    return judged.missed


class _Open:
    """A candidate that nothing explains so far."""

    __slots__ = ("beneath", "candidate", "prefix", "verdict")

    def __init__(self, candidate: Candidate, *, verdict: bool | None = None) -> None:
        self.candidate = candidate
        self.prefix = candidate.key + SEPARATOR if candidate.key else b""
        self.beneath = 0
        """Of what lies beneath it, how many were not told by themselves."""
        self.verdict = verdict
        """Whether it was told; None while that may still come."""


class Judgement:
    """What a sweep found, held against what was told before it and, bit by bit, since."""

    def __init__(self, before: Dirty) -> None:
        self._told = [before]
        self._parents: list[frozenset[bytes] | None] = [None]
        self._open: list[_Open] = []
        self._waiting: list[_Open] = []
        """Those of which another name may still come that was told."""
        self._linked: set[int] = set()
        """Inodes with several names, one of which was told."""
        self._top: _Open | None = None
        """What was replaced as a whole, where the sweep is now."""
        self.candidates = 0
        self.missed: list[Candidate] = []
        """The first of them; of what came or went as a whole, the top."""
        self.missed_total = 0

    def note(self, candidate: Candidate) -> None:
        """Take what the sweep found next, in order of keys."""
        self.candidates += 1
        top = self._top
        if top is not None and not candidate.key.startswith(top.prefix):
            top = self._top = None
        if self._explains(candidate) or (top is not None and top.verdict is True):
            self._settle(candidate)
        elif top is None:
            opened = _Open(candidate)
            if not candidate.linked:
                self._open.append(opened)
            elif len(self._waiting) < _LINKED_MAX:
                self._waiting.append(opened)
            if candidate.is_replaced:
                self._top = opened
        elif top.verdict is None:
            top.beneath += 1
        else:
            self.missed_total += 1

    def _settle(self, candidate: Candidate) -> None:
        self._linked.update(candidate.linked)
        if candidate.is_replaced and self._top is None:
            self._top = _Open(candidate, verdict=True)

    def _explains(self, candidate: Candidate) -> bool:
        key, inode = candidate.key, candidate.inode
        if any(covered(key, inode, each) for each in self._told) or inode in self._linked:
            return True
        if candidate.is_dated and any(key in parents for parents in self._all_parents()):
            return True
        return len(self._linked) > _LINKED_MAX

    def _all_parents(self) -> Iterator[frozenset[bytes]]:
        """Directories of what was told; only made where they are asked for."""
        for index, dirty in enumerate(self._told):
            parents = self._parents[index]
            if parents is None:
                keys = dirty.names | dirty.subtrees
                parents = frozenset(key.rpartition(SEPARATOR)[0] for key in keys if key)
                self._parents[index] = parents
            yield parents

    @property
    def is_full(self) -> bool:
        """Whether it is time to tell what came since, lest there be too many to keep."""
        return len(self._open) >= KEPT_MAX

    def unexplained(self, *, waiting: bool) -> list[bytes]:
        """Keys of what nothing explains so far, and of what waits for another name, too."""
        opened = (*self._open, *self._waiting) if waiting else self._open
        return [each.candidate.key for each in opened]

    def tell(self, since: Dirty) -> None:
        """This was told, too, by the time that the last candidate was found."""
        self._told.append(since)
        self._parents.append(None)
        self.settle()

    def settle(self) -> None:
        """Settle what can be, until that explains no other name of an inode."""
        rest, linked = (self._open, self._waiting), -1
        while linked != len(self._linked):
            linked = len(self._linked)
            rest = self._still_open(rest[0]), self._still_open(rest[1])
        self._open, self._waiting = rest

    def _still_open(self, opened: list[_Open]) -> list[_Open]:
        still = []
        for each in opened:
            if self._explains(each.candidate):
                each.verdict = True
                self._linked.update(each.candidate.linked)
            else:
                still.append(each)
        return still

    def is_told(self, key: bytes) -> bool:
        """Whether something happened to that very name."""
        return any(key in each.names for each in self._told)

    def sentence(self) -> None:
        """What is open now was missed, unless another name of it may still come."""
        for each in self._open:
            each.verdict = False
            self.missed_total += 1 + each.beneath
            if len(self.missed) < KEPT_MAX:
                self.missed.append(each.candidate)
        self._open = []

    def close(self) -> None:
        """No candidate comes any more: what is open was missed."""
        self.settle()
        self._open, self._waiting = [*self._open, *self._waiting], []
        self._open.sort(key=lambda each: each.candidate.key)
        self.sentence()


def _upwards(key: bytes) -> Iterator[bytes]:
    """A key, and those of the directories above it up to the root's."""
    while key:
        yield key
        key = key.rpartition(SEPARATOR)[0]
    yield key
