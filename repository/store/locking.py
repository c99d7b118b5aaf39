"""Locks of a store behind a network: asked for again, and left alone, as all of it is.

What they cost the store counts by itself.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol, TypeVar

from typing_extensions import override

from repository.store.around import StoreAround
from repository.store.breaking import Breaker, BreakingStore
from repository.store.interface import Locking, ObjectWriter, Operation, Store
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


class _LockedWrites(StoreAround):
    """Another store, where whatever is written is locked until one time."""

    def __init__(self, inner: Lockable, until: datetime) -> None:
        super().__init__(inner)
        self._lockable = inner
        self._until = until

    @override
    def writer(self, name: str) -> ObjectWriter:
        return self._lockable.writer(name, retain_until=self._until)
