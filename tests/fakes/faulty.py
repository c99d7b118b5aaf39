"""A store that fails when it is told to, before or after it has done what was asked."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from typing_extensions import override

from repository.errors import TidemarkError
from repository.store.interface import ObjectInfo, ObjectWriter, Store

_T = TypeVar("_T")


@dataclass
class Plan:
    """Which calls fail, counted from 1 since the plan was made; and how many there were."""

    first: int = 0
    """The first that fails; 0 for none."""
    last: int = 0
    error: type[TidemarkError] = TidemarkError
    after_effect: bool = False
    calls: int = 0

    async def call(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """One call of the store."""
        self.calls += 1
        fails = self.first <= self.calls <= self.last
        if fails and not self.after_effect:
            raise self.error(f"call {self.calls} of the store fails")
        result = await work()
        if fails:
            raise self.error(f"call {self.calls} of the store fails after it was done")
        return result


class FaultyStore(Store):
    """Another store, and the plan by which its calls fail. Exchange `plan` at any time."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.plan = Plan()

    @override
    def writer(self, name: str) -> ObjectWriter:
        return _FaultyWriter(self, self.inner.writer(name))

    @override
    async def get(self, name: str) -> bytes:
        return await self.plan.call(lambda: self.inner.get(name))

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        return await self.plan.call(lambda: self.inner.get_range(name, offset, length))

    @override
    async def head(self, name: str) -> ObjectInfo:
        return await self.plan.call(lambda: self.inner.head(name))

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async def listed() -> list[ObjectInfo]:
            return [info async for info in self.inner.list_objects(prefix)]

        for info in await self.plan.call(listed):
            yield info

    @override
    async def delete(self, name: str) -> None:
        await self.plan.call(lambda: self.inner.delete(name))

    @override
    def remove_leftovers(self) -> None:
        self.inner.remove_leftovers()


class _FaultyWriter(ObjectWriter):
    def __init__(self, store: FaultyStore, inner: ObjectWriter) -> None:
        self._store = store
        self._inner = inner
        self._entered = False

    @override
    async def __aenter__(self) -> Self:
        async def enter() -> None:
            await self._inner.__aenter__()
            self._entered = True

        try:
            await self._store.plan.call(enter)
        except BaseException:
            if self._entered:
                await self._inner.__aexit__(None, None, None)
            raise
        return self

    @override
    async def write(self, *pieces: bytes | bytearray | memoryview) -> None:
        await self._store.plan.call(lambda: self._inner.write(*pieces))

    @override
    async def commit(self) -> None:
        await self._store.plan.call(self._inner.commit)

    @override
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)
        await self._store.plan.call(_nothing)


async def _nothing() -> None:
    return None
