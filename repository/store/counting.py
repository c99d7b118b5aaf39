"""Counts what is asked of a store, and the bytes that go there and come back.

What is counted goes to the store's own tally and to that of the work on whose behalf it was asked:
`charged` names it for everything inside its block, and for the tasks that begin there. So calls of
many jobs, mixed as they come, are each counted where they belong. Belongs to one event loop.

A CountingStore below what tries again counts every try, as a store's owner is charged for them. It
counts calls, and a listing as one call for each thousand names; a store that knows better what it
sends says so itself, by `charge`.

An asynchronous generator has no context of its own: each step runs in that of whoever asks for it.
So none may hold a `charged` block open over a `yield`, where its callers would be charged as well.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

from typing_extensions import override

from repository.store.around import StoreAround, WriterAround
from repository.store.interface import ObjectInfo, ObjectWriter, Operation, Store

# What S3 and those like it have on one page of a listing.
_PAGE_NAMES: Final = 1000


class Requests(NamedTuple):
    """How many of each kind, and bytes; nothing that changes."""

    put: int = 0
    get: int = 0
    head: int = 0
    list: int = 0
    delete: int = 0
    bytes_in: int = 0
    """Objects' bytes that the store was sent, also by tries that failed."""
    bytes_out: int = 0
    """Objects' bytes that came from it."""

    def since(self, before: "Requests") -> "Requests":
        """What was added."""
        return Requests(*(now - then for now, then in zip(self, before, strict=True)))

    def plus(self, other: "Requests") -> "Requests":
        """Both together."""
        return Requests(*(one + another for one, another in zip(self, other, strict=True)))


class Tally:
    """What was counted, and goes on being."""

    def __init__(self) -> None:
        self._requests = dict.fromkeys(Operation, 0)
        self._bytes_in = 0
        self._bytes_out = 0

    def add(
        self, operation: Operation, requests: int = 1, *, bytes_in: int = 0, bytes_out: int = 0
    ) -> None:
        """Count these."""
        self._requests[operation] += requests
        self._bytes_in += bytes_in
        self._bytes_out += bytes_out

    def snapshot(self) -> Requests:
        """What it is by now."""
        counts = {operation.value: count for operation, count in self._requests.items()}
        return Requests(**counts, bytes_in=self._bytes_in, bytes_out=self._bytes_out)


_charged: ContextVar[tuple[Tally, ...]] = ContextVar("_charged", default=())


@contextmanager
def charged(tally: Tally) -> Iterator[Tally]:
    """Count on this tally, too, what is asked inside; on those of the blocks around it as well."""
    token = _charged.set((*_charged.get(), tally))
    try:
        yield tally
    finally:
        _charged.reset(token)


def charge(
    total: Tally, operation: Operation, requests: int = 1, *, bytes_in: int = 0, bytes_out: int = 0
) -> None:
    """Count on a store's own tally, and on those of the work that goes on."""
    for tally in (total, *_charged.get()):
        tally.add(operation, requests, bytes_in=bytes_in, bytes_out=bytes_out)


class CountingStore(StoreAround):
    """Reads and writes through to another store, and counts."""

    def __init__(self, inner: Store, total: Tally | None = None) -> None:
        super().__init__(inner)
        self.total = total or Tally()

    @override
    def writer(self, name: str) -> ObjectWriter:
        return _CountingWriter(self._inner.writer(name), self.total)

    @override
    async def put(self, name: str, data: bytes) -> None:
        charge(self.total, Operation.PUT, bytes_in=len(data))
        await self._inner.put(name, data)

    @override
    async def get(self, name: str) -> bytes:
        charge(self.total, Operation.GET)
        data = await self._inner.get(name)
        charge(self.total, Operation.GET, 0, bytes_out=len(data))
        return data

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        charge(self.total, Operation.GET)
        data = await self._inner.get_range(name, offset, length)
        charge(self.total, Operation.GET, 0, bytes_out=len(data))
        return data

    @override
    async def head(self, name: str) -> ObjectInfo:
        charge(self.total, Operation.HEAD)
        return await self._inner.head(name)

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        charge(self.total, Operation.LIST)
        listing = self._inner.list_objects(prefix)
        names = 0
        try:
            async for info in listing:
                if names and names % _PAGE_NAMES == 0:
                    charge(self.total, Operation.LIST)
                names += 1
                yield info
        finally:
            if isinstance(listing, AsyncGenerator):
                await listing.aclose()

    @override
    async def delete(self, name: str) -> None:
        charge(self.total, Operation.DELETE)
        await self._inner.delete(name)


class _CountingWriter(WriterAround):
    """An object on its way: each commit sends it."""

    def __init__(self, inner: ObjectWriter, total: Tally) -> None:
        super().__init__(inner)
        self._total = total
        self._size = 0

    @override
    async def write(self, *pieces: bytes | bytearray | memoryview) -> None:
        self._size += sum(memoryview(piece).nbytes for piece in pieces)
        await self._inner.write(*pieces)

    @override
    async def commit(self) -> None:
        charge(self._total, Operation.PUT, bytes_in=self._size)
        await self._inner.commit()
