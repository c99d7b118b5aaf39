"""A store that gives and does not take, where whatever is written or deleted could do harm."""

from typing import NoReturn

from typing_extensions import override

from repository.errors import TidemarkError
from repository.store.around import StoreAround
from repository.store.interface import ObjectWriter, Store


class ReadOnlyStore(StoreAround):
    """Reads through to another store; every call that would change it raises the reason."""

    def __init__(self, inner: Store, reason: TidemarkError) -> None:
        super().__init__(inner)
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
    def remove_leftovers(self) -> None:
        """Nothing is removed: what lies there may be of use to whoever knows the feature."""
