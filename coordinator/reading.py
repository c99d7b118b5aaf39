"""Sealed frames out of the repository, with their keys out of custody: for browsing and proving.

Frames that lie side by side in a pack are read at once. Keys are asked for where they are used and
kept nowhere else.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

from typing_extensions import override

from coordinator.catalog import Catalog, PackPlace
from coordinator.custody import Custody
from coordinator.errors import DamagedError
from coordinator.founding import Repository
from repository.frames import FrameIdentity
from repository.ids import PackNonce
from repository.keys import FrameKey, frame_key
from repository.layout import ReaderKeys
from repository.pack import FrameTable
from repository.reader import FrameSource, SealedFrame, SnapshotReader
from repository.store.interface import Store

T = TypeVar("T")

# Reading a gap costs less than another request, up to this many bytes.
_GAP_BYTES: Final = 64 * 1024
_READ_BYTES_MAX: Final = 8 * 1024 * 1024
# Two processors' worth: browsing must not take the machine from the backups.
_WORKERS: Final = 2
# Places known at once; each has the table of one pack.
_PLACES_MAX: Final = 256


class _Wanted(NamedTuple):
    name: str
    offset: int
    length: int
    identity: FrameIdentity


class Workers:
    """The small thread pool in which frames are opened."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="frames")

    async def run(self, work: Callable[[], T]) -> T:
        """Do this in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Wait for what runs, and end."""
        self._pool.shutdown(cancel_futures=True)


class CatalogFrames(FrameSource):
    """Where frames lie according to the catalog. One for each walk: it caches places."""

    def __init__(
        self,
        catalog: Catalog,
        repository: Repository,
        custody: Custody,
        store: Store | None = None,
    ) -> None:
        """`store` is another view of the repository's, where one is wanted."""
        self._catalog = catalog
        self._store = store or repository.store
        self._repository_id = repository.config.repository
        self._custody = custody
        self._places: dict[PackNonce, tuple[PackPlace, FrameTable]] = {}

    async def place(self, nonce: PackNonce) -> tuple[PackPlace, FrameTable]:
        """The pack that holds an origin's frames; DamagedError where there is none."""
        await self._load([nonce])
        try:
            return self._places[nonce]
        except KeyError:
            raise DamagedError(
                f"no pack holds the frames of {nonce.hex()}",
                hint="run tidemark verify to see what it affects",
            ) from None

    @override
    async def read(self, identities: Sequence[FrameIdentity]) -> list[SealedFrame]:
        await self._load(identity.nonce for identity in identities)
        wanted = [await self._locate(identity) for identity in identities]
        sealed: dict[FrameIdentity, memoryview] = {}
        for group in _coalesced(sorted(set(wanted))):
            begin = group[0].offset
            end = max(each.offset + each.length for each in group)
            data = memoryview(await self._store.get_range(group[0].name, begin, end - begin))
            for each in group:
                start = each.offset - begin
                sealed[each.identity] = data[start : start + each.length]
        return [SealedFrame(sealed[identity], self._key(identity)) for identity in identities]

    def _key(self, identity: FrameIdentity) -> FrameKey:
        origin = self._places[identity.nonce][0].origin
        key = self._custody.pack_key(self._repository_id, origin.sealed_data_key, identity.nonce)
        return frame_key(key, identity.number)

    async def _locate(self, identity: FrameIdentity) -> _Wanted:
        place, table = await self.place(identity.nonce)
        found = table.find(identity)
        if found is None:
            raise DamagedError(
                f"pack {place.name} does not hold frame {identity.number}",
                hint="run tidemark verify to see what it affects",
            )
        return _Wanted(place.name, found[0], found[1], identity)

    async def _load(self, nonces: Iterable[PackNonce]) -> None:
        missing = {nonce for nonce in nonces if nonce not in self._places}
        if not missing:
            return
        if len(self._places) > _PLACES_MAX:
            self._places.clear()
        for nonce, place in (await self._catalog.ledger.places(missing)).items():
            self._places[nonce] = (place, FrameTable.decode(place.frame_table))


def snapshot_reader(
    catalog: Catalog,
    repository: Repository,
    custody: Custody,
    workers: Workers,
    store: Store | None = None,
) -> SnapshotReader:
    """A reader of any snapshot of the repository, by another view of its store if one is given."""
    keys = ReaderKeys(repository.config.repository, repository.keys.ids)
    return SnapshotReader(CatalogFrames(catalog, repository, custody, store), keys, workers.run)


def _coalesced(wanted: Iterable[_Wanted]) -> list[list[_Wanted]]:
    """Sorted frames in groups that one read serves."""
    groups: list[list[_Wanted]] = []
    for each in wanted:
        if groups and _joins(groups[-1], each):
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _joins(group: list[_Wanted], each: _Wanted) -> bool:
    first, last = group[0], group[-1]
    gap = each.offset - (last.offset + last.length)
    size = each.offset + each.length - first.offset
    return first.name == each.name and gap <= _GAP_BYTES and size <= _READ_BYTES_MAX
