"""Reading a snapshot by way of frames: what was stored, checked, and each frame fetched once."""

from collections.abc import Callable

import msgspec
import pytest

from repository import reader as reading
from repository.content import ContentWriter
from repository.editing import Editor
from repository.entries import (
    ChunkClass,
    Content,
    Entry,
    EntryType,
    Extent,
    Pointer,
    encode_entry,
    key_of,
)
from repository.errors import DamagedError, FormatError
from repository.ids import ChunkId, IdKeys, ObjectType, PackNonce, RepositoryId
from repository.layout import ReaderKeys
from repository.reader import Chunks, SnapshotReader
from repository.tree import Boundaries
from tests.fakes.frames import MemoryFrames

pytestmark = pytest.mark.asyncio

REPOSITORY = RepositoryId(b"R" * 16)
IDS = IdKeys(b"d" * 32, b"n" * 32, b"l" * 32)
NONCE = PackNonce(b"p" * 16)
PLAIN = Entry(EntryType.DIRECTORY, 0o755, 0, 0, 0, 0, 0, 0, 1, 0, 0, None, None, None, None)


async def run(work: Callable[[], list[Chunks]]) -> list[Chunks]:
    return work()


@pytest.fixture
def frames() -> MemoryFrames:
    return MemoryFrames(REPOSITORY, IDS, NONCE)


@pytest.fixture
def reader(frames: MemoryFrames) -> SnapshotReader:
    return SnapshotReader(frames, ReaderKeys(REPOSITORY, IDS), run)


def stored(frames: MemoryFrames, kind: ObjectType) -> Callable[[bytes], Pointer]:
    def put(encoded: bytes) -> Pointer:
        ((chunk_id, place),) = frames.add(kind, encoded)
        return Pointer.at(chunk_id, place)

    return put


def manifest(frames: MemoryFrames, entries: dict[bytes, Entry]) -> Pointer:
    """A manifest of these entries by path."""

    def load(_: Pointer) -> bytes:
        raise AssertionError

    items = sorted((key_of(path), encode_entry(entry)) for path, entry in entries.items())
    root = Editor(Boundaries(b"b" * 32), load, stored(frames, ObjectType.NODE)).edit(None, items)
    assert root.root is not None
    return root.root


def file(size: int, extents: list[Extent], pointer: Pointer | None = None) -> Entry:
    content = Content(ChunkClass.GENERAL, extents, pointer)
    return msgspec.structs.replace(PLAIN, type=EntryType.FILE, size=size, content=content)


def extents_of(frames: MemoryFrames, *contents: bytes) -> list[Extent]:
    return [Extent.at(*place) for place in frames.add(ObjectType.DATA, *contents)]


async def content_of(reader: SnapshotReader, entry: Entry) -> bytes:
    return b"".join([bytes(piece) async for piece in reader.content(entry)])


async def test_entries_are_found_by_path_and_by_walking(
    frames: MemoryFrames, reader: SnapshotReader
) -> None:
    paths = [b"", b"etc", b"etc/hosts", b"var", *(b"var/%d" % number for number in range(500))]
    root = manifest(frames, dict.fromkeys(paths, PLAIN))

    walked = [key async for batch in reader.entries(root) for key, _ in batch]
    beneath = [key async for batch in reader.entries(root, b"etc") for key, _ in batch]

    assert walked == sorted(key_of(path) for path in paths)
    assert beneath == [b"etc", b"etc\x00hosts"]
    assert await reader.entry(root, b"var/77") == PLAIN
    assert await reader.entry(root, b"var/777") is None


async def test_a_frame_is_fetched_once(frames: MemoryFrames, reader: SnapshotReader) -> None:
    root = manifest(frames, {b"%d" % number: PLAIN for number in range(500)})

    for _ in range(3):
        assert [batch async for batch in reader.entries(root)]

    asked = [identity for identities in frames.asked for identity in identities]
    assert len(asked) == len(set(asked)) == len(frames.frames)
    assert max(map(len, frames.asked)) <= 8


async def test_a_content_is_its_chunks_slices_and_holes(
    frames: MemoryFrames, reader: SnapshotReader
) -> None:
    first, second = extents_of(frames, b"0123456789", b"abcdef")
    middle = msgspec.structs.replace(first, skip=3, length=4)
    entry = file(6 + 3_000_000 + 4, [second, Extent.hole(3_000_000), middle])

    assert await content_of(reader, entry) == b"abcdef" + bytes(3_000_000) + b"3456"
    assert len(frames.asked) == 1


async def test_a_content_of_many_extents_is_read_by_its_list(
    frames: MemoryFrames, reader: SnapshotReader
) -> None:
    writer = ContentWriter(ChunkClass.PAGED, stored(frames, ObjectType.LIST))
    pieces = [b"%06d" % number for number in range(3000)]
    for start in range(0, len(pieces), 500):
        for extent in extents_of(frames, *pieces[start : start + 500]):
            writer.add(extent)
    content = writer.finish()
    entry = msgspec.structs.replace(file(18_000, []), content=content)

    assert content.list is not None
    assert await content_of(reader, entry) == b"".join(pieces)


async def test_what_is_no_file_has_no_content(reader: SnapshotReader) -> None:
    nothing = msgspec.structs.replace(file(0, []), content=None)

    assert await content_of(reader, PLAIN) == await content_of(reader, nothing) == b""


@pytest.mark.parametrize(("size", "reason"), [(9, "longer"), (11, "shorter")])
async def test_a_content_of_another_length_than_its_entry_says_is_damage(
    frames: MemoryFrames, reader: SnapshotReader, size: int, reason: str
) -> None:
    entry = file(size, extents_of(frames, b"0123456789"))

    with pytest.raises(DamagedError, match=reason):
        await content_of(reader, entry)


async def test_a_file_of_some_size_without_content_is_damage(reader: SnapshotReader) -> None:
    nothing = msgspec.structs.replace(file(5, []), content=None)

    with pytest.raises(DamagedError, match="shorter"):
        await content_of(reader, nothing)


async def test_a_content_that_is_too_long_is_not_read_to_its_end(
    frames: MemoryFrames, reader: SnapshotReader
) -> None:
    writer = ContentWriter(ChunkClass.PAGED, stored(frames, ObjectType.LIST))
    for _ in range(10_000):
        writer.add(Extent.hole(1 << 40))
    entry = msgspec.structs.replace(file(1, []), content=writer.finish())

    with pytest.raises(DamagedError, match="longer"):
        await content_of(reader, entry)
    assert len(frames.asked) <= 3


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"chunk": 2}, FormatError),
        ({"chunk": 1}, DamagedError),
        ({"skip": 1}, FormatError),
        ({"length": 11}, FormatError),
        ({"id": ChunkId(b"i" * 32)}, DamagedError),
        ({"frame": 9}, DamagedError),
    ],
)
async def test_an_extent_that_points_elsewhere_is_damage(
    frames: MemoryFrames,
    reader: SnapshotReader,
    change: dict[str, object],
    error: type[DamagedError],
) -> None:
    extent = extents_of(frames, b"0123456789", b"other")[0]

    with pytest.raises(error):
        await reader.extent(msgspec.structs.replace(extent, **change))


@pytest.mark.parametrize("opened_before", [False, True])
async def test_a_frame_of_one_type_is_not_read_as_another(
    frames: MemoryFrames, reader: SnapshotReader, opened_before: bool
) -> None:
    root = manifest(frames, {b"": PLAIN})
    if opened_before:
        await reader.nodes([root])
    disguised = Extent(root.nonce, root.frame, root.chunk, 0, root.length, root.id)

    with pytest.raises(DamagedError):
        await reader.extent(disguised)
    with pytest.raises(DamagedError):
        await reader.lists([root])


async def test_opened_frames_are_kept_up_to_a_number_of_bytes(
    frames: MemoryFrames, reader: SnapshotReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CACHE_BYTES", 250)
    one, two, three = (extents_of(frames, letter * 100)[0] for letter in (b"1", b"2", b"3"))

    for extent in (one, two, one, three, one, two, one):
        await reader.extent(extent)

    # The third displaces the second, which was used before the first.
    assert [identity.number for (identity,) in frames.asked] == [0, 1, 2, 1]
    assert reader._opened_bytes <= 250


async def test_a_frame_larger_than_what_is_kept_is_read_all_the_same(
    frames: MemoryFrames, reader: SnapshotReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CACHE_BYTES", 10)
    extent = extents_of(frames, b"1" * 100)[0]

    for _ in range(2):
        assert bytes(await reader.extent(extent)) == b"1" * 100
    assert len(frames.asked) == 1


async def test_many_nodes_are_asked_for_in_their_order(
    frames: MemoryFrames, reader: SnapshotReader
) -> None:
    put = stored(frames, ObjectType.NODE)
    pointers = [put(b"%d" % number) for number in range(150)]
    pointers += pointers[:3]

    found = await reader.nodes(pointers)

    assert [bytes(node) for node in found] == [b"%d" % n for n in [*range(150), 0, 1, 2]]
