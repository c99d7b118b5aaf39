"""What stands around a store: each class here passes on whatever it is asked.

Who stands around one for a reason of his own overrides what the reason is about.
"""

from collections.abc import AsyncIterator, Awaitable
from datetime import datetime
from types import TracebackType
from typing import Self

from typing_extensions import override

from repository.store.interface import (
    Checksum,
    ObjectInfo,
    ObjectWriter,
    SignedRequest,
    Signing,
    Store,
    StoredObject,
)


class StoreAround(Store):
    """Reads and writes as another store does."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @override
    def writer(self, name: str) -> ObjectWriter:
        return self._inner.writer(name)

    @override
    def get(self, name: str) -> Awaitable[bytes]:
        return self._inner.get(name)

    @override
    def get_range(self, name: str, offset: int, length: int) -> Awaitable[bytes]:
        return self._inner.get_range(name, offset, length)

    @override
    def head(self, name: str) -> Awaitable[ObjectInfo]:
        return self._inner.head(name)

    @override
    def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._inner.list_objects(prefix)

    @override
    def delete(self, name: str) -> Awaitable[None]:
        return self._inner.delete(name)

    @override
    def remove_leftovers(self) -> None:
        self._inner.remove_leftovers()


class WriterAround(ObjectWriter):
    """Writes one object as another writer does."""

    def __init__(self, inner: ObjectWriter) -> None:
        self._inner = inner

    @override
    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    @override
    async def write(self, *pieces: bytes | bytearray | memoryview) -> None:
        await self._inner.write(*pieces)

    @override
    async def commit(self) -> None:
        await self._inner.commit()

    @override
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)


class SigningAround(Signing):
    """Signs as another does, which asks nobody; what there is, it may ask in its own way."""

    def __init__(self, inner: Signing) -> None:
        self._inner = inner

    @property
    @override
    def endpoint(self) -> str:
        return self._inner.endpoint

    @property
    @override
    def checksum(self) -> Checksum:
        return self._inner.checksum

    @override
    async def sign_put(
        self,
        name: str,
        *,
        size_bytes: int,
        checksum: bytes,
        seconds: int,
        retain_until: datetime | None = None,
    ) -> SignedRequest:
        return await self._inner.sign_put(
            name,
            size_bytes=size_bytes,
            checksum=checksum,
            seconds=seconds,
            retain_until=retain_until,
        )

    @override
    async def sign_get(self, name: str, *, seconds: int) -> SignedRequest:
        return await self._inner.sign_get(name, seconds=seconds)

    @override
    async def stored(self, name: str, offset: int, length: int) -> StoredObject:
        return await self._inner.stored(name, offset, length)
