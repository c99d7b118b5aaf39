"""Which blocks of a paged file are read, and which are taken over from its last content. Pure.

What is taken over is what the last content has there, whole blocks and parts of holes, so that the
new one is what reading everything would make of it.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from agent.extents import Range, joined
from repository.chunking import BLOCK_BYTES
from repository.entries import Extent


class Stretch(NamedTuple):
    """Some bytes of a file on bounds of blocks; its last block may be shorter."""

    begin: int
    end: int
    is_kept: bool
    """Whether they are what the last content has there; else they are to be read."""


def stretches(
    changed: Iterable[Range], old: Iterable[Extent], old_size: int, size: int
) -> Iterator[Stretch]:
    """Yield all of a file of this size, in order.

    `changed`: where it may differ from the content that it had, `old`, of `old_size` bytes.
    """
    whole = [(begin, end) for begin, end in changed if begin < end]
    if old_size != size:
        whole.append((min(old_size, size), size))
    unread = joined([*_aligned(whole, size), *_odd(old, size)])
    position = 0
    for begin, end in unread:
        if position < begin:
            yield Stretch(position, begin, is_kept=True)
        yield Stretch(begin, end, is_kept=False)
        position = end
    if position < size:
        yield Stretch(position, size, is_kept=True)


def _aligned(ranges: Iterable[Range], size: int) -> Iterator[Range]:
    """The blocks that ranges touch, as far as the file goes."""
    for begin, end in ranges:
        first = begin - begin % BLOCK_BYTES
        if first < size:
            yield first, min(size, end + -end % BLOCK_BYTES)


def _odd(old: Iterable[Extent], size: int) -> Iterator[Range]:
    """The blocks of which the content that was is not cut as blocks are, or tells nothing."""
    position = 0
    for extent in old:
        end = position + extent.length
        is_block = position % BLOCK_BYTES == 0 and extent.length <= BLOCK_BYTES and not extent.skip
        is_whole = end % BLOCK_BYTES == 0 or end >= size
        if not is_whole or not (is_block or _is_aligned_hole(extent, position)):
            yield from _aligned([(position, end)], size)
        position = end
    if position < size:
        yield from _aligned([(position, size)], size)


def _is_aligned_hole(extent: Extent, position: int) -> bool:
    return extent.is_hole and position % BLOCK_BYTES == 0


class OldContent:
    """Goes once through the extents of a content, in order."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._rest = iter(extents)
        self._current: Extent | None = None
        self._position = 0

    def within(self, begin: int, end: int) -> Iterator[Extent]:
        """Yield what lies in [begin, end), which `stretches` said is kept."""
        for extent, start in self._overlapping(begin, end):
            length = min(end, start + extent.length) - max(begin, start)
            if length == extent.length:
                yield extent
                continue
            assert extent.is_hole, "blocks are kept whole"
            yield Extent.hole(length)

    def _overlapping(self, begin: int, end: int) -> Iterator[tuple[Extent, int]]:
        while True:
            if self._current is None:
                self._current = next(self._rest)
            extent, start = self._current, self._position
            if start >= end:
                return
            if start + extent.length > begin:
                yield extent, start
            if start + extent.length > end:
                return  # the rest of a hole may be asked for
            self._current, self._position = None, start + extent.length
            if self._position >= end:
                return


def holes_joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Yield extents with holes that follow one another as one."""
    hole = 0
    for extent in extents:
        if extent.is_hole:
            hole += extent.length
            continue
        if hole:
            yield Extent.hole(hole)
            hole = 0
        yield extent
    if hole:
        yield Extent.hole(hole)


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
