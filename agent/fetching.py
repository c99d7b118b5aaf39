"""What a grant lets a restore read: the keys of frames, their places, and the frames themselves.

Frames that lie close together in a pack are fetched by one call, within bounds; whoever reads the
store sees to it that one read serves neighbours. Nothing here decrypts content; keys stay in memory
for as long as the restore runs.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from typing_extensions import override

from agent.errors import UnreachableError
from agent.services import Grant, RestoreClient
from repository.errors import DamagedError, StoreUnavailableError, TidemarkError
from repository.frames import FrameIdentity
from repository.ids import PackNonce
from repository.keys import FrameKey, PackKey, UnsealingKey, frame_key, unwrap
from repository.layout import (
    GRANT_FRAME,
    GRANT_INFO,
    GRANT_PACK,
    GRANT_READER_KEYS,
    ReaderKeys,
)
from repository.pack import FrameTable
from repository.reader import FrameSource, SealedFrame
from repository.snapshot import RootBody, peek_signed_root, split_root

# What one call fetches: enough to make its round trip cheap, and a few of them bound our memory.
FETCH_BYTES: Final = 8 * 1024 * 1024
_RANGES_MAX: Final = 512


class Place(NamedTuple):
    """Where a frame lies, and its key."""

    pack: str
    offset: int
    length: int
    key: FrameKey


class OpenedGrant:
    """A grant, opened with the one-time key that it was sealed to."""

    def __init__(self, grant: Grant, one_time: UnsealingKey) -> None:
        self._grant_key = one_time.unseal(grant.sealed_grant_key, GRANT_INFO)
        encoded = unwrap(self._grant_key, grant.wrapped_reader_keys, GRANT_READER_KEYS)
        self.reader_keys = ReaderKeys.decode(encoded)
        self.root: RootBody = peek_signed_root(split_root(grant.root)[1])
        self._packs = {PackNonce(pack.pack_nonce): pack for pack in grant.packs}
        self._frames = {(frame.pack_nonce, frame.frame): frame for frame in grant.frames}
        self.endpoint = grant.endpoint
        self._opened: dict[PackNonce, tuple[PackKey, FrameTable]] = {}

    def place(self, identity: FrameIdentity) -> Place:
        """Return where a frame lies; DamagedError where the grant does not say."""
        single = self._frames.get((identity.nonce, identity.number))
        if single is not None:
            context = GRANT_FRAME + identity.nonce + identity.number.to_bytes(4, "big")
            key = FrameKey(unwrap(self._grant_key, single.wrapped_frame_key, context))
            return Place(single.name, single.offset, single.length, key)
        if identity.nonce not in self._packs:
            raise _not_covered(identity)
        if identity.nonce not in self._opened:
            pack = self._packs[identity.nonce]
            context = GRANT_PACK + identity.nonce
            pack_key = PackKey(unwrap(self._grant_key, pack.wrapped_pack_key, context))
            self._opened[identity.nonce] = (pack_key, FrameTable.decode(pack.frame_table))
        pack_key, table = self._opened[identity.nonce]
        found = table.find(identity)
        if found is None:
            raise _not_covered(identity)
        key = frame_key(pack_key, identity.number)
        return Place(self._packs[identity.nonce].name, *found, key)


def _not_covered(identity: FrameIdentity) -> DamagedError:
    return DamagedError(
        f"no pack holds frame {identity.nonce.hex()}/{identity.number}",
        hint="run tidemark verify to see what it affects",
    )


class Wanted(NamedTuple):
    """A frame to be fetched."""

    place: Place
    identity: FrameIdentity


def in_pack_order(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Group frames for one fetch each: of one pack, neighbours, of a bounded size."""
    group: list[Wanted] = []
    begin = 0
    for each in sorted(wanted):
        place = each.place
        if group and (
            place.pack != group[0].place.pack
            or place.offset + place.length - begin > FETCH_BYTES
            or len(group) >= _RANGES_MAX
        ):
            yield group
            group = []
        if not group:
            begin = place.offset
        group.append(each)
    if group:
        yield group


class Fetcher(FrameSource):
    """Fetches sealed frames for one restore task."""

    def __init__(self, client: RestoreClient, task_id: str, grant: OpenedGrant) -> None:
        self._client = client
        self._task_id = task_id
        self._grant = grant
        self.bytes_fetched = 0

    @override
    async def read(self, identities: Sequence[FrameIdentity]) -> list[SealedFrame]:
        wanted = [Wanted(self._grant.place(each), each) for each in dict.fromkeys(identities)]
        found: dict[FrameIdentity, SealedFrame] = {}
        for group in in_pack_order(wanted):
            for each, sealed in zip(group, await self.fetch(group), strict=True):
                found[each.identity] = SealedFrame(sealed, each.place.key)
        return [found[identity] for identity in identities]

    async def fetch(self, group: Sequence[Wanted]) -> list[memoryview]:
        """Return the sealed frames of a group that `in_pack_order` made."""
        ranges = [(each.place.offset, each.place.length) for each in group]
        self.bytes_fetched += sum(length for _, length in ranges)
        pack, endpoint = group[0].place.pack, self._grant.endpoint
        return await self._client.read_pack(self._task_id, pack, ranges, endpoint)

    async def fetch_each(
        self, group: Sequence[Wanted]
    ) -> list[tuple[Wanted, memoryview | TidemarkError]]:
        """Fetch a group; where that fails, fetch every frame alone and say which ones fail.

        An error that is not about what is stored, but about reaching it, is raised.
        """
        try:
            return list(zip(group, await self.fetch(group), strict=True))
        except TidemarkError as error:
            _raise_if_passing(error)
            if len(group) == 1:
                return [(group[0], error)]
        found: list[tuple[Wanted, memoryview | TidemarkError]] = []
        for each in group:
            found += await self.fetch_each([each])
        return found


def _raise_if_passing(error: TidemarkError) -> None:
    if isinstance(error, UnreachableError | StoreUnavailableError) or error.retryable:
        raise error
