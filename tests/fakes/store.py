"""A store in memory; passes the contract suite as the real ones do."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from typing_extensions import override

from repository.errors import (
    DamagedError,
    ObjectExistsError,
    ObjectMissingError,
    StoreFullError,
    StoreUnavailableError,
)
from repository.store.interface import ObjectInfo, ObjectWriter, Store, check_name, check_prefix


class MemoryStore(Store):
    """Objects in a dict, which tests may look into and alter; `capacity` bytes fill it."""

    def __init__(self, capacity: int | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.capacity = capacity
        self.is_gone = False

    async def vanish(self) -> None:
        """Be unavailable from now on."""
        self.is_gone = True

    @override
    def writer(self, name: str) -> ObjectWriter:
        return _MemoryWriter(self, check_name(name))

    @override
    async def get(self, name: str) -> bytes:
        return self._found(name)

    @override
    async def get_range(self, name: str, offset: int, length: int) -> bytes:
        data = self._found(name)[offset : offset + length]
        if len(data) != length:
            raise DamagedError(f"{name} is shorter than it should be")
        return data

    @override
    async def head(self, name: str) -> ObjectInfo:
        return ObjectInfo(name, len(self._found(name)))

    @override
    async def list_objects(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        self.check_present()
        for name in sorted(self.objects):
            if name.startswith(prefix):
                yield ObjectInfo(name, len(self.objects[name]))

    @override
    async def delete(self, name: str) -> None:
        self._found(name)
        del self.objects[name]

    def check_present(self) -> None:
        if self.is_gone:
            raise StoreUnavailableError("the store is gone")

    def check_space(self, more: int) -> None:
        used = sum(map(len, self.objects.values()))
        if self.capacity is not None and used + more > self.capacity:
            raise StoreFullError("the store is full")

    def _found(self, name: str) -> bytes:
        check_name(name)
        self.check_present()
        if name not in self.objects:
            raise ObjectMissingError(f"the repository has no object {name}")
        return self.objects[name]


class _MemoryWriter(ObjectWriter):
    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store = store
        self._name = name
        self._data = bytearray()

    @override
    async def __aenter__(self) -> Self:
        self._store.check_present()
        return self

    @override
    async def write(self, *pieces: bytes | bytearray | memoryview) -> None:
        for piece in pieces:
            self._store.check_space(len(self._data) + len(piece))
            self._data += piece

    @override
    async def commit(self) -> None:
        self._store.check_present()
        if self._name in self._store.objects:
            raise ObjectExistsError(f"the repository has an object {self._name} already")
        self._store.objects[self._name] = bytes(self._data)

    @override
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._data.clear()
