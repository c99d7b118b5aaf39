"""A store that gives and does not take, where whatever is written or deleted could do harm."""

from collections.abc import AsyncIterator
from typing import NoReturn

from typing_extensions import override

from repository.errors import TidemarkError
from repository.store.interface import ObjectInfo, ObjectWriter, Store


class ReadOnlyStore(Store):
    """Reads through to another store; every call that would change it raises the reason."""

    def __init__(self, inner: Store, reason: TidemarkError) -> None:
        self._inner = inner
        self._reason = reason

    def _refuse(self) -> NoReturn:
        # A new one each time: a raised error carries the trace of where it was raised.
        raise type(self._reason)(self._reason.message, hint=self._reason.hint)

    @override
    def writer(self, name: str) -> ObjectWriter:
        self._refuse()

    @override
    async def put(self, name: str, data: bytes) -> None:
        self._refuse()

    @override
    async def delete(self, name: str) -> None:
        self._refuse()

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
    def remove_leftovers(self) -> None:
        """Nothing is removed: what lies there may be of use to whoever knows the feature."""
