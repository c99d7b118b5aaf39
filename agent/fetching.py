"""What a grant lets a restore read: the keys of frames, their places, and the frames themselves.

Frames that lie close together in a pack are fetched by one call, within bounds; whoever reads the
store sees to it that one read serves neighbours. Metadata is asked for frame by frame, mostly in
the order in which it lies: then what follows comes along. Nothing here decrypts content; keys stay
in memory for as long as the restore runs.
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
# The same of an object store, where each call has its price: half a pack of 32 MiB, and the frame
# across its middle.
STORE_FETCH_BYTES: Final = 17 * 1024 * 1024
# Fetches in flight: one on the line, one arrived, one being opened; two of the larger ones take no
# longer, and not much more memory.
_FETCHES: Final = 3
_STORE_FETCHES: Final = 2
_RANGES_MAX: Final = 512
# Of metadata that is read in order, so much comes with one call at most: the nodes of some 80,000
# files. It begins with so many times what was read before, for who only looks for a few paths.
_AHEAD_BYTES: Final = 4 * 1024 * 1024
_AHEAD_GROWTH: Final = 8
# What is skipped so little of is still read in order.
_AHEAD_GAP_BYTES: Final = 256 * 1024


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

    def end_of_run(self, identity: FrameIdentity, size_bytes: int) -> int:
        """Where, in its pack, the frames end that follow this one without a gap and are granted.

        At most so many bytes are taken together, unless the first alone has more.
        """
        offset, length = self.place(identity)[1:3]
        end = offset + length
        if identity.nonce in self._opened:
            _, table = self._opened[identity.nonce]
            for begin, more in sorted(table.places[identity.nonce].values()):
                if begin == end and end + more - offset <= size_bytes:
                    end += more
        return end


def _not_covered(identity: FrameIdentity) -> DamagedError:
    return DamagedError(
        f"no pack holds frame {identity.nonce.hex()}/{identity.number}",
        hint="run tidemark verify to see what it affects",
    )


class Wanted(NamedTuple):
    """A frame to be fetched."""

    place: Place
    identity: FrameIdentity


def in_pack_order(
    wanted: Iterable[Wanted], size_bytes: int = FETCH_BYTES
) -> Iterator[list[Wanted]]:
    """Group frames for one fetch each: of one pack, neighbours, of a bounded size."""
    group: list[Wanted] = []
    begin = 0
    for each in sorted(wanted):
        place = each.place
        if group and (
            place.pack != group[0].place.pack
            or place.offset + place.length - begin > size_bytes
            or len(group) >= _RANGES_MAX
        ):
            yield group
            group = []
        if not group:
            begin = place.offset
        group.append(each)
    if group:
        yield group


class _Held(NamedTuple):
    """What was read of a pack last, from here on."""

    pack: str = ""
    begin: int = 0
    data: memoryview = memoryview(b"")

    @property
    def end(self) -> int:
        return self.begin + len(self.data)

    def of(self, group: Sequence[Wanted]) -> list[memoryview] | None:
        """These frames; None where one of them is not held."""
        found = []
        for place in (each.place for each in group):
            start = place.offset - self.begin
            if place.pack != self.pack or start < 0 or place.offset + place.length > self.end:
                return None
            found.append(self.data[start : start + place.length])
        return found

    def leads_to(self, place: Place) -> bool:
        """Whether a frame comes next, but for a little that is skipped."""
        near = self.begin <= place.offset <= self.end + _AHEAD_GAP_BYTES
        return place.pack == self.pack and near


class Fetcher(FrameSource):
    """Fetches sealed frames for one restore task."""

    def __init__(self, client: RestoreClient, task_id: str, grant: OpenedGrant) -> None:
        self._client = client
        self._task_id = task_id
        self._grant = grant
        self._held = _Held()
        # Who asks again for what he was given found it broken: it has to come anew.
        self._given: set[FrameIdentity] = set()
        self.bytes_fetched = 0
        is_store = bool(grant.endpoint)
        self.fetch_bytes = STORE_FETCH_BYTES if is_store else FETCH_BYTES
        """What one fetch has at most, but for a single frame."""
        self.fetches_max = _STORE_FETCHES if is_store else _FETCHES
        """So many of them may be in flight."""

    @override
    async def read(self, identities: Sequence[FrameIdentity]) -> list[SealedFrame]:
        wanted = [Wanted(self._grant.place(each), each) for each in dict.fromkeys(identities)]
        found: dict[FrameIdentity, SealedFrame] = {}
        if not self._given.isdisjoint(identities):
            self._hold(_Held())
        for group in in_pack_order(wanted, self.fetch_bytes):
            for each, sealed in zip(group, await self._fetch_ahead(group), strict=True):
                found[each.identity] = SealedFrame(sealed, each.place.key)
        self._given.update(identities)
        return [found[identity] for identity in identities]

    async def _fetch_ahead(self, group: Sequence[Wanted]) -> list[memoryview]:
        """The frames of a group and, where the pack is read in order, what follows them."""
        held = self._held.of(group)
        if held is not None:
            return held
        first, last = group[0].place, group[-1].place
        ahead = min(_AHEAD_BYTES, _AHEAD_GROWTH * len(self._held.data))
        end = self._grant.end_of_run(group[-1].identity, ahead)
        if self._held.leads_to(first) and end - first.offset <= 2 * _AHEAD_BYTES:
            try:
                data = await self._read(first.pack, [(first.offset, end - first.offset)])
            except TidemarkError as error:
                # What follows may be damaged where this is not.
                _raise_if_passing(error)
            else:
                self._hold(_Held(first.pack, first.offset, data[0]))
                return self._held.of(group) or []
        fetched = await self.fetch(group)
        self._hold(_Held(first.pack, last.offset, fetched[-1]))
        return fetched

    def _hold(self, held: _Held) -> None:
        self._held = held
        self._given.clear()

    async def fetch(self, group: Sequence[Wanted]) -> list[memoryview]:
        """Return the sealed frames of a group that `in_pack_order` made."""
        ranges = [(each.place.offset, each.place.length) for each in group]
        return await self._read(group[0].place.pack, ranges)

    async def _read(self, pack: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        self.bytes_fetched += sum(length for _, length in ranges)
        return await self._client.read_pack(self._task_id, pack, ranges, self._grant.endpoint)

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
