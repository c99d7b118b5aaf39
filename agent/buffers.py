"""Joined buffers, cut at other places than they came in: for messages, and as was asked for. Pure.

Packs are most of what goes through an agent: nothing is copied but what has to be joined.
"""

from collections.abc import Iterable, Iterator, Sequence

from typing_extensions import Buffer

from agent.throttle import PIECE_BYTES


def pieces(buffers: Iterable[Buffer]) -> Iterator[list[memoryview]]:
    """Cut joined buffers into messages: none too large for one, and not many small ones."""
    held: list[memoryview] = []
    size = 0
    for buffer in buffers:
        rest = memoryview(buffer).cast("B")
        while rest:
            part = rest[: PIECE_BYTES - size]
            rest = rest[len(part) :]
            held.append(part)
            size += len(part)
            if size == PIECE_BYTES:
                yield held
                held, size = [], 0
    if held:
        yield held


def split(piece: Sequence[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """Cut a message in two, the first of which is so long."""
    first: list[memoryview] = []
    for number, part in enumerate(piece):
        if size <= len(part):
            rest = [part[size:], *piece[number + 1 :]]
            return [*first, part[:size]], [each for each in rest if each]
        first.append(part)
        size -= len(part)
    return first, []


def cut(arrived: Iterable[memoryview], lengths: Iterable[int]) -> list[memoryview]:
    """Cut what arrived at other places than it came in; what lies in one piece is not copied."""
    rest = iter(arrived)
    piece = memoryview(b"")
    found = []
    for length in lengths:
        parts: list[memoryview] = []
        missing = length
        while missing > len(piece):
            parts.append(piece)
            missing -= len(piece)
            piece = next(rest)
        parts.append(piece[:missing])
        piece = piece[missing:]
        held = [part for part in parts if part]
        found.append(held[0] if len(held) == 1 else memoryview(b"".join(held)))
    return found
