"""Cutting large files: what is no hole is read in windows and cut into chunks, in order.

A file that grows meanwhile is read as far as it was long when the pass began; one that shrank, as
far as it goes. Whether all of it is one moment's is the caller's question to the file.
"""

from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from agent.reading import LargeFile
from repository.chunking import BLOCK_BYTES, CHUNK_BYTES_MAX, ContentCutter, blocks
from repository.entries import ChunkClass

# Twice the largest chunk: every window but the last yields at least one.
_WINDOW_BYTES: Final = 2 * CHUNK_BYTES_MAX
# A shorter hole is read as the zeros it is: an extent of its own would cost more.
_HOLE_BYTES_MIN: Final = BLOCK_BYTES


class Hole(NamedTuple):
    """Zeros that are stored nowhere."""

    length: int


class FileCutter:
    """Cuts one file after another. Not for two threads at once."""

    def __init__(self, chunker: bytes) -> None:
        """`chunker`: the repository's chunker key."""
        self._cutter = ContentCutter(chunker)
        self._window = memoryview(bytearray(_WINDOW_BYTES))

    def beginning(self, file: LargeFile, length: int) -> bytes:
        """The file's first bytes, which are not counted as read: they are read again."""
        filled = file.read_into(self._window[:length], 0)
        file.bytes_read -= filled
        return bytes(self._window[:filled])

    def pieces(
        self, file: LargeFile, chunking: ChunkClass, offset: int = 0, limit: int | None = None
    ) -> Iterator[bytes | Hole]:
        """The chunks and holes of a file whose pass has begun. Sets the size that was found.

        From an offset on, and to a limit that the file does not end before; both on bounds of
        blocks, unless the limit is the end.
        """
        position, size = offset, file.length if limit is None else limit
        for begin, end in _data_ranges(file, offset, size):
            if begin > position:
                yield Hole(begin - position)
            position = yield from self._cut(file, chunking, begin, end)
            if position < end:
                size = position
                break
        if position < size:
            yield Hole(size - position)
        file.size = size

    def _cut(
        self, file: LargeFile, chunking: ChunkClass, offset: int, end: int
    ) -> Generator[bytes, None, int]:
        """The chunks from offset to end; what a window's end cut short goes with the next one."""
        window, carried = self._window, 0
        while True:
            wanted = min(len(window) - carried, end - offset)
            filled = file.read_into(window[carried : carried + wanted], offset)
            offset += filled
            last = offset >= end or filled < wanted
            held = window[: carried + filled]
            position = 0
            for length in self._lengths(held, chunking, last=last):
                yield bytes(held[position : position + length])
                position += length
            if last:
                return offset
            carried = len(held) - position
            window[:carried] = bytes(held[position:])

    def _lengths(self, held: memoryview, chunking: ChunkClass, *, last: bool) -> Iterator[int]:
        if chunking is not ChunkClass.PAGED:
            return self._cutter.cut(held, last=last)
        return blocks(len(held) if last else len(held) - len(held) % BLOCK_BYTES)


def _data_ranges(file: LargeFile, offset: int, size: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of what is no hole, on bounds of blocks, so that pages stay aligned."""
    if file.allocated >= file.length:
        yield offset, size
        return
    held: tuple[int, int] | None = None
    for begin, end in file.data_ranges(offset, size):
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
