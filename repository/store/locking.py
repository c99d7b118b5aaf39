"""Locks of a store behind a network: asked for again, and left alone, as all of it is.

What they cost the store counts by itself.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Protocol, TypeVar

from typing_extensions import override

from repository.store.breaking import Breaker, BreakingStore
from repository.store.interface import Locking, ObjectInfo, ObjectWriter, Operation, Store
from repository.store.retrying import RetryingStore

_T = TypeVar("_T")


class Lockable(Store, Protocol):
    """A store that locks by itself."""

    @override
    def writer(self, name: str, *, retain_until: datetime | None = None) -> ObjectWriter: ...

    async def retain_until(self, name: str, when: datetime) -> None:
        """As `Locking` says."""
        ...

    async def locked_until(self, name: str) -> datetime | None:
        """As `Locking` says."""
        ...


class GuardedLocking(Locking):
    """Locks of one store, whose breaker this is."""

    def __init__(self, store: Lockable, breaker: Breaker, *, wait_seconds: float = 0.0) -> None:
        self._store = store
        self._breaker = breaker
        self._wait_seconds = wait_seconds
        self._retrying = RetryingStore(store)

    @override
    def writing_until(self, when: datetime) -> Store:
        locked = RetryingStore(_LockedWrites(self._store, when))
        return BreakingStore(locked, self._breaker, wait_seconds=self._wait_seconds)

    @override
    async def retain_until(self, name: str, when: datetime) -> None:
        # Twice is once, so an answer that was lost is no harm.
        await self._ask(Operation.PUT, lambda: self._store.retain_until(name, when))

    @override
    async def locked_until(self, name: str) -> datetime | None:
        return await self._ask(Operation.HEAD, lambda: self._store.locked_until(name))

    async def _ask(self, operation: Operation, work: Callable[[], Awaitable[_T]]) -> _T:
        async with self._breaker.call(self._wait_seconds):
            return await self._retrying.persist(operation, work)


class _LockedWrites(Store):
    """Another store, where whatever is written is locked until one time."""

    def __init__(self, inner: Lockable, until: datetime) -> None:
        self._inner = inner
        self._until = until

    @override
    def writer(self, name: str) -> ObjectWriter:
        return self._inner.writer(name, retain_until=self._until)

    @override
    async def get(self, name: str) -> bytes:
        return await self._inner.get(name)

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        return await self._inner.get_range(name, offset, length)

    @override
    async def head(self, name: str) -> ObjectInfo:
        return await self._inner.head(name)

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async for info in self._inner.list_objects(prefix):
            yield info

    @override
    async def delete(self, name: str) -> None:
        await self._inner.delete(name)

    @override
    def remove_leftovers(self) -> None:
        self._inner.remove_leftovers()
