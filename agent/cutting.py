"""Cutting large files: what is no hole is read in windows and cut into chunks, in order.

A file that grows meanwhile is read as far as it was long when the pass began; one that shrank, as
far as it goes. Whether all of it is one moment's is the caller's question to the file.
"""

from collections.abc import Generator, Iterable, Iterator
from typing import Final, NamedTuple

from agent.extents import Range
from agent.reading import LargeFile
from agent.reuse import Lengths, Reuse
from repository.chunking import (
    BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    ContentCutter,
    blocks,
)
from repository.entries import ChunkClass, Extent

# More than the largest chunk: every window but the last yields at least one. There are three, and
# their size is part of what an agent needs at most.
_WINDOW_BYTES: Final = CHUNK_BYTES_MAX + 1024 * 1024
# One is read into while the chunks that wait or are worked on lie in the other.
_LENT: Final = 2
# A shorter hole is read as the zeros it is: an extent of its own would cost more.
_HOLE_BYTES_MIN: Final = BLOCK_BYTES
_PAGED: Final = Lengths(BLOCK_BYTES, BLOCK_BYTES, beyond=0)
# FastCDC looks at bytes in pairs: two would do. A page is what a disk reads at least.
_GENERAL: Final = Lengths(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX, beyond=4096)


class Hole(NamedTuple):
    """Zeros that are stored nowhere."""

    length: int


class Kept(NamedTuple):
    """Whole chunks of the content that the file was cut into last."""

    begin: int
    end: int


class _Lent:
    """Windows that chunks may stay in. None is read into as long as somebody looks into it."""

    def __init__(self) -> None:
        self._all: list[bytearray] = []

    def take(self) -> memoryview | None:
        """One that nobody looks into, if there is one."""
        for buffer in self._all:
            if _is_unseen(buffer):
                return memoryview(buffer)
        if len(self._all) == _LENT:
            return None
        self._all.append(bytearray(_WINDOW_BYTES))
        return memoryview(self._all[-1])


def _is_unseen(buffer: bytearray) -> bool:
    """Whether there is no view of it: only then it may change its length."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    buffer.pop()
    return True


class FileCutter:
    """Cuts one file after another. Not for two threads at once."""

    def __init__(self, chunker: bytes) -> None:
        """`chunker`: the repository's chunker key."""
        self._cutter = ContentCutter(chunker)
        self.parameters = self._cutter.parameters
        self._lent = _Lent()
        # What chunks are copied out of, where none is to be had: memory is bounded.
        self._own = memoryview(bytearray(_WINDOW_BYTES))

    def beginning(self, file: LargeFile, length: int) -> bytes:
        """The file's first bytes, which are not counted as read: they are read again."""
        filled = file.read_into(self._own[:length], 0)
        file.bytes_read -= filled
        return bytes(self._own[:filled])

    def pieces(
        self,
        file: LargeFile,
        chunking: ChunkClass,
        old: Iterable[Extent] = (),
        changed: Iterable[Range] = (),
    ) -> Iterator[memoryview | Hole | Kept]:
        """The chunks and holes of a file whose pass has begun. Sets the size that was found.

        A chunk is a view of what was read, which stays as it is as long as there is the view.

        `old`: into what it was cut last, in the same class and by the same key; `changed`: where it
        may differ from that, in order.
        """
        lengths = _PAGED if chunking is ChunkClass.PAGED else _GENERAL
        reuse = Reuse(old, changed, lengths)
        position, size = 0, file.length
        for begin, end in _data_ranges(file, size):
            if begin > position:
                yield Hole(begin - position)
            position = yield from self._cut(file, chunking, begin, end, reuse)
            if position < end:
                size = position
                break
        if position < size:
            yield Hole(size - position)
        file.size = size

    def _cut(
        self, file: LargeFile, chunking: ChunkClass, begin: int, end: int, reuse: Reuse
    ) -> Generator[memoryview | Kept, None, int]:
        """What stands between two offsets; where the file ends if that is before."""
        position, is_over = begin, False
        while position < end and not is_over:
            kept = reuse.pass_from(position, end)
            if kept > position:
                yield Kept(position, kept)
                position = kept
                continue
            position, is_over = yield from self._cut_anew(file, chunking, position, end, reuse)
        return position

    def _cut_anew(
        self, file: LargeFile, chunking: ChunkClass, begin: int, end: int, reuse: Reuse
    ) -> Generator[memoryview, None, tuple[int, bool]]:
        """The chunks from `begin` on, to where an old one stands, or there is nothing more.

        What a window's end cut short goes with the next one.
        """
        position = offset = begin
        rest = b""
        while True:
            lent, carried = self._lent.take(), len(rest)
            window = self._own if lent is None else lent
            window[:carried] = rest
            wanted = min(len(window) - carried, reuse.readable_until(offset, end) - offset)
            filled = file.read_into(window[carried : carried + wanted], offset)
            offset += filled
            last = offset >= end or filled < wanted
            held, used = window[: carried + filled], 0
            for length in self._lengths(held, chunking, last=last):
                chunk = held[used : used + length]
                yield memoryview(bytes(chunk)) if lent is None else chunk
                used += length
                if reuse.stands_at(position + used, end):
                    return position + used, False
            position += used
            if last:
                return position, True
            rest = bytes(held[used:])

    def _lengths(self, held: memoryview, chunking: ChunkClass, *, last: bool) -> Iterator[int]:
        if chunking is not ChunkClass.PAGED:
            return self._cutter.cut(held, last=last)
        return blocks(len(held) if last else len(held) - len(held) % BLOCK_BYTES)


def _data_ranges(file: LargeFile, size: int) -> Iterator[Range]:
    """(begin, end) of what is no hole, on bounds of blocks, so that pages stay aligned."""
    if file.allocated >= file.length:
        yield 0, size
        return
    held: Range | None = None
    for begin, end in file.data_ranges(0, size):
        aligned = begin - begin % BLOCK_BYTES, min(size, end + -end % BLOCK_BYTES)
        if held is not None and aligned[0] - held[1] < _HOLE_BYTES_MIN:
            held = held[0], max(held[1], aligned[1])
            continue
        if held is not None:
            yield held
        held = aligned
    if held is not None:
        yield held


def small_pieces(data: bytes | memoryview, *, paged: bool) -> "list[bytes | memoryview]":
    """A small file's chunks: itself, or its blocks where it was once cut as a paged file."""
    if not paged:
        return [data] if data else []
    starts = range(0, len(data), BLOCK_BYTES)
    return [data[start : start + BLOCK_BYTES] for start in starts]
