"""Frames copied without keys: what named them still finds them, and nothing is copied unchecked."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repository.content import ContentWriter
from repository.copying import Collector, Copied, Source, copy_frames, copy_packs, open_source
from repository.editing import Editor
from repository.entries import ChunkClass, Entry, EntryType, Extent, Pointer, encode_entry
from repository.errors import (
    DamagedError,
    ObjectMissingError,
    TidemarkError,
    UsageError,
    WrongKeyError,
)
from repository.frames import FrameIdentity, Location
from repository.ids import ObjectType, PackNonce
from repository.keys import PackKey, SigningKey, UnsealingKey, pack_key
from repository.layout import ReaderKeys, parse_pack_name
from repository.pack import (
    PACK_BYTES_MAX,
    PackEnd,
    PackKind,
    Signer,
    identities,
    parse_tail,
    read_index,
)
from repository.reader import SnapshotReader
from repository.tree import Boundaries
from tests.fakes.packs import StoreFrames
from tests.fakes.store import MemoryStore
from tests.unit.repository.damage import altered
from tests.unit.repository.packs import (
    DATA_KEY,
    IDS,
    METADATA,
    NODE,
    RECOVERY,
    REPOSITORY,
    SIGNING,
    Made,
    make_pack,
)

T = TypeVar("T")

COORDINATOR = SigningKey(b"c" * 32)
COORDINATOR_ID = b"C" * 16
# What a coordinator has while custody is locked: nothing here opens a frame.
COLLECTOR = Collector(
    REPOSITORY,
    COORDINATOR_ID,
    COORDINATOR,
    METADATA,
    {
        (Signer.NODE, NODE): SIGNING.public,
        (Signer.COORDINATOR, COORDINATOR_ID): COORDINATOR.public,
    },
)
PLAIN = Entry(EntryType.DIRECTORY, 0o755, 0, 0, 0, 0, 0, 0, 1, 0, 0, None, None, None, None)


async def run(work: Callable[[], T]) -> T:
    return work()


def nonce(letter: bytes) -> PackNonce:
    return PackNonce(letter * 16)


class Packer:
    """Chunks of one type into packs, some of whose frames nobody needs."""

    def __init__(self, kind: ObjectType, letters: bytes, draw: random.Random) -> None:
        self._kind = kind
        self._nonces = [nonce(bytes([letter])) for letter in letters]
        self._frames: dict[PackNonce, list[tuple[ObjectType, list[bytes]]]] = {
            each: [] for each in self._nonces
        }
        self._draw = draw
        self.needed: set[FrameIdentity] = set()

    def put(self, content: bytes) -> Pointer:
        chosen = self._draw.choice(self._nonces)
        frames = self._frames[chosen]
        while self._draw.random() < 0.5:
            frames.append((self._kind, [self._draw.randbytes(self._draw.randrange(1, 200))]))
        if not frames or self._draw.random() < 0.6:
            frames.append((self._kind, []))
        number = len(frames) - 1
        frames[number][1].append(content)
        self.needed.add(FrameIdentity(chosen, number))
        place = Location(chosen, number, len(frames[number][1]) - 1, len(content))
        return Pointer.at(IDS.chunk_id(self._kind, content), place)

    def packs(self) -> list[Made]:
        kind = PackKind.DATA if self._kind is ObjectType.DATA else PackKind.METADATA
        return [make_pack(frames, kind, each) for each, frames in self._frames.items()]


class Snapshot:
    """Files with their manifest, in packs of a store."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        data = Packer(ObjectType.DATA, b"abc", draw)
        lists = Packer(ObjectType.LIST, b"l", draw)
        nodes = Packer(ObjectType.NODE, b"mn", draw)
        self.files: dict[bytes, bytes] = {}
        entries = {b"": PLAIN}
        for number in range(draw.randrange(1, 12)):
            # One in a few has so many extents that they stand in a list.
            pieces = [draw.randbytes(draw.randrange(1, 60)) for _ in range(draw.choice([1, 3, 40]))]
            writer = ContentWriter(ChunkClass.GENERAL, lists.put)
            for piece in pieces:
                pointer = data.put(piece)
                place = Location(pointer.nonce, pointer.frame, pointer.chunk, pointer.length)
                writer.add(Extent.at(pointer.id, place))
            key = b"file%d" % number
            self.files[key] = b"".join(pieces)
            entries[key] = msgspec.structs.replace(
                PLAIN,
                type=EntryType.FILE,
                size=len(self.files[key]),
                content=writer.finish(),
            )
        items = sorted((key, encode_entry(entry)) for key, entry in entries.items())
        root = Editor(Boundaries(b"b" * 32), _no_node, nodes.put).edit(None, items).root
        assert root is not None
        self.root = root
        self.needed = data.needed | lists.needed | nodes.needed
        self.store = MemoryStore()
        self.kinds: dict[str, PackKind] = {}
        for packer in (data, lists, nodes):
            for pack in packer.packs():
                self.store.objects[pack.name] = pack.raw
                self.kinds[pack.name] = read_index(pack.raw, METADATA)[0]

    async def read(self) -> dict[bytes, bytes]:
        """All files, read by the manifest's root and whatever packs there are."""
        frames = await StoreFrames.of(self.store, REPOSITORY, RECOVERY, METADATA)
        reader = SnapshotReader(frames, ReaderKeys(REPOSITORY, IDS), run)
        return {
            key: b"".join([bytes(piece) async for piece in reader.content(entry)])
            async for batch in reader.entries(self.root)
            for key, entry in batch
            if key
        }

    def live_in(self, name: str) -> set[FrameIdentity]:
        """The frames of a pack that the snapshot needs."""
        _, index = read_index(self.store.objects[name], METADATA)
        return {identity for identity, _ in identities(index)} & self.needed


def _no_node(_: Pointer) -> bytes:
    raise AssertionError


async def collect(snapshot: Snapshot, names: Iterable[str], draw: random.Random) -> Copied | None:
    """Copy what lives in these packs of one kind, and remove them."""
    chosen = {name: snapshot.live_in(name) for name in names}
    chosen = {name: live for name, live in chosen.items() if live}
    copied = None
    if chosen:
        copied = await copy_packs(snapshot.store, chosen, COLLECTOR, random=draw.randbytes, run=run)
        snapshot.kinds[copied.name] = read_index(copied.raw, METADATA)[0]
    for name in names:
        await snapshot.store.delete(name)
        del snapshot.kinds[name]
    return copied


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_old_manifests_read_what_was_copied_though_the_old_packs_are_gone(seed: int) -> None:
    async def history() -> None:
        draw = random.Random(seed)
        snapshot = Snapshot(seed)
        before = set(snapshot.store.objects)
        assert await snapshot.read() == snapshot.files
        # Copies of copies as well: each round takes some packs of one kind, several into one.
        for _ in range(4):
            kind = draw.choice(list(PackKind))
            names = sorted(name for name, each in snapshot.kinds.items() if each is kind)
            if not names:
                continue
            some = draw.sample(names, draw.randrange(1, len(names) + 1))
            await collect(snapshot, some, draw)
            assert await snapshot.read() == snapshot.files
        for kind in PackKind:
            names = sorted(name for name, each in snapshot.kinds.items() if each is kind)
            await collect(snapshot, names, draw)
        assert await snapshot.read() == snapshot.files
        assert not before & set(snapshot.store.objects)
        held = [live for name in snapshot.store.objects for live in snapshot.live_in(name)]
        assert sorted(held) == sorted(snapshot.needed)

    asyncio.run(history())


def packs_of(count: int, frames: int = 3) -> list[Made]:
    return [
        make_pack(
            [(ObjectType.DATA, [b"%d of %d" % (frame, pack)]) for frame in range(frames)],
            PackKind.DATA,
            nonce(bytes([65 + pack])),
        )
        for pack in range(count)
    ]


def copied_from(packs: list[Made], numbers: Iterable[int], seed: int = 1) -> Copied:
    draw = random.Random(seed)
    chosen = []
    for pack in packs:
        source = open_source(pack.name, pack.raw, COLLECTOR)
        held = [identity for identity, _ in identities(source.index)]
        chosen.append((source, [held[number] for number in numbers]))
    return copy_frames(chosen, COLLECTOR, random=draw.randbytes(16), footer_key=draw.randbytes(32))


def made_of(copied: Copied) -> Made:
    return Made(copied.name, copied.raw, [], [])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_a_footer_opens_with_any_origins_pack_key_however_often_it_was_copied(
    rounds: list[int],
) -> None:
    copied = copied_from(packs_of(3), [0, 2])
    for number, kept in enumerate(sorted(rounds, reverse=True)):
        copied = copied_from([made_of(copied)], range(kept), seed=number + 2)
    tail = parse_tail(copied.raw, len(copied.raw))
    end = PackEnd(tail, copied.raw[tail.footer_offset :])
    bits, _ = parse_pack_name(copied.name)

    for origin in copied.index.origins:
        key = pack_key(DATA_KEY, origin.nonce)
        assert end.open_with_pack_keys({origin.nonce: key}, bits) == copied.index
        with pytest.raises(WrongKeyError):
            end.open_with_pack_keys({origin.nonce: PackKey(b"x" * 32)}, bits)
        with pytest.raises(WrongKeyError):
            end.open_with_pack_keys({origin.nonce: key}, b"another pack's..")
    assert end.open_with_metadata_key(METADATA) == copied.index
    # What the node wrapped is carried along, and nothing grows.
    lengths = {(len(each.wrapped_footer_key), len(each.relayed_footer_key)) for each in end.origins}
    assert lengths == {(48, 48)}


def test_a_coordinator_answers_for_a_copy() -> None:
    copied = copied_from(packs_of(2), [1])
    tail = parse_tail(copied.raw, len(copied.raw))

    assert (tail.signer, tail.signer_id) == (Signer.COORDINATOR, COORDINATOR_ID)
    tail.check_signature(REPOSITORY, COORDINATOR.public)
    with pytest.raises(DamagedError, match="signature"):
        tail.check_signature(REPOSITORY, SIGNING.public)


def test_copies_of_the_same_frames_share_no_name_and_no_footer_key() -> None:
    one, other = (copied_from(packs_of(1), [0, 1], seed) for seed in (1, 2))
    ends = []
    for copied in (one, other):
        tail = parse_tail(copied.raw, len(copied.raw))
        ends.append(PackEnd(tail, copied.raw[tail.footer_offset :]))

    keys = [end.footer_keys(METADATA) for end in ends]

    assert one.name != other.name
    assert keys[0].pack != keys[1].pack
    assert keys[0].origins == keys[1].origins


MADE = packs_of(1)[0]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nothing_is_copied_from_a_pack_that_was_altered(data: st.DataObject) -> None:
    with pytest.raises(TidemarkError):
        open_source(MADE.name, data.draw(altered(MADE.raw)), COLLECTOR)


def test_nothing_is_copied_from_a_pack_that_nobody_known_signed() -> None:
    unknown = msgspec.structs.replace(COLLECTOR, signers={})
    another = msgspec.structs.replace(
        COLLECTOR, signers={(Signer.NODE, NODE): SigningKey(b"x" * 32).public}
    )
    # A node's key is not good for what a coordinator signs.
    as_node = msgspec.structs.replace(
        COLLECTOR, signers={(Signer.NODE, COORDINATOR_ID): COORDINATOR.public}
    )
    copied = copied_from([MADE], [0])

    with pytest.raises(DamagedError, match="unknown node"):
        open_source(MADE.name, MADE.raw, unknown)
    with pytest.raises(DamagedError, match="signature"):
        open_source(MADE.name, MADE.raw, another)
    with pytest.raises(DamagedError, match="unknown coordinator"):
        open_source(copied.name, copied.raw, as_node)


def test_nothing_is_copied_under_the_name_of_another_pack() -> None:
    one, other = packs_of(2)

    with pytest.raises(DamagedError, match="stored under this name"):
        open_source(other.name, one.raw, COLLECTOR)


def test_another_metadata_key_copies_nothing() -> None:
    stranger = msgspec.structs.replace(COLLECTOR, metadata=UnsealingKey(b"x" * 32))

    with pytest.raises(WrongKeyError):
        open_source(MADE.name, MADE.raw, stranger)


def test_what_cannot_be_one_pack_is_refused() -> None:
    data = open_source(MADE.name, MADE.raw, COLLECTOR)
    metadata = make_pack([(ObjectType.NODE, [b"n"])], PackKind.METADATA, nonce(b"n"))
    nodes = open_source(metadata.name, metadata.raw, COLLECTOR)
    first = FrameIdentity(nonce(b"A"), 0)
    refused: list[list[tuple[Source, list[FrameIdentity]]]] = [
        [],
        [(data, [])],
        [(data, [FrameIdentity(nonce(b"A"), 3)])],
        [(data, [first, FrameIdentity(nonce(b"B"), 0)])],
        [(data, [first]), (nodes, [FrameIdentity(nonce(b"n"), 0)])],
        [(data, [first]), (data, [FrameIdentity(nonce(b"A"), 1)])],
    ]
    for chosen in refused:
        with pytest.raises(UsageError):
            copy_frames(chosen, COLLECTOR, random=b"q" * 16, footer_key=b"k" * 32)


def test_more_than_a_pack_may_hold_is_refused() -> None:
    third = random.Random(1).randbytes(7 * 1024 * 1024)
    count = PACK_BYTES_MAX // len(third) // 2 + 1
    packs = [
        make_pack([(ObjectType.DATA, [third])] * count, PackKind.DATA, nonce(letter))
        for letter in (b"A", b"B")
    ]

    with pytest.raises(UsageError, match="more frames"):
        copied_from(packs, range(count))


def test_a_store_that_fails_leaves_the_old_packs_as_they_are() -> None:
    async def attempt() -> None:
        store = MemoryStore()
        for pack in packs_of(2):
            await store.put(pack.name, pack.raw)
        before = dict(store.objects)
        chosen = {name: [FrameIdentity(nonce(b"A"), 0)] for name in list(before)[:1]}
        store.capacity = sum(map(len, before.values())) + 10
        with pytest.raises(TidemarkError, match="full"):
            await copy_packs(store, chosen, COLLECTOR, random=random.Random(1).randbytes, run=run)
        gone = {"packs/00/none": chosen.popitem()[1]}
        with pytest.raises(ObjectMissingError):
            await copy_packs(store, gone, COLLECTOR, random=random.Random(1).randbytes, run=run)
        assert store.objects == before

    asyncio.run(attempt())


def test_frames_keep_their_bytes() -> None:
    packs = packs_of(3)
    before: dict[FrameIdentity, bytes] = {}
    for pack in packs:
        for identity, entry in identities(read_index(pack.raw, METADATA)[1]):
            before[identity] = pack.raw[entry.offset : entry.offset + entry.length]

    copied = copied_from(packs, [2, 0])

    after = defaultdict(bytes)
    for identity, entry in identities(copied.index):
        after[identity] = copied.raw[entry.offset : entry.offset + entry.length]
    assert after == {each: sealed for each, sealed in before.items() if each.number != 1}
