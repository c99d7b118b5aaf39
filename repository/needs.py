"""Reading without I/O: a reader yields what it needs and is sent it, and yields what it found.

One reader serves an agent with nodes on its disk, a coordinator with a store, and a restore that
fetches frames over the network; `drive` and `drive_async` are the loops around it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import NamedTuple, TypeVar

from repository.entries import Pointer

T = TypeVar("T")
Answer = list[bytes | memoryview]


class Need(NamedTuple):
    """Manifest or list nodes that the reader must be sent next, in this order."""

    pointers: list[Pointer]


Reading = Generator[Need | T, Answer | None, None]


def drive(reading: Reading[T], load: Callable[[Pointer], bytes | memoryview]) -> Iterator[T]:
    """Run a reader over nodes at hand."""
    return drive_batches(reading, lambda pointers: [load(pointer) for pointer in pointers])


def drive_batches(reading: Reading[T], load: Callable[[list[Pointer]], Answer]) -> Iterator[T]:
    """Run a reader over nodes at hand, where many at once are had more cheaply."""
    answer: Answer | None = None
    while True:
        try:
            step = reading.send(answer)
        except StopIteration:
            return
        if isinstance(step, Need):
            answer = load(step.pointers)
        else:
            answer = None
            yield step


async def drive_async(
    reading: Reading[T],
    fetch: Callable[[list[Pointer]], Awaitable[Answer]],
) -> AsyncIterator[T]:
    """Run a reader over nodes that have to be fetched."""
    answer: Answer | None = None
    while True:
        try:
            step = reading.send(answer)
        except StopIteration:
            return
        if isinstance(step, Need):
            answer = await fetch(step.pointers)
        else:
            answer = None
            yield step
