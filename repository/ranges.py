"""Which reads serve which ranges of an object: few, bounded, with little for nothing. Pure."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Read(NamedTuple):
    """One read of an object, and the ranges (offset, length) that it serves."""

    offset: int
    length: int
    wanted: list[tuple[int, int]]


def reads(ranges: Iterable[tuple[int, int]], *, gap_bytes: int, read_bytes: int) -> Iterator[Read]:
    """Serve neighbours by one read, and what is longer than a read by several, in order.

    Ranges with so many bytes between them, or fewer, are neighbours.
    """
    held: list[tuple[int, int]] = []
    for offset, length in ranges:
        end = sum(held[-1]) if held else 0
        joins = held and 0 <= offset - end <= gap_bytes
        if held and (not joins or offset + length - held[0][0] > read_bytes):
            yield Read(held[0][0], end - held[0][0], held)
            held = []
        if length > read_bytes:
            for begin in range(offset, offset + length, read_bytes):
                size = min(read_bytes, offset + length - begin)
                yield Read(begin, size, [(begin, size)])
        elif length:
            held.append((offset, length))
    if held:
        yield Read(held[0][0], sum(held[-1]) - held[0][0], held)


def take_ranges(ranges: deque[tuple[int, int]], room: int) -> list[tuple[int, int]]:
    """Take so many bytes from the beginning of the ranges, or all there are."""
    taken = []
    while ranges and room > 0:
        offset, length = ranges.popleft()
        if length > room:
            ranges.appendleft((offset + room, length - room))
        taken.append((offset, min(length, room)))
        room -= length
    return taken
