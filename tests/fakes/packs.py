"""Frames out of the packs of a store, found by footers and opened with the recovery key."""

from collections.abc import Sequence
from typing import NamedTuple, Self

from typing_extensions import override

from repository.errors import DamagedError
from repository.footers import read_pack_index
from repository.frames import FrameIdentity
from repository.ids import PackNonce, RepositoryId
from repository.keys import PackKey, UnsealingKey, frame_key, pack_key
from repository.layout import DATA_KEY_INFO
from repository.pack import FrameTable, Origin
from repository.reader import FrameSource, SealedFrame
from repository.store.interface import Store


class _Place(NamedTuple):
    name: str
    table: FrameTable
    origin: Origin


class StoreFrames(FrameSource):
    """Where frames lie is told by the packs that are there, and by nothing else."""

    def __init__(self, store: Store, repository: RepositoryId, recovery: UnsealingKey) -> None:
        self._store = store
        self._repository = repository
        self._recovery = recovery
        self.places: dict[PackNonce, _Place] = {}
        self._keys: dict[PackNonce, PackKey] = {}

    @classmethod
    async def of(
        cls, store: Store, repository: RepositoryId, recovery: UnsealingKey, metadata: UnsealingKey
    ) -> Self:
        made = cls(store, repository, recovery)
        async for info in store.list_objects("packs/"):
            index = await read_pack_index(store, info.name, metadata)
            for origin in index.origins:
                assert origin.nonce not in made.places
                made.places[origin.nonce] = _Place(info.name, index.table(), origin)
        return made

    @override
    async def read(self, identities: Sequence[FrameIdentity]) -> list[SealedFrame]:
        return [await self._frame(identity) for identity in identities]

    async def _frame(self, identity: FrameIdentity) -> SealedFrame:
        place = self.places.get(identity.nonce)
        found = None if place is None else place.table.find(identity)
        if place is None or found is None:
            raise DamagedError("no pack holds the frame")
        if identity.nonce not in self._keys:
            info = DATA_KEY_INFO + self._repository
            data_key = self._recovery.unseal(place.origin.sealed_data_key, info)
            self._keys[identity.nonce] = pack_key(data_key, identity.nonce)
        sealed = await self._store.get_range(place.name, *found)
        return SealedFrame(sealed, frame_key(self._keys[identity.nonce], identity.number))
