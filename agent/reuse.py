"""Which chunks of a large file are read, and which are taken over from its last content. Pure.

A chunk depends on the bytes from its begin on and on nothing before them, and once a cut is found
on nothing behind it. So where a cut falls on the begin of an old chunk whose bytes did not change,
that chunk is the next one, unread. What a change moves is cut anew until a cut falls so again. The
new content is what reading everything would make of the file.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from agent.extents import Range
from repository.entries import Extent


class Lengths(NamedTuple):
    """The bounds within which a class of files is cut, in bytes."""

    least: int
    """Of every chunk but the last one before a hole or the end."""
    most: int
    beyond: int
    """So much of what follows must be seen before a cut is certain."""


class _Chunk(NamedTuple):
    """An old chunk whose bytes are still there."""

    begin: int
    end: int
    is_last: bool
    """A hole or the end followed: what is there now might have moved the cut."""

    def stands_before(self, end: int) -> bool:
        """Whether it is what would be cut of data that end there."""
        return self.end == end or (self.end < end and not self.is_last)


class Reuse:
    """Goes once through a file's old chunks, beside the cutting of what it is now.

    Offsets never go back; `end` is where the data end that are being cut, at a hole or with the
    file.
    """

    def __init__(self, old: Iterable[Extent], changed: Iterable[Range], lengths: Lengths) -> None:
        """`old`: the extents of the last content. `changed`: where the file may differ, in order.

        The content must have been cut as the file is now: in the same class, by the same key.
        """
        self._beyond = lengths.beyond
        self._chunks = _unchanged(old, changed, lengths)
        self._next = next(self._chunks, None)

    def stands_at(self, begin: int, end: int) -> bool:
        """Whether an old chunk is what follows a cut there."""
        chunk = self._from(begin)
        return chunk is not None and chunk.begin == begin and chunk.stands_before(end)

    def pass_from(self, begin: int, end: int) -> int:
        """Where the old chunks end that follow a cut at `begin`; `begin` if there is none."""
        position = begin
        while self.stands_at(position, end):
            assert self._next is not None
            position = self._next.end
        return position

    def readable_until(self, offset: int, end: int) -> int:
        """How far to read from `offset` to see whether a cut falls on the next old chunk.

        What was read up to there must have been cut as far as it is certain.
        """
        chunk = self._from(offset - self._beyond + 1)
        return end if chunk is None else min(end, chunk.begin + self._beyond)

    def _from(self, offset: int) -> _Chunk | None:
        """The next old chunk that begins there or later; those before are passed over for good."""
        while self._next is not None and self._next.begin < offset:
            self._next = next(self._chunks, None)
        return self._next


def _unchanged(
    old: Iterable[Extent], changed: Iterable[Range], lengths: Lengths
) -> Iterator[_Chunk]:
    """Yield the old chunks, in order, within which nothing changed."""
    ranges = iter(changed)
    change = next(ranges, None)
    for chunk in _chunks(old, lengths):
        while change is not None and change[1] <= chunk.begin:
            change = next(ranges, None)
        if change is None or chunk.end <= change[0]:
            yield chunk


def _chunks(old: Iterable[Extent], lengths: Lengths) -> Iterator[_Chunk]:
    """Yield the chunks of a content, but for those that cannot be what cutting made."""
    held: tuple[Extent, int] | None = None
    position = 0
    for extent in old:
        if held is not None:
            yield from _chunk(*held, lengths, is_last=extent.is_hole or extent.skip > 0)
        held = None if extent.is_hole or extent.skip else (extent, position)
        position += extent.length
    if held is not None:
        yield from _chunk(*held, lengths, is_last=True)


def _chunk(extent: Extent, begin: int, lengths: Lengths, *, is_last: bool) -> Iterator[_Chunk]:
    if extent.length <= lengths.most and (is_last or extent.length >= lengths.least):
        yield _Chunk(begin, begin + extent.length, is_last)


class OldContent:
    """Goes once through the extents of a content, in order."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._rest = iter(extents)
        self._position = 0

    def within(self, begin: int, end: int) -> Iterator[Extent]:
        """Yield the chunks of [begin, end), of which `Reuse` said that they are kept."""
        while self._position < end:
            extent = next(self._rest)
            if self._position >= begin:
                yield extent
            self._position += extent.length
        assert self._position == end, "chunks are kept whole"


class Changes:
    """Counts by how much a new content, added in order, differs from an old one."""

    def __init__(self, old: Iterable[Extent]) -> None:
        self._rest = iter(old)
        self._current = next(self._rest, None)
        self._begin = 0
        """Where the current old extent begins."""
        self._position = 0
        self.bytes = 0
        """In extents of which no equal one stood at their place."""

    def add(self, extent: Extent) -> None:
        """Count the next extent of the new content."""
        while self._current is not None and self._begin + self._current.length <= self._position:
            self._begin += self._current.length
            self._current = next(self._rest, None)
        if self._current is None or not self._is_same(self._current, extent):
            self.bytes += extent.length
        self._position += extent.length

    def _is_same(self, old: Extent, extent: Extent) -> bool:
        if extent.is_hole:
            # A part of a longer hole is the same.
            end = self._position + extent.length
            return old.is_hole and end <= self._begin + old.length
        return old.id == extent.id and self._begin == self._position
